"""which of many settings is better than the default, when the best of many is partly luck

Three kinds of luck make the best of twenty trials look good, and each has its answer:

- the luck of the draw among trials: on the search's own rows the difference must exclude 0 at the level of the whole
  search, each of k trials having (1 − level) / k of it (Bonferroni);
- the luck of the rows: what is reported was measured on other rows, which the search never saw (the winner's curse);
- the luck of a seed: there both settings are trained anew with fresh seeds, and the interval holds the spread between
  them beside the spread between rows.

Source: Dunn 1961, JASA 56 (correction); Zou and Donner 2008, Statistics in Medicine 27 (joining the two spreads).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from melior.errors import DataError
from melior.evaluation.compare import Comparison, pooled
from melior.evaluation.evaluate import REWARD
from melior.statistics import LEVEL, Interval


@dataclass(frozen=True)
class Found:
    """What a search may claim. `gain` is that of fresh rows and seeds, None where nothing got so far."""

    best: int | None  # the trial that may be called better than the default
    sentence: str
    intervals: Mapping[int, Interval]  # trial → its difference to the default on the search's rows, corrected
    gain: Interval | None = None


def corrected(
    trials: Mapping[int, Comparison], *, level: float = LEVEL, tried: int | None = None
) -> dict[int, Interval]:
    """Every trial's difference to the default, at a level that holds for all `tried` at once; None: for those told.

    Trials given up on the way count as tried: who is left was chosen by the same rows.
    """
    each = 1 - (1 - level) / max(1, len(trials), tried or 0)
    return {number: comparison.interval(REWARD, level=each) for number, comparison in trials.items()}


def candidate(intervals: Mapping[int, Interval]) -> int | None:
    """The trial with the largest difference, if its corrected interval lies above 0."""
    if not intervals:
        return None
    best = max(intervals, key=lambda number: intervals[number].estimate)
    return best if intervals[best].low > 0 else None


def confirmed(pairs: Sequence[Comparison], *, level: float = LEVEL) -> Interval:
    """The gain of settings over others, from comparisons that share their rows and differ in their seed.

    With one pair the interval speaks of these two models only: nothing is known of the spread between seeds.

    Raises:
        DataError: if there is no pair.
    """
    if not pairs:
        raise DataError("0 pairs of runs confirm nothing; train both settings at least once")
    rows = pooled(pairs).interval(REWARD, level=level)
    if len(pairs) == 1:
        return rows
    means = [math.fsum(pair.of(REWARD).values()) / len(pair.of(REWARD)) for pair in pairs]
    centre = math.fsum(means) / len(means)
    variance = math.fsum((mean - centre) ** 2 for mean in means) / (len(means) - 1)
    seeds = float(stdtrit(len(means) - 1, (1 + level) / 2)) * math.sqrt(variance / len(means))
    below, above = (math.hypot(side, seeds) for side in (rows.estimate - rows.low, rows.high - rows.estimate))
    return Interval(rows.estimate, rows.estimate - below, rows.estimate + above, level)


def judged(intervals: Mapping[int, Interval], pairs: Sequence[Comparison], *, level: float = LEVEL) -> Found:
    """What the search may claim: a trial that was better on the search's rows and again on fresh rows, or none."""
    best = candidate(intervals)
    if best is None:
        top = max((interval.estimate for interval in intervals.values()), default=0.0)
        seen = f"the best of {len(intervals)} differed by {top:+.3f}, which that many trials show by chance"
        seen = seen if intervals else "0 trials came to their end, so there was nothing to compare"
        return Found(None, f"No setting was better than the default beyond noise; {seen}.", intervals)
    gain = confirmed(pairs, level=level)
    seeds = f"{len(pairs)} fresh seeds" if len(pairs) > 1 else "1 fresh seed, so of these two models only"
    where = f"on {len(pairs[0].of(REWARD))} rows the search never saw ({seeds})"
    looked = f"trial {best} looked better by {intervals[best].estimate:.3f} in the search"
    if gain.low > 0:
        return Found(best, f"Better: {looked} and is better by {gain} {where}.", intervals, gain)
    doubt = f"{looked}, but {where} its gain is {gain}"
    return Found(None, f"No setting was better than the default beyond noise: {doubt}.", intervals, gain)
