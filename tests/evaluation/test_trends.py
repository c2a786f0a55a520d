"""trends: exact chances, and false alarms as rare as they are said to be"""

from __future__ import annotations

import itertools
import math
import random

import pytest
import scipy.stats

from melior.evaluation.trends import LOOK_FROM, parting_chance, rise_chance, shift_chance


@pytest.mark.parametrize("n", [2, 3, 5, 8, 10])
def test_the_chance_of_a_rise_is_that_of_kendalls_tau(n: int) -> None:
    draw = random.Random(n)
    for _ in range(10):
        values = [draw.random() for _ in range(n)]
        expected = scipy.stats.kendalltau(range(n), values, alternative="greater", method="exact").pvalue
        assert rise_chance(values) == pytest.approx(expected, abs=1e-12)


def test_the_chance_of_a_rise_counts_orders() -> None:
    orders = list(itertools.permutations(range(5)))
    shown = [3, 0, 1, 4, 2]
    score = sum((b > a) - (b < a) for a, b in itertools.combinations(shown, 2))
    as_high = [o for o in orders if sum((b > a) - (b < a) for a, b in itertools.combinations(o, 2)) >= score]
    assert rise_chance(shown) == pytest.approx(len(as_high) / len(orders))


def test_ties_make_the_test_careful() -> None:
    assert rise_chance([1.0] * 6) > 0.5
    assert rise_chance([1.0] * 7) > 0.5
    assert rise_chance([1, 2, 2, 3]) > rise_chance([1, 2, 2.5, 3])


def test_the_chance_of_a_shift_is_students() -> None:
    before, after = [0.1, 0.4, 0.2, 0.3], [0.5, 0.9, 0.6]
    expected = scipy.stats.ttest_ind(after, before, alternative="greater").pvalue
    assert shift_chance(before, after) == pytest.approx(expected, rel=1e-12)
    assert shift_chance([0.5] * 3, [0.4] * 3) == 1.0
    assert shift_chance([0.4] * 3, [0.5] * 3) < 1e-50
    assert shift_chance([0.4] * 3, [0.5] * 3, floor=0.1) > 0.1  # equal readings prove no lack of noise


def stopped(seed: int, *, hack: str = "", noise: float = 0.03, evaluations: int = 40, limit: float = 0.005) -> int:
    """How many evaluations it took to stop, 0 if the run was never stopped."""
    draw = random.Random(seed)
    reward = [0.2 + 0.6 * k / evaluations + draw.gauss(0, 0.02) for k in range(evaluations)]
    heldout = [0.5 + draw.gauss(0, noise) for _ in range(evaluations)]
    if hack == "slow":
        heldout = [value - 0.02 * max(0, k - 10) for k, value in enumerate(heldout)]
    if hack == "sudden":
        heldout = [value - 0.3 * (k >= 4) for k, value in enumerate(heldout)]
        reward = [0.2 + 0.6 * (1 - math.exp(-k / 3)) + draw.gauss(0, 0.02) for k in range(evaluations)]
    looks = range(LOOK_FROM, evaluations + 1)
    return next((n for n in looks if parting_chance(reward[:n], heldout[:n]) < limit), 0)


def test_luck_stops_no_more_runs_than_it_may() -> None:
    """Forty looks at each of 300 runs whose held-out metric is noise: at most 1 in 100, and half of that is meant."""
    assert sum(stopped(seed) > 0 for seed in range(300)) <= 3


@pytest.mark.parametrize(("hack", "soon"), [("slow", 28), ("sudden", 8)])
def test_a_metric_that_falls_while_the_reward_rises_is_seen(hack: str, soon: int) -> None:
    found = [stopped(seed, hack=hack) or 99 for seed in range(20)]
    assert sorted(found)[10] <= soon and sum(each < 99 for each in found) > 15


def test_a_metric_that_rises_with_the_reward_is_left_alone() -> None:
    rising = [0.3 + 0.2 * (1 - math.exp(-k / 5)) for k in range(40)]
    assert parting_chance([k / 40 for k in range(40)], rising) == 1.0


def test_a_fall_that_the_reward_shares_is_no_parting() -> None:
    falling = [1 - k / 20 for k in range(12)]
    assert parting_chance(falling, falling) == 1.0


def test_too_few_looks_say_nothing() -> None:
    assert parting_chance([1, 2, 3, 4], [4, 3, 2, 1]) == 1.0
