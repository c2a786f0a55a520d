"""what a cycle must know of each kind of policy"""

from __future__ import annotations

from typing import Any

from melior.cycles.kinds.base import Counts, Kind, Pace
from melior.errors import ConfigError
from melior.policies.kinds import kind_of, load_policy

KINDS = ("language", "classifier", "slate")  # of policies


def kind_named(name: str) -> Kind:
    """The kind a recipe or a model's folder names; a reward model is one beside the policies.

    Raises:
        ConfigError: if there is none.
    """
    if name == "language":
        from melior.cycles.kinds.language import Language

        return Language()
    if name == "classifier":
        from melior.cycles.kinds.classifier import Classifiers

        return Classifiers()
    if name == "slate":
        from melior.cycles.kinds.slate import Slates

        return Slates()
    if name == "reward_model":
        from melior.cycles.kinds.reward import RewardModels

        return RewardModels()
    raise ConfigError(f"{name!r} is no kind of policy; kinds are {', '.join(KINDS)}")


def load_model(path: str) -> Any:
    """The policy or reward model of a folder.

    Raises:
        ModelError: if it holds neither.
    """
    if kind_of(path) == "reward_model":
        from melior.policies.reward_model import RewardModel

        return RewardModel.load(path)
    return load_policy(path)


__all__ = ["KINDS", "Counts", "Kind", "Pace", "kind_named", "load_model"]
