"""two evaluations of the same items, item by item"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from melior.errors import DataError
from melior.evaluation.evaluate import REWARD, Evaluation
from melior.statistics import (
    LEVEL,
    RESAMPLES,
    Bounds,
    Interval,
    confidence_sequence,
    difference_bounds,
    differences_by_item,
    mean_interval,
    pool,
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Candidate minus baseline for every metric and item that both have."""

    differences: Mapping[str, Mapping[str, float]]  # metric → item → difference of item means, in the items' order
    baseline: Mapping[str, float]  # metric → the baseline's mean over the same items
    bounds: Mapping[str, Bounds] = field(default_factory=dict)  # metric → where differences can lie, if known
    clusters: Mapping[str, str] = field(default_factory=dict)
    items: int  # in the evaluations; those compared are the differences'
    missing: int = 0  # items without a graded sample on either side
    effective: float | None = None  # rows that the less certain side rests on, where one was estimated from a log

    @property
    def gain(self) -> Interval:
        """The paired gain in sampled reward with its 95 % interval."""
        return self.interval(REWARD)

    def interval(self, metric: str, *, level: float = LEVEL, resamples: int = RESAMPLES) -> Interval:
        """The mean difference in a metric, clustered by item; for one look.

        Raises:
            DataError: if the evaluations do not have the metric.
        """
        differences = self.of(metric)
        return mean_interval(
            list(differences.values()),
            clusters=[self.cluster(key) for key in differences] if self.clusters else None,
            level=level,
            bounds=self.bounds.get(metric),
            resamples=resamples,
        )

    def anytime_interval(self, metric: str, *, level: float = LEVEL) -> Interval:
        """The mean difference in a metric, right however often more items were added and looked at.

        Raises:
            DataError: if the metric is missing or has no bounds, or items are clustered.
        """
        differences, bounds = self.of(metric), self.bounds.get(metric)
        if bounds is None or self.clusters:
            why = "clustered items" if self.clusters else f"no bounds for {metric!r}"
            raise DataError(f"repeated looks at {len(differences)} items with {why} are not covered; look once")
        values = list(differences.values())
        low, high = confidence_sequence(values, bounds, level=level)
        return Interval(math.fsum(values) / len(values), float(low[-1]), float(high[-1]), level)

    def units(self, metric: str) -> tuple[list[float], float]:
        """The mean difference of each independent unit (item, or cluster of items), and how many items one holds."""
        differences = self.of(metric)
        gathered: dict[Hashable, list[float]] = {}
        for key, value in differences.items():
            gathered.setdefault(self.cluster(key), []).append(value)
        means = [math.fsum(values) / len(values) for values in gathered.values()]
        return means, len(differences) / len(means)

    def cluster(self, key: str) -> Hashable:
        """What an item stands or falls with: its cluster, or itself alone."""
        return ("cluster", self.clusters[key]) if self.clusters.get(key) else ("item", key)

    def mean(self, metric: str) -> float:
        """The baseline's mean of a metric over the items compared."""
        self.of(metric)
        return self.baseline[metric]

    def of(self, metric: str) -> Mapping[str, float]:
        """Differences by item of one metric."""
        if metric not in self.differences:
            raise DataError(
                f"{metric!r} is none of the {len(self.differences)} metrics compared ({', '.join(self.differences)})"
            )
        return self.differences[metric]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and mappings; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Comparison:
        """The comparison that `to_json` wrote."""
        bounds = {name: (low, high) for name, (low, high) in fields["bounds"].items()}
        return cls(**{**fields, "bounds": bounds})


def compare(candidate: Evaluation, baseline: Evaluation) -> Comparison:
    """Candidate minus baseline, paired by item.

    Raises:
        DataError: if they differ in items, in what the items hold, in grader, or in sampling (seeds may differ).
    """
    _same(candidate, baseline)
    shared = [name for name in candidate.values if name in baseline.values]
    differences: dict[str, dict[str, float]] = {}
    means: dict[str, float] = {}
    for name in shared:
        ours, theirs = candidate.values[name], baseline.values[name]
        keys = [key for key in candidate.items if key in ours and key in theirs]
        if keys:
            before = {key: theirs[key] for key in keys}
            differences[name] = differences_by_item({key: ours[key] for key in keys}, before)
            means[name] = math.fsum(math.fsum(found) / len(found) for found in before.values()) / len(keys)
    if REWARD not in differences:
        raise DataError(f"0 of {len(candidate.items)} items have graded samples on both sides; mend the grader")
    return Comparison(
        differences=differences,
        baseline=means,
        bounds=_shared_bounds(candidate, baseline),
        clusters=candidate.clusters,
        items=len(candidate.items),
        missing=len(candidate.items) - len(differences[REWARD]),
        effective=_least([candidate.effective, baseline.effective]),
    )


def pooled(runs: Sequence[Comparison]) -> Comparison:
    """Comparisons of several runs on shared items as one: each item's difference is its mean over the runs.

    An item stays one unit of chance, so the interval speaks of these runs on new items.

    Raises:
        DataError: if there is no run.
    """
    if not runs:
        raise DataError("0 comparisons to pool; give at least one")
    if len(runs) == 1:
        return runs[0]
    first, rest = runs[0], runs[1:]
    shared = [name for name in first.differences if all(name in run.differences for run in rest)]
    differences = {name: pool([run.differences[name] for run in runs]) for name in shared}
    return Comparison(
        differences=differences,
        baseline={name: math.fsum(run.baseline[name] for run in runs) / len(runs) for name in shared},
        bounds={
            name: bounds for name, bounds in first.bounds.items() if all(run.bounds.get(name) == bounds for run in rest)
        },
        clusters={key: cluster for run in runs for key, cluster in run.clusters.items()},
        items=max(max(run.items for run in runs), len(differences[REWARD])),
        missing=max(run.missing for run in runs),
        effective=_least([run.effective for run in runs]),
    )


def _least(counts: Sequence[float | None]) -> float | None:
    return min((count for count in counts if count is not None), default=None)


def _same(candidate: Evaluation, baseline: Evaluation) -> None:
    """Refuse what cannot be paired."""
    ours, theirs = set(candidate.items), set(baseline.items)
    if ours != theirs:
        raise DataError(
            f"the candidate has {len(ours)} items, the baseline {len(theirs)}, and {len(ours & theirs)} are shared; "
            "evaluate both on the same items"
        )
    if candidate.fingerprint != baseline.fingerprint:
        raise DataError(
            f"the {len(ours)} items have the same keys but other contents than the baseline's; evaluate both again"
        )
    if candidate.grader != baseline.grader:
        raise DataError(
            f"the candidate was graded by {candidate.grader!r}, the baseline by {baseline.grader!r}; use 1 grader"
        )
    if replace(candidate.sampling, seed=0) != replace(baseline.sampling, seed=0):
        raise DataError(
            f"the candidate was sampled with {candidate.sampling}, the baseline with {baseline.sampling}; "
            "use the same settings for the 2"
        )


def _shared_bounds(candidate: Evaluation, baseline: Evaluation) -> dict[str, Bounds]:
    """Where differences can lie, for the metrics that are bounded on both sides."""
    found: dict[str, Bounds] = {}
    for name in candidate.bounds.keys() & baseline.bounds.keys():
        (low, high), (other_low, other_high) = candidate.bounds[name], baseline.bounds[name]
        found[name] = difference_bounds((min(low, other_low), max(high, other_high)))
    return found
