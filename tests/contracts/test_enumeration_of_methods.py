"""expected gradients of PPO and of `Reinforcement`'s methods, exactly: which are unbiased, and where others lean"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tabular import Tabular
from test_enumeration import STOPS, gradient, kl, moved, pairs_of, probabilities, rewards_of
from torch import Tensor

from melior.losses.divergence import kl_k1, kl_k2, kl_k3
from melior.masking import sum_decisions
from melior.policies.base import Batch, Want
from melior.policies.values import ActorCritic
from melior.trainers.ppo import Ppo
from melior.trainers.reinforcement import Reinforcement
from melior.trainers.steps import Step
from melior.types import Demonstration

BETA = 0.7


def rollouts(policy: Tabular, batch: Batch, rewards: Tensor, *, sampler: Tabular | None = None) -> Batch:
    """The batch as if each row had been sampled and graded."""
    behavior = (sampler or policy).score(batch).log_probs.detach()
    cut = torch.zeros(len(batch), dtype=torch.bool)
    return batch.with_columns(rewards=rewards, truncated=cut, behavior_log_probs=behavior)


def expected(objective: Any, policy: Any, batch: Batch, weight: Tensor) -> Tensor:
    """The expected gradient by the logits, of terms that are not divided by counts.

    At ratio 1 losses are linear in the advantages, so the chance of a row can ride on them.
    """
    prepared = objective.prepare(Step(batch), policy).batch
    advantages = prepared.columns["advantages"]
    weight = weight if advantages.dim() == 1 else weight[:, None]
    prepared = prepared.with_columns(advantages=advantages * weight)
    term = next(t for t in objective.loss(policy.score(prepared, objective.want), prepared) if t.name == "policy")
    return gradient(term.total, policy.policy if isinstance(policy, ActorCritic) else policy)


def mean_reward(policy: Tabular) -> Tensor:
    batch = policy.every_row()
    return (probabilities(policy, batch) * rewards_of(batch)).sum()


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    assert float(wanted.abs().max()) > 1e-2


# ---------------------------------------------------------------- without a value function


@STOPS
@pytest.mark.parametrize("surrogate", ["decision", "output", "cispo"])
def test_leave_one_out_follows_the_mean_reward_whatever_the_surrogate(stops: bool, surrogate: Any) -> None:
    policy = Tabular(stops=stops)
    batch, rewards, weight = pairs_of(policy)
    objective = Reinforcement(estimator="leave_one_out", surrogate=surrogate)
    found = expected(objective, policy, rollouts(policy, batch, rewards), weight) / 2  # a pair is two outputs
    close(found, -gradient(mean_reward(policy), policy))


@STOPS
def test_with_the_divergence_in_the_reward_it_follows_reward_less_kl(stops: bool) -> None:
    policy, everything = moved(stops)
    batch, rewards, weight = pairs_of(policy)
    objective = Reinforcement(estimator="leave_one_out", beta=BETA, kl="reward")
    found = expected(objective, policy, rollouts(policy, batch, rewards), weight) / 2
    close(found, -gradient(mean_reward(policy) - BETA * kl(policy, everything), policy))


def test_a_mean_over_each_outputs_decisions_leans_to_short_good_and_long_bad_outputs() -> None:
    """E[∇] is that of the reward per decision, less the mean reward times that of the mean of one over the length."""
    policy = Tabular(stops=True)
    batch, rewards, weight = pairs_of(policy)
    objective = Reinforcement(estimator="leave_one_out", aggregate="outputs")
    found = expected(objective, policy, rollouts(policy, batch, rewards), weight) / 2
    everything = policy.every_row()
    chances, lengths = probabilities(policy, everything), everything.mask.sum(1)
    per_decision = (chances * rewards_of(everything) / lengths).sum()
    lean = mean_reward(policy).item() * (chances / lengths).sum()
    close(found, -gradient(per_decision - lean, policy))
    unbiased = gradient(mean_reward(policy), policy)
    cosine = torch.nn.functional.cosine_similarity(-found.flatten(), unbiased.flatten(), dim=0)
    assert float(cosine) < 0.999


def uniform() -> Tabular:
    """Every output is as likely as any other, so all of them once are the batch that is expected."""
    return Tabular(spread=0.0)


@pytest.mark.parametrize("estimator", ["batch", "group_batch"])
def test_in_the_limit_of_a_large_batch_its_normalisation_is_a_division_by_the_spread(estimator: Any) -> None:
    policy = uniform()
    batch = policy.every_row()
    rewards = rewards_of(batch)
    one = Batch(batch.inputs, batch.outputs, batch.mask, batch.weights, torch.zeros(len(batch), dtype=torch.long))
    objective = Reinforcement(estimator=estimator)
    found = expected(objective, policy, rollouts(policy, one, rewards), torch.full((125,), 1 / 125).double())
    torch.testing.assert_close(
        found, -gradient(mean_reward(policy), policy) / rewards.std(unbiased=False), rtol=0, atol=1e-8
    )


@STOPS
def test_estimates_of_kl_have_the_kl_as_their_mean_or_not(stops: bool) -> None:
    policy, batch = moved(stops)
    chances, truth = probabilities(policy, batch), kl(policy, batch).item()
    here, there = policy.score(batch).log_probs, policy.reference_log_probs(batch)
    mean = {of: float((chances * sum_decisions(of(here, there), batch.mask)).sum()) for of in (kl_k1, kl_k2, kl_k3)}
    assert mean[kl_k1] == pytest.approx(truth, abs=1e-12) and mean[kl_k3] == pytest.approx(truth, abs=1e-12)
    assert abs(mean[kl_k2] - truth) > 0.01 * truth


# ---------------------------------------------------------------- a sampler that is not the scorer


def corrected(per: Any, policy: Tabular, sampler: Tabular, cap: float) -> Tensor:
    batch = policy.every_row()
    rewards = rewards_of(batch)
    objective = Reinforcement(correction=per, correction_cap=cap)
    prepared = objective.prepare(Step(rollouts(policy, batch, rewards, sampler=sampler)), policy).batch
    chances = probabilities(sampler, batch).detach()
    prepared = prepared.with_columns(advantages=rewards * chances)
    (term,) = objective.loss(policy.score(prepared), prepared)
    return gradient(term.total, policy)


@STOPS
def test_corrected_by_whole_outputs_another_samplers_outputs_teach_what_ones_own_would(stops: bool) -> None:
    policy, sampler = Tabular(stops=stops), Tabular(stops=stops, seed=5)
    close(corrected("output", policy, sampler, 1e9), -gradient(mean_reward(policy), policy))
    wanted = gradient(mean_reward(policy), policy)
    for per, cap in (("none", 1e9), ("decision", 1e9), ("output", 1.5)):  # each of them leans elsewhere
        found = -corrected(per, policy, sampler, cap)
        assert float((found - wanted).norm() / wanted.norm()) > 0.05, per


def test_corrected_decision_by_decision_it_is_right_for_outputs_of_one_decision() -> None:
    policy, sampler = Tabular(length=1), Tabular(length=1, seed=5)
    close(corrected("decision", policy, sampler, 1e9), -gradient(mean_reward(policy), policy))


# ---------------------------------------------------------------- with a value function


def with_values(policy: Tabular, seed: int | None = 4) -> ActorCritic:
    """Values drawn at random; 0 everywhere without a seed."""
    actor = ActorCritic.make(policy)
    if seed is not None:
        source = torch.Generator().manual_seed(seed)
        actor.head.weight.data.copy_(torch.randn(actor.head.weight.shape, generator=source, dtype=torch.float64))
    return actor


def with_true_values(policy: Tabular, beta: float) -> ActorCritic:
    """What is still to be earned behind every prefix, by enumeration: reward, less beta times what KL is to come."""
    actor, batch = with_values(policy, None), policy.every_row()
    chances = probabilities(policy, batch).detach()
    gaps = (policy.score(batch).log_probs - policy.reference_log_probs(batch)).detach()
    states = policy.score(batch, frozenset({Want.LOG_PROBS, Want.STATES})).states
    assert states is not None
    worth: dict[int, list[float]] = {}
    for row, reward in enumerate(rewards_of(batch).tolist()):
        for place in range(int(batch.mask[row].sum())):
            to_go = reward - beta * float(gaps[row, place:][batch.mask[row, place:]].sum())
            found = worth.setdefault(int(states[row, place].argmax()), [0.0, 0.0])
            found[0] += float(chances[row]) * to_go
            found[1] += float(chances[row])
    for place, (total, chance) in worth.items():
        actor.head.weight.data[0, place] = total / chance
    return actor


PLAIN: dict[str, Any] = {"whiten": False, "beta": BETA, "value_clip": None}


def of_ppo(actor: ActorCritic, **settings: Any) -> Tensor:
    policy: Any = actor.policy
    batch = policy.every_row()
    chances = probabilities(policy, batch).detach()
    return expected(Ppo(**{**PLAIN, **settings}), actor, rollouts(policy, batch, rewards_of(batch)), chances)


@STOPS
def test_with_a_full_trace_any_values_leave_the_expectation_as_it_is(stops: bool) -> None:
    policy, everything = moved(stops)
    wanted = -gradient(mean_reward(policy) - BETA * kl(policy, everything), policy)
    close(of_ppo(with_values(policy, None), trace=1.0), wanted)
    close(of_ppo(with_values(policy), trace=1.0), wanted)


@STOPS
@pytest.mark.parametrize("trace", [0.0, 0.5, 0.95])
def test_with_true_values_any_trace_does(stops: bool, trace: float) -> None:
    policy, everything = moved(stops)
    wanted = -gradient(mean_reward(policy) - BETA * kl(policy, everything), policy)
    close(of_ppo(with_true_values(policy, BETA), trace=trace), wanted)


def test_with_wrong_values_a_short_trace_believes_them() -> None:
    policy, everything = moved(True)
    wanted = -gradient(mean_reward(policy) - BETA * kl(policy, everything), policy)
    found = of_ppo(with_values(policy), trace=0.0)
    assert float((found - wanted).norm() / wanted.norm()) > 0.1


def test_true_values_spare_variance() -> None:
    policy, _ = moved(False)
    batch = policy.every_row()
    chances = probabilities(policy, batch).detach()
    squares = []
    for actor in (with_values(policy, None), with_true_values(policy, BETA)):
        step = Ppo(**PLAIN, trace=1.0).prepare(Step(rollouts(policy, batch, rewards_of(batch))), actor)
        squares.append(float((chances[:, None] * step.batch.columns["advantages"].square()).sum()))
    assert squares[1] < squares[0]


@STOPS
def test_the_value_loss_pulls_values_to_what_is_to_be_expected(stops: bool) -> None:
    """Its expected slope is the chance of a prefix times the error, so it rests at the truth alone."""
    policy, _ = moved(stops)
    batch = policy.every_row()
    chances = probabilities(policy, batch).detach()
    slopes = []
    for actor in (with_true_values(policy, BETA), with_values(policy)):
        objective = Ppo(**PLAIN, trace=1.0)
        prepared = objective.prepare(Step(rollouts(policy, batch, rewards_of(batch))), actor).batch
        scored = actor.score(prepared, objective.want)
        assert scored.values is not None
        errors = (scored.values[:, :-1] - prepared.columns["returns"]).square() / 2
        weighed = (chances[:, None] * torch.where(batch.mask, errors, 0.0)).sum()
        slopes.append(torch.autograd.grad(weighed, actor.head.weight)[0])
    assert float(slopes[0].abs().max()) < 1e-12 and float(slopes[1].abs().max()) > 1e-2


def test_cut_outputs_that_bootstrap_with_true_values_teach_what_whole_ones_would() -> None:
    """Of three decisions only two are made, and the third is answered by the value of the place they lead to."""
    policy = Tabular()
    actor = with_true_values(policy, 0.0)
    cut = policy.encode([Demonstration("a", two) for two in itertools.product(range(policy.size), repeat=2)])
    chances = probabilities(policy, cut).detach()
    sampled = rollouts(policy, cut, torch.full((len(cut),), 99.0).double())  # a grade of half an output, not to be used
    sampled = sampled.with_columns(truncated=torch.ones(len(cut), dtype=torch.bool))
    wanted = gradient(mean_reward(policy), policy)
    levels = policy.starts[2]  # the third decision is never made
    for trace in (0.0, 0.7, 1.0):
        found = expected(Ppo(whiten=False, truncated="bootstrap", trace=trace), actor, sampled, chances)
        close(found[:, :levels], -wanted[:, :levels])
        assert not bool(found[:, levels:].any())
