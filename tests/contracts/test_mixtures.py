"""what a mixture of objectives keeps for every kind of policy: the weighted sum of its parts, however it is cut"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tabular import Reward
from test_policies import CASES, Case, decisions_of
from test_preferences import gap, moved, pairs_of, slopes
from tiny import AllDouble

from melior.policies.values import ActorCritic
from melior.trainers.best_of import BestOf
from melior.trainers.distillation import CandidateDistillation
from melior.trainers.loop import FitConfig, fit
from melior.trainers.mixture import Part, mixture
from melior.trainers.pairs import Pairs
from melior.trainers.ppo import Ppo
from melior.trainers.preference import Dpo
from melior.trainers.reinforcement import reinforcement
from melior.trainers.rollouts import Rollouts
from melior.trainers.supervised import Examples, supervised
from melior.trainers.teachers import TeacherExamples
from melior.types import Sampling, Score, Task

NAMES = ["labels of a table", "several labels", "language", "slates"]
WEIGHTS = {"rl": 0.7, "sft": 1.3, "dpo": 0.4, "best": 0.9, "teacher": 2.0}


@pytest.fixture(params=[c for c in CASES if c.name in NAMES], ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def policy(case: Case, folder_of: Callable[..., Path]) -> Iterator[Any]:
    with AllDouble():
        yield moved(case.make(folder_of, "float64"))


def rollouts_of(policy: Any, case: Case, seed: int = 0) -> Rollouts:
    """Outputs whose rewards differ within groups."""
    grader = Reward(lambda record: Score(value=float(sum(record.decisions) % 7)))
    tasks = [Task(row.inputs) for row in case.rows[:4]]
    return Rollouts(policy, tasks, grader, Sampling(n=4, max_tokens=5, seed=seed), prompts=4, seed=seed)


def parts_of(policy: Any, case: Case) -> list[Part]:
    return [
        Part("rl", rollouts_of(policy, case), reinforcement(beta=0.1, entropy=0.05), WEIGHTS["rl"]),
        Part("sft", Examples(policy, case.rows[:5], batch_size=5), supervised(), WEIGHTS["sft"]),
        Part("dpo", Pairs(policy, pairs_of(case, policy), batch_size=4), Dpo(beta=0.5), WEIGHTS["dpo"]),
        Part("best", BestOf(rollouts_of(policy, case, 1)), supervised(), WEIGHTS["best"]),
        Part(
            "teacher",
            TeacherExamples(policy, policy, case.rows[:3], k=2, batch_size=3),
            CandidateDistillation(beta=0.5, demonstration=0.5),
            WEIGHTS["teacher"],
        ),
    ]


def weighted(policy: Any, parts: list[Part]) -> list[torch.Tensor]:
    """The sum of what each part's gradient is alone."""
    alone = [slopes(policy, part.objective, part.steps(0), None)[0] for part in parts]
    weights = [part.weighs(0) for part in parts]
    return [sum(w * slope for w, slope in zip(weights, each, strict=True)) for each in zip(*alone, strict=True)]


def test_the_gradient_is_the_weighted_sum_of_the_parts(policy: Any, case: Case) -> None:
    parts = parts_of(policy, case)
    steps, objective = mixture(*parts)
    found, _ = slopes(policy, objective, steps(0), 10**6)
    assert gap(found, weighted(policy, parts)) <= max(case.exact, 1e-11 if case.name == "language" else 0)


def test_how_it_is_cut_changes_nothing_and_pairs_stay_whole(policy: Any, case: Case) -> None:
    steps, objective = mixture(*parts_of(policy, case))
    whole, _ = slopes(policy, objective, steps(0), 10**6)
    parted, cuts = slopes(policy, objective, steps(0), 1)  # a pair that is parted raises
    assert cuts > 8 and gap(parted, whole) <= max(case.exact, 1e-11 if case.name == "language" else 0)


def test_values_and_states_stand_beside_their_own_rows(case: Case, folder_of: Callable[..., Path]) -> None:
    with AllDouble():
        actor = ActorCritic.make(moved(case.make(folder_of, "float64")))
        parts = [
            Part("ppo", rollouts_of(actor, case), Ppo(), 0.5),
            Part("sft", Examples(actor, case.rows[:5], batch_size=5), supervised(), 2.0),
        ]
        steps, objective = mixture(*parts)
        found, _ = slopes(actor, objective, steps(0), 3)
        assert gap(found, weighted(actor, parts)) <= max(case.exact, 1e-11)


def test_rows_without_noise_stay_without_it_beside_rows_that_have_some(policy: Any, case: Case) -> None:
    """Plain SFT may ask for dropout and augmentation; rewards learn from what the policy does without them."""
    sft = Part("sft", Examples(policy, case.rows[:5], batch_size=5), supervised())
    rl = Part("rl", rollouts_of(policy, case), reinforcement(entropy=0.1))
    steps, objective = mixture(sft, rl)
    run = fit(policy, steps, objective, FitConfig(steps=1))
    assert run.last("rl.policy/sampler_gap") < 1e-9
    assert run.last("rl.policy/ratio") == pytest.approx(1.0, abs=1e-9)


def test_each_part_teaches_what_it_knows(case: Case, folder_of: Callable[..., Path]) -> None:
    """Rewards say what is best for two inputs, demonstrations for two others; over five seeds in tests/trainers."""
    if case.learner is None or case.rft_elsewhere:
        pytest.skip("tests/trainers has this for language models")
    policy = case.learner(folder_of)
    rows = list(case.rows[:4])
    wanted = policy.encode([case.every(policy, row.inputs)[-1] for row in rows])
    best = decisions_of(policy, wanted)
    known = {id(row.inputs): decided for row, decided in zip(rows, best, strict=True)}

    def reward(record: Any) -> Score:
        meant = known[id(record.inputs)]
        return Score(value=sum(a == b for a, b in zip(record.decisions, meant, strict=True)) / len(meant))

    tasks = [Task(row.inputs) for row in rows[:2]]
    rollouts = Rollouts(policy, tasks, Reward(reward), Sampling(n=16))
    shown = [case.every(policy, row.inputs)[-1] for row in rows[2:]]
    steps, objective = mixture(
        Part("rl", rollouts, reinforcement(entropy=0.1)),
        Part("sft", Examples(policy, shown, batch_size=2, epochs=60), supervised()),
    )
    fit(policy, steps, objective, FitConfig(steps=60, learning_rate=case.learning_rate, schedule="linear"))
    greedy = policy.sample([row.inputs for row in rows], Sampling(temperature=0))
    assert [tuple(record.decisions) for record in greedy] == [tuple(decided) for decided in best]
