"""what learning from preferences keeps for every kind of policy: words, labels and slates"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tabular import Reward
from test_policies import CASES, Case
from tiny import AllDouble

from melior.policies.base import Batch, score_all
from melior.trainers.loop import FitConfig, fit
from melior.trainers.online import OnlinePairs
from melior.trainers.preference import Dpo, HeldoutPairs, Ipo, Orpo, Pairs, Pairwise, SimPo
from melior.trainers.prospect import Judged, Kto
from melior.trainers.references import References
from melior.trainers.steps import Objective, Step
from melior.types import Preference, Rated, Sampling, Score, Task

PAIRWISE: list[Pairwise] = [
    Dpo(beta=0.5),
    Dpo(beta=2.0, label_smoothing=0.1, robust=True, length_normalised=True, nll=0.3),
    Ipo(beta=0.5),
    Ipo(beta=0.5, length_normalised=False, label_smoothing=0.1),
    SimPo(),
    Orpo(),
]
NAMES = ["labels of a table", "several labels", "language", "slates"]
EVERY_CASE = pytest.mark.parametrize("case", [c for c in CASES if c.name in NAMES], ids=lambda case: case.name)
EVERY_OBJECTIVE = pytest.mark.parametrize("objective", PAIRWISE, ids=lambda each: type(each).__name__)


def pairs_of(case: Case, policy: Any) -> list[Preference]:
    """Of each input two different outputs, with labels, margins and weights of every kind."""
    rows = []
    for number, row in enumerate(case.rows[:6]):
        every = (
            [each.output for each in case.every(policy, row.inputs)] if case.name != "language" else ["mat", "a hat"]
        )
        sides = (every[(number + step) % len(every)] for step in (0, 1))
        labels = {"probability": 1 - number / 8, "margin": number / 10, "weight": 0.5 + number % 3}
        rows.append(Preference(row.inputs, *sides, **labels))
    return rows


def rated(rows: list[Preference]) -> list[Rated]:
    both = [(row.inputs, side, good) for row in rows for side, good in ((row.chosen, 1.0), (row.rejected, 0.0))]
    return [Rated(*told, weight=1 + number % 2) for number, told in enumerate(both)]


@torch.no_grad()
def moved(policy: Any) -> Any:
    """The policy some way from its reference."""
    source = torch.Generator().manual_seed(4)
    for _, parameter in policy.candidates():
        parameter.add_(torch.randn(parameter.shape, generator=source, dtype=parameter.dtype) * 0.05)
    return policy


def slopes(policy: Any, objective: Objective, step: Step, budget: int | None) -> tuple[list[torch.Tensor], int]:
    """The gradient that the loop would add up over micro-batches, and how many there were."""
    prepared = objective.prepare(step, policy).batch
    counts, active = objective.counts(prepared), prepared.select(objective.active(prepared))
    parameters = [parameter for _, parameter in policy.candidates() if parameter.requires_grad]
    total = [torch.zeros_like(parameter) for parameter in parameters]
    cuts = list(policy.cut(active, budget))
    for rows in cuts:
        part = active.select(rows)
        terms = objective.loss(policy.score(part, objective.want), part)
        loss = torch.stack([term.total * (term.weight / counts[term.name]) for term in terms]).sum()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        total = [t if g is None else t + g for t, g in zip(total, found, strict=True)]
    return total, len(cuts)


def gap(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    largest = max(float(tensor.abs().max()) for tensor in second)
    assert largest > 1e-6
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True)) / largest


@EVERY_CASE
@EVERY_OBJECTIVE
def test_how_pairs_are_cut_changes_no_gradient(case: Case, objective: Pairwise, folder_of: Callable[..., Path]) -> None:
    with AllDouble():
        policy = case.make(folder_of, "float64")
        step = Pairs(policy, pairs_of(case, policy), batch_size=6)(0)
        moved(policy)
        whole, _ = slopes(policy, objective, step, 10**6)
        parted, cuts = slopes(policy, objective, step, 1)
    assert cuts == 6 and gap(parted, whole) <= case.exact


@EVERY_CASE
def test_how_judged_outputs_are_cut_changes_no_gradient(case: Case, folder_of: Callable[..., Path]) -> None:
    with AllDouble():
        policy = case.make(folder_of, "float64")
        step = Judged(policy, rated(pairs_of(case, policy)), batch_size=12)(0)
        moved(policy)
        whole, _ = slopes(policy, Kto(beta=0.5), step, 10**6)
        parted, cuts = slopes(policy, Kto(beta=0.5), step, 1)
    assert cuts == 12 and gap(parted, whole) <= case.exact


@EVERY_CASE
def test_at_the_reference_dpo_is_ln_two_and_the_sides_exchanged_turn_the_gradient_round(
    case: Case, folder_of: Callable[..., Path]
) -> None:
    with AllDouble():
        policy = case.make(folder_of, "float64")
        rows = [replace(row, margin=0.0, probability=1.0) for row in pairs_of(case, policy)]
        turned = [replace(row, chosen=row.rejected, rejected=row.chosen) for row in rows]
        found = [slopes(policy, Dpo(), Pairs(policy, each, batch_size=6)(0), None)[0] for each in (rows, turned)]
        held_out = HeldoutPairs(policy, rows, Dpo())(policy)
    assert gap([-tensor for tensor in found[1]], found[0]) <= 1e-9
    assert held_out["heldout_loss"] == pytest.approx(math.log(2), abs=1e-9)
    assert held_out["heldout_accuracy"] == 0.5 and held_out["heldout_margin"] == pytest.approx(0, abs=1e-9)


@EVERY_CASE
@pytest.mark.parametrize("objective", PAIRWISE[::2] + PAIRWISE[5:], ids=lambda each: type(each).__name__)
def test_every_objective_learns_what_is_preferred(
    case: Case, objective: Pairwise, folder_of: Callable[..., Path]
) -> None:
    policy = case.make(folder_of, "float32")
    rows = [replace(row, margin=0.0, probability=1.0, weight=1.0) for row in pairs_of(case, policy)]
    held_out = HeldoutPairs(policy, rows, objective)
    before = held_out(policy)
    epochs = 30 if case.name != "language" else 24 if objective.nll else 8  # imitation goes first where it is asked for
    fit(
        policy, Pairs(policy, rows, batch_size=6, epochs=epochs), objective, FitConfig(learning_rate=case.learning_rate)
    )
    after = held_out(policy)
    assert after["heldout_loss"] < before["heldout_loss"] and after["heldout_accuracy"] == 1.0
    assert after["heldout_margin"] > before["heldout_margin"]


@EVERY_CASE
def test_kto_parts_desirable_outputs_from_undesirable_ones(case: Case, folder_of: Callable[..., Path]) -> None:
    policy = case.make(folder_of, "float32")
    rows = rated(pairs_of(case, policy))
    steps = Judged(policy, rows, batch_size=12, epochs=15 if case.name == "language" else 60)
    run = fit(policy, steps, Kto(), FitConfig(learning_rate=case.learning_rate))
    assert run.last("preference/desirable") > run.last("preference/undesirable") + 1
    assert run.last("preference/undesirable") < 0 and run.last("preference/accuracy") > 0.8


@EVERY_CASE
def test_log_probs_that_are_kept_are_those_of_the_reference(
    case: Case, folder_of: Callable[..., Path], tmp_path: Path
) -> None:
    policy = case.make(folder_of, "float32")
    rows = pairs_of(case, policy)
    steps = Pairs(policy, rows, batch_size=6, references=References(policy, folder=tmp_path))
    batch = steps(0).batch
    expected = policy.reference_log_probs(batch)
    first = steps.references(batch)
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-5)
    moved(policy)
    again = References(policy, folder=tmp_path)
    shuffled = list(reversed(range(0, len(batch), 2)))
    rows_of = [row for start in shuffled for row in (start, start + 1)]
    found = again(batch.select(rows_of))
    assert torch.equal(found, first[rows_of][:, : found.shape[1]])
    assert (again.computed, again.found) == (0, 6)


@EVERY_CASE
def test_own_outputs_become_pairs_as_they_were_sampled(case: Case, folder_of: Callable[..., Path]) -> None:
    """The log-probs of the pairs are those recorded while sampling: nothing was tokenised again."""
    policy = case.make(folder_of, "float32")
    likes = Reward(lambda record: Score(value=float(sum(record.decisions) % 4)))
    tasks = [Task(row.inputs) for row in case.rows[:4]]
    sampling = Sampling(n=4, max_tokens=4)
    step = OnlinePairs(policy, tasks, likes, sampling, prompts=4)(0)
    batch: Batch = step.batch
    records = policy.sample([task.inputs for task in tasks], sampling, step=0)
    sampled = [sum(record.behavior_log_probs) for record in records]
    scored = torch.where(batch.mask, score_all(policy, batch), 0.0).sum(1).tolist()
    assert step.metrics["pairs"] >= 1 and len(batch) == 2 * step.metrics["pairs"]
    for value in scored:
        assert min(abs(value - other) for other in sampled) < 1e-4
    run = fit(policy, OnlinePairs(policy, tasks, likes, sampling, prompts=4), Dpo(), FitConfig(steps=2))
    assert math.isfinite(run.last("loss"))
