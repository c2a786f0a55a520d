"""errors of a value function: their slopes, what clipping spares, and how much is explained"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from melior.errors import ShapeError
from melior.losses.value import clipped_value_loss, explained_variance, value_loss


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


RETURNS, OLD = draw(3, 4, seed=1), draw(3, 4, seed=2)
LOSSES = {
    "plain": lambda values: value_loss(values, RETURNS),
    "clipped": lambda values: clipped_value_loss(values, RETURNS, OLD, clip=0.3),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_finite_differences(name: str) -> None:
    values = draw(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(LOSSES[name], (values,), eps=1e-6, atol=1e-6, rtol=0.0)


@pytest.mark.parametrize(
    ("value", "old", "loss", "slope"),
    [
        (1.0, 1.0, 0.5, -1.0),  # has not moved: the plain loss
        (1.2, 1.0, 0.32, -0.8),  # near
        (1.6, 1.0, 0.245, 0.0),  # gone towards the return by more than 0.3: no reason to go on
        (0.5, 1.0, 1.125, -1.5),  # gone away from it: pulled back in full
        (2.9, 2.0, 0.405, 0.9),  # gone through it and beyond: pulled back in full
    ],
)
def test_clipping_regions(value: float, old: float, loss: float, slope: float) -> None:
    leaf = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    found = clipped_value_loss(leaf, torch.full_like(leaf, 2.0), torch.full_like(leaf, old), clip=0.3)
    assert found.item() == pytest.approx(loss, abs=1e-12)
    assert torch.autograd.grad(found.sum(), leaf)[0].item() == pytest.approx(slope, abs=1e-12)


def test_clipping_knows_no_zero_and_no_direction() -> None:
    """Values, returns and old values may all be shifted or mirrored alike."""
    values = draw(3, 4)
    here = clipped_value_loss(values, RETURNS, OLD, clip=0.3)
    assert not torch.equal(here, value_loss(values, RETURNS))  # some are clipped
    for shift, sign in ((5.0, 1), (-5.0, 1), (0.0, -1)):
        there = clipped_value_loss(sign * values + shift, sign * RETURNS + shift, sign * OLD + shift, clip=0.3)
        torch.testing.assert_close(there, here, rtol=0, atol=1e-12)


def test_the_explained_share_is_one_of_truth_and_nought_of_a_constant() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    returns = torch.tensor([[1.0, 2.0, math.nan], [6.0, math.inf, 0.0]])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.full_like(returns, 9.0), returns, mask) == pytest.approx(0.0)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3.0)
    assert explained_variance(returns + 5, returns, mask) == 1.0  # a shift is no variance
    assert explained_variance(returns / 2, returns, mask) == pytest.approx(0.75)
    assert explained_variance(returns / 200, returns / 100, mask) == pytest.approx(0.75)  # the unit says nothing
    assert math.isnan(explained_variance(returns, torch.ones_like(returns), mask))
    assert math.isnan(explained_variance(returns, returns, torch.zeros_like(mask)))


def test_tensors_of_two_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 3\)"):
        value_loss(draw(2, 3), draw(2))
    with pytest.raises(ShapeError):
        clipped_value_loss(draw(2, 3), draw(2, 3), draw(1, 3), clip=0.2)
