"""what differs between kinds of policies in a cycle: everything else is the same code for all"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from melior.cycles.models import Found
from melior.cycles.recipe import Recipe
from melior.cycles.rows import Rows
from melior.data.formats.rows import Reading
from melior.evaluation.evaluate import Evaluation
from melior.types import Sampling, Task


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast a policy learns where nobody says it."""

    what: str  # trains, in the plural: adapters, whole models, heads …
    sft: float  # learning rate where a range test does not tell
    limits: tuple[float, float]  # beyond these a range test is not believed
    rft: float  # from rewards, where a range test would see noise
    dpo: float  # from preferences


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What the training rows hold."""

    dropped_rows: int = 0  # without a decision to learn
    truncated_rows: int = 0  # of which a part is learnt
    tokens: int | None = None  # read and decided, of all rows, once; None where there are none
    decisions: int = 0  # learnt in an epoch; rft: the most that are sampled in a step
    longest: int = 0  # tokens of the longest row
    context: int = 0  # the policy's limit


class Kind(Protocol):
    """One kind of policy, as cycles see it."""

    judges: Mapping[str, str]  # rows that judge it without a grader → what evaluations call that in its place

    def load(self, recipe: Recipe, found: Found, rows: Rows) -> Any:
        """The recipe's policy before its first step: loaded, or made for these rows."""
        ...

    def pace(self, policy: Any) -> Pace:
        """Its learning rates."""
        ...

    def check(self, policy: Any, tasks: Sequence[Task], sampling: Sampling) -> None:
        """Nothing, if every task can be answered; before hours are spent on the others."""
        ...

    def reading(self, policy: Any, reading: Reading) -> Reading:
        """How rows are read for a trained policy: as those that it learnt from."""
        ...

    def counts(self, policy: Any, rows: Rows, recipe: Recipe, steps: Any) -> Counts:
        """What the training rows hold."""
        ...

    def lengths(self, policy: Any, rows: Rows, steps: Any) -> Mapping[str, Sequence[float]]:
        """How long rows are: name → one number per row."""
        ...

    def head_bytes(self, policy: Any) -> int:
        """What its head needs for a moment, beside what autograd keeps."""
        ...

    def measure(self, policy: Any, rows: Sequence[Any], of: str = "demonstrations") -> Evaluation:
        """Held-out rows of a kind that judges, where there is no grader."""
        ...

    def tell(self, policy: Any, rows: Rows, recipe: Recipe, folder: Path) -> None:
        """Adds to a run's folder what its report should show of a trained policy."""
        ...
