"""records losses and gradients of TRL's own trainers, for tests/golden/test_trl.py to agree with

Run by hand, with the python of the environment that benchmarks/run.py makes, which has TRL 1.16:

    .benchmark-venv/bin/python tests/golden/record_trl.py

Writes tests/golden/trl.json: versions, the options that every trainer was given, and for each case how it differs and
what came out, in fp64 (`trl_given.precision`) and in fp32, as everybody runs TRL. A trainer is built as its users build
it, and its `compute_loss` differentiated; only what it samples is replaced by the outputs of trl_given.

TRL 1.16 has no PPO, hence no values and no generalised advantages, no soft labels or margins in DPO, and no reward
models of ratings: these are held by their own laws alone. What it has and melior has not: DPO's hinge, EXO, NCA, BCO,
SPPO, AOT, APO and DiscoPOP losses, other f-divergences, WPO's and LD-DPO's weights, AlphaPO; GRPO's delta, SAPO, VESPO,
entropy and off-policy masks; a clipped or whitened RLOO; DFT.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
import transformers  # noqa: E402
import trl_given as given  # noqa: E402
from datasets import Dataset, disable_progress_bars  # noqa: E402
from tiny import tiny_tokenizer  # noqa: E402
from transformers import LlamaForSequenceClassification  # noqa: E402
from trl import (  # noqa: E402
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
from trl.experimental.cpo import CPOConfig, CPOTrainer  # noqa: E402
from trl.experimental.gkd import GKDConfig, GKDTrainer  # noqa: E402
from trl.experimental.iw_opd import IWOPDConfig, IWOPDTrainer  # noqa: E402
from trl.experimental.orpo import ORPOConfig, ORPOTrainer  # noqa: E402
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction  # noqa: E402
from trl.trainer.utils import _ChunkedLogProbFunction  # noqa: E402

Options = dict[str, Any]
PACKAGES = ("trl", "torch", "transformers", "accelerate")
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
IW_OPD: Options = {
    "distillation_objective": "iw_opd", "iw_opd_gamma": 0.0, "iw_opd_epsilon": 1e-8, "temperature": 1.0, "beta": 1.0,
    "loss_top_k": 1, "loss_add_tail": True, "reverse_kl_top_1_mode": "sampled",
}  # fmt: skip


# ---------------------------------------------------------------------- what every trainer shares


class Bench:
    """Models, a tokenizer and folders, in one precision."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.folder, self.dtype, self.tokenizer = folder, dtype, tiny_tokenizer(None)
        self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(given.PAD)

    def model(self, name: str) -> Any:
        found = given.model(name).to(self.dtype)
        found.generation_config.pad_token_id = given.PAD
        return found

    def saved(self, name: str) -> str:
        """A folder that TRL can load the model from."""
        path = self.folder / name
        if not path.exists():
            given.model(name).save_pretrained(str(path))
            self.tokenizer.save_pretrained(str(path))
        return str(path)

    def arguments(self, **options: Any) -> Options:
        """What else must be said, since defaults move."""
        return {
            "output_dir": str(self.folder / "out"), "use_cpu": True, "bf16": False, "fp16": False, "report_to": "none",
            "gradient_checkpointing": False, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 8,
            "seed": 0, "disable_tqdm": True, **options,
        }  # fmt: skip

    def measured(self, trainer: Any, inputs: Any) -> Options:
        """Loss and gradient of one batch, as the training step has them."""
        return self.differentiated(trainer, lambda: trainer.compute_loss(_training(trainer), inputs))

    def differentiated(self, trainer: Any, loss_of: Callable[[], torch.Tensor]) -> Options:
        trainer.model.zero_grad()
        with given.precision(self.dtype), backwards_too(self.dtype):
            loss = loss_of()
            loss.backward()
        found = {"loss": float(loss.detach()), **given.gradient(dict(trainer.model.named_parameters()))}
        return found if self.dtype == torch.float64 else {name: found[name] for name in ("loss", "norm")}


@contextmanager
def backwards_too(dtype: torch.dtype) -> Iterator[None]:
    """Raises what TRL's own kernels do backwards, which torch runs outside the mode."""
    kernels = (_ChunkedLogProbFunction, ChunkedDivergenceFunction) if dtype == torch.float64 else ()
    own = [kernel.backward for kernel in kernels]
    for kernel in kernels:
        kernel.backward = staticmethod(raised(kernel.backward))
    try:
        yield
    finally:
        for kernel, backward in zip(kernels, own, strict=True):
            kernel.backward = staticmethod(backward)


