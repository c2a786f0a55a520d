"""outputs of a policy and what graders said of them"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from melior.types import Record, Sampling, Score, Task


class Samples(Protocol):
    """A policy that can be sampled at a training step."""

    def sample(self, inputs: Sequence[Any], settings: Sampling, *, step: int = 0) -> list[Record]: ...


class Grades(Protocol):
    """Scores records, in order; a failed grading is a Score without a value."""

    def grade(self, records: Sequence[Record]) -> list[Score]: ...


@dataclass(frozen=True)
class Rollout:
    """One output and its score. `reward` is NaN where nobody could tell."""

    record: Record
    score: Score

    @property
    def reward(self) -> float:
        return math.nan if self.score.value is None else self.score.value


def collect(
    policy: Samples, tasks: Sequence[Task], grader: Grades, sampling: Sampling, *, step: int = 0
) -> list[Rollout]:
    """`sampling.n` rollouts per task, in order; the outputs of one task share a group."""
    records = policy.sample([task.inputs for task in tasks], sampling, step=step)
    owned = [
        replace(record, item=tasks[index // sampling.n].item, group=f"{step}:{index // sampling.n}:{record.group}")
        for index, record in enumerate(records)
    ]
    return [Rollout(record, score) for record, score in zip(owned, grader.grade(owned), strict=True)]
