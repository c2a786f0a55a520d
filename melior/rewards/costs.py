"""what a decision costs: a table of true labels and decided ones, whose cost is the reward with its sign turned"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from melior.errors import GraderError
from melior.rewards.base import call_grader, nearest, sample_of
from melior.rewards.templates import Template, parse_template
from melior.types import Record, Score

LABELS = ("{{ item.label }}", "{{ item.completion }}")  # where rows have what is right, if nobody says


@dataclass(frozen=True)
class CostMatrix:
    """Minus the cost of the decided label given the true one; what the table leaves out costs nothing if it is right.

    Anything else it leaves out is a failure, never 0: a wrong decision that nobody priced.
    """

    name: str
    spec: Mapping[str, Any]
    costs: Mapping[str, Mapping[str, float]]  # true label → decided label → cost
    references: tuple[Template, ...]  # the first that the item has

    def load(self) -> None:
        """Nothing to import."""

    def grade_many(self, records: Sequence[Record]) -> list[Score]:
        """One score per record, in order; records that cannot be priced fail alone."""
        return [call_grader(self, record) for record in records]

    def grade(self, record: Record) -> Score:
        """Minus the cost of one output.

        Raises:
            GraderError: if the output is not one label, or the table has no such true or decided label.
        """
        if isinstance(record.output, list | tuple | Mapping):
            raise GraderError(f"{self.name} prices one label, got {record.output!r:.60}; for several write a function")
        decided = str(record.output)
        true = self._true(record)
        if true not in self.costs:
            raise GraderError(f"{self.name} has no costs for the true label {true!r}{nearest(true, self.costs)}")
        row = self.costs[true]
        if decided not in row and decided != true:
            raise GraderError(
                f"{self.name} has no cost for deciding {decided!r}{nearest(decided, row)} where {true!r} is true"
            )
        cost = row.get(decided, 0.0)
        # One decision, unless a language model wrote the label in several.
        single = record.decisions is None or len(record.decisions) == 1
        return Score(value=0.0 - cost, reason=f"{true} decided as {decided}", decisions=(0.0 - cost,) if single else ())

    def _true(self, record: Record) -> str:
        """The true label, from the first place that has one."""
        sample = sample_of(record)
        for reference in self.references[:-1]:
            try:
                return reference.render(record.item, sample)
            except GraderError:
                continue
        return self.references[-1].render(record.item, sample)


def cost_matrix(spec: Mapping[str, Any], name: str | None) -> CostMatrix:
    """The grader of a setting.

    Raises:
        GraderError: if the costs are no table of finite numbers, or the reference is malformed.
    """
    costs, reference = spec["costs"], spec.get("reference")
    if not isinstance(costs, Mapping) or not costs or not all(isinstance(row, Mapping) for row in costs.values()):
        raise GraderError(
            'grader cost_matrix needs costs by true and decided label, such as {"bad": {"good": 5}, "good": {"bad": 1}}'
        )
    if not isinstance(reference, str | None):
        raise GraderError(f"cost_matrix needs a string as 'reference', got {reference!r}")
    table = {
        str(true): {str(decided): _cost(true, decided, cost) for decided, cost in row.items()}
        for true, row in costs.items()
    }
    named = name or "cost_matrix"
    references = LABELS if reference is None else (reference,)
    return CostMatrix(named, {**spec, "name": named}, table, tuple(map(parse_template, references)))


def _cost(true: Any, decided: Any, cost: Any) -> float:
    if isinstance(cost, bool) or not isinstance(cost, int | float) or not math.isfinite(cost):
        raise GraderError(f"the cost of deciding {decided!r} where {true!r} is true must be a number, got {cost!r}")
    return float(cost)
