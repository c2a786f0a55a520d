"""the preference loss against its formula, finite differences, and the policy it should lead to"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from melior.errors import ShapeError
from melior.losses.preference import dpo_loss, implicit_reward


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED = (draw(5, seed=seed) - 8 for seed in range(4))
SOFT, MARGIN = torch.tensor([1.0, 0.9, 0.5, 0.2, 0.0], dtype=torch.float64), draw(5, seed=5)


def test_gradients_equal_finite_differences() -> None:
    leaves = (CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_())

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return dpo_loss(chosen, rejected, REF_CHOSEN, REF_REJECTED, beta=0.3, probability=SOFT, margin=MARGIN)

    assert torch.autograd.gradcheck(loss, leaves, eps=1e-6, atol=1e-6, rtol=0.0)


def test_where_policy_and_reference_agree_it_is_ln_two() -> None:
    found = dpo_loss(CHOSEN, REJECTED, CHOSEN, REJECTED)
    assert found.tolist() == pytest.approx([math.log(2)] * 5, abs=1e-15)


def test_swapping_the_sides_turns_the_probability_round_and_the_gradient_too() -> None:
    one = dpo_loss(CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED, probability=SOFT)
    other = dpo_loss(REJECTED, CHOSEN, REF_REJECTED, REF_CHOSEN, probability=1 - SOFT)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


def test_at_the_reference_the_slope_is_half_of_beta_with_opposite_signs() -> None:
    chosen, rejected = CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_()
    dpo_loss(chosen, rejected, CHOSEN, REJECTED, beta=0.3).sum().backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad.tolist() == pytest.approx([-0.15] * 5) == (-rejected.grad).tolist()


def test_a_tie_pulls_towards_equal_rewards_and_a_margin_asks_for_more() -> None:
    def slope(difference: float, **how: float) -> float:
        chosen = torch.tensor([difference], dtype=torch.float64, requires_grad=True)
        zero = torch.zeros(1, dtype=torch.float64)
        dpo_loss(chosen, zero, zero, zero, beta=1.0, **how).sum().backward()
        assert chosen.grad is not None
        return chosen.grad.item()

    assert slope(0.0, probability=0.5) == pytest.approx(0, abs=1e-15)
    assert slope(2.0, probability=0.5) > 0 > slope(-2.0, probability=0.5)
    assert slope(1.0, margin=1.0) == pytest.approx(slope(0.0))
    # Cross-entropy with soft labels is least where the sigmoid says the label.
    assert slope(math.log(0.8 / 0.2), probability=0.8) == pytest.approx(0, abs=1e-12)


def test_far_apart_it_neither_overflows_nor_vanishes() -> None:
    far = torch.tensor([1e4], dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    assert dpo_loss(far, zero, zero, zero, beta=1.0).item() == 0.0
    assert dpo_loss(zero, far, zero, zero, beta=1.0).item() == pytest.approx(1e4)


def test_over_all_pairs_it_is_least_at_the_reward_tilted_reference() -> None:
    """Bradley–Terry preferences of a reward make reference × exp(reward / beta) the best policy (the paper's eq. 4)."""
    reward, reference, beta = draw(4, seed=7), torch.log_softmax(draw(4, seed=8), 0), 0.5
    best = torch.log_softmax(reference + reward / beta, 0)

    def expected(logits: Tensor) -> Tensor:
        log_probs = torch.log_softmax(logits, 0)
        a, b = torch.cartesian_prod(torch.arange(4), torch.arange(4)).T
        prefers = torch.sigmoid(reward[a] - reward[b])
        losses = dpo_loss(log_probs[a], log_probs[b], reference[a], reference[b], beta=beta, probability=prefers)
        return losses.mean()

    logits = best.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(expected(logits), logits)
    assert float(gradient.abs().max()) < 1e-12
    for seed in range(5):
        assert float(expected(best + 0.3 * draw(4, seed=seed))) > float(expected(best))


def test_implicit_rewards_and_shapes() -> None:
    torch.testing.assert_close(implicit_reward(CHOSEN, REF_CHOSEN, beta=0.2), 0.2 * (CHOSEN - REF_CHOSEN))
    with pytest.raises(ShapeError, match=r"\(5,\) and \(4,\)"):
        dpo_loss(CHOSEN, REJECTED, REF_CHOSEN[:4], REF_REJECTED)
    with pytest.raises(ShapeError):
        dpo_loss(CHOSEN[:1], REJECTED, REF_CHOSEN[:1], REF_REJECTED)
