"""bootstrap over items, paired differences, Wilson, items needed, confidence sequences

The unit of chance is the item (or a cluster of items: one conversation, one user), not the sample: several outputs of
one input are averaged first, so an item with eight samples counts as much as one with two.

Intervals are the BCa bootstrap at Hesterberg's expanded level, widened to Student's t where that reaches further.
Skewed rewards (few successes in few items) defeat t alone, all-positive handfuls of differences defeat the bootstrap
alone; the hull holds 95 % for both from thirty items on, which the tests simulate.

Where every item says the same, no resampling can know the spread. Then the interval follows from bounds alone: with
n equal values, a different one has at most the probability q = 1 − (α/2)^(1/(n−1)), and could lie as far away as the
bounds allow. Without bounds the interval is infinite. One item alone gives the bounds themselves.

Source: Efron 1987, JASA 82, BCa; Hesterberg 2015, arXiv:1411.5279, §3.4; Hanley and Lippman-Hand 1983, JAMA 249.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri, stdtrit

from melior.errors import DataError

Floats = NDArray[np.float64]
ByItem = Mapping[str, Sequence[float]]  # item key → the values of its samples
Bounds = tuple[float, float]

LEVEL = 0.95
RESAMPLES = 2000  # moves a 95 % limit by about 6 % of a standard error from seed to seed
EQUAL = 1e-12  # relative: differences of means are equal but for rounding
CHUNK = 1_000_000  # resample counts held at once, 8 MB


@dataclass(frozen=True)
class Interval:
    """An estimate and the limits around it; an infinite limit means the data cannot say."""

    estimate: float
    low: float
    high: float
    level: float = LEVEL

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def __neg__(self) -> Interval:
        return Interval(-self.estimate, -self.high, -self.low, self.level)

    def to_json(self) -> dict[str, float | None]:
        """Plain numbers; an infinite limit is None, as JSON has no infinity."""
        low, high = (limit if math.isfinite(limit) else None for limit in (self.low, self.high))
        return {"estimate": self.estimate, "low": low, "high": high, "level": self.level}

    @classmethod
    def from_json(cls, fields: Mapping[str, float | None]) -> Interval:
        """The interval that `to_json` wrote."""
        low, high = fields["low"], fields["high"]
        return cls(
            estimate=float(fields["estimate"] or 0.0),
            low=-math.inf if low is None else low,
            high=math.inf if high is None else high,
            level=float(fields["level"] or LEVEL),
        )


def item_means(by_item: ByItem) -> dict[str, float]:
    """The mean of each item's samples.

    Raises:
        DataError: if there is no item, or an item has no value or one that is not finite.
    """
    if not by_item:
        raise DataError("0 items have values; evaluate at least one item")
    bad = [key for key, values in by_item.items() if not len(values) or not np.isfinite(values).all()]
    if bad:
        raise DataError(f"{len(bad)} of {len(by_item)} items have no finite value, first {bad[0]!r}; leave them out")
    return {key: math.fsum(values) / len(values) for key, values in by_item.items()}


def bootstrap_mean(
    by_item: ByItem,
    *,
    level: float = LEVEL,
    bounds: Bounds | None = None,
    clusters: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean over items of item means, with an interval that resamples whole items (or clusters of them)."""
    means = item_means(by_item)
    groups = _clusters_of(means, clusters)
    return mean_interval(
        list(means.values()), clusters=groups, level=level, bounds=bounds, resamples=resamples, seed=seed
    )


