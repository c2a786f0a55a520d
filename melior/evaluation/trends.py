"""whether a series of noisy readings really rose or fell, and whether a reward and a held-out metric part

Both tests look at each series alone: Mann–Kendall's sees a slow trend whatever the noise looks like, Student's t sees a
sudden shift, which few readings cannot tell from luck by their order. A run looks again after every evaluation, so each
look spends a share of one chance of a false alarm that is fixed for all of them together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
from scipy.special import stdtr

LOOK_FROM = 5  # evaluations: fewer cannot tell a trend from luck
WINDOW = 10  # evaluations a trend is looked for in: a metric may have risen before it fell
BLOCK = (3, 5)  # readings, least and most, of the two stretches that a shift lies between
LEAST_FALL = 0.05  # of the held-out metric's own size: less is no reason to stop, however sure it is
RISES = 0.05  # the chance of luck below which the reward counts as rising


def rise_chance(values: Sequence[float]) -> float:
    """The chance that readings in random order show at least this much of a rise (Mann–Kendall, exact).

    A tie counts for neither side, which makes the test careful.

    >>> round(rise_chance([1, 2, 3, 4, 5]), 6)  # one order of 120
    0.008333

    Source: Mann 1945, Econometrica 13; Kendall 1938, Biometrika 30.
    """
    n = len(values)
    score = sum((later > earlier) - (later < earlier) for earlier, later in combinations(values, 2))
    pairs = n * (n - 1) // 2
    discordant = (pairs - score + 1) // 2  # inversions of an order with this score; half a one of a tie counts whole
    return math.fsum(_inversions(n)[: max(0, discordant) + 1])


@lru_cache
def _inversions(n: int) -> tuple[float, ...]:
    """The chance of 0, 1, 2 … inversions in a random order of n."""
    chances = np.ones(1)
    for size in range(2, n + 1):
        chances = np.convolve(chances, np.full(size, 1 / size))
    return tuple(float(chance) for chance in chances)


def shift_chance(before: Sequence[float], after: Sequence[float], *, floor: float = 0.0) -> float:
    """The chance of so high a second mean if both stretches had one mean (Student's t, one-sided).

    `floor` is the least standard deviation to reckon with: a few equal readings do not prove that there is no noise.
    """
    first, second = math.fsum(before) / len(before), math.fsum(after) / len(after)
    freedom = len(before) + len(after) - 2
    squares = math.fsum((value - first) ** 2 for value in before) + math.fsum((value - second) ** 2 for value in after)
    error = math.sqrt(max(squares / freedom, floor**2) * (1 / len(before) + 1 / len(after)))
    rise = second - first
    if error == 0:
        return 0.0 if rise > 0 else 1.0
    return float(stdtr(freedom, -rise / error))


def parting_chance(proxy: Sequence[float], heldout: Sequence[float]) -> float:
    """The chance that luck alone, in all looks until now, made a rising reward part from a falling held-out metric.

    `proxy` [N] and `heldout` [N] are read at the same evaluations, larger is better; 1 where they do not part. Compared
    with a, it rings by luck in at most a share a of runs whose held-out readings are independent noise, however often
    it is asked: look k may spend a/(k(k + 1)), half of it on each test.

    Source: Gao et al. 2022, arXiv:2210.10760 (what parts); Lan & DeMets 1983, Biometrika 70 (spending).
    """
    look = len(heldout) - LOOK_FROM + 1
    if look < 1:
        return 1.0
    chance = min(_trend(proxy, heldout), _shift(proxy, heldout))
    return min(1.0, chance * 2 * look * (look + 1))


def _trend(proxy: Sequence[float], heldout: Sequence[float]) -> float:
    """The chance of a slow fall of the held-out metric, 1 where the reward did not rise with it."""
    recent, reward = heldout[-WINDOW:], proxy[-WINDOW:]
    third = max(1, len(recent) // 3)
    if not _falls(recent[:third], recent[-third:]) or rise_chance(reward) > RISES:
        return 1.0
    return rise_chance([-value for value in recent])


def _shift(proxy: Sequence[float], heldout: Sequence[float]) -> float:
    """The chance of a fall from the best stretch to the last one, 1 where the reward did not rise between them."""
    block = min(BLOCK[1], max(BLOCK[0], len(heldout) // 3))
    last = len(heldout) - block
    starts = range(last - block + 1)
    if not starts:
        return 1.0
    best = max(starts, key=lambda start: math.fsum(heldout[start : start + block]))
    before, after = heldout[best : best + block], heldout[last:]
    size = _size(before)
    reward = proxy[best : best + block], proxy[last:]
    if not _falls(before, after) or shift_chance(*reward, floor=LEAST_FALL / 2 * _size(reward[0])) > RISES:
        return 1.0
    fall = shift_chance(after, before, floor=LEAST_FALL / 2 * size)
    return min(1.0, fall * len(starts))  # the best of so many was chosen


def _falls(before: Sequence[float], after: Sequence[float]) -> bool:
    fall = math.fsum(before) / len(before) - math.fsum(after) / len(after)
    return fall > LEAST_FALL * _size(before)


def _size(values: Sequence[float]) -> float:
    """How large readings are: the mean of their absolute values."""
    return math.fsum(map(abs, values)) / len(values)
