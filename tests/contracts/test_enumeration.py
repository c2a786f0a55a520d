"""expected gradients, exactly: every output of a 5-token vocabulary up to length 3, weighted by its probability"""

from __future__ import annotations

import itertools

import pytest
import torch
from tabular import Tabular
from torch import Tensor

from melior.advantages import group_relative, leave_one_out
from melior.losses.policy_gradient import kl_penalty
from melior.masking import sum_decisions
from melior.policies.base import Batch, Want
from melior.trainers.reinforcement import Reinforcement

STOPS = pytest.mark.parametrize("stops", [False, True])


def probabilities(policy: Tabular, batch: Batch) -> Tensor:
    return sum_decisions(policy.score(batch).log_probs, batch.mask).exp()


def rewards_of(batch: Batch) -> Tensor:
    return torch.randn(len(batch), generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def gradient(value: Tensor, policy: Tabular) -> Tensor:
    return torch.autograd.grad(value, policy.logits)[0]


@STOPS
def test_the_outputs_are_all_there_are(stops: bool) -> None:
    policy = Tabular(stops=stops)
    batch = policy.every_row()
    assert probabilities(policy, batch).sum().item() == pytest.approx(1.0, abs=1e-12)
    assert len(batch) == (1 + 4 + 16 + 64 if stops else 125)


def pairs_of(policy: Tabular) -> tuple[Batch, Tensor, Tensor]:
    """Every pair of outputs as a group of two, each row's reward, and each row's probability of its pair."""
    batch = policy.every_row()
    chance, rewards = probabilities(policy, batch).detach(), rewards_of(batch)
    rows = [row for pair in itertools.product(range(len(batch)), repeat=2) for row in pair]
    index = torch.tensor(rows)
    pairs = batch.select(rows)
    weight = (chance[index[0::2]] * chance[index[1::2]]).repeat_interleave(2)
    groups = torch.arange(len(rows)) // 2
    return Batch(pairs.inputs, pairs.outputs, pairs.mask, pairs.weights, groups), rewards[index], weight


@STOPS
@pytest.mark.parametrize(("estimator", "share"), [(leave_one_out, 1.0), (group_relative, 0.5)])
def test_the_expected_gradient_of_the_policy_loss_is_that_of_the_mean_reward(
    stops: bool, estimator, share: float
) -> None:
    """Leave-one-out is unbiased; the mean of a group of n, one's own reward included, shrinks it by (n - 1) / n."""
    policy = Tabular(stops=stops)
    batch, rewards, weight = pairs_of(policy)
    objective = Reinforcement(aggregate="constant", length=4)
    advantages = estimator(rewards, batch.groups)
    # At ratio 1 the loss is linear in the advantages, so the chance of a pair can ride on them.
    prepared = batch.with_columns(
        advantages=advantages * weight, rewards=rewards, old_log_probs=policy.score(batch).log_probs.detach()
    )
    (term,) = objective.loss(policy.score(prepared), prepared)
    found = gradient(term.total / (2 * objective.length), policy)  # a pair is two outputs

    everything = policy.every_row()
    expected = gradient((probabilities(policy, everything) * rewards_of(everything)).sum(), policy)
    torch.testing.assert_close(found, -share * expected / objective.length, rtol=0, atol=1e-12)
    assert float(expected.abs().max()) > 1e-2


def kl(policy: Tabular, batch: Batch) -> Tensor:
    log_probs = sum_decisions(policy.score(batch).log_probs, batch.mask)
    reference = sum_decisions(policy.reference_log_probs(batch), batch.mask)
    return (log_probs.exp() * (log_probs - reference)).sum()


def moved(stops: bool) -> tuple[Tabular, Batch]:
    policy = Tabular(stops=stops)
    policy.reference = torch.randn_like(policy.reference)
    return policy, policy.every_row()


@STOPS
def test_the_expected_kl_penalty_is_the_kl_in_value_and_gradient(stops: bool) -> None:
    policy, batch = moved(stops)
    rows = sum_decisions(kl_penalty(policy.score(batch).log_probs, policy.reference_log_probs(batch)), batch.mask)
    estimate = (probabilities(policy, batch).detach() * rows).sum()
    truth = kl(policy, batch)
    assert estimate.item() == pytest.approx(truth.item(), abs=1e-12)
    torch.testing.assert_close(gradient(estimate, policy), gradient(truth, policy), rtol=0, atol=1e-10)
    assert float(gradient(kl(policy, batch), policy).abs().max()) > 1e-2


def test_the_traps_are_traps() -> None:
    """k1 as a loss has mean gradient zero, and k3 as a loss another direction than the KL's."""
    policy, batch = moved(stops=True)
    chance = probabilities(policy, batch).detach()
    ratio = policy.reference_log_probs(batch) - policy.score(batch).log_probs
    k1 = (chance * sum_decisions(-ratio, batch.mask)).sum()
    assert float(gradient(k1, policy).abs().max()) < 1e-12
    ratio = policy.reference_log_probs(batch) - policy.score(batch).log_probs
    k3 = gradient((chance * sum_decisions(ratio.exp() - 1 - ratio, batch.mask)).sum(), policy)
    truth = gradient(kl(policy, batch), policy)
    assert float((k3 - truth).norm() / truth.norm()) > 0.1


def test_the_gradient_of_the_kl_and_of_entropy_equal_finite_differences() -> None:
    policy, batch = moved(stops=True)
    batch = batch.with_columns(
        advantages=torch.zeros(len(batch), dtype=torch.float64),
        old_log_probs=policy.score(batch).log_probs.detach(),
    )
    objective = Reinforcement(entropy=0.5)
    wanted = {"kl": lambda: kl(policy, batch), "entropy": lambda: entropy()}

    def entropy() -> Tensor:
        terms = objective.loss(policy.score(batch, frozenset({Want.LOG_PROBS, Want.ENTROPY})), batch)
        return next(term.total * term.weight for term in terms if term.name == "entropy")

    direction = torch.randn_like(policy.logits)
    for name, value in wanted.items():
        slope = float((gradient(value(), policy) * direction).sum())
        step, sides = 1e-5, []
        for sign in (1, -1):
            policy.load_state({"logits": policy.logits.detach() + sign * step * direction})
            sides.append(value().item())
            policy.load_state({"logits": policy.logits.detach() - sign * step * direction})
        assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(slope, abs=1e-6), name