def raised(backward: Callable[..., Any]) -> Callable[..., Any]:
    def within(*given_back: Any) -> Any:
        with given.Doubled():
            return backward(*given_back)

    return within


def _training(trainer: Any) -> Any:
    """The model, ready for one step of one micro-batch."""
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer.model


def _padded(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> torch.Tensor:
    width = max(map(len, rows))
    blank = [[value] * (width - len(row)) for row in rows]
    return torch.tensor([[*pad, *row] if left else [*row, *pad] for row, pad in zip(rows, blank, strict=True)])


def _mask(rows: Sequence[Sequence[int]], *, left: bool = False) -> torch.Tensor:
    return _padded([[1] * len(row) for row in rows], 0, left=left)


# ---------------------------------------------------------------------- imitation and preferences


def sft(bench: Bench, **options: Any) -> Options:
    rows = [(*prompt, *chosen) for prompt, chosen, _ in given.PAIRS]
    labels = [[-100] * len(prompt) + list(chosen) for prompt, chosen, _ in given.PAIRS]
    data = Dataset.from_dict({"input_ids": [list(row) for row in rows], "labels": labels})
    args = SFTConfig(**bench.arguments(**{**SFT, **options}))
    trainer = SFTTrainer(bench.model("policy"), args, train_dataset=data, processing_class=bench.tokenizer)
    return bench.measured(trainer, trainer.data_collator(list(data)))


def dpo(bench: Bench, **options: Any) -> Options:
    args = DPOConfig(**bench.arguments(**{**DPO, **options}))
    trainer = DPOTrainer(
        bench.model("policy"),
        bench.model("reference"),
        args,
        train_dataset=Dataset.from_dict(TEXTS),
        processing_class=bench.tokenizer,
    )
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [dict(zip(names, map(list, pair), strict=True)) for pair in given.PAIRS]
    return bench.measured(trainer, trainer.data_collator(rows))


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
        found[f"{side}_input_ids"], found[f"{side}_attention_mask"] = _padded(rows, given.PAD), _mask(rows)
        labels = [[-100] * len(pair[0]) + list(pair[place]) for pair in given.PAIRS]
        found[f"{side}_labels"] = _padded(labels, -100)
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
    _training(trainer)
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
    inputs = {"input_ids": _padded(rows, given.PAD), "attention_mask": _mask(rows), "labels": _padded(labels, -100)}
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
        "prompt_ids": _padded(prompts, given.PAD, left=True),
        "prompt_mask": _mask(prompts, left=True),
        "completion_ids": _padded(outputs, given.PAD),
        "completion_mask": _mask(outputs),
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
    ids, mask = _padded(rows, given.PAD), _mask(rows)
    labels = _padded([[-100] * len(prompt) + list(chosen) for prompt, chosen, _ in given.PAIRS], -100)[:, 1:]
    tokens = ids[:, 1:]

    def loss() -> torch.Tensor:
        student = _training(trainer)(input_ids=ids, attention_mask=mask).logits[:, :-1]
        with torch.no_grad():
            teacher = trainer.teacher_model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        if args.distillation_objective == "jsd":
            how = {"beta": args.beta, "temperature": args.temperature}
            how |= {"top_k": args.loss_top_k, "add_tail": args.loss_add_tail}
            return trainer.generalized_jsd_loss(student, teacher, labels, **how)
        told = torch.log_softmax(teacher, -1).gather(-1, tokens[..., None])[..., 0]
        return trainer._compute_iw_opd_loss(student, tokens, labels, told)

    return bench.differentiated(trainer, loss)


# ---------------------------------------------------------------------- cases

TRAINERS: dict[str, Callable[..., Options]] = {
    "sft": sft, "dpo": dpo, "kto": kto, "cpo": cpo, "orpo": orpo, "reward": reward, "grpo": grpo, "rloo": rloo,
    "gkd": gkd, "distillation": distillation, "iw_opd": iw_opd,
}  # fmt: skip
DEFAULTS: dict[str, Options] = {
    "sft": SFT, "dpo": DPO, "kto": KTO, "cpo": CPO, "orpo": ORPO, "reward": REWARD, "grpo": GRPO, "rloo": RLOO,
    "gkd": GKD, "distillation": DISTILLATION, "iw_opd": IW_OPD,
}  # fmt: skip
SEQUENCE: Options = {"importance_sampling_level": "sequence", "epsilon": 0.02, "epsilon_high": 0.03}
CASES: dict[str, Options] = {
    "sft/completion": {},
    "dpo/sigmoid": {},
    "dpo/robust": {"loss_type": ["robust"], "label_smoothing": 0.1},
    "dpo/ipo": {"loss_type": ["ipo"]},
    "dpo/sigmoid_norm": {"loss_type": ["sigmoid_norm"], "beta": 5.0},
    "dpo/sigmoid and sft": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.4]},
    "cpo/sigmoid": {"cpo_alpha": 0.4},
    "cpo/sigmoid smoothed": {"label_smoothing": 0.1},
    "cpo/ipo": {"loss_type": "ipo", "cpo_alpha": 0.4},
    "cpo/simpo": {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0},
    "cpo/simpo smoothed": {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "label_smoothing": 0.1},
    "orpo/orpo": {},
    "kto/equal": {},
    "kto/weighted": {"desirable_weight": 1.0, "undesirable_weight": 4 / 3, "beta": 0.1},
    "kto/exchanged": {"exchanged": True},
    "reward/plain": {},
    "reward/margin": {"margins": True},
    "reward/centred": {"center_rewards_coefficient": 0.01},
    "reward/padded with the stop token": {"pad": given.STOP},
    "grpo/grpo": {},
    "grpo/grpo on policy": {"on_policy": True},
    "grpo/bnpo": {"loss_type": "bnpo"},
    "grpo/dapo": {"loss_type": "dapo"},
    "grpo/dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "grpo/cispo": {"loss_type": "cispo", "epsilon_high": 1.1},
    "grpo/gspo": SEQUENCE,
    "grpo/luspo": {**SEQUENCE, "loss_type": "luspo"},
    "grpo/scaled by the batch": {"scale_rewards": "batch"},
    "grpo/unscaled": {"scale_rewards": "none"},
    "grpo/at a temperature": {"temperature": 0.7},
    "grpo/k3": {"beta": 0.2},
    "grpo/entropy": {"loss_type": "dapo", "entropy_coef": 0.05},
    "grpo/one ungraded": {"loss_type": "dapo", "ungraded": True},
    "grpo/cut ones left out": {"loss_type": "dapo", "mask_truncated_completions": True},
    "grpo/sampler, token truncated": {"sampler": True},
    "grpo/sampler, token dropped": {
        "sampler": True, "vllm_importance_sampling_mode": "token_mask", "vllm_importance_sampling_clip_min": 1 / 1.3,
    },
    "grpo/sampler, sequence truncated": {"sampler": True, "vllm_importance_sampling_mode": "sequence_truncate"},
    "grpo/sampler, sequence dropped": {
        "sampler": True, "vllm_importance_sampling_mode": "sequence_mask",
        "vllm_importance_sampling_clip_min": 1 / 1.3,
    },
    "rloo/rloo": {},
    "rloo/k1 in the reward": {"beta": 0.2},
    "rloo/one ungraded": {"ungraded": True},
    "gkd/forward": {},
    "gkd/between": {"beta": 0.3},
    "gkd/reverse": {"beta": 1.0},
    "distillation/forward": {"beta": 0.0, "temperature": 2.0},
    "distillation/between": {"beta": 0.3, "temperature": 2.0},
    "distillation/reverse": {},
    "iw_opd/sampled": {},
    "iw_opd/eight likeliest": {"distillation_objective": "jsd", "beta": 0.0, "loss_top_k": 8},
}  # fmt: skip


def recorded(name: str, folder: Path) -> Options:
    """One case in both precisions."""
    kind, changes = name.partition("/")[0], CASES[name]
    found: Options = {"changes": changes}
    for place, dtype in (("fp64", torch.float64), ("fp32", torch.float32)):
        found[place] = TRAINERS[kind](Bench(folder, dtype), **changes)
    return found


def main() -> None:
    transformers.utils.logging.set_verbosity_error()
    disable_progress_bars()
    torch.set_num_threads(1)
    wanted = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        cases = {}
        for name in CASES:
            if not wanted or any(name.startswith(each) for each in wanted):
                cases[name] = recorded(name, Path(folder))
                print(name, cases[name]["fp64"]["loss"], cases[name]["fp32"]["loss"], flush=True)
    if not wanted:
        told = {"versions": {name: version(name) for name in PACKAGES}, "options": DEFAULTS, "cases": cases}
        (HERE / "trl.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
