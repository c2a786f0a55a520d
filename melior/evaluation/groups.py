"""the same measures for each group of people, and the gap between groups that are furthest apart

A gap is the largest of many pairs, so its interval is widened for all of them (Bonferroni): of attributes without any
gap, one in twenty at most is said to have one. Groups too small to say anything are named, and compared with nobody.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from melior.errors import DataError
from melior.metrics import Bools, Floats, mean
from melior.statistics import (
    LEVEL,
    Bounds,
    Interval,
    mean_interval,
    percentile_interval,
    resampled_weights,
    separate_difference,
    wilson,
)

SMALL = 30  # rows below which a group's measures are too uncertain to compare
FEW = 10  # of the rows a share is of, such as the positive ones of a group
MOST = 20  # groups of one attribute: more are hardly groups
RESAMPLES = 1000
UNKNOWN = "unknown"  # the group of rows without a value


@dataclass(frozen=True, kw_only=True)
class Group:
    """The rows that share one value of an attribute; measures that so few rows cannot tell are absent."""

    name: str
    rows: int
    measures: Mapping[str, Interval]


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The two groups furthest apart in a measure, and how far, at a level that is right for all pairs at once."""

    measure: str
    high: str  # the group with the larger value
    low: str
    difference: Interval
    pairs: int  # that were looked at

    @property
    def beyond_chance(self) -> bool:
        """Whether the widened interval leaves out 0."""
        return self.difference.low > 0


@dataclass(frozen=True, kw_only=True)
class GroupGaps:
    """One attribute: its groups, the widest gap in each measure, and what to make of it in a sentence."""

    attribute: str
    groups: tuple[Group, ...]
    gaps: tuple[Gap, ...]
    sentence: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What groups are compared by: shares of rows among rows [N], and means of values [N]."""

    rates: Mapping[str, tuple[Bools, Bools]] = field(default_factory=dict)  # name → which count, and among which
    means: Mapping[str, tuple[Floats, Bounds]] = field(default_factory=dict)  # name → values, and where they can lie
    weights: Floats | None = None
    clusters: Sequence[Hashable] | None = None

    def mean(self, values: Floats, index: Any, level: float, bounds: Bounds) -> Interval:
        """The mean of values of the rows at `index`."""
        clusters = None if self.clusters is None else [self.clusters[row] for row in index.tolist()]
        weights = None if self.weights is None else self.weights[index]
        return row_mean(values, weights, clusters, bounds, level=level)


def group_gaps(attribute: str, values: Sequence[Any], shares: Shares) -> GroupGaps:
    """An attribute's groups, measured alike and compared.

    Raises:
        DataError: if there is not one value per row, or there are more than twenty groups.
    """
    rows = len(next(iter(shares.rates.values()))[0])
    if len(values) != rows:
        raise DataError(f"{len(values)} values of {attribute!r} for {rows} rows; give one each")
    names = np.array([_named(value) for value in values])
    kinds = sorted(set(names.tolist()), key=lambda name: (name == UNKNOWN, name))
    if len(kinds) > MOST:
        raise DataError(f"{attribute!r} has {len(kinds)} different values; put it into at most {MOST} bands")
    members = {name: np.flatnonzero(names == name) for name in kinds}
    measured = {name: _measures(shares, index, LEVEL) for name, index in members.items()}
    groups = tuple(Group(name=name, rows=len(members[name]), measures=measured[name]) for name in kinds)
    gaps = tuple(_gaps(shares, members, measured))
    small = [group.name for group in groups if group.rows < SMALL]
    warnings = tuple(
        f"{name} has {len(members[name])} rows, too few to say anything of it; {SMALL} or more are needed."
        for name in small
    )
    return GroupGaps(
        attribute=attribute,
        groups=groups,
        gaps=gaps,
        sentence=_sentence(attribute, groups, gaps),
        warnings=warnings,
    )


def _measures(shares: Shares, index: Any, level: float) -> dict[str, Interval]:
    """Measures of the rows at `index` that enough of them can tell."""
    found = {}
    for name, (right, among) in shares.rates.items():
        inside = index[among[index]]
        if len(inside) >= min(FEW, len(index)) and len(inside):
            found[name] = shares.mean(right[inside].astype(np.float64), inside, level, (0.0, 1.0))
    for name, (values, bounds) in shares.means.items():
        found[name] = shares.mean(values[index], index, level, bounds)
    return found


def row_mean(
    values: Floats,  # [N]
    weights: Floats | None,  # [N]
    clusters: Sequence[Hashable] | None,  # [N]
    bounds: Bounds | None,
    *,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """The mean over rows: Wilson's interval for shares of independent rows, the bootstrap for all else."""
    if weights is None:
        if clusters is None and bounds == (0.0, 1.0) and set(np.unique(values)) <= {0.0, 1.0}:
            return wilson(int(values.sum()), len(values), level=level)
        return mean_interval(values, clusters=clusters, bounds=bounds, level=level, seed=seed)
    parts = resampled_weights(len(values), clusters=clusters, resamples=RESAMPLES, seed=seed)
    drawn = np.concatenate([mean(values, part * weights) for part in parts])
    units = len(values) if clusters is None else len(set(clusters))
    kept = drawn[np.isfinite(drawn)]
    return percentile_interval(float(mean(values, weights)), kept, units, RESAMPLES, bounds=bounds, level=level)


def _gaps(shares: Shares, members: Mapping[str, Any], measured: Mapping[str, Mapping[str, Interval]]) -> list[Gap]:
    """The widest gap of each measure, among groups that are large enough."""
    large = [name for name, index in members.items() if len(index) >= SMALL and name != UNKNOWN]
    pairs = {
        name: [(a, b) for a, b in combinations(large, 2) if name in measured[a] and name in measured[b]]
        for name in [*shares.rates, *shares.means]
    }
    looks = sum(map(len, pairs.values()))
    gaps = []
    for name, found in pairs.items():
        if not found:
            continue

        one, other = _furthest(found, name, measured)
        low, high = (one, other) if measured[one][name].estimate <= measured[other][name].estimate else (other, one)
        above, below = (_measures(shares, members[group], 1 - (1 - LEVEL) / looks)[name] for group in (high, low))
        gaps.append(Gap(measure=name, high=high, low=low, difference=separate_difference(above, below), pairs=looks))
    return gaps


def _furthest(
    pairs: Sequence[tuple[str, str]], name: str, measured: Mapping[str, Mapping[str, Interval]]
) -> tuple[str, str]:
    return max(pairs, key=lambda pair: abs(measured[pair[0]][name].estimate - measured[pair[1]][name].estimate))


def _sentence(attribute: str, groups: Sequence[Group], gaps: Sequence[Gap]) -> str:
    """The clearest gap in words, and whether chance explains it."""
    if not gaps:
        return f"{attribute}: fewer than two groups are large enough to compare."
    widest = max(gaps, key=_weight)
    of = {group.name: group.measures for group in groups}
    told = (
        f"{attribute}: {widest.measure} is {of[widest.high][widest.measure].estimate:.3f} for {widest.high} and "
        f"{of[widest.low][widest.measure].estimate:.3f} for {widest.low}, a gap of {widest.difference}"
    )
    if widest.beyond_chance:
        return f"{told}, more than chance alone would make."
    return f"{told}, which chance alone could make; so few rows cannot rule out {widest.difference.high:.3f} either."


def _weight(gap: Gap) -> float:
    """How far a gap reaches beyond its uncertainty: measures have different units."""
    return gap.difference.estimate / max(gap.difference.estimate - gap.difference.low, 1e-12)


def _named(value: Any) -> str:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return UNKNOWN
    return str(value)
