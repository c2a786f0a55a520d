"""the losses, decision by decision, against formulas of the papers and finite differences"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from melior.errors import ShapeError
from melior.losses.likelihood import nll_loss
from melior.losses.policy_gradient import (
    bounded_importance_weights,
    cispo_loss,
    clipped_surrogate_loss,
    kl_penalty,
    overlong_penalty,
    policy_gradient_loss,
    sequence_surrogate_loss,
    truncated_importance_loss,
    truncated_importance_weights,
)
from melior.masking import count_decisions, mean_decisions, select, sum_decisions


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient_of(value: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(value.sum(), leaf)[0]


OLD, ADVANTAGES, WEIGHTS = draw(3, 4, seed=1) * 0.3, draw(3, 4, seed=2), draw(3, 4, seed=3).abs()
LOSSES = {
    "nll": lambda log_probs: nll_loss(log_probs, WEIGHTS),
    "policy_gradient": lambda log_probs: policy_gradient_loss(log_probs, ADVANTAGES),
    "clipped_surrogate": lambda log_probs: clipped_surrogate_loss(
        log_probs, OLD, ADVANTAGES, clip_low=0.1, clip_high=0.3
    ),
    "sequence_surrogate": lambda log_probs: sequence_surrogate_loss(
        log_probs, OLD, ADVANTAGES[:, 0], MASK, clip_low=0.1, clip_high=0.3
    ),
}
MASK = torch.tensor([[True] * 4, [True] * 3 + [False], [True] + [False] * 3])


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_finite_differences(name: str) -> None:
    log_probs = (draw(3, 4) * 0.3).requires_grad_()
    assert torch.autograd.gradcheck(LOSSES[name], (log_probs,), eps=1e-6, atol=1e-6, rtol=0.0)


def test_at_ratio_one_the_surrogate_is_the_policy_gradient() -> None:
    log_probs = draw(3, 4).requires_grad_()
    clipped = clipped_surrogate_loss(log_probs, log_probs.detach(), ADVANTAGES)
    assert torch.equal(clipped, -ADVANTAGES)
    plain = gradient_of(policy_gradient_loss(log_probs, ADVANTAGES), log_probs)
    torch.testing.assert_close(gradient_of(clipped, log_probs), plain, rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [  # clip_low 0.2, clip_high 0.3; slope is d loss / d log-prob
        (1.1, 2.0, -2.2, -2.2),  # inside
        (1.25, 2.0, -2.5, -2.5),  # still inside: clip-higher
        (1.5, 2.0, -2.6, 0.0),  # above, better than expected: no reason to go on
        (1.5, -2.0, 3.0, 3.0),  # above, worse than expected: pulled back in full
        (0.5, 2.0, -1.0, -1.0),  # below, better than expected
        (0.5, -2.0, 1.6, 0.0),  # below, worse than expected
    ],
)
def test_clipping_regions(ratio: float, advantage: float, loss: float, slope: float) -> None:
    old = torch.tensor([[-3.0]], dtype=torch.float64)
    log_probs = (old + math.log(ratio)).requires_grad_()
    value = clipped_surrogate_loss(log_probs, old, torch.full_like(old, advantage), clip_low=0.2, clip_high=0.3)
    assert value.item() == pytest.approx(loss, abs=1e-12)
    assert gradient_of(value, log_probs).item() == pytest.approx(slope, abs=1e-12)


def test_kl_penalty_has_the_value_of_k1_and_the_gradient_of_the_sums_to_go() -> None:
    log_probs, reference = draw(2, 3).requires_grad_(), draw(2, 3, seed=1)
    value = kl_penalty(log_probs, reference)
    difference = (log_probs - reference).detach()
    torch.testing.assert_close(value, difference)
    to_go = torch.stack([difference[:, t:].sum(1) for t in range(3)], dim=1)
    torch.testing.assert_close(gradient_of(value, log_probs), to_go)


def test_the_default_bounds_are_those_of_the_papers() -> None:
    """PPO's 0.2 on both sides, GSPO's 3e-4 and 4e-4, and for CISPO a weight of 5 at most."""
    old = torch.full((1, 2), -3.0, dtype=torch.float64)
    better, worse = torch.ones_like(old), -torch.ones_like(old)
    mask = torch.ones(1, 2, dtype=torch.bool)
    for ratio, advantages, bound in ((2.0, better, 1.2), (0.5, worse, 0.8)):
        found = clipped_surrogate_loss(old + math.log(ratio), old, advantages)
        assert found.tolist()[0] == pytest.approx([-bound * float(advantages[0, 0])] * 2, abs=1e-12)
    for ratio, advantages, bound in ((2.0, better, 1 + 4e-4), (0.5, worse, 1 - 3e-4)):
        found = sequence_surrogate_loss(old + math.log(ratio), old, advantages[:, 0], mask)
        assert found.tolist()[0] == pytest.approx([-bound * float(advantages[0, 0])] * 2, abs=1e-12)
    found = cispo_loss(old + math.log(9), old, better)
    assert found.tolist()[0] == pytest.approx([5 * (3 - math.log(9))] * 2)


def test_without_a_margin_the_overlong_penalty_is_a_cliff() -> None:
    lengths = torch.tensor([14, 15, 16, 17])
    assert overlong_penalty(lengths, limit=16, margin=1).tolist() == [0.0, 0.0, -1.0, -1.0]
    assert overlong_penalty(lengths, limit=16, margin=0).tolist() == [0.0, 0.0, 0.0, -1.0]


def test_the_overlong_penalty_falls_linearly_over_the_margin() -> None:
    lengths = torch.tensor([1, 12, 13, 14, 16, 17, 40])
    expected = [0.0, 0.0, -0.25, -0.5, -1.0, -1.0, -1.0]
    assert overlong_penalty(lengths, limit=16, margin=4).tolist() == expected


def test_tensors_of_two_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 3\)"):
        policy_gradient_loss(draw(2, 3), draw(2))
    with pytest.raises(ShapeError):
        clipped_surrogate_loss(draw(2, 3), draw(2, 3), draw(2, 1))
    with pytest.raises(ShapeError):
        kl_penalty(draw(2, 3), draw(1, 3))
    with pytest.raises(ShapeError):
        cispo_loss(draw(2, 3), draw(2, 3), draw(2))
    with pytest.raises(ShapeError):
        sequence_surrogate_loss(draw(2, 3), draw(2, 3), draw(2, 3), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ShapeError):
        sequence_surrogate_loss(draw(2, 3), draw(2, 3), draw(2), torch.ones(2, 2, dtype=torch.bool))


def test_truncated_weights_are_ratios_up_to_the_clip_and_carry_no_gradient() -> None:
    behavior = torch.tensor([[-3.0, -1.0, -9.0, -2.0]], dtype=torch.float64)
    log_probs = (behavior + torch.tensor([[0.0, math.log(3), 800.0, -math.inf]])).requires_grad_()
    found = truncated_importance_weights(log_probs, behavior, clip=4.0)
    assert found.tolist() == [pytest.approx([1.0, 3.0, 4.0, 0.0])] and not found.requires_grad
    with pytest.raises(ShapeError):
        truncated_importance_weights(log_probs, behavior[:, :2], clip=4.0)


def test_the_slope_of_the_truncated_loss_is_weight_times_advantage() -> None:
    behavior, log_probs = draw(3, 4, seed=4), draw(3, 4).requires_grad_()
    weights = truncated_importance_weights(log_probs, behavior, clip=1.5)
    assert 0 < int((weights == 1.5).sum()) < 12
    found = gradient_of(truncated_importance_loss(log_probs, behavior, ADVANTAGES, clip=1.5), log_probs)
    torch.testing.assert_close(found, -weights * ADVANTAGES)


def test_unclipped_it_has_the_expected_gradient_of_the_reward_under_the_logging_policy() -> None:
    logits, rewards = draw(6).requires_grad_(), draw(6, seed=2)
    behavior = torch.log_softmax(draw(6, seed=3), 0)
    log_probs = torch.log_softmax(logits, 0)
    loss = truncated_importance_loss(log_probs, behavior, rewards, clip=1e9)
    found = gradient_of(behavior.exp() * loss, logits)
    expected = gradient_of(torch.log_softmax(logits, 0).exp() * rewards, logits)
    torch.testing.assert_close(found, -expected, rtol=0, atol=1e-12)


def test_what_disagrees_beyond_the_bound_has_no_say() -> None:
    behavior = torch.full((1, 6), -3.0, dtype=torch.float64)
    ratios = [0.2, 0.51, 1.0, 1.99, 2.01, 1e300]
    log_probs = (behavior + torch.tensor(ratios).double().log()).requires_grad_()
    log_probs.data[0, 5] = 900.0
    found = bounded_importance_weights(log_probs, behavior, bound=2.0)
    assert found.tolist() == [pytest.approx([0.0, 0.51, 1.0, 1.99, 0.0, 0.0])] and not found.requires_grad
    at = bounded_importance_weights(behavior + torch.tensor([-1.0, 1.0, 0.0] * 2).double(), behavior, bound=math.e)
    assert at.tolist() == [pytest.approx([1 / math.e, math.e, 1.0] * 2)]  # the bound itself still has a say
    with pytest.raises(ShapeError):
        bounded_importance_weights(log_probs, behavior[:, :2], bound=2.0)


@pytest.mark.parametrize(
    ("mean_ratio", "advantage", "loss", "slope"),  # of two decisions, so the slope by each is half the output's
    [
        (1.0, 2.0, -2.0, -1.0),
        (1.25, 2.0, -2.5, -1.25),
        (1.5, 2.0, -2.6, 0.0),
        (1.5, -2.0, 3.0, 1.5),
        (0.5, 2.0, -1.0, -0.5),
        (0.5, -2.0, 1.6, 0.0),
    ],
)
def test_an_output_is_clipped_as_a_whole(mean_ratio: float, advantage: float, loss: float, slope: float) -> None:
    """One decision ten times likelier, the other as much less: only the geometric mean counts."""
    old = torch.tensor([[-3.0, -2.0, math.nan]], dtype=torch.float64)
    shift = math.log(mean_ratio) + torch.tensor([math.log(10), -math.log(10), 5.0], dtype=torch.float64)
    log_probs, mask = (old + shift).requires_grad_(), torch.tensor([[True, True, False]])
    given = torch.tensor([advantage], dtype=torch.float64)
    value = sequence_surrogate_loss(log_probs, old, given, mask, clip_low=0.2, clip_high=0.3)
    assert value.tolist()[0] == pytest.approx([loss, loss, 0.0], abs=1e-12)
    found = gradient_of(value / 2, log_probs)[0].tolist()
    assert found == pytest.approx([slope, slope, 0.0], abs=1e-12)


def test_cispo_weighs_by_the_clipped_ratio_and_never_stops_the_gradient() -> None:
    ratios = torch.tensor([[0.1, 0.5, 1.0, 3.0, 9.0]], dtype=torch.float64)
    old = torch.full_like(ratios, -4.0)
    for advantage in (2.0, -2.0):
        log_probs = (old + ratios.log()).requires_grad_()
        value = cispo_loss(log_probs, old, torch.full_like(old, advantage), clip_low=0.6, clip_high=4.0)
        weights = [0.4, 0.5, 1.0, 3.0, 5.0]
        assert gradient_of(value, log_probs)[0].tolist() == pytest.approx([-advantage * w for w in weights])
        assert value[0].tolist() == pytest.approx(
            [-advantage * w * lp for w, lp in zip(weights, log_probs[0].tolist(), strict=True)]
        )
    unbounded = (old + ratios.log()).requires_grad_()
    found = gradient_of(cispo_loss(unbounded, old, torch.ones_like(old)), unbounded)[0].tolist()
    assert found == pytest.approx([-0.1, -0.5, -1.0, -3.0, -5.0])


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_what_is_masked_leaves_no_trace(garbage: float) -> None:
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    clean = draw(3, 3)
    dirty = clean.masked_fill(~mask, garbage)
    for reduce in (sum_decisions, mean_decisions):
        leaf = dirty.clone().requires_grad_()
        value = reduce(torch.exp(select(leaf, mask)), mask)
        torch.testing.assert_close(value, reduce(torch.exp(clean), mask))
        gradient = gradient_of(value, leaf)
        assert torch.equal(gradient[~mask], torch.zeros_like(gradient[~mask]))
        assert bool(torch.isfinite(gradient).all())
    assert int(count_decisions(mask)) == 3
    assert mean_decisions(dirty, mask)[2] == 0
