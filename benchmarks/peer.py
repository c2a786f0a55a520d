"""TRL's side of the comparison: one measurement per process, one line of JSON"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import workload
from workload import Clock, Workload, check_groups, reward, tell

SFT = {  # setting → what differs from TRL's defaults
    "default": {"gradient_checkpointing": True, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1},
    "plain": {"gradient_checkpointing": False, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1},
    "sorted": {"gradient_checkpointing": False, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1},
    "packed": {
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 1,  # rows of up to 1024 tokens, about as many as 16 rows hold
        "gradient_accumulation_steps": 1,
        "packing": True,
    },
}
GRPO = {
    "default": {"gradient_checkpointing": True, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 8},
    "plain": {"gradient_checkpointing": False, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 8},
    "wide": {"gradient_checkpointing": False, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 4},
}
PREFERENCE = {  # of 8 pairs a step
    "default": {"gradient_checkpointing": True, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
    "plain": {"gradient_checkpointing": False, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
    "sorted": {"gradient_checkpointing": False, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
    "single": {"gradient_checkpointing": False, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
}


def main() -> None:
    """Runs one job under one setting."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", choices=["sft", "dpo", "reward", "dpo-short", "reward-short", "grpo"])
    parser.add_argument("setting")
    parser.add_argument("--workload", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--started", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()
    clock = Clock(args.started)
    work = Workload.read(args.workload).of(args.job)
    with tempfile.TemporaryDirectory() as folder:
        JOBS[args.job.removesuffix(workload.SHORT)](work, args.setting, args.steps, clock, folder)


def sft(work: Workload, setting: str, steps: int, clock: Clock, folder: str) -> None:
    """Supervised fine-tuning of the rows, in their order, on the very ids the other side trains."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = work.rows[: steps * workload.BATCH]
    if setting == "sorted":
        rows = replace(work, rows=rows).by_length().rows
    data = Dataset.from_list(
        [
            {
                "input_ids": row["context"] + row["decisions"],
                "labels": [-100] * len(row["context"]) + row["decisions"],
            }
            for row in rows
        ]
    )
    config = SFTConfig(
        **common(folder),
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        max_length=1024,
        completion_only_loss=True,
        loss_type="nll",
        **SFT[setting],
    )
    model, tokenizer = load(work)
    watch = watcher(clock)
    trainer = SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[watch])
    trainer.train()
    tell(
        clock,
        rows=len(rows),
        tokens=sum(len(row["context"]) + len(row["decisions"]) for row in rows),
        **watch.curves(),
        **versions(),
    )


def dpo(work: Workload, setting: str, steps: int, clock: Clock, folder: str) -> None:
    """Preferences, as documented: the base model and the adapter's settings go in, the reference is the adapter off."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    found, tokenizer = pairs(work, setting, steps), AutoTokenizer.from_pretrained(work.model)
    sides = ("chosen", "rejected")
    rows = [{"prompt": pair["inputs"], **{side: answer(pair[side]) for side in sides}} for pair in found]
    lora = LoraConfig.from_pretrained(work.adapter)
    lora.inference_mode = False  # as saved, it would stay frozen
    config = DPOConfig(
        **common(folder),
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        max_length=1024,
        loss_type=["sigmoid"],
        beta=workload.BETA,
        label_smoothing=0.0,
        precompute_ref_log_probs=False,
        **PREFERENCE[setting],
    )
    watch = watcher(clock)
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[watch],
    )
    # Rendered by the trainer, a side also decides the line break behind the template's last token: 1 id is left out.
    for pair, row in zip(found, trainer.train_dataset, strict=True):
        same = row["prompt_ids"] == pair["context"]
        assert same and all(row[f"{side}_ids"][: len(pair[f"{side}_ids"])] == pair[f"{side}_ids"] for side in sides)
    names = {"prompt_ids": "context", "chosen_ids": "chosen_ids", "rejected_ids": "rejected_ids"}
    given = [{theirs: pair[ours] for theirs, ours in names.items()} for pair in found]
    trainer.train_dataset = Dataset.from_list(given)
    start_from(trainer.model, work.adapter)
    trainer.train()
    tell(clock, rows=len(found), tokens=sum(map(workload.pair_tokens, found)), **watch.curves(), **versions())


