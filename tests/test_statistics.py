"""intervals cover what they claim to cover, and are never narrow by accident"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from melior.errors import DataError
from melior.statistics import (
    Interval,
    bootstrap_mean,
    confidence_sequence,
    differences_by_item,
    items_needed,
    mean_interval,
    paired_difference,
    pooled_difference,
    wilson,
)

UNIT = (0.0, 1.0)
SIMULATIONS = 1000
FLOOR = 0.94  # of nominal .95

Draw = Callable[[np.random.Generator, int], np.ndarray]


def beta_binomial(mean: float, samples: int) -> Draw:
    """Item means where items differ widely in difficulty: most are hopeless, a few easy."""
    return lambda chance, n: chance.binomial(samples, chance.beta(mean, 1 - mean, n)) / samples


def skewed_differences(rate: float, up: float) -> Draw:
    """Mostly 0, sometimes 1 or −1."""

    def draw(chance: np.random.Generator, n: int) -> np.ndarray:
        u = chance.random(n)
        return np.where(u < rate * up, 1.0, np.where(u < rate, -1.0, 0.0))

    return draw


LAWS: dict[str, tuple[Draw, float, tuple[float, float]]] = {
    "one sample, rare success": (lambda chance, n: chance.binomial(1, 0.1, n).astype(float), 0.1, UNIT),
    "two samples, rare success": (lambda chance, n: chance.binomial(2, 0.05, n) / 2, 0.05, UNIT),
    "hopeless and easy items": (beta_binomial(0.1, 4), 0.1, UNIT),
    "hopeless and easy items, rarer": (beta_binomial(0.05, 2), 0.05, UNIT),
    "mostly solved": (beta_binomial(0.9, 2), 0.9, UNIT),
    "partial credit": (lambda chance, n: chance.beta(0.5, 4.5, n), 0.1, UNIT),
    "equal policies": (lambda c, n: (c.binomial(2, 0.1, n) - c.binomial(2, 0.1, n)) / 2, 0.0, (-1.0, 1.0)),
    "few differences, mostly gains": (skewed_differences(0.12, 0.9), 0.096, (-1.0, 1.0)),
}


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("items", [30, 100])
def test_intervals_cover_the_mean(name: str, items: int) -> None:
    draw, mean, bounds = LAWS[name]
    chance = np.random.default_rng(11)
    intervals = [mean_interval(draw(chance, items), bounds=bounds) for _ in range(SIMULATIONS)]
    covered = np.mean([interval.low <= mean <= interval.high for interval in intervals])
    assert covered >= FLOOR
    assert np.mean([interval.high - interval.low for interval in intervals]) < 1.6 * _normal_width(name, items)


def _normal_width(name: str, items: int) -> float:
    """What an interval would measure if the spread were known: coverage by endless width is no coverage."""
    draw, _, _ = LAWS[name]
    return 2 * 1.96 * float(draw(np.random.default_rng(0), 100_000).std()) / math.sqrt(items)


def test_clustered_intervals_cover_where_unclustered_ones_do_not() -> None:
    chance = np.random.default_rng(5)
    hits = {"clustered": 0, "unclustered": 0}
    for _ in range(400):
        sizes = chance.integers(1, 8, 40)
        clusters = np.repeat(np.arange(40), sizes)
        values = chance.beta(1, 1, 40)[clusters] * 0.9 + 0.1 * chance.random(len(clusters))
        for name, groups in (("clustered", clusters.tolist()), ("unclustered", None)):
            interval = mean_interval(values, clusters=groups, bounds=UNIT, resamples=500)
            hits[name] += interval.low <= 0.5 <= interval.high
    assert hits["clustered"] / 400 >= 0.92
    assert hits["unclustered"] / 400 < 0.85


def test_the_interval_is_close_to_students_where_that_is_exact() -> None:
    values = np.random.default_rng(0).normal(0, 1, 400)
    interval = mean_interval(values)
    low, high = stats.t.interval(0.95, 399, values.mean(), values.std(ddof=1) / 20)
    assert interval.low <= low and interval.high >= high
    assert interval.high - interval.low < 1.05 * (high - low)


def test_bca_agrees_with_scipys() -> None:
    values = np.random.default_rng(3).exponential(1.0, 200)
    ours = mean_interval(values, resamples=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, method="BCa", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours.high == pytest.approx(theirs.high, abs=0.01)  # the skewed side, where BCa and not t decides


def test_an_item_counts_once_however_many_samples_it_has() -> None:
    by_item = {"a": [1.0] * 100, "b": [0.0], "c": [0.0, 1.0]}
    assert bootstrap_mean(by_item).estimate == pytest.approx(0.5)
    repeated = {key: list(values) * 3 for key, values in by_item.items()}
    assert bootstrap_mean(repeated) == bootstrap_mean(by_item)


def test_same_seed_same_interval_and_other_seed_nearly_so() -> None:
    values = np.random.default_rng(0).exponential(1.0, 100)
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    one, two = mean_interval(values, seed=1), mean_interval(values, seed=2)
    assert one != two
    assert one.high == pytest.approx(two.high, abs=0.2 * (one.high - one.low))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=40),
    st.sampled_from([0.8, 0.95, 0.99]),
)
def test_interval_laws(values: list[float], level: float) -> None:
    interval = mean_interval(values, level=level, bounds=UNIT, resamples=200)
    assert interval.estimate == pytest.approx(np.mean(values))
    assert 0.0 <= interval.low <= interval.estimate <= interval.high <= 1.0
    assert interval.high > interval.low
    mirrored = mean_interval([1 - value for value in values], level=level, bounds=UNIT, resamples=200)
    assert mirrored.low == pytest.approx(1 - interval.high, abs=1e-9)
    scaled = mean_interval([3 * value - 1 for value in values], level=level, bounds=(-1.0, 2.0), resamples=200)
    assert scaled.high == pytest.approx(3 * interval.high - 1, abs=1e-9)


def test_equal_values_follow_the_written_rule() -> None:
    interval = mean_interval([0.0] * 200, bounds=(-1.0, 1.0))
    assert interval.high == pytest.approx(1 - 0.025 ** (1 / 199))
    assert interval.low == -interval.high
    assert 0.015 < interval.high < 0.02
    wider = mean_interval([0.0] * 20, bounds=(-1.0, 1.0))
    assert wider.high > interval.high


def test_equal_values_without_bounds_say_nothing() -> None:
    interval = mean_interval([0.3] * 50)
    assert (interval.low, interval.high) == (-math.inf, math.inf)


def test_values_equal_but_for_rounding_count_as_equal() -> None:
    values = [0.1 + 0.2, 0.3] * 20
    assert mean_interval(values, bounds=UNIT).high > 0.35


def test_one_item_gives_the_bounds() -> None:
    assert mean_interval([1.0], bounds=UNIT) == Interval(1.0, 0.0, 1.0)
    assert mean_interval([1.0, 1.0, 0.0], clusters=[7, 7, 7], bounds=UNIT) == Interval(2 / 3, 0.0, 1.0)


def test_all_equal_rule_covers_rare_failures() -> None:
    """With 100 items and a failure rate of 2 %, seeing none must still leave 2 % possible, in 95 % of trials."""
    chance = np.random.default_rng(2)
    trials = [mean_interval(chance.binomial(1, 0.98, 100).astype(float), bounds=UNIT) for _ in range(500)]
    assert np.mean([interval.low <= 0.98 <= interval.high for interval in trials]) >= FLOOR


@pytest.mark.parametrize("values", [[], [math.nan, 1.0], [math.inf], [[1.0, 2.0]], [2.0]])
def test_what_has_no_mean_is_refused(values: list[float]) -> None:
    with pytest.raises(DataError):
        mean_interval(values, bounds=UNIT)


def test_items_without_values_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="1 of 2 items have no finite value, first 'b'"):
        bootstrap_mean({"a": [1.0], "b": []})


def test_pairing_removes_the_spread_between_items() -> None:
    chance = np.random.default_rng(0)
    hard = chance.normal(0, 10, 100)
    a = {str(i): [hard[i] + 1 + chance.normal(0, 0.1)] for i in range(100)}
    b = {str(i): [hard[i] + chance.normal(0, 0.1)] for i in range(100)}
    paired = paired_difference(a, b)
    assert paired.estimate == pytest.approx(1, abs=0.05)
    assert paired.high - paired.low < 0.1
    assert paired_difference(b, a).estimate == pytest.approx(-paired.estimate)


def test_pairing_refuses_other_items() -> None:
    with pytest.raises(DataError, match="1 items are only in the first and 2 only in the second"):
        paired_difference({"a": [1.0], "b": [1.0]}, {"b": [1.0], "c": [0.0], "d": [0.0]})


def test_pairing_ignores_the_order_of_items() -> None:
    assert differences_by_item({"a": [1.0], "b": [0.5]}, {"b": [0.5], "a": [0.0]}) == {"a": 1.0, "b": 0.0}


def test_runs_that_repeat_each_other_add_no_certainty() -> None:
    chance = np.random.default_rng(1)
    a = {str(i): chance.binomial(1, 0.5, 2).tolist() for i in range(60)}
    b = {str(i): chance.binomial(1, 0.3, 2).tolist() for i in range(60)}
    once = paired_difference(a, b, bounds=UNIT)
    thrice = pooled_difference([(a, b)] * 3, bounds=UNIT)
    assert thrice.low == pytest.approx(once.low) and thrice.high == pytest.approx(once.high)


def test_pooled_runs_cover_the_mean_gain_over_items() -> None:
    """Items differ in gain, runs share the items: item noise must not be divided by the number of runs."""
    chance = np.random.default_rng(4)
    hits = 0
    for _ in range(400):
        gains = chance.normal(0.1, 0.3, 50)
        runs = [
            (
                {str(i): [gains[i] + chance.normal(0, 0.1)] for i in range(50)},
                {str(i): [chance.normal(0, 0.1)] for i in range(50)},
            )
            for _ in range(3)
        ]
        interval = pooled_difference(runs, resamples=300)
        hits += interval.low <= 0.1 <= interval.high
    assert hits / 400 >= 0.92


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (57, 200)])
def test_wilson_agrees_with_scipys(successes: int, trials: int) -> None:
    ours = wilson(successes, trials)
    theirs = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours.high > ours.low


def test_wilson_refuses_impossible_counts() -> None:
    for successes, trials in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(DataError):
            wilson(successes, trials)


@pytest.mark.parametrize("effect", [0.1, 0.25])
def test_items_needed_gives_the_promised_power(effect: float) -> None:
    chance = np.random.default_rng(0)
    pilot = chance.normal(0, 0.5, 5000)
    needed = items_needed(pilot, effect)
    trials = chance.normal(effect, 0.5, (4000, needed))
    error = trials.std(axis=1, ddof=1) / math.sqrt(needed)
    seen = np.abs(trials.mean(axis=1)) / error > stats.t.ppf(0.975, needed - 1)
    assert seen.mean() == pytest.approx(0.8, abs=0.03)


def test_items_needed_grows_as_the_effect_shrinks() -> None:
    differences = np.random.default_rng(0).normal(0, 1, 100)
    assert items_needed(differences, 0.1) > 3.8 * items_needed(differences, 0.2)
    assert items_needed(differences, 0.1, power=0.9) > items_needed(differences, 0.1)
    assert items_needed(differences, -0.1) == items_needed(differences, 0.1)
    enough = items_needed([0.0] * 10, 0.1)  # equal differences do not mean that one item will do
    assert mean_interval([0.0] * enough, bounds=(-1.0, 1.0)).high <= 0.1
    assert mean_interval([0.0] * (enough - 1), bounds=(-1.0, 1.0)).high > 0.1
    with pytest.raises(DataError):
        items_needed(differences, 0.0)


@pytest.mark.parametrize("mean", [0.1, 0.5])
def test_the_confidence_sequence_holds_at_every_look(mean: float) -> None:
    chance = np.random.default_rng(8)
    misses, naive = 0, 0
    for _ in range(200):
        values = chance.binomial(1, mean, 200).astype(float)
        low, high = confidence_sequence(values, UNIT, grid=400)
        misses += bool((low > mean).any() or (high < mean).any())
        n = np.arange(10, 201)
        running = np.cumsum(values)[9:] / n
        naive += bool((np.abs(running - mean) > 1.96 * np.sqrt(np.maximum(running * (1 - running), 1e-9) / n)).any())
    assert misses / 200 <= 0.05
    assert naive / 200 > 0.15  # what looking again and again does to an interval made for one look


def test_the_confidence_sequence_narrows_and_never_widens() -> None:
    values = np.random.default_rng(0).binomial(1, 0.7, 1000) * 2.0 - 1.0
    low, high = confidence_sequence(values, (-1.0, 1.0))
    assert (np.diff(low) >= 0).all() and (np.diff(high) <= 0).all()
    assert low[-1] < 0.4 < high[-1]
    assert high[-1] - low[-1] < 0.3
    assert low[0] >= -1 and high[0] <= 1


def test_intervals_survive_json() -> None:
    for interval in (Interval(0.5, 0.25, 0.75), Interval(0.0, -math.inf, math.inf, 0.9)):
        assert Interval.from_json(interval.to_json()) == interval
    assert -Interval(1.0, 0.5, 3.0) == Interval(-1.0, -3.0, -0.5)
    assert str(Interval(0.5, 0.25, 0.75)) == "0.500 [0.250, 0.750]"
