"""TRL's side of the comparison: one measurement per process, one line of JSON"""

from __future__ import annotations

import argparse
import tempfile
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


def main() -> None:
    """Runs one job under one setting."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", choices=["sft", "grpo"])
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
    work = Workload.read(args.workload)
    with tempfile.TemporaryDirectory() as folder:
        (sft if args.job == "sft" else grpo)(work, args.setting, args.steps, clock, folder)


def sft(work: Workload, setting: str, steps: int, clock: Clock, folder: str) -> None:
    """Supervised fine-tuning of the rows, in their order, on the very ids the other side trains."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = work.rows[: steps * workload.BATCH]
    if setting == "sorted":
        rows = Workload(work.model, work.adapter, rows, work.prompts).by_length().rows
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


if __name__ == "__main__":
    main()
