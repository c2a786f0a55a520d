"""preference losses against their formulas, finite differences, and the policies they should lead to"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from melior.errors import ConfigError, ShapeError
from melior.losses.preference import (
    dpo_loss,
    implicit_reward,
    ipo_loss,
    kto_loss,
    log_odds,
    odds_ratio_loss,
    robust_dpo_loss,
    simpo_loss,
    smoothed,
    unflipped,
)


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


def test_the_defaults_are_certain_labels_without_a_margin_and_the_papers_strengths() -> None:
    labels = {"probability": 1.0, "margin": 0.0}
    assert torch.equal(dpo_loss(*SIDES), dpo_loss(*SIDES, beta=0.1, **labels))
    assert torch.equal(ipo_loss(*SIDES), ipo_loss(*SIDES, beta=0.1, **labels))
    assert torch.equal(
        robust_dpo_loss(*SIDES, label_smoothing=0.2), robust_dpo_loss(*SIDES, label_smoothing=0.2, beta=0.1, **labels)
    )
    means = CHOSEN / 8, REJECTED / 8
    assert torch.equal(simpo_loss(*means), simpo_loss(*means, beta=2.0, gamma=1.0, **labels))
    assert torch.equal(odds_ratio_loss(*means), odds_ratio_loss(*means, **labels))
    desirable = torch.tensor([True, False, True, True, False])
    weights = {"desirable_weight": 1.0, "undesirable_weight": 4 / 3}
    assert torch.equal(
        kto_loss(CHOSEN, REF_CHOSEN, desirable, 0.0), kto_loss(CHOSEN, REF_CHOSEN, desirable, 0.0, beta=0.1, **weights)
    )


def test_implicit_rewards_and_shapes() -> None:
    torch.testing.assert_close(implicit_reward(CHOSEN, REF_CHOSEN, beta=0.2), 0.2 * (CHOSEN - REF_CHOSEN))
    with pytest.raises(ShapeError, match=r"\(5,\) and \(4,\)"):
        dpo_loss(CHOSEN, REJECTED, REF_CHOSEN[:4], REF_REJECTED)
    with pytest.raises(ShapeError, match=r"chosen \(1,\) and rejected \(5,\)"):
        dpo_loss(CHOSEN[:1], REJECTED, REF_CHOSEN[:1], REF_REJECTED)


# ---------------------------------------------------------------- the others of the family

SIDES = (CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED)
HAND = tuple(torch.tensor([value], dtype=torch.float64) for value in (-10.0, -12.0, -11.0, -11.5))  # log-ratios 1, -0.5
SOFTLY: dict[str, Tensor] = {"probability": SOFT, "margin": MARGIN}
LOSSES: dict[str, Callable[..., Tensor]] = {
    "dpo": lambda a, b, ra, rb, **how: dpo_loss(a, b, ra, rb, beta=0.3, **how),
    "robust": lambda a, b, ra, rb, **how: robust_dpo_loss(a, b, ra, rb, beta=0.3, label_smoothing=0.1, **how),
    "ipo": lambda a, b, ra, rb, **how: ipo_loss(a, b, ra, rb, beta=0.3, **how),
    "simpo": lambda a, b, ra, rb, **how: simpo_loss(a, b, beta=2.0, gamma=0.7, **how),
    "orpo": lambda a, b, ra, rb, **how: odds_ratio_loss(a, b, **how),
}
EVERY = pytest.mark.parametrize("name", LOSSES)


@EVERY
def test_every_loss_has_the_gradient_of_finite_differences(name: str) -> None:
    leaves = (CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_())
    ours = lambda a, b: LOSSES[name](a, b, REF_CHOSEN, REF_REJECTED, **SOFTLY)  # noqa: E731
    assert torch.autograd.gradcheck(ours, leaves, eps=1e-6, atol=1e-6, rtol=0.0)


@EVERY
def test_exchanging_the_sides_with_their_labels_changes_nothing(name: str) -> None:
    one = LOSSES[name](*SIDES, **SOFTLY)
    other = LOSSES[name](REJECTED, CHOSEN, REF_REJECTED, REF_CHOSEN, probability=1 - SOFT, margin=-MARGIN)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@EVERY
def test_a_certain_label_pulls_the_sides_apart_and_its_opposite_the_other_way(name: str) -> None:
    for probability, sign in ((1.0, -1.0), (0.0, 1.0)):
        chosen, rejected = (side.clone().requires_grad_() for side in (REF_CHOSEN, REF_CHOSEN))
        LOSSES[name](chosen, rejected, REF_CHOSEN, REF_CHOSEN, probability=probability).sum().backward()
        assert chosen.grad is not None and rejected.grad is not None
        assert bool((torch.sign(chosen.grad) == sign).all()) and bool((torch.sign(rejected.grad) == -sign).all())


@EVERY
def test_a_tie_asks_for_nothing_where_the_sides_are_equal(name: str) -> None:
    chosen = CHOSEN.clone().requires_grad_()
    LOSSES[name](chosen, CHOSEN, REF_CHOSEN, REF_CHOSEN, probability=0.5).sum().backward()
    assert chosen.grad is not None and chosen.grad.abs().max() < 1e-14


@EVERY
def test_a_margin_asks_for_more_of_the_gap(name: str) -> None:
    near, far = (LOSSES[name](*SIDES, margin=margin) for margin in (0.0, 40.0))
    assert bool((far > near).all())


def test_the_numbers_are_those_of_the_papers() -> None:
    """By hand, from log-probs -10 and -12 under the policy, -11 and -11.5 under the reference."""
    log_sigmoid = lambda x: -math.log1p(math.exp(-x))  # noqa: E731
    assert dpo_loss(*HAND, beta=0.2).item() == pytest.approx(-log_sigmoid(0.2 * 1.5), abs=1e-14)
    robust = (0.9 * -log_sigmoid(0.3) - 0.1 * -log_sigmoid(-0.3)) / 0.8
    assert robust_dpo_loss(*HAND, beta=0.2, label_smoothing=0.1).item() == pytest.approx(robust, abs=1e-14)
    assert ipo_loss(*HAND, beta=0.2).item() == pytest.approx((1.5 - 1 / 0.4) ** 2, abs=1e-13)
    soft = 0.7 * (1.5 - 2.5) ** 2 + 0.3 * (-1.5 - 2.5) ** 2
    assert ipo_loss(*HAND, beta=0.2, probability=0.7).item() == pytest.approx(soft, abs=1e-13)
    means = tuple(torch.tensor([value], dtype=torch.float64) for value in (-0.5, -1.2))
    assert simpo_loss(*means, beta=2.0, gamma=0.5).item() == pytest.approx(-log_sigmoid(2 * 0.7 - 0.5), abs=1e-14)
    odds = [p / (1 - p) for p in (math.exp(-0.5), math.exp(-1.2))]
    assert odds_ratio_loss(*means).item() == pytest.approx(-log_sigmoid(math.log(odds[0] / odds[1])), abs=1e-14)
    # KTO: log-ratios 1 and -0.5, counted from a KL of 0.25
    found = kto_loss(
        torch.cat(HAND[:2]), torch.cat(HAND[2:]), torch.tensor([True, False]), 0.25, beta=0.2, undesirable_weight=1.5
    )
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    assert found.tolist() == pytest.approx([1 - sigmoid(0.2 * 0.75), 1.5 * (1 - sigmoid(0.2 * 0.75))], abs=1e-14)


@pytest.mark.parametrize("flips", [0.05, 0.3])
def test_robust_dpo_has_no_bias_under_flipped_labels_and_conservative_dpo_has(flips: float) -> None:
    clean = dpo_loss(*SIDES, beta=0.3)

    def flipped(loss: Callable[..., Tensor]) -> Tensor:
        return (1 - flips) * loss(probability=1.0) + flips * loss(probability=0.0)

    robust = flipped(lambda **how: robust_dpo_loss(*SIDES, beta=0.3, label_smoothing=flips, **how))
    torch.testing.assert_close(robust, clean, rtol=0, atol=1e-12)
    conservative = flipped(
        lambda probability: dpo_loss(*SIDES, beta=0.3, probability=smoothed(probability, flips))  # type: ignore[misc]
    )
    assert float((conservative - clean).abs().min()) > 1e-3
    assert unflipped(smoothed(0.8, flips), flips) == pytest.approx(0.8)


def test_labels_flipped_more_often_than_not_are_refused() -> None:
    assert smoothed(0.7, 0.0) == unflipped(0.7, 0.0) == 0.7
    for chance in (0.5, 0.7, -0.1, math.nan):
        with pytest.raises(ConfigError, match=r"from 0 to below 0\.5"):
            robust_dpo_loss(*SIDES, label_smoothing=chance)
        with pytest.raises(ConfigError):
            smoothed(1.0, chance)


def test_ipo_stops_where_dpo_goes_on() -> None:
    """Certain labels draw log-ratios 1 / (2 beta) apart, soft ones (2p - 1) / (2 beta); beyond, IPO pulls back."""
    zero = torch.zeros(1, dtype=torch.float64)
    for probability in (1.0, 0.8, 0.5, 0.1):
        best = (2 * probability - 1) / (2 * 0.2)
        for gap, sign in ((best - 0.1, -1), (best, 0), (best + 0.1, 1)):
            chosen = torch.tensor([gap], dtype=torch.float64, requires_grad=True)
            ipo_loss(chosen, zero, zero, zero, beta=0.2, probability=probability).sum().backward()
            assert chosen.grad is not None
            assert (round(chosen.grad.item(), 9) > 0) - (round(chosen.grad.item(), 9) < 0) == sign


def test_a_margin_moves_what_ipo_draws_to() -> None:
    """In units of the reward, so log-ratios go margin / beta farther apart: the loss is 0 there and nowhere else."""
    zero = torch.zeros(1, dtype=torch.float64)
    for margin in (0.3, -0.3):
        best = torch.tensor([(0.5 + margin) / 0.2], dtype=torch.float64)
        assert ipo_loss(best, zero, zero, zero, beta=0.2, margin=margin).item() == pytest.approx(0, abs=1e-15)
        assert ipo_loss(best + 1, zero, zero, zero, beta=0.2, margin=margin).item() == pytest.approx(1)


def test_odds_are_finite_for_what_is_certain() -> None:
    certain = torch.tensor([0.0, -1e-20, -1e-3, -800.0], dtype=torch.float64, requires_grad=True)
    odds = log_odds(certain)
    odds.sum().backward()
    assert bool(torch.isfinite(odds).all()) and certain.grad is not None and bool(torch.isfinite(certain.grad).all())
    assert odds[2].item() == pytest.approx(math.log(math.exp(-1e-3) / (1 - math.exp(-1e-3))), rel=1e-9)
    assert odds[3].item() == -800.0
    single = log_odds(torch.zeros(3))
    assert bool(torch.isfinite(single).all()) and float(odds_ratio_loss(torch.zeros(3), torch.zeros(3))[0]) > 0


def test_losses_weigh_more_than_gains() -> None:
    """The same distance from the reference point, on its wrong side: prospect theory's kink."""
    zero = torch.zeros(2, dtype=torch.float64)
    moved = torch.tensor([0.8, 0.8], dtype=torch.float64, requires_grad=True)
    losses = kto_loss(moved, zero, torch.tensor([True, False]), 0.3)
    slopes = torch.autograd.grad(losses.sum(), moved)[0]
    assert float(slopes[0]) < 0 < float(slopes[1])
    assert float(slopes[1] / -slopes[0]) == pytest.approx(4 / 3)
    even = kto_loss(moved, zero, torch.tensor([True, False]), 0.3, undesirable_weight=1.0)
    slopes = torch.autograd.grad(even.sum(), moved)[0]
    assert float(slopes.sum()) == pytest.approx(0, abs=1e-15)


