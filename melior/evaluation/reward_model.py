"""how far a reward model agrees with people: on pairs or ratings it never saw, by length, by annotator

In JSON, as in a run's `reward_model.json`:

    {"head": "reward", "of": "pairs" or "ratings", "rows": 231, "left_out": {reason: rows}, "clusters": 210 or null,
     "measure": "accuracy", "auc" or "spearman",
     "measures": {name: {"estimate", "low", "high", "level"}},
     "baselines": {name: the measure of something simpler on the same rows},
     "calibration": as in classification.json, or null,
     "by_length": [{"name", "rows", "low", "high", "found": interval}], "by_annotator": the same, "notes": [sentence]}
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from melior.durable import write_file
from melior.errors import DataError
from melior.evaluation.agreement import agreement, auc, spearman
from melior.evaluation.judging import Calibration
from melior.metrics import (
    Floats,
    calibration_by_chance,
    expected_calibration_error,
    reliability,
    squared_calibration_error,
)
from melior.statistics import Interval, bootstrap, mean_interval
from melior.types import Demonstration, Preference, Rated, Segment

LENGTH_BINS = 5  # of as many rows each
FEWEST = 10  # rows of an annotator, and of a bin: an interval of fewer says nothing
KEY = "head"  # of a row's item
ANNOTATOR = "annotator"  # of a row's item

Measure = Callable[[np.ndarray], Interval]  # of places among the rows


class Rewards(Protocol):
    """A reward model or an ensemble."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def rewards(self, examples: Sequence[Any]) -> Any:  # [N, H]
        ...


