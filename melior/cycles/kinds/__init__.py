"""what a cycle must know of each kind of policy"""

from __future__ import annotations

from melior.cycles.kinds.base import Counts, Kind, Pace
from melior.errors import ConfigError

KINDS = ("language", "classifier", "slate")


def kind_named(name: str) -> Kind:
    """The kind a recipe or a policy's folder names.

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
    raise ConfigError(f"{name!r} is no kind of policy; kinds are {', '.join(KINDS)}")


__all__ = ["KINDS", "Counts", "Kind", "Pace", "kind_named"]
