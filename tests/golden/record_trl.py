"""records losses and gradients of TRL's own trainers, for tests/golden/test_trl.py to agree with

Run by hand, with the python of the environment that benchmarks/run.py makes, which has TRL 1.16:

    .benchmark-venv/bin/python tests/golden/record_trl.py

Writes tests/golden/trl.json: versions, the options that every trainer was given, and for each case how it differs and
what came out, in fp64 (`trl_given.precision`) and in fp32, as everybody runs TRL. A trainer is built as its users build
it, and its `compute_loss` differentiated, or for a curve set to train; only what it samples is replaced.

TRL 1.16 has no PPO, hence no values and no generalised advantages, no soft labels or margins in DPO, and no reward
models of ratings: these are held by their own laws alone. What it has and melior has not: DPO's hinge, EXO, NCA, BCO,
SPPO, AOT, APO and DiscoPOP losses, other f-divergences, WPO's and LD-DPO's weights, AlphaPO; GRPO's delta, SAPO, VESPO,
entropy and off-policy masks; a clipped or whitened RLOO; DFT.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
import transformers  # noqa: E402
import trl_given as given  # noqa: E402
import trl_trainers as trainers  # noqa: E402
from datasets import disable_progress_bars  # noqa: E402
from trl_bench import Bench, Options  # noqa: E402

PACKAGES = ("trl", "torch", "transformers", "accelerate")

TRAINERS: dict[str, tuple[Callable[..., Options], Options]] = {  # with the options that each case begins from
    "sft": (trainers.sft, trainers.SFT),
    "dpo": (trainers.dpo, trainers.DPO),
    "cpo": (trainers.cpo, trainers.CPO),
    "orpo": (trainers.orpo, trainers.ORPO),
    "kto": (trainers.kto, trainers.KTO),
    "reward": (trainers.reward, trainers.REWARD),
    "grpo": (trainers.grpo, trainers.GRPO),
    "rloo": (trainers.rloo, trainers.RLOO),
    "gkd": (trainers.gkd, trainers.GKD),
    "distillation": (trainers.distillation, trainers.DISTILLATION),
    "iw_opd": (trainers.iw_opd, trainers.IW_OPD),
    "curve": (trainers.curve, trainers.CURVE),
}
SEQUENCE: Options = {"importance_sampling_level": "sequence", "epsilon": 0.02, "epsilon_high": 0.03}
CASES: dict[str, Options] = {
    "sft/completion": {},
    "curve/sft": {},
    "curve/dpo of an adapter": {"adapter": True},
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
        found[place] = TRAINERS[kind][0](Bench(folder, dtype), **changes)
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
                print(name, *(cases[name][place]["loss"] for place in ("fp64", "fp32")), flush=True)
    if not wanted:
        told = {
            "versions": {name: version(name) for name in PACKAGES},
            "options": {name: options for name, (_, options) in TRAINERS.items()},
            "cases": cases,
        }
        (HERE / "trl.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
