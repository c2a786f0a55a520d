"""makes models better from feedback"""

from melior.policies.adapters import LoRA
from melior.policies.language import LanguagePolicy
from melior.trainers.loop import FitConfig, Run, fit
from melior.trainers.reinforcement import reinforcement, rollouts
from melior.trainers.supervised import HeldoutLoss, examples, supervised
from melior.types import Demonstration, Preference, Rated, Record, Sampling, Score, Task

__all__ = [
    "Demonstration",
    "FitConfig",
    "HeldoutLoss",
    "LanguagePolicy",
    "LoRA",
    "Preference",
    "Rated",
    "Record",
    "Run",
    "Sampling",
    "Score",
    "Task",
    "examples",
    "fit",
    "reinforcement",
    "rollouts",
    "supervised",
]
