"""what a classifier got right, at what cost, for whom, and how far its probabilities can be trusted

Every measure has a 95 % interval over rows (or clusters of rows), or is absent with the reason among the notes: a label
that was never decided has no precision, and a file with one class has no area. Two labels are read as in medicine: the
second one (or the one named `positive`) is what is looked for.

In JSON, as in a run's `classification.json`:

    {"labels": […], "several": false, "positive": "bad", "rows": 200, "clusters": null,
     "measures": {name: {"estimate", "low", "high", "level"}}, "baselines": {name: number}, "notes": [sentence],
     "by_label": [{"label", "true", "decided", "precision", "recall", "f1", "auc"}],
     "confusion": [[…]], rows by truth, columns by decision, or null for several labels a row;
     "calibration": {"of", "bins": [{"low", "high", "rows", "foretold", "happened"}], "error", "chance", "chance_high",
                     "debiased", "independent", "sentence"} or null,
     "costs": [[…]] or null, "curve": {"thresholds", "costs", "best", "fair", "decided"} or null,
     "groups": [{"attribute", "groups": [{"name", "rows", "measures"}], "gaps", "sentence", "warnings"}],
     "items": […], "columns": {"correct": […], "log_prob": […], "cost": […]}}
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from melior.errors import DataError
from melior.evaluation.groups import Gap, Group, GroupGaps, group_gaps
from melior.evaluation.judging import CORRECT, COST, UNIT, Calibration, CostCurve, Costs, Judged, LabelRow
from melior.metrics import Bin
from melior.statistics import Bounds, ByItem, Interval

SHARES = ("precision", "recall", "f1", "auc")  # of each label


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Everything there is to say about a classifier's decisions on a set of rows."""

    labels: tuple[str, ...]
    several: bool = False  # a row has a set of labels
    positive: str = ""  # of two labels the one that is looked for
    rows: int
    clusters: int | None = None
    measures: Mapping[str, Interval]
    baselines: Mapping[str, float] = field(default_factory=dict)  # what deciding the same for every row would give
    by_label: tuple[LabelRow, ...]
    confusion: tuple[tuple[float, ...], ...] | None = None  # rows by truth, columns by decision
    calibration: Calibration | None = None
    costs: tuple[tuple[float, ...], ...] | None = None
    curve: CostCurve | None = None
    groups: tuple[GroupGaps, ...] = ()
    notes: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    columns: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # metric → one value per item

    def values(self) -> dict[str, ByItem]:
        """Metric → item → its value, as evaluations hold them: `correct`, `log_prob` (of the truth, nats), `cost`."""
        return {
            metric: {item: (value,) for item, value in zip(self.items, column, strict=True)}
            for metric, column in self.columns.items()
        }

    def bounds(self) -> dict[str, Bounds]:
        """Metric → where its values can lie, for those that have bounds."""
        found: dict[str, Bounds] = {CORRECT: UNIT}
        if self.costs is not None:
            flat = [cost for row in self.costs for cost in row]
            found[COST] = (min(flat), max(flat))
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and mappings; `from_json` reads them back."""
        plain: dict[str, Any] = _plain(vars(self))
        if self.calibration is not None:
            plain["calibration"]["sentence"] = self.calibration.sentence
        return plain

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Classification:
        """The classification that `to_json` wrote.

        Raises:
            DataError: if a field is missing or unknown.
        """
        try:
            return cls(**{**fields, **_restored(fields)})
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"not a classification written by melior ({error}); evaluate again") from error


def classification(
    labels: Sequence[str],
    truth: Sequence[Any],  # [N] a label, or a collection of labels, per row
    probabilities: Any = None,  # [N, C], columns as the labels
    *,
    outputs: Sequence[Any] | None = None,  # [N] what was decided; by default what is most probable
    several: bool = False,
    positive: str | None = None,
    weights: Sequence[float] | None = None,
    costs: Costs | None = None,
    groups: Mapping[str, Sequence[Any]] | None = None,  # attribute → its value for each row
    items: Sequence[str] | None = None,  # key of each row, for comparisons; the row's number by default
    clusters: Sequence[Hashable] | None = None,  # rows that stand or fall together
    seed: int = 0,
) -> Classification:
    """All measures of decisions, probabilities or both, with 95 % intervals.

    Args:
        several: rows have sets of labels; by default those of probability ½ or more are decided.
        positive: of two labels the one that is looked for; the second by default.

    Raises:
        DataError: if lengths differ, a label is unknown, or a probability is missing, NaN or outside [0, 1].
    """
    rows = Judged(labels, truth, probabilities, outputs, several, positive, weights, costs, clusters)
    if items is not None and (len(items) != len(rows.truth) or len(set(items)) < len(items)):
        raise DataError(f"{len(set(items))} different items for {len(rows.truth)} rows; give each row a key of its own")
    measures, by_label = rows.measured(seed)
    compared = [group_gaps(name, found, rows.shares()) for name, found in (groups or {}).items()]
    return Classification(
        labels=rows.labels,
        several=several,
        positive=rows.positive,
        rows=len(rows.truth),
        clusters=None if clusters is None else len(set(clusters)),
        measures=measures,
        baselines=rows.baselines(),
        by_label=by_label,
        confusion=_matrix(rows.confusion()),
        calibration=rows.calibration(seed),
        costs=_matrix(None if rows.costs is None else rows.costs.tolist()),
        curve=rows.curve(),
        groups=tuple(compared),
        notes=tuple(rows.notes()),
        items=tuple(items) if items is not None else tuple(str(row) for row in range(len(rows.truth))),
        columns={name: tuple(column.tolist()) for name, column in rows.columns().items()},
    )


def _plain(value: Any) -> Any:
    """A value as JSON has it; what is not finite becomes null."""
    if isinstance(value, Interval):
        return value.to_json()
    if is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _restored(found: Mapping[str, Any]) -> dict[str, Any]:
    """The fields JSON cannot hold, from what it holds instead."""
    calibration, curve = found["calibration"], found["curve"]
    return {
        "labels": tuple(found["labels"]),
        "measures": _intervals(found["measures"]),
        "by_label": tuple(
            LabelRow(**{**row, **{name: row[name] and Interval.from_json(row[name]) for name in SHARES}})
            for row in found["by_label"]
        ),
        "confusion": _matrix(found["confusion"]),
        "calibration": calibration
        and Calibration(
            bins=tuple(Bin(**each) for each in calibration["bins"]),
            **{name: value for name, value in calibration.items() if name not in ("bins", "sentence")},
        ),
        "costs": _matrix(found["costs"]),
        "curve": curve
        and CostCurve(**{**curve, "thresholds": tuple(curve["thresholds"]), "costs": tuple(curve["costs"])}),
        "groups": tuple(_gaps_of(each) for each in found["groups"]),
        "notes": tuple(found["notes"]),
        "items": tuple(found["items"]),
        "columns": {name: tuple(column) for name, column in found["columns"].items()},
    }


def _gaps_of(found: Mapping[str, Any]) -> GroupGaps:
    groups = tuple(Group(**{**group, "measures": _intervals(group["measures"])}) for group in found["groups"])
    gaps = tuple(Gap(**{**gap, "difference": Interval.from_json(gap["difference"])}) for gap in found["gaps"])
    return GroupGaps(**{**found, "groups": groups, "gaps": gaps, "warnings": tuple(found["warnings"])})


def _intervals(found: Mapping[str, Any]) -> dict[str, Interval]:
    return {name: Interval.from_json(one) for name, one in found.items()}


def _matrix(found: Sequence[Sequence[float]] | None) -> tuple[tuple[float, ...], ...] | None:
    return None if found is None else tuple(tuple(row) for row in found)
