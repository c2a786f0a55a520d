"""label smoothing: against its definition, and what it leaves alone"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from melior.losses.likelihood import nll_loss, smoothed_nll_loss


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.tensor([[0, 2], [1, 1], [3, 0]])
WEIGHTS = draw(3, 2, seed=3).abs()


def scored(logits: Tensor) -> tuple[Tensor, Tensor]:
    candidates = torch.log_softmax(logits, -1)
    return candidates.gather(-1, LABELS[:, :, None])[:, :, 0], candidates


def test_it_is_the_cross_entropy_with_a_smoothed_target() -> None:
    log_probs, candidates = scored(draw(3, 2, 4))
    target = torch.nn.functional.one_hot(LABELS, 4) * 0.9 + 0.1 / 4
    expected = -(target * candidates).sum(-1) * WEIGHTS
    torch.testing.assert_close(smoothed_nll_loss(log_probs, candidates, WEIGHTS, smoothing=0.1), expected)
    plain = smoothed_nll_loss(log_probs, candidates, WEIGHTS, smoothing=0.0)
    torch.testing.assert_close(plain, nll_loss(log_probs, WEIGHTS))


def test_gradients_equal_finite_differences_also_where_candidates_are_ruled_out() -> None:
    ruled_out = torch.zeros(3, 2, 4, dtype=torch.bool)
    ruled_out[0, 1, 0] = ruled_out[1, 1, 3] = True

    def loss(logits: Tensor) -> Tensor:
        log_probs, candidates = scored(logits.masked_fill(ruled_out, -math.inf))
        return smoothed_nll_loss(log_probs, candidates, WEIGHTS, smoothing=0.2)

    logits = draw(3, 2, 4).requires_grad_()
    assert bool(torch.isfinite(loss(logits)).all())
    assert torch.autograd.gradcheck(loss, (logits,), eps=1e-6, atol=1e-6, rtol=0.0)


def test_it_is_least_at_the_smoothed_target_and_not_at_certainty() -> None:
    target = torch.tensor([0.925, 0.025, 0.025, 0.025], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)

    def loss(logits: Tensor) -> float:
        candidates = torch.log_softmax(logits, -1)[None, None]
        return smoothed_nll_loss(candidates[..., 0], candidates, one, smoothing=0.1).item()

    best = loss(target.log())
    assert best == pytest.approx(float(-(target * target.log()).sum()))
    assert loss(torch.tensor([50.0, 0, 0, 0], dtype=torch.float64)) > best + 1


def test_where_nothing_may_be_decided_it_is_no_trap() -> None:
    candidates = torch.full((1, 1, 3), -math.inf)
    assert smoothed_nll_loss(torch.zeros(1, 1), candidates, torch.ones(1, 1), smoothing=0.1).item() == 0


def test_the_even_share_goes_to_what_may_be_decided_and_to_nothing_else() -> None:
    """Of three candidates two are left, then one: the mean is theirs."""
    candidates = torch.tensor([[[-0.4, -1.4, -math.inf], [-0.4, -math.inf, -math.inf]]])
    found = smoothed_nll_loss(torch.tensor([[-0.4, -0.4]]), candidates, torch.tensor([[1.0, 3.0]]), smoothing=0.5)
    assert found.tolist()[0] == pytest.approx([0.5 * 0.4 + 0.5 * 0.9, 3 * 0.4])
