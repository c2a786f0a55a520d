"""repetition of outputs, and correlation within groups"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.metrics import correlation_within, repeated_share


def test_repetition_is_the_share_of_n_grams_seen_before() -> None:
    assert repeated_share([7] * 10) == pytest.approx(6 / 7)
    assert repeated_share(list(range(50))) == 0
    assert repeated_share([1, 2, 1, 2, 1], n=2) == pytest.approx(2 / 4)
    assert math.isnan(repeated_share([1, 2, 3]))


@given(st.lists(st.integers(0, 3), min_size=4, max_size=40))
def test_repetition_lies_between_none_and_all_but_one(decisions: list[int]) -> None:
    assert 0 <= repeated_share(decisions) <= 1 - 1 / (len(decisions) - 3)


def test_correlation_is_blind_to_levels_of_groups() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(50), 8)
    levels = rng.normal(size=50)[groups] * 100
    first, second = rng.normal(size=400), rng.normal(size=400)
    assert np.corrcoef(first + levels, second + levels)[0, 1] > 0.99
    assert abs(correlation_within(first + levels, second + levels, groups)) < 0.2
    assert correlation_within(first + levels, 3 * first - levels, groups) == pytest.approx(1)
    assert correlation_within(first, -first, groups) == pytest.approx(-1)


def test_one_group_is_the_plain_correlation_and_no_spread_is_none() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=20), rng.normal(size=20)
    assert correlation_within(first, second, [0] * 20) == pytest.approx(np.corrcoef(first, second)[0, 1])
    assert math.isnan(correlation_within([5.0, 5.0, 5.0], [1.0, 2.0, 3.0], ["a"] * 3))
    assert math.isnan(correlation_within([1.0, 2.0], [1.0, 2.0], ["a", "b"]))