def test_what_lies_far_from_the_reference_point_says_little() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    slopes = []
    for ratio in (-200.0, 0.0, 200.0):
        moved = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
        kto_loss(moved, zero, torch.tensor([True]), 0.0, beta=0.1).sum().backward()
        assert moved.grad is not None
        slopes.append(-moved.grad.item())
    assert slopes[1] == pytest.approx(0.1 / 4) and max(slopes[0], slopes[2]) < 1e-9


def test_kto_has_the_gradient_of_finite_differences_and_checks_shapes() -> None:
    desirable = torch.tensor([True, False, True, True, False])
    leaf = CHOSEN.clone().requires_grad_()
    ours = lambda log_probs: kto_loss(log_probs, REF_CHOSEN, desirable, 0.4, beta=0.3)  # noqa: E731
    assert torch.autograd.gradcheck(ours, (leaf,), eps=1e-6, atol=1e-6, rtol=0.0)
    with pytest.raises(ShapeError, match=r"\(5,\) and \(4,\)"):
        kto_loss(CHOSEN, REF_CHOSEN, desirable[:4], 0.0)
    for broken in (simpo_loss, odds_ratio_loss):
        with pytest.raises(ShapeError, match=r"chosen \(5,\) and rejected \(3,\)"):
            broken(CHOSEN, REJECTED[:3])
    with pytest.raises(ShapeError):
        ipo_loss(CHOSEN, REJECTED, REF_CHOSEN[:3], REF_REJECTED)
