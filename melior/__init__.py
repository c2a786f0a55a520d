"""makes models better from feedback"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from melior.types import Demonstration, Preference, Rated, Record, Sampling, Score, Task

if TYPE_CHECKING:
    from melior.data.formats import read_examples
    from melior.data.splits import split
    from melior.evaluation.compare import compare
    from melior.evaluation.evaluate import evaluate
    from melior.evaluation.gates import Gate, decide
    from melior.policies.adapters import LoRA
    from melior.policies.language import LanguagePolicy
    from melior.rewards.workers import GraderPool
    from melior.trainers.loop import FitConfig, Run, fit
    from melior.trainers.reinforcement import Rollouts, reinforcement
    from melior.trainers.supervised import Examples, HeldoutLoss, supervised

# Imported on first use: a grader's worker process starts with `import melior` and must not pay for torch.
_HOMES = {
    "Examples": "melior.trainers.supervised",
    "FitConfig": "melior.trainers.loop",
    "Gate": "melior.evaluation.gates",
    "GraderPool": "melior.rewards.workers",
    "HeldoutLoss": "melior.trainers.supervised",
    "LanguagePolicy": "melior.policies.language",
    "LoRA": "melior.policies.adapters",
    "Rollouts": "melior.trainers.reinforcement",
    "Run": "melior.trainers.loop",
    "compare": "melior.evaluation.compare",
    "decide": "melior.evaluation.gates",
    "evaluate": "melior.evaluation.evaluate",
    "fit": "melior.trainers.loop",
    "read_examples": "melior.data.formats",
    "reinforcement": "melior.trainers.reinforcement",
    "split": "melior.data.splits",
    "supervised": "melior.trainers.supervised",
}

__all__ = [
    "Demonstration",
    "Examples",
    "FitConfig",
    "Gate",
    "GraderPool",
    "HeldoutLoss",
    "LanguagePolicy",
    "LoRA",
    "Preference",
    "Rated",
    "Record",
    "Rollouts",
    "Run",
    "Sampling",
    "Score",
    "Task",
    "compare",
    "decide",
    "evaluate",
    "fit",
    "read_examples",
    "reinforcement",
    "split",
    "supervised",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'melior' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
