"""ratings as weights of demonstrations"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tabular import Tabular

from melior.errors import ConfigError, DataError
from melior.trainers.loop import FitConfig, fit
from melior.trainers.ratings import AdvantageWeighted, advantage_weighted
from melior.trainers.supervised import Examples, Supervised
from melior.types import Rated

RATINGS = st.lists(st.tuples(st.sampled_from("abc"), st.floats(-100, 100)), min_size=1, max_size=12)


def rows_of(ratings: list[tuple[str, float]]) -> list[Rated]:
    return [Rated(inputs, (1,), rating, id=f"r{n}", group="g") for n, (inputs, rating) in enumerate(ratings)]


@given(RATINGS, st.floats(0.01, 50), st.floats(-20, 20))
def test_weights_do_not_depend_on_the_scale_of_ratings(ratings: list[tuple[str, float]], by: float, to: float) -> None:
    first = advantage_weighted(rows_of(ratings))
    spread = max(rating for _, rating in ratings) - min(rating for _, rating in ratings)
    if spread > 1e-3:
        other = advantage_weighted(rows_of([(inputs, rating * by + to) for inputs, rating in ratings]))
        assert [row.weight for row in other] == pytest.approx([row.weight for row in first], rel=1e-4)
    assert all(0 < row.weight <= 20 for row in first)


@given(RATINGS)
def test_of_one_input_the_better_rated_output_never_weighs_less(ratings: list[tuple[str, float]]) -> None:
    weighted = advantage_weighted(rows_of(ratings))
    for row, ours in zip(weighted, rows_of(ratings), strict=True):
        for other, theirs in zip(weighted, rows_of(ratings), strict=True):
            if ours.inputs == theirs.inputs and ours.rating > theirs.rating:
                assert row.weight >= other.weight * (1 - 1e-9)


def test_weights_follow_the_formula() -> None:
    found = advantage_weighted(rows_of([("a", 0.0), ("a", 3.0)]), AdvantageWeighted(prior=0.0, beta=0.5))
    assert [row.weight for row in found] == pytest.approx([math.exp(-2), math.exp(2)])  # one deviation either way
    mixed = advantage_weighted(rows_of([("a", 4.0), ("b", 0.0)]), AdvantageWeighted(prior=1.0))
    assert [row.weight for row in mixed] == pytest.approx([math.e, 1 / math.e])
    alone = advantage_weighted(rows_of([("a", 4.0), ("b", 0.0)]), AdvantageWeighted(prior=0.0))
    assert [row.weight for row in alone] == [1.0, 1.0]  # each is what its input's outputs are rated on average


def test_an_easy_input_is_no_better_an_output() -> None:
    """Everything about "a" is rated well; what matters is who does better than usual there."""
    easy = [("a", 9.0)] * 9 + [("a", 10.0)] + [("b", 1.0)] * 9 + [("b", 2.0)]
    weights = [row.weight for row in advantage_weighted(rows_of(easy))]
    assert min(weights[9], weights[19]) > 1.5 * max(weights[0], weights[10])


def test_equal_ratings_are_plain_imitation_and_the_cap_holds() -> None:
    assert {row.weight for row in advantage_weighted(rows_of([("a", 0.1), ("b", 0.1), ("a", 0.1)]))} == {1.0}
    outlier = [("a", 0.0)] * 400 + [("a", 1.0)]
    assert max(row.weight for row in advantage_weighted(rows_of(outlier), AdvantageWeighted(cap=7.0))) == pytest.approx(
        7
    )


def test_everything_else_of_a_row_is_kept() -> None:
    (row,) = advantage_weighted([Rated("a", (1,), 2.0, id="x:3", group="user 7", item={"age": 3})])
    assert (row.inputs, row.output, row.id, row.group, row.item) == ("a", (1,), "x:3", "user 7", {"age": 3})


def test_the_policy_learns_the_better_rated_output() -> None:
    """Against imitation, which follows what is common: of ten outputs, nine are the worse one."""
    rows = [Rated("a", (1,), 0.0)] * 9 + [Rated("a", (2,), 1.0)]
    chances = []
    for weighted in (
        advantage_weighted(rows, AdvantageWeighted(beta=0.5)),
        advantage_weighted([replace(row, rating=0.0) for row in rows]),
    ):
        policy = Tabular(length=1, spread=0.0)
        fit(policy, Examples(policy, weighted, batch_size=10, epochs=40), Supervised(), FitConfig(learning_rate=0.3))
        chances.append(float(torch.softmax(policy.logits.detach()[0, 0], 0)[2]))
    assert chances[0] > 0.75 and chances[1] < 0.2


def test_what_is_no_rating_is_refused() -> None:
    with pytest.raises(DataError, match="0 ratings"):
        advantage_weighted([])
    with pytest.raises(DataError, match="1 of 2 ratings"):
        advantage_weighted(rows_of([("a", math.nan), ("a", 1.0)]))
    with pytest.raises(ConfigError, match=r"beta=0\.0"):
        AdvantageWeighted(beta=0.0)