def paired_difference(
    a_by_item: ByItem,
    b_by_item: ByItem,
    *,
    level: float = LEVEL,
    bounds: Bounds | None = None,  # of the values, not of their differences
    clusters: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean over items of a − b, paired by item.

    Raises:
        DataError: if the two hold different items.
    """
    pairs = [(a_by_item, b_by_item)]
    return pooled_difference(pairs, level=level, bounds=bounds, clusters=clusters, resamples=resamples, seed=seed)


def pooled_difference(
    runs: Sequence[tuple[ByItem, ByItem]],
    *,
    level: float = LEVEL,
    bounds: Bounds | None = None,
    clusters: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean over items of a − b, averaged over runs that share the items.

    An item is one unit of chance over all runs, so three runs of 200 items are 200 units and not 600. The interval
    speaks of these runs on new items; it says nothing about the spread between runs.
    """
    differences = pool([differences_by_item(a, b) for a, b in runs])
    return mean_interval(
        list(differences.values()),
        clusters=_clusters_of(differences, clusters),
        level=level,
        bounds=difference_bounds(bounds) if bounds else None,
        resamples=resamples,
        seed=seed,
    )


def differences_by_item(a_by_item: ByItem, b_by_item: ByItem) -> dict[str, float]:
    """Mean of a minus mean of b for every item, in the order of a.

    Raises:
        DataError: if the two hold different items.
    """
    only_a, only_b = a_by_item.keys() - b_by_item.keys(), b_by_item.keys() - a_by_item.keys()
    if only_a or only_b:
        raise DataError(
            f"{len(only_a)} items are only in the first and {len(only_b)} only in the second; evaluate both on one set"
        )
    a, b = item_means(a_by_item), item_means(b_by_item)
    return {key: a[key] - b[key] for key in a}


def pool(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean over runs of every item's value; an item missing from a run is averaged over the others."""
    gathered: dict[str, list[float]] = {}
    for run in runs:
        for key, value in run.items():
            gathered.setdefault(key, []).append(value)
    return item_means(gathered)


def difference_bounds(bounds: Bounds) -> Bounds:
    """Where differences of values within `bounds` can lie."""
    return bounds[0] - bounds[1], bounds[1] - bounds[0]


def mean_interval(
    values: ArrayLike,  # [N], one per item
    *,
    clusters: Sequence[Hashable] | None = None,  # [N], items that stand or fall together
    level: float = LEVEL,
    bounds: Bounds | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean of independent values, with the interval described at the top of this module.

    With clusters the estimate stays the mean over items, and whole clusters are resampled.

    Raises:
        DataError: if there is no value, one is not finite, or one lies outside the bounds.
    """
    array = _checked(values, bounds)
    totals, sizes = _cluster_totals(array, clusters)
    estimate, count = float(array.mean()), len(totals)
    influence = (totals - estimate * sizes) / sizes.mean()  # [C], sums to zero
    floor, ceiling = bounds or (-math.inf, math.inf)
    if count < 2 or np.ptp(influence) <= EQUAL * max(1.0, abs(estimate)):
        return _equal_values(estimate, count, floor, ceiling, level)
    error = float(influence.std(ddof=1)) / math.sqrt(count)
    t = float(stdtrit(count - 1, (1 + level) / 2))
    low, high = _bca(totals, sizes, influence, estimate, t, resamples, seed)
    return Interval(
        estimate, max(floor, min(low, estimate - t * error)), min(ceiling, max(high, estimate + t * error)), level
    )


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],  # of row numbers [N], drawn with replacement
    rows: int,
    *,
    clusters: Sequence[Hashable] | None = None,  # [N], rows that stand or fall together
    bounds: Bounds | None = None,  # where the statistic can lie
    level: float = LEVEL,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Any statistic of rows (a correlation, an area) with the percentile interval over resampled rows or clusters.

    Resamples for which the statistic is NaN, as where only one class was drawn, are left out; with
    fewer than two clusters, or where most are NaN, the interval is that of the bounds. Where all resamples agree, it
    follows from the bounds as at the top of this module.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, §13.3.
    """
    members: dict[Hashable, list[int]] = {}
    for row in range(rows):
        members.setdefault(clusters[row] if clusters is not None else row, []).append(row)
    groups = [np.array(found) for found in members.values()]
    estimate = float(statistic(np.arange(rows)))
    chance = np.random.default_rng(seed)
    values = []
    for _ in range(resamples if len(groups) > 1 else 0):
        drawn = statistic(np.concatenate([groups[index] for index in chance.integers(len(groups), size=len(groups))]))
        if math.isfinite(drawn):
            values.append(float(drawn))
    return percentile_interval(estimate, values, len(groups), resamples, bounds=bounds, level=level)


def percentile_interval(
    estimate: float,
    draws: ArrayLike,  # the statistic of each resample that had one
    units: int,  # rows or clusters that were drawn from
    resamples: int,  # that were made, those without the statistic included
    *,
    bounds: Bounds | None = None,
    level: float = LEVEL,
) -> Interval:
    """The interval between the quantiles of resampled values; that of the bounds where they say too little."""
    values = np.asarray(draws, dtype=np.float64)
    floor, ceiling = bounds or (-math.inf, math.inf)
    if units < 2 or 2 * len(values) < resamples:
        return Interval(estimate, floor, ceiling, level)
    if np.ptp(values) <= EQUAL:
        return _equal_values(estimate, units, floor, ceiling, level)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate), level)


def resampled_weights(
    rows: int, *, clusters: Sequence[Hashable] | None = None, resamples: int = 1000, seed: int = 0
) -> Iterator[Floats]:
    """How often each row counts in each resample, [R, N], some resamples at a time; whole clusters are drawn.

    A statistic that takes weights is bootstrapped in a few passes over these instead of one for each resample.
    """
    numbers: dict[Hashable, int] = {}
    index = None if clusters is None else np.array([numbers.setdefault(each, len(numbers)) for each in clusters])
    units = rows if index is None else len(numbers)
    most = max(1, min(resamples, CHUNK // max(rows, 1)))
    for start in range(0, resamples, most):
        drawn = _resample_counts(units, min(most, resamples - start), seed, start)
        yield drawn if index is None else drawn[:, index]


def separate_difference(a: Interval, b: Interval) -> Interval:
    """a − b for estimates from different rows, its limits recovered from theirs.

    Source: Zou and Donner 2008, Statistics in Medicine 27 (the interval of a difference from two separate intervals).
    """
    estimate = a.estimate - b.estimate
    below = math.hypot(a.estimate - a.low, b.high - b.estimate)
    above = math.hypot(a.high - a.estimate, b.estimate - b.low)
    return Interval(estimate, estimate - below, estimate + above, a.level)


def wilson(successes: int, trials: int, *, level: float = LEVEL) -> Interval:
    """The share of successes with Wilson's score interval, never of zero width.

    Raises:
        DataError: unless 0 ≤ successes ≤ trials and trials ≥ 1.

    Source: Wilson 1927, JASA 22.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise DataError(f"{successes} successes of {trials} trials is no share; needs 0 ≤ successes ≤ trials ≥ 1")
    z = float(ndtri((1 + level) / 2))
    share, weight = successes / trials, z * z / trials
    centre = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    low = 0.0 if successes == 0 else centre - half  # exact at the ends, where rounding would leave 1e-17
    high = 1.0 if successes == trials else centre + half
    return Interval(share, low, high, level)


def items_needed(
    differences: ArrayLike,  # [N], paired, one per item
    effect: float,
    *,
    power: float = 0.8,
    alpha: float = 0.05,
    spread: float = 1.0,
) -> int:
    """How many items in all a two-sided paired test needs to see a mean difference of `effect`.

    Where all differences are equal, it is the number whose interval, by the rule at the top of this module, reaches no
    further than `effect`; an unseen difference could lie `spread` away.

    Raises:
        DataError: if there is no difference or `effect` is 0.

    Source: Guenther 1981, The American Statistician 35 (normal formula plus z²/2 for the t distribution).
    """
    array = _checked(differences, None)
    if not math.isfinite(effect) or effect == 0:
        raise DataError(f"an effect of {effect} needs no finite number of items; give the gain worth having")
    if len(array) < 2 or np.ptp(array) <= EQUAL * max(1.0, float(np.abs(array).max())):
        unseen = min(abs(effect) / spread, 1 - EQUAL)
        return 1 + math.ceil(math.log(alpha / 2) / math.log1p(-unseen))
    deviation = float(array.std(ddof=1))
    z_alpha, z_power = float(ndtri(1 - alpha / 2)), float(ndtri(power))
    return math.ceil(((z_alpha + z_power) * deviation / effect) ** 2 + z_alpha**2 / 2)


def confidence_sequence(
    values: ArrayLike,  # [N] in order of arrival
    bounds: Bounds,
    *,
    level: float = LEVEL,
    grid: int = 2000,
) -> tuple[Floats, Floats]:
    """Lower and upper limits of the mean after each value, right at every look at once, however often one looks.

    Two gamblers bet against every candidate mean, one that it is too low, one that it is too high; a mean is given
    up when a gambler has multiplied the stake by 2/α. Limits are rounded outwards to the grid.

    Returns:
        low [N], high [N]: never widening.

    Source: Waudby-Smith and Ramdas 2024, JRSS-B 86, arXiv:2010.09686, hedged capital with predictable plug-in bets.
    """
    floor, ceiling = bounds
    x = (_checked(values, bounds) - floor) / (ceiling - floor)
    candidates = np.linspace(0.0, 1.0, grid + 1)
    bets = _predictable_bets(x, 1 - level)[:, None]
    with np.errstate(divide="ignore"):
        up, down = np.minimum(bets, 0.5 / candidates), np.minimum(bets, 0.5 / (1 - candidates))
    stake = math.log(2 / (1 - level))
    gap = x[:, None] - candidates
    # each gambler's capital is monotone in the candidate, so what is given up is one end of the grid
    too_low = (np.maximum.accumulate(np.cumsum(np.log1p(up * gap), axis=0), axis=0) >= stake).sum(axis=1)
    too_high = (np.maximum.accumulate(np.cumsum(np.log1p(-down * gap), axis=0), axis=0) >= stake).sum(axis=1)
    low = np.maximum(too_low - 1, 0) / grid
    high = np.minimum(grid - too_high + 1, grid) / grid
    return floor + low * (ceiling - floor), floor + high * (ceiling - floor)


def _predictable_bets(x: Floats, alpha: float) -> Floats:
    """Bet sizes [N], each from the values before it only."""
    steps = np.arange(1, len(x) + 1)
    means = (0.5 + np.cumsum(x)) / (steps + 1)
    variances = (0.25 + np.cumsum((x - means) ** 2)) / (steps + 1)
    before = np.concatenate([[0.25], variances[:-1]])
    return np.sqrt(2 * math.log(2 / alpha) / (before * steps * np.log(steps + 1)))


def _checked(values: ArrayLike, bounds: Bounds | None) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise DataError(f"values of shape {list(array.shape)} have no mean over items; give one number per item")
    if not np.isfinite(array).all():
        raise DataError(f"{int((~np.isfinite(array)).sum())} of {len(array)} values are not finite; leave them out")
    if bounds is not None:
        outside = int(((array < bounds[0] - EQUAL) | (array > bounds[1] + EQUAL)).sum())
        if outside:
            raise DataError(f"{outside} of {len(array)} values lie outside {bounds}; give bounds that hold, or none")
    return array


def _clusters_of(keys: Iterable[str], clusters: Mapping[str, str] | None) -> list[Hashable] | None:
    """The cluster of each item; an item without one is its own."""
    if not clusters:
        return None
    return [("cluster", clusters[key]) if clusters.get(key) else ("item", key) for key in keys]


def _cluster_totals(array: Floats, clusters: Sequence[Hashable] | None) -> tuple[Floats, Floats]:
    """Sum of values [C] and number of items [C] of each cluster."""
    if clusters is None:
        return array, np.ones_like(array)
    if len(clusters) != len(array):
        raise DataError(f"{len(clusters)} clusters for {len(array)} values; give one per item")
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])
    totals, sizes = np.zeros(len(numbers)), np.zeros(len(numbers))
    np.add.at(totals, index, array)
    np.add.at(sizes, index, 1.0)
    return totals, sizes


def _equal_values(estimate: float, count: int, floor: float, ceiling: float, level: float) -> Interval:
    unseen = 1.0 if count < 2 else 1 - ((1 - level) / 2) ** (1 / (count - 1))
    return Interval(estimate, estimate - unseen * (estimate - floor), estimate + unseen * (ceiling - estimate), level)


def _bca(
    totals: Floats, sizes: Floats, influence: Floats, estimate: float, t: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Bias-corrected and accelerated limits, at the level that makes a symmetric bootstrap as wide as Student's t."""
    count = len(totals)
    means = np.sort(_resampled_means(totals, sizes, resamples, seed))
    tie = EQUAL * max(1.0, abs(estimate))
    below = (np.searchsorted(means, estimate - tie) + np.searchsorted(means, estimate + tie)) / 2
    bias = float(ndtri(min(max(below, 1.0), resamples - 1.0) / resamples))
    acceleration = float((influence**3).sum()) / (6 * float((influence**2).sum()) ** 1.5)
    z = t * math.sqrt(count / (count - 1))
    shares = []
    for side in (bias - z, bias + z):
        shrink = 1 - acceleration * side
        # past the pole the transformation turns round; the outermost resample is what is meant
        shares.append(float(ndtr(bias + side / shrink)) if shrink > 0 else float(side > 0))
    low, high = np.quantile(means, shares)
    return float(low), float(high)


def _resampled_means(totals: Floats, sizes: Floats, resamples: int, seed: int) -> Floats:
    rows = max(1, min(resamples, CHUNK // len(totals)))
    parts = []
    for start in range(0, resamples, rows):
        counts = _resample_counts(len(totals), min(rows, resamples - start), seed, start)
        parts.append((counts @ totals) / (counts @ sizes))
    return np.concatenate(parts)


@lru_cache(maxsize=4)  # the counts depend on sizes and seed only, and a report asks for many intervals of one size
def _resample_counts(count: int, rows: int, seed: int, start: int) -> Floats:
    """How often each of `count` clusters is drawn in each resample, [R, C]."""
    draws = np.random.default_rng((seed, start)).integers(count, size=(rows, count))
    flat = (draws + count * np.arange(rows)[:, None]).ravel()
    counts = np.bincount(flat, minlength=rows * count).reshape(rows, count).astype(np.float64)
    counts.flags.writeable = False
    return counts
