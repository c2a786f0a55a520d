"""a bandit and a chain of three decisions with a known best output: every method of policy gradient finds it"""

from __future__ import annotations

import random
from typing import Any

import pytest
from tabular import Reward, Tabular, tasks_for

from melior.policies.values import ActorCritic
from melior.trainers.loop import FitConfig, fit
from melior.trainers.ppo import ppo
from melior.trainers.reinforcement import METHODS, Rollouts, reinforcement
from melior.types import Demonstration, Record, Sampling, Score

SEEDS = range(5)
BEST = (2, 0, 1)
ARMS = (0.2, 0.9, 0.5, 0.0, 0.7)  # the chance of a reward of 1
OBJECTIVES: dict[str, Any] = {**{name: reinforcement(name) for name in METHODS}, "ppo": ppo()}
CHAINED = ("ppo", "rloo", "reinforce++", "gspo", "cispo")  # the others differ from these in settings of theirs
# An update of GSPO is over when an output's mean log-ratio has moved by its bounds, a thousandth of a decision's.
PASSES = {"gspo": 1}


def learned(name: str, policy: Tabular, grader: Reward, seed: int, **how: Any) -> None:
    trained: Any = ActorCritic.make(policy) if name == "ppo" else policy  # type: ignore[arg-type]
    steps = Rollouts(trained, tasks_for(policy), grader, Sampling(n=20, seed=seed), seed=seed)
    settings = {"learning_rate": 0.3, "schedule": "constant", "passes": PASSES.get(name, 2), **how}
    fit(trained, steps, OBJECTIVES[name], FitConfig(**settings))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_best_arm_of_five_is_found_though_rewards_are_chance(name: str, seed: int) -> None:
    policy = Tabular(length=1, seed=seed, spread=0.1)
    source = random.Random(seed)

    def pay(record: Record) -> Score:
        assert record.decisions is not None
        return Score(value=float(source.random() < ARMS[record.decisions[0]]))

    learned(name, policy, Reward(pay), seed, steps=30)
    best = policy.encode([Demonstration("a", (1,))])
    assert policy.score(best).log_probs.sum().exp().item() >= 0.9


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CHAINED)
def test_the_one_output_of_27_that_is_right_is_found(name: str, seed: int) -> None:
    policy = Tabular(vocabulary=3, seed=seed, spread=0.1)

    def share(record: Record) -> Score:
        assert record.decisions is not None
        return Score(value=sum(one == other for one, other in zip(record.decisions, BEST)) / 3)

    learned(name, policy, Reward(share), seed, steps=25)
    best = policy.encode([Demonstration("a", BEST)])
    assert policy.score(best).log_probs.sum().exp().item() >= 0.9
