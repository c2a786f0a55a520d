"""one function per trainer of TRL: builds it with every option said, and differentiates its loss of what is given"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import trl_given as given
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaForSequenceClassification
from trl import (
    DistillationConfig,
    DistillationTrainer,
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl.experimental.iw_opd import IWOPDConfig, IWOPDTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl_bench import Bench, Options, backwards_too, mask, padded, training

TEXTS = {"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e", "f"]}  # where a trainer must have a dataset
CHAT = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]] * 2

SFT: Options = {"loss_type": "nll", "completion_only_loss": True, "packing": False, "padding_free": False}
DPO: Options = {
    "beta": 0.3, "loss_type": ["sigmoid"], "loss_weights": None, "label_smoothing": 0.0, "ld_alpha": None,
    "f_divergence_type": "reverse_kl", "use_weighting": False, "precompute_ref_log_probs": False,
}  # fmt: skip
KTO: Options = {
    "beta": 0.3, "loss_type": "kto", "desirable_weight": 1.0, "undesirable_weight": 1.0,
    "precompute_ref_log_probs": False,
}  # fmt: skip
CPO: Options = {
    "beta": 0.5, "loss_type": "sigmoid", "label_smoothing": 0.0, "cpo_alpha": 0.0, "simpo_gamma": 0.5, "alpha": 0.0,
}  # fmt: skip
ORPO: Options = {"beta": 0.3}
REWARD: Options = {"center_rewards_coefficient": None}
# Two iterations: TRL then computes the old log-probs when it samples, as it does wherever samples are used twice.
GRPO: Options = {
    "loss_type": "grpo", "beta": 0.0, "epsilon": 0.2, "epsilon_high": 0.28, "delta": None, "num_iterations": 2,
    "importance_sampling_level": "token", "scale_rewards": "group", "reward_weights": None,
    "multi_objective_aggregation": "sum_then_normalize", "mask_truncated_completions": False,
    "top_entropy_quantile": 1.0, "entropy_coef": 0.0, "use_adaptive_entropy": False, "use_bias_correction_kl": False,
    "off_policy_mask_threshold": None, "vllm_importance_sampling_correction": True, "temperature": 1.0,
    "vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_min": None,
    "vllm_importance_sampling_clip_max": 1.3,
}  # fmt: skip
RLOO: Options = {
    "beta": 0.0, "epsilon": 0.2, "epsilon_high": 0.28, "num_iterations": 1, "reward_weights": None,
    "normalize_advantages": False, "reward_clip_range": None, "mask_truncated_completions": False, "temperature": 1.0,
}  # fmt: skip
GKD: Options = {"beta": 0.0, "temperature": 1.0, "lmbda": 0.0, "seq_kd": False}
DISTILLATION: Options = {"beta": 1.0, "temperature": 1.0}
CURVE: Options = {
    "max_steps": 5, "learning_rate": 0.01, "lr_scheduler_type": "cosine", "warmup_steps": 0, "optim": "adamw_torch",
    "adam_beta1": 0.9, "adam_beta2": 0.99, "adam_epsilon": 1e-8, "weight_decay": 0.1, "max_grad_norm": 0.5,
}  # fmt: skip
IW_OPD: Options = {
    "distillation_objective": "iw_opd", "iw_opd_gamma": 0.0, "iw_opd_epsilon": 1e-8, "temperature": 1.0, "beta": 1.0,
    "loss_top_k": 1, "loss_add_tail": True, "reverse_kl_top_1_mode": "sampled",
}  # fmt: skip


# ---------------------------------------------------------------------- imitation and preferences


def sft(bench: Bench, **options: Any) -> Options:
    trainer = sft_trainer(bench, **options)
    return bench.measured(trainer, trainer.data_collator(list(trainer.train_dataset)))


def sft_trainer(bench: Bench, **options: Any) -> SFTTrainer:
    rows = [(*prompt, *chosen) for prompt, chosen, _ in given.PAIRS]
    labels = [[-100] * len(prompt) + list(chosen) for prompt, chosen, _ in given.PAIRS]
    data = Dataset.from_dict({"input_ids": [list(row) for row in rows], "labels": labels})
    args = SFTConfig(**bench.arguments(**{**SFT, **options}))
    return SFTTrainer(bench.model("policy"), args, train_dataset=data, processing_class=bench.tokenizer)


def dpo(bench: Bench, **options: Any) -> Options:
    trainer = dpo_trainer(bench, bench.model("reference"), None, **options)
    return bench.measured(trainer, trainer.data_collator(list(trainer.train_dataset)))


def dpo_trainer(bench: Bench, reference: Any, adapter: LoraConfig | None, **options: Any) -> DPOTrainer:
    trainer = DPOTrainer(
        bench.model("policy"),
        reference,
        DPOConfig(**bench.arguments(**{**DPO, **options})),
        train_dataset=Dataset.from_dict(TEXTS),
        processing_class=bench.tokenizer,
        peft_config=adapter,
    )
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [dict(zip(names, map(list, pair), strict=True)) for pair in given.PAIRS]
    trainer.train_dataset = Dataset.from_list(rows)
    return trainer


def kto(bench: Bench, *, exchanged: bool = False, **options: Any) -> Options:
    """With policy and reference exchanged the estimate of their divergence is above 0, where it begins to count."""
    args = KTOConfig(**bench.arguments(**{**KTO, **options}))
    data = Dataset.from_dict({"prompt": ["a", "b"], "completion": ["c", "d"], "label": [True, False]})
    names = ("reference", "policy") if exchanged else ("policy", "reference")
    trainer = KTOTrainer(
        *map(bench.model, names),
        args=args,
        train_dataset=data,
        processing_class=bench.tokenizer,
    )
    rows = [
        {"prompt_ids": [*prompt], "completion_ids": [*output], "KL_completion_ids": [*other], "label": good}
        for (prompt, output, good), (_, other) in zip(given.JUDGED, given.MISMATCHED, strict=True)
    ]
    found = bench.measured(trainer, trainer.data_collator(rows))
    return {**found, "reference_point": trainer._metrics["train"]["kl"][-1]}


def cpo(bench: Bench, **options: Any) -> Options:
    args = CPOConfig(**bench.arguments(**{**CPO, **options}))
    data = Dataset.from_dict(TEXTS)
    trainer = CPOTrainer(bench.model("policy"), args, train_dataset=data, processing_class=bench.tokenizer)
    return bench.measured(trainer, _sides())


def orpo(bench: Bench, **options: Any) -> Options:
    args = ORPOConfig(**bench.arguments(**{**ORPO, **options}))
    data = Dataset.from_dict(TEXTS)
    trainer = ORPOTrainer(bench.model("policy"), args, train_dataset=data, processing_class=bench.tokenizer)
    return bench.measured(trainer, _sides())


def _sides() -> dict[str, torch.Tensor]:
    """A batch as the collator of CPO and ORPO makes it."""
    found = {}
    for place, side in enumerate(("chosen", "rejected"), start=1):
        rows = [(*pair[0], *pair[place]) for pair in given.PAIRS]
        found[f"{side}_input_ids"], found[f"{side}_attention_mask"] = padded(rows, given.PAD), mask(rows)
        labels = [[-100] * len(pair[0]) + list(pair[place]) for pair in given.PAIRS]
        found[f"{side}_labels"] = padded(labels, -100)
    return found


def reward(bench: Bench, *, margins: bool = False, pad: int = given.PAD, **options: Any) -> Options:
    """`pad` is the padding token; STOP is what most chat models have, whose end and padding are one token."""
    rows = [{"chosen_ids": [*p, *c], "rejected_ids": [*p, *r]} for p, c, r in given.PAIRS]
    if margins:
        rows = [{**row, "margin": margin} for row, margin in zip(rows, given.MARGINS, strict=True)]
    bench.tokenizer.pad_token = bench.tokenizer.convert_ids_to_tokens(pad)
    args = RewardConfig(**bench.arguments(**{**REWARD, **options}))
    whole = bench.model("policy")
    scorer = LlamaForSequenceClassification(whole.config).to(bench.dtype)
    scorer.config.num_labels, scorer.config.pad_token_id = 1, pad
    scorer.model.load_state_dict(whole.model.state_dict())
    scorer.score = torch.nn.Linear(given.TINY["hidden_size"], 1, bias=False, dtype=bench.dtype)
    scorer.score.weight.data.copy_(given.SCORE)
    trainer = RewardTrainer(scorer, args, train_dataset=Dataset.from_list(rows), processing_class=bench.tokenizer)
    return bench.measured(trainer, trainer.data_collator(rows))


# ---------------------------------------------------------------------- rewards


def graded(rewards: Sequence[float | None]) -> Callable[..., list[float | None]]:
    def grade(completion_ids: Sequence[Any], **_: Any) -> list[float | None]:
        assert [tuple(ids) for ids in completion_ids] == given.OUTPUTS
        return list(rewards)

    return grade


def grpo(
    bench: Bench, *, on_policy: bool = False, sampler: bool = False, ungraded: bool = False, **options: Any
) -> Options:
    """Sampled and graded by the old policy, differentiated by the new one; `sampler` corrects for another sampler."""
    old = bench.model("policy" if on_policy else "old")
    old.config._name_or_path = bench.saved("reference")  # whence TRL takes the reference
    noise = given.sampler_noise() if sampler else [[0.0] * len(ids) for ids in given.OUTPUTS]

    def sampled(prompts: Sequence[str], trainer: Any) -> Options:
        chances = [
            [chance + off for chance, off in zip(row, wrong, strict=True)]
            for row, wrong in zip(_log_probs(old), noise, strict=True)
        ]
        prompt_ids = [[*given.owner(row)] for row in range(len(given.OUTPUTS))]
        return {"prompt_ids": prompt_ids, "completion_ids": [[*ids] for ids in given.OUTPUTS], "logprobs": chances}

    rows = len(given.OUTPUTS)
    shape = {"num_generations": given.GROUP, "max_completion_length": given.LONGEST, "steps_per_generation": 1}
    settings = bench.arguments(**{**GRPO, **shape, **options, "per_device_train_batch_size": rows})
    trainer = GRPOTrainer(
        old,
        graded(given.UNGRADED if ungraded else given.REWARDS),
        GRPOConfig(**settings, use_vllm=False),
        train_dataset=Dataset.from_dict({"prompt": ["a"] * rows}),
        processing_class=bench.tokenizer,
        rollout_func=sampled,
    )
    if trainer.ref_model is not None:
        trainer.ref_model.to(bench.dtype)
    # vLLM itself is not asked: what it would say is in the rollouts. Its log-probs are read only where this is set.
    trainer.use_vllm, trainer._last_loaded_step = sampler, trainer.state.global_step
    return _stepped(bench, trainer)


class GivenRLOO(RLOOTrainer):
    """RLOO whose outputs are given."""

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, Options]:
        return [[*given.owner(row)] for row in range(len(prompts))], None, {}

    def _generate_single_turn(self, *_: Any) -> list[list[int]]:
        return [[*ids] for ids in given.OUTPUTS]


def rloo(bench: Bench, *, on_policy: bool = True, ungraded: bool = False, **options: Any) -> Options:
    old = bench.model("policy" if on_policy else "old")
    old.config._name_or_path = bench.saved("reference")
    rows = len(given.OUTPUTS)
    shape = {"num_generations": given.GROUP, "max_completion_length": given.LONGEST, "steps_per_generation": 1}
    settings = bench.arguments(**{**RLOO, **shape, **options, "per_device_train_batch_size": rows})
    trainer = GivenRLOO(
        old,
        graded(given.UNGRADED if ungraded else given.REWARDS),
        RLOOConfig(**settings, use_vllm=False),
        train_dataset=Dataset.from_dict({"prompt": ["a"] * rows}),
        processing_class=bench.tokenizer,
    )
    if trainer.ref_model is not None:
        trainer.ref_model.to(bench.dtype)
    return _stepped(bench, trainer)


def _stepped(bench: Bench, trainer: Any) -> Options:
    """Scores with the old weights, then the step of the new ones."""
    training(trainer)
    with given.precision(bench.dtype):
        inputs = trainer._generate_and_score_completions([{"prompt": "a"} for _ in given.OUTPUTS])
    trainer.model.load_state_dict(bench.model("policy").state_dict())
    found = bench.measured(trainer, inputs)
    return {**found, "advantages": inputs["advantages"].tolist()}


@torch.no_grad()
def _log_probs(model: Any) -> list[list[float]]:
    """Log-probs of the given outputs, without padding."""
    found = []
    for row, ids in enumerate(given.OUTPUTS):
        logits = model(input_ids=torch.tensor([[*given.owner(row), *ids]])).logits[0, -len(ids) - 1 : -1]
        found.append(torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[:, None])[:, 0].tolist())
    return found


# ---------------------------------------------------------------------- distillation


def gkd(bench: Bench, **options: Any) -> Options:
    args = GKDConfig(**bench.arguments(**{**GKD, **options}))
    trainer = GKDTrainer(
        bench.model("policy"),
        bench.model("teacher"),
        args,
        train_dataset=Dataset.from_dict({"messages": CHAT}),
        processing_class=bench.tokenizer,
    )
    rows = [(*prompt, *chosen) for prompt, chosen, _ in given.PAIRS]
    labels = [[-100] * len(prompt) + list(chosen) for prompt, chosen, _ in given.PAIRS]
    inputs = {"input_ids": padded(rows, given.PAD), "attention_mask": mask(rows), "labels": padded(labels, -100)}
    return bench.measured(trainer, inputs)


def distillation(bench: Bench, **options: Any) -> Options:
    args = DistillationConfig(**bench.arguments(**{**DISTILLATION, "max_completion_length": given.LONGEST, **options}))
    trainer = DistillationTrainer(
        bench.model("policy"),
        bench.model("teacher"),
        args,
        train_dataset=Dataset.from_dict({"prompt": ["a", "b"]}),
        processing_class=bench.tokenizer,
    )
    prompts, outputs = [pair[0] for pair in given.PAIRS], [pair[1] for pair in given.PAIRS]
    inputs = {
        "prompt_ids": padded(prompts, given.PAD, left=True),
        "prompt_mask": mask(prompts, left=True),
        "completion_ids": padded(outputs, given.PAD),
        "completion_mask": mask(outputs),
    }
    return bench.measured(trainer, inputs)


def iw_opd(bench: Bench, **options: Any) -> Options:
    """The loss at sampled tokens, or the divergence on the teacher's likeliest tokens and the rest of all others."""
    args = IWOPDConfig(**bench.arguments(**{**IW_OPD, **options}))
    taught_by = bench.model("teacher")
    taught_by.config._name_or_path = bench.saved("teacher")  # whence TRL takes its tokenizer
    trainer = IWOPDTrainer(
        bench.model("policy"),
        taught_by,
        args,
        train_dataset=Dataset.from_dict({"messages": CHAT}),
        processing_class=bench.tokenizer,
    )
    rows = [(*prompt, *chosen) for prompt, chosen, _ in given.PAIRS]
    ids, there = padded(rows, given.PAD), mask(rows)
    labels = padded([[-100] * len(prompt) + list(chosen) for prompt, chosen, _ in given.PAIRS], -100)[:, 1:]
    tokens = ids[:, 1:]

    def loss() -> torch.Tensor:
        student = training(trainer)(input_ids=ids, attention_mask=there).logits[:, :-1]
        with torch.no_grad():
            teacher = trainer.teacher_model(input_ids=ids, attention_mask=there).logits[:, :-1]
        if args.distillation_objective == "jsd":
            how = {"beta": args.beta, "temperature": args.temperature}
            how |= {"top_k": args.loss_top_k, "add_tail": args.loss_add_tail}
            return trainer.generalized_jsd_loss(student, teacher, labels, **how)
        told = torch.log_softmax(teacher, -1).gather(-1, tokens[..., None])[..., 0]
        return trainer._compute_iw_opd_loss(student, tokens, labels, told)

    return bench.differentiated(trainer, loss)