def reward_model(work: Workload, setting: str, steps: int, clock: Clock, folder: str) -> None:
    """Rewards of sequences that are read at their last token. The padding token is one that ends no sequence."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    found, tokenizer = pairs(work, setting, steps), AutoTokenizer.from_pretrained(work.model)
    tokenizer.pad_token = "<|endoftext|>"  # by default it is <|im_end|>, and the token before the last would be read
    assert all(pair[side][-1] != tokenizer.pad_token_id for pair in found for side in ("chosen_ids", "rejected_ids"))
    rows = [{side: pair["context"] + pair[side] for side in ("chosen_ids", "rejected_ids")} for pair in found]
    config = RewardConfig(
        **common(folder),
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        max_length=1024,
        center_rewards_coefficient=None,
        **PREFERENCE[setting],
    )
    lora = LoraConfig.from_pretrained(work.adapter)
    lora.inference_mode = False  # as saved, it would stay frozen
    lora.task_type, lora.modules_to_save = "SEQ_CLS", ["score"]
    watch = watcher(clock)
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(work.model, num_labels=1, dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[watch],
    )
    head = torch.tensor([work.reward_head])
    start_from(trainer.model, work.adapter, **{"base_model.model.score.weight": head})
    assert torch.equal(trainer.model.base_model.model.score.modules_to_save["default"].weight, head)
    trainer.train()
    tell(clock, rows=len(found), tokens=sum(map(workload.pair_tokens, found)), **watch.curves(), **versions())


def pairs(work: Workload, setting: str, steps: int) -> list[dict[str, Any]]:
    """The pairs of so many steps, in their order or from long to short."""
    found = work.pairs[: steps * workload.PAIRS]
    return sorted(found, key=lambda pair: -workload.pair_tokens(pair)) if setting == "sorted" else found


def answer(text: str) -> list[dict[str, str]]:
    """A side as messages."""
    return [{"role": "assistant", "content": text}]


def start_from(model: Any, adapter: str, **others: Any) -> None:
    """Puts the shared adapter's weights, and others, into the adapter that the trainer made."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    found = set_peft_model_state_dict(model, {**load_file(f"{adapter}/adapter_model.safetensors"), **others})
    lacking = [name for name in found.missing_keys if "lora_" in name]
    assert not lacking and not found.unexpected_keys, f"the adapter does not fit: {lacking}, {found.unexpected_keys}"


def grpo(work: Workload, setting: str, steps: int, clock: Clock, folder: str) -> None:
    """Reinforcement from the same prompts, rewards and number of tokens."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    drawn: list[dict[str, Any]] = []

    def hashed(prompts: list[Any], completions: list[Any], completion_ids: list[Any], **columns: Any) -> list[float]:
        assert all(len(ids) == workload.COMPLETION for ids in completion_ids), "a completion ended early"
        rewards = [reward(ids) for ids in completion_ids]
        check_groups(rewards)
        places = columns["place"]
        drawn.extend(
            {"prompt": place, "ids": list(ids), "reward": value}
            for place, ids, value in zip(places, completion_ids, rewards, strict=True)
        )
        return rewards

    model, tokenizer = load(work)
    messages = [[{"role": "user", "content": prompt["inputs"]}] for prompt in work.prompts]
    for message, prompt in zip(messages, work.prompts, strict=True):
        ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert list(ids) == prompt["context"], "both sides must read the same prompt"
    config = GRPOConfig(
        **common(folder),
        max_steps=steps,
        num_generations=workload.GROUP,
        max_completion_length=workload.COMPLETION,
        generation_kwargs={"min_new_tokens": workload.COMPLETION},
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        repetition_penalty=1.0,
        use_vllm=False,
        num_iterations=1,
        beta=0.0,
        epsilon=workload.CLIP,
        scale_rewards="group",
        loss_type="dapo",
        mask_truncated_completions=False,
        shuffle_dataset=False,
        **GRPO[setting],
    )
    data = Dataset.from_list([{"prompt": message, "place": place} for place, message in enumerate(messages)])
    watch = watcher(clock)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=hashed,
        args=config,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[watch],
    )
    trainer.train()
    size = len(work.prompts) * workload.GROUP
    assert len(drawn) == steps * size, f"{len(drawn)} completions were drawn in {steps} steps of {size}"
    tell(clock, rows=size, drawn=drawn[:size], **watch.curves(), **versions())


def common(folder: str) -> dict[str, Any]:
    """Options of both trainers, written out: fp32 on the CPU, plain AdamW at a constant rate, nothing saved."""
    return {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": False,
        "fp16": False,
        "optim": "adamw_torch",
        "learning_rate": workload.LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "adam_beta1": workload.BETAS[0],
        "adam_beta2": workload.BETAS[1],
        "adam_epsilon": workload.EPSILON,
        "max_grad_norm": workload.CLIP_NORM,
        "logging_steps": 1,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "dataloader_num_workers": 0,
        "seed": workload.SEED,
    }


def load(work: Workload) -> tuple[Any, Any]:
    """Base model in fp32 with the shared adapter, and its tokenizer."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    return PeftModel.from_pretrained(base, work.adapter, is_trainable=True), AutoTokenizer.from_pretrained(work.model)


def watcher(clock: Clock) -> Any:
    """A callback that times steps and keeps losses and gradient norms."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def __init__(self) -> None:
            self.losses: list[float] = []
            self.norms: list[float] = []

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

        def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
            if "loss" in logs:
                self.losses.append(float(logs["loss"]))
                self.norms.append(float(logs["grad_norm"]))

        def curves(self) -> dict[str, list[float]]:
            return {"losses": self.losses, "grad_norms": self.norms}

    return Watch()


def versions() -> dict[str, Any]:
    """Of the packages that do the work."""
    return {"versions": {name: version(name) for name in ("trl", "torch", "transformers", "peft")}}


JOBS = {"sft": sft, "dpo": dpo, "reward": reward_model, "grpo": grpo}

if __name__ == "__main__":
    main()
