"""expected points equal the sum over everything that can happen"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from melior.rollouts.banner.families import Chances
from melior.rollouts.banner.outcomes import EVENTS, POINTS, Drawn, counts, draw, earned, expected_points, position_means


def some_chances(n: int, width: int, seed: int = 0, on_click: float = 0.6, on_pass: float = 0.9) -> Chances:
    random = np.random.default_rng(seed)
    return Chances(*(random.uniform(0.05, 0.9, (n, width)) for _ in range(3)), on_click, on_pass)


def everything(chances: Chances, row: int) -> dict[tuple[int, ...], float]:
    """The probability of every sequence of 0 nothing, 1 click, 2 cart, 3 order, -1 not reached."""
    found: dict[tuple[int, ...], float] = {}
    width = chances.click.shape[1]
    for length in range(1, width + 1):
        for levels in itertools.product(range(4), repeat=length):
            chance = 1.0
            for place, level in enumerate(levels):
                click, cart, order = (getattr(chances, name)[row, place] for name in ("click", "cart", "order"))
                chance *= (1 - click, click * (1 - cart), click * cart * (1 - order), click * cart * order)[level]
                on = chances.after_click if level else chances.after_pass
                if place < length - 1:
                    chance *= on
                elif length < width:
                    chance *= 1 - on
            found[levels + (-1,) * (width - length)] = chance
    return found


@pytest.mark.parametrize("on", [(0.6, 0.9), (1.0, 1.0), (0.0, 1.0)])
def test_expected_points_are_the_sum_over_all_outcomes(on: tuple[float, float]) -> None:
    chances = some_chances(3, 4, 1, *on)
    computed = expected_points(chances)
    for row in range(3):
        outcomes = everything(chances, row)
        assert sum(outcomes.values()) == pytest.approx(1.0)
        levels = np.array(list(outcomes))
        drawn = Drawn(levels >= 1, levels >= 2, levels >= 3)
        total = float((earned(drawn).sum(1) * np.array(list(outcomes.values()))).sum())
        assert computed[row] == pytest.approx(total, abs=1e-12)


def test_counts_and_positions_agree() -> None:
    chances = some_chances(50, 5)
    by_position = position_means(chances)
    for event in EVENTS:
        none, one, mean = counts(chances, event)
        assert mean == pytest.approx(by_position[event].sum(1), abs=1e-12)
        assert ((none >= 0) & (one >= 0) & (none + one <= 1 + 1e-12)).all()


def test_draws_have_the_expected_points() -> None:
    one = some_chances(1, 5, 2)
    n = 100_000
    many = Chances(*(np.repeat(each, n, 0) for each in (one.click, one.cart, one.order)), 0.6, 0.9)
    points = earned(draw(many, np.random.default_rng(0).random((n, 4, 5)))).sum(1)
    assert abs(points.mean() - expected_points(one)[0]) < 4 * points.std() / n**0.5


def test_what_several_give_is_shared_by_its_positions() -> None:
    click = np.array([[True, False, True, False, False]])
    purchase = np.array([[True, False, False, False, False]])
    points = earned(Drawn(click, purchase, purchase), POINTS)
    assert points.tolist() == [[1.0 + 3.0 + 10.0, 0.0, 1.0, 0.0, 0.0]]


def test_an_order_has_a_cart_and_a_cart_a_click() -> None:
    drawn = draw(some_chances(2_000, 5), np.random.default_rng(1).random((2_000, 4, 5)))
    assert not (drawn.purchase & ~drawn.cart).any() and not (drawn.cart & ~drawn.click).any()