# ---------------------------------------------------------------------- a few steps of training


def curve(bench: Bench, *, adapter: bool = False, **options: Any) -> Options:
    """Steps on all pairs at once: of the whole model by SFT, or of an adapter by DPO, whose reference has it off."""
    settings = {**CURVE, "per_device_train_batch_size": len(given.PAIRS), "logging_steps": 1, "save_strategy": "no"}
    if adapter:
        shape = {"target_modules": "all-linear", "lora_dropout": 0.0, "bias": "none", "task_type": "CAUSAL_LM"}
        trainer: Any = dpo_trainer(bench, None, LoraConfig(**given.LORA, **shape), **settings, **options)
    else:
        trainer = sft_trainer(bench, **settings, **options)
    learnt = {name: each for name, each in trainer.model.named_parameters() if each.requires_grad}
    if adapter:
        given.fill_adapter(learnt)
    losses, own = [], trainer.compute_loss

    def watched(*args: Any, **how: Any) -> torch.Tensor:
        losses.append(own(*args, **how))
        return losses[-1]

    trainer.compute_loss = watched  # logs round losses to four digits
    with given.precision(bench.dtype), backwards_too(bench.dtype):
        trainer.train()
    norms = [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]
    found = {"loss": [float(loss.detach()) for loss in losses], "norm": norms}
    return {**found, "weights": given.weights(learnt)} if bench.dtype == torch.float64 else found