@dataclass(frozen=True, kw_only=True)
class Share:
    """The measure on a part of the rows."""

    name: str
    rows: int
    found: Interval
    low: float | None = None  # of what the rows were parted by, where that is a number
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class RewardReport:
    """How far one head agrees with people on held-out rows."""

    head: str
    of: Literal["pairs", "ratings"]
    rows: int
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason → rows
    clusters: int | None = None  # groups of rows that stand or fall together
    measure: str  # which of the measures the parts are told in
    measures: Mapping[str, Interval]
    baselines: Mapping[str, float] = field(default_factory=dict)
    calibration: Calibration | None = None
    by_length: tuple[Share, ...] = ()
    by_annotator: tuple[Share, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and mappings."""
        calibration = self.calibration
        return {
            **{name: value for name, value in vars(self).items() if name not in ("by_length", "by_annotator")},
            "left_out": dict(self.left_out),
            "measures": {name: found.to_json() for name, found in self.measures.items()},
            "baselines": dict(self.baselines),
            "calibration": calibration and {**asdict(calibration), "sentence": calibration.sentence},
            "by_length": [{**vars(each), "found": each.found.to_json()} for each in self.by_length],
            "by_annotator": [{**vars(each), "found": each.found.to_json()} for each in self.by_annotator],
            "notes": list(self.notes),
        }

    def write(self, folder: Path) -> None:
        """Writes `reward_model.json`, which the page of the run in that folder shows."""
        told = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        write_file(folder / "reward_model.json", told)


def reward_report(
    model: Rewards, rows: Sequence[Preference] | Sequence[Rated], *, head: str | None = None
) -> RewardReport:
    """What a head says of held-out rows, beside what people said; rows of one `group` stand or fall together.

    Rows whose item names another head are left out, and so are ties, which no order can be right about.

    Raises:
        DataError: if no row is left, they are of several kinds, or all ratings are equal.
    """
    name = head or model.names[0]
    if name not in model.names:
        raise DataError(f"There is no head {name!r}; the reward model has {', '.join(model.names)}")
    kinds = {type(row) for row in rows}
    if len(kinds) != 1 or not kinds <= {Preference, Rated}:
        told = ", ".join(sorted(kind.__name__ for kind in kinds)) or "none"
        raise DataError(f"A reward model is judged by preferences, or by ratings, not by both; got {told}")
    mine = [row for row in rows if row.item.get(KEY, name) == name]
    left = {"of another head": len(rows) - len(mine)}
    return _on_pairs(model, mine, name, left) if kinds == {Preference} else _on_ratings(model, mine, name, left)


# ---------------------------------------------------------------------- pairs


def _on_pairs(model: Rewards, rows: Sequence[Any], head: str, left: dict[str, int]) -> RewardReport:
    decided = [row for row in rows if row.probability != 0.5]
    left["ties"] = len(rows) - len(decided)
    better = [_ordered(row) for row in decided]
    examples = [Demonstration(row.inputs, side) for row, sides in zip(decided, better, strict=True) for side in sides]
    rewards = _rewards(model, examples, head).reshape(-1, 2)
    kept = np.asarray(np.isfinite(rewards).all(1))
    left["beyond the context"] = int((~kept).sum())
    if not kept.any():
        raise DataError(f"0 of {len(rows)} pairs of head {head!r} can be judged: {_told(left)}")
    decided = [row for row, known in zip(decided, kept, strict=True) if known]
    better = [sides for sides, known in zip(better, kept, strict=True) if known]
    gaps = rewards[kept, 0] - rewards[kept, 1]
    right = (np.sign(gaps) + 1) / 2
    clusters = _clusters(decided)
    sure = np.abs(gaps)
    measures = {
        "accuracy": mean_interval(right, clusters=clusters, bounds=(0.0, 1.0)),
        "log_loss": mean_interval(np.logaddexp(0, -gaps), clusters=clusters, bounds=(0.0, math.inf)),
    }

    def measure(places: np.ndarray) -> Interval:
        parts = None if clusters is None else [clusters[place] for place in places]
        return mean_interval(right[places], clusters=parts, bounds=(0.0, 1.0))

    lengths = np.array([_length(first) - _length(second) for first, second in better])
    baselines = {}
    if np.isfinite(lengths).all() and np.ptp(lengths) > 0:
        longer = float(((np.sign(lengths) + 1) / 2).mean())
        baselines["preferring the longer" if longer >= 0.5 else "preferring the shorter"] = max(longer, 1 - longer)
        # Each pair once, in an order that does not depend on what people preferred.
        turned = np.where([_turned(*sides) for sides in better], -1.0, 1.0)
        found = bootstrap(
            lambda drawn: spearman((turned * gaps)[drawn], (turned * lengths)[drawn]),
            len(gaps),
            clusters=clusters,
            bounds=(-1.0, 1.0),
        )
        if math.isfinite(found.estimate):
            measures["length_correlation"] = found
    by_annotator = _by_annotator(decided, measure)
    return RewardReport(
        head=head,
        of="pairs",
        rows=len(decided),
        left_out={reason: count for reason, count in left.items() if count},
        clusters=None if clusters is None else len(set(clusters)),
        measure="accuracy",
        measures=measures,
        baselines=baselines,
        calibration=_calibration(1 / (1 + np.exp(-sure)), right == 1, "the output it prefers", clusters is None),
        by_length=_by_length(lengths, measure, "longer"),
        by_annotator=by_annotator,
        notes=_notes(by_annotator, measures["accuracy"]),
    )


def _ordered(row: Preference) -> tuple[Any, Any]:
    """What people prefer, then the other."""
    return (row.chosen, row.rejected) if row.probability > 0.5 else (row.rejected, row.chosen)


def _turned(first: Any, second: Any) -> bool:
    """An order of two outputs that comes from them alone."""
    return repr(first) > repr(second)


# ---------------------------------------------------------------------- ratings


def _on_ratings(model: Rewards, rows: Sequence[Any], head: str, left: dict[str, int]) -> RewardReport:
    examples = [Demonstration(row.inputs, row.output) for row in rows]
    rewards = _rewards(model, examples, head)
    kept = np.isfinite(rewards)
    left["beyond the context"] = int((~kept).sum())
    if not kept.any():
        raise DataError(f"0 of {len(rows)} ratings of head {head!r} can be judged: {_told(left)}")
    rows = [row for row, known in zip(rows, kept, strict=True) if known]
    rewards, ratings = rewards[kept], np.array([row.rating for row in rows], dtype=np.float64)
    clusters = _clusters(rows)
    found = agreement(rewards.tolist(), ratings.tolist(), clusters=clusters)
    statistic, name = (auc, "auc") if found.boolean else (spearman, "spearman")
    measures = {
        key: value
        for key, value in (
            ("auc", found.auc),
            ("accuracy_at_best_threshold", found.accuracy),
            ("spearman", found.spearman),
            ("kendall", found.kendall),
        )
        if value is not None and math.isfinite(value.estimate)
    }

    def measure(places: np.ndarray) -> Interval:
        parts = None if clusters is None else [clusters[place] for place in places]
        bounds = (0.0, 1.0) if found.boolean else (-1.0, 1.0)
        return bootstrap(
            lambda drawn: statistic(rewards[places][drawn], ratings[places][drawn]),
            len(places),
            clusters=parts,
            bounds=bounds,
        )

    lengths = np.array([_length(row.output) for row in rows])
    baselines = {}
    if np.isfinite(lengths).all() and np.ptp(lengths) > 0:
        baselines["length"] = float(statistic(lengths, ratings))
    by_annotator = _by_annotator(rows, measure)
    foretold = 1 / (1 + np.exp(-np.clip(rewards, -500, 500)))
    return RewardReport(
        head=head,
        of="ratings",
        rows=len(rows),
        left_out={reason: count for reason, count in left.items() if count},
        clusters=None if clusters is None else len(set(clusters)),
        measure=name,
        measures=measures,
        baselines=baselines,
        calibration=_calibration(foretold, ratings > 0, "a good rating", clusters is None) if found.boolean else None,
        by_length=_by_length(lengths, measure, "characters"),
        by_annotator=by_annotator,
        notes=_notes(by_annotator, measures[name]),
    )


# ---------------------------------------------------------------------- what both share


def _rewards(model: Rewards, examples: Sequence[Demonstration], head: str) -> Floats:
    if not examples:
        return np.zeros(0)
    return np.asarray(model.rewards(examples), dtype=np.float64)[:, model.names.index(head)]


def _clusters(rows: Sequence[Any]) -> list[Hashable] | None:
    """The group of each row; None where each row stands alone."""
    names: list[Hashable] = [row.group or place for place, row in enumerate(rows)]
    return names if len(set(names)) < len(names) else None


def _length(output: Any) -> float:
    """Characters of a text, steps of a segment; NaN for what has no length that could sway people."""
    if isinstance(output, str | Segment):
        return float(len(output))
    if isinstance(output, np.ndarray):
        return float(output.shape[0])
    messages = output if isinstance(output, list) else [output]
    if all(isinstance(each, Mapping) and isinstance(each.get("content"), str) for each in messages):
        return float(sum(len(each["content"]) for each in messages))
    return math.nan


def _by_length(lengths: Floats, measure: Measure, what: str) -> tuple[Share, ...]:
    """The measure in bins of as many rows each, from the shortest to the longest."""
    if not np.isfinite(lengths).all() or np.ptp(lengths) == 0 or len(lengths) < 2 * FEWEST:
        return ()
    bins = min(LENGTH_BINS, len(lengths) // FEWEST)
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, bins + 1)))
    place = np.clip(np.searchsorted(edges, lengths, side="right") - 1, 0, max(0, len(edges) - 2))
    shares = []
    for number in np.unique(place):
        rows = (place == number).nonzero()[0]
        low, high = float(lengths[rows].min()), float(lengths[rows].max())
        told = f"{low:+,.0f} … {high:+,.0f}" if what == "longer" else f"{low:,.0f} … {high:,.0f}"
        told = told.replace("-", "−")
        shares.append(Share(name=told, rows=len(rows), found=measure(rows), low=low, high=high))
    return tuple(share for share in shares if math.isfinite(share.found.estimate))


def _by_annotator(rows: Sequence[Any], measure: Measure) -> tuple[Share, ...]:
    """The measure on each annotator's rows, who agrees least first; who has too few is left out."""
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        if (who := row.item.get(ANNOTATOR)) not in (None, ""):
            places.setdefault(str(who), []).append(place)
    shares = [
        Share(name=who, rows=len(found), found=measure(np.array(found)))
        for who, found in places.items()
        if len(found) >= FEWEST
    ]
    known = [share for share in shares if math.isfinite(share.found.estimate)]
    return tuple(sorted(known, key=lambda share: share.found.estimate))


def _notes(by_annotator: Sequence[Share], whole: Interval) -> tuple[str, ...]:
    low = [share for share in by_annotator if share.found.high < whole.low]
    return tuple(
        f"{share.name} agrees with the model less than the others do: {share.found} on {share.rows} rows; "
        "read some of them before they teach again."
        for share in low
    )


def _calibration(foretold: Floats, happened: np.ndarray, of: str, independent: bool) -> Calibration:
    chance, high = calibration_by_chance(foretold)
    squared = squared_calibration_error(foretold, happened)
    return Calibration(
        of=f"the probability of {of}",
        bins=tuple(reliability(foretold, happened)),
        error=float(expected_calibration_error(foretold, happened)),
        chance=chance,
        chance_high=high,
        debiased=math.sqrt(max(0.0, squared)) if math.isfinite(squared) else None,
        independent=independent,
    )


def _told(left: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in left.items() if count) or "there are none"
