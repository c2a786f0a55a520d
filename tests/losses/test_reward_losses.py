"""losses of reward models: finite differences, symmetry, and the special cases they have in common"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from melior.errors import ShapeError
from melior.losses.preference import dpo_loss
from melior.losses.reward import (
    bradley_terry_loss,
    centring_loss,
    logistic_loss,
    ordinal_log_probs,
    squared_error_loss,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FIRST, SECOND, MARGIN = draw(6), draw(6, seed=1), draw(6, seed=2)
SOFT = torch.tensor([1.0, 0.9, 0.5, 0.3, 0.0, 0.7], dtype=torch.float64)
THRESHOLDS = torch.tensor([-1.5, -0.2, 0.1, 2.0], dtype=torch.float64)

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bradley_terry": lambda a, b: bradley_terry_loss(a, b, probability=SOFT, margin=MARGIN),
    "centring": centring_loss,
    "squared_error": squared_error_loss,
    "logistic": lambda a, b: logistic_loss(a, torch.sigmoid(b)),
    "ordinal": lambda a, b: ordinal_log_probs(a, b.exp().cumsum(0)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_finite_differences(name: str) -> None:
    leaves = (FIRST.clone().requires_grad_(), SECOND.clone().requires_grad_())
    assert torch.autograd.gradcheck(LOSSES[name], leaves, eps=1e-6, atol=1e-6, rtol=0.0)


def test_the_numbers_are_those_of_the_definitions() -> None:
    """By hand, from rewards of 3 and 1: the gap is 2, the sum 4."""
    three, one = torch.tensor([3.0]).double(), torch.tensor([1.0]).double()
    cost = lambda odds: math.log1p(math.exp(-odds))  # noqa: E731
    assert bradley_terry_loss(three, one).item() == pytest.approx(cost(2))
    assert bradley_terry_loss(three, one, margin=0.5).item() == pytest.approx(cost(1.5))
    soft = 0.8 * cost(2) + 0.2 * cost(-2)
    assert bradley_terry_loss(three, one, probability=0.8).item() == pytest.approx(soft)
    assert centring_loss(three, one).item() == 16
    assert squared_error_loss(three, one).item() == 2
    assert squared_error_loss(one, 3 * three).item() == 32
    assert logistic_loss(three, one).item() == pytest.approx(cost(3))
    assert logistic_loss(three, 0 * one).item() == pytest.approx(cost(-3))
    assert logistic_loss(three, one / 4).item() == pytest.approx(cost(3) / 4 + cost(-3) * 3 / 4)


def test_equal_rewards_cost_ln_two_and_swapping_the_sides_flips_everything() -> None:
    assert bradley_terry_loss(FIRST, FIRST).tolist() == pytest.approx([math.log(2)] * 6, abs=1e-15)
    one = bradley_terry_loss(FIRST, SECOND, probability=SOFT, margin=MARGIN)
    other = bradley_terry_loss(SECOND, FIRST, probability=1 - SOFT, margin=-MARGIN)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


def test_it_is_the_loss_of_dpo_for_rewards_that_are_given() -> None:
    zero = torch.zeros(6, dtype=torch.float64)
    implicit = dpo_loss(FIRST, SECOND, zero, zero, beta=1.0, probability=SOFT, margin=MARGIN)
    torch.testing.assert_close(bradley_terry_loss(FIRST, SECOND, probability=SOFT, margin=MARGIN), implicit)


def test_a_share_is_met_where_the_sigmoid_says_it_and_a_tie_where_rewards_are_equal() -> None:
    def slope(gap: float, probability: float) -> float:
        chosen = torch.tensor([gap], dtype=torch.float64, requires_grad=True)
        bradley_terry_loss(chosen, torch.zeros(1, dtype=torch.float64), probability=probability).sum().backward()
        assert chosen.grad is not None
        return chosen.grad.item()

    assert slope(math.log(0.8 / 0.2), 0.8) == pytest.approx(0, abs=1e-12)
    assert slope(0.0, 0.5) == pytest.approx(0, abs=1e-15) and slope(-1.0, 0.5) < 0 < slope(1.0, 0.5)


def test_centring_is_least_where_a_pair_lies_around_zero_and_asks_nothing_of_their_difference() -> None:
    assert float(centring_loss(FIRST, -FIRST).abs().max()) == 0.0
    leaves = (FIRST.clone().requires_grad_(), SECOND.clone().requires_grad_())
    first, second = torch.autograd.grad(centring_loss(*leaves).sum(), leaves)
    torch.testing.assert_close(first, second)


def test_grades_are_a_distribution_and_two_of_them_are_yes_and_no() -> None:
    table = ordinal_log_probs(FIRST, THRESHOLDS)
    assert table.shape == (6, 5)
    torch.testing.assert_close(table.exp().sum(-1), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-14)
    two = ordinal_log_probs(FIRST, torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(-two[:, 1], logistic_loss(FIRST, torch.ones(6, dtype=torch.float64)))
    torch.testing.assert_close(-two[:, 0], logistic_loss(FIRST, torch.zeros(6, dtype=torch.float64)))


def test_a_grade_is_at_most_k_with_the_sigmoid_of_the_threshold_less_the_value() -> None:
    below = ordinal_log_probs(FIRST, THRESHOLDS).exp().cumsum(-1)[:, :-1]
    torch.testing.assert_close(below, torch.sigmoid(THRESHOLDS - FIRST[:, None]), rtol=0, atol=1e-14)
    moved = ordinal_log_probs(FIRST + 3, THRESHOLDS + 3)
    torch.testing.assert_close(moved, ordinal_log_probs(FIRST, THRESHOLDS))


def test_grades_stand_behind_all_other_dimensions() -> None:
    """Values of any shape, with thresholds for all or with their own for each."""
    table = ordinal_log_probs(FIRST, THRESHOLDS)
    torch.testing.assert_close(ordinal_log_probs(FIRST[4], THRESHOLDS), table[4])
    torch.testing.assert_close(ordinal_log_probs(FIRST.view(2, 3), THRESHOLDS), table.view(2, 3, 5))
    own = torch.stack([THRESHOLDS, THRESHOLDS + 1])
    found = ordinal_log_probs(torch.stack([FIRST[0], FIRST[0] + 1]), own)
    torch.testing.assert_close(found, table[:1].expand(2, 5))


def test_far_away_nothing_overflows() -> None:
    far = torch.tensor([1e4, -1e4], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(2, dtype=torch.float64)
    losses = [
        bradley_terry_loss(far, zero),
        logistic_loss(far, zero + 0.5),
        -ordinal_log_probs(far, THRESHOLDS).flatten(),
    ]
    total = torch.cat(losses).sum()
    total.backward()
    assert math.isfinite(float(total.detach())) and far.grad is not None and bool(torch.isfinite(far.grad).all())
    # where a difference of sigmoids would be 0 its logarithm is still known
    assert float(ordinal_log_probs(far[:1], THRESHOLDS).detach()[0, 2]) == pytest.approx(0.1 - 1e4, abs=2)


def test_shapes_must_agree() -> None:
    for loss in (bradley_terry_loss, centring_loss, squared_error_loss, logistic_loss):
        with pytest.raises(ShapeError, match=r"\(6,\) and \(1,\)"):
            loss(FIRST, FIRST[:1])
