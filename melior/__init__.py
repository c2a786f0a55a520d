"""makes models better from feedback"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from melior.types import (
    Demonstration,
    Image,
    Interaction,
    Item,
    Preference,
    Rated,
    Record,
    Sampling,
    Score,
    SlateRequest,
    Task,
)

if TYPE_CHECKING:
    from melior.data.formats import read_examples
    from melior.data.splits import split
    from melior.evaluation.classification import classification
    from melior.evaluation.compare import compare
    from melior.evaluation.evaluate import evaluate
    from melior.evaluation.gates import Gate, decide
    from melior.evaluation.logged import evaluate_logged
    from melior.evaluation.reward_model import reward_report
    from melior.policies.adapters import LoRA
    from melior.policies.classifier import Classifier, ClassifierPolicy
    from melior.policies.kinds import load_policy
    from melior.policies.language import LanguagePolicy
    from melior.policies.reward_ensemble import RewardEnsemble
    from melior.policies.reward_model import Reward, RewardModel
    from melior.policies.slate import Slate, SlatePolicy
    from melior.rewards.workers import GraderPool
    from melior.trainers.logged import Logged, OffPolicy
    from melior.trainers.loop import FitConfig, Run, fit
    from melior.trainers.preference import Pairs, dpo
    from melior.trainers.ratings import advantage_weighted
    from melior.trainers.reinforcement import Rollouts, reinforcement
    from melior.trainers.reward_model import Comparisons, Ratings, bradley_terry
    from melior.trainers.supervised import Examples, HeldoutLoss, supervised

# Imported on first use: a grader's worker process starts with `import melior` and must not pay for torch.
_HOMES = {
    "Classifier": "melior.policies.classifier",
    "ClassifierPolicy": "melior.policies.classifier",
    "Comparisons": "melior.trainers.reward_model",
    "Examples": "melior.trainers.supervised",
    "FitConfig": "melior.trainers.loop",
    "Gate": "melior.evaluation.gates",
    "GraderPool": "melior.rewards.workers",
    "HeldoutLoss": "melior.trainers.supervised",
    "LanguagePolicy": "melior.policies.language",
    "LoRA": "melior.policies.adapters",
    "Logged": "melior.trainers.logged",
    "OffPolicy": "melior.trainers.logged",
    "Pairs": "melior.trainers.preference",
    "Ratings": "melior.trainers.reward_model",
    "Reward": "melior.policies.reward_model",
    "RewardEnsemble": "melior.policies.reward_ensemble",
    "RewardModel": "melior.policies.reward_model",
    "Rollouts": "melior.trainers.reinforcement",
    "Run": "melior.trainers.loop",
    "Slate": "melior.policies.slate",
    "SlatePolicy": "melior.policies.slate",
    "advantage_weighted": "melior.trainers.ratings",
    "bradley_terry": "melior.trainers.reward_model",
    "classification": "melior.evaluation.classification",
    "compare": "melior.evaluation.compare",
    "decide": "melior.evaluation.gates",
    "dpo": "melior.trainers.preference",
    "evaluate": "melior.evaluation.evaluate",
    "evaluate_logged": "melior.evaluation.logged",
    "fit": "melior.trainers.loop",
    "load_policy": "melior.policies.kinds",
    "read_examples": "melior.data.formats",
    "reinforcement": "melior.trainers.reinforcement",
    "reward_report": "melior.evaluation.reward_model",
    "split": "melior.data.splits",
    "supervised": "melior.trainers.supervised",
}

__all__ = [
    "Classifier",
    "ClassifierPolicy",
    "Comparisons",
    "Demonstration",
    "Examples",
    "FitConfig",
    "Gate",
    "GraderPool",
    "HeldoutLoss",
    "Image",
    "Interaction",
    "Item",
    "LanguagePolicy",
    "LoRA",
    "Logged",
    "OffPolicy",
    "Pairs",
    "Preference",
    "Rated",
    "Ratings",
    "Record",
    "Reward",
    "RewardEnsemble",
    "RewardModel",
    "Rollouts",
    "Run",
    "Sampling",
    "Score",
    "Slate",
    "SlatePolicy",
    "SlateRequest",
    "Task",
    "advantage_weighted",
    "bradley_terry",
    "classification",
    "compare",
    "decide",
    "dpo",
    "evaluate",
    "evaluate_logged",
    "fit",
    "load_policy",
    "read_examples",
    "reinforcement",
    "reward_report",
    "split",
    "supervised",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'melior' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
