"""what one step learns: the same gradient however it is cut, padded, or spared"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from probes import Fixed, distance, gradient
from tabular import Reward, Tabular, tasks_for
from torch import Tensor

from melior.policies.base import Batch, Scored
from melior.policies.language import LanguagePolicy
from melior.trainers.loop import FitConfig, fit
from melior.trainers.reinforcement import Reinforcement, Rollouts
from melior.trainers.steps import Step
from melior.trainers.supervised import Supervised
from melior.types import Demonstration, Sampling, Score, Task

UNEQUAL = [
    Demonstration("hi", "a"),
    Demonstration("what is the answer", "the cat sat on the mat and the hat of the man " * 3),
    Demonstration("what is the answer", "the cat sat on it"),
    Demonstration("no loss here", "the man and the hat", weight=0.0),
    Demonstration("hi", "42", weight=0.5),
]


@dataclass(frozen=True)
class EveryRow(Supervised):
    """Computes rows without a decision to learn from too."""

    def active(self, batch: Batch) -> list[int]:
        return list(range(len(batch)))


@dataclass(frozen=True, kw_only=True)
class EveryOutput(Reinforcement):
    """Computes outputs without an advantage too."""

    def active(self, batch: Batch) -> list[int]:
        return list(range(len(batch)))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_every_cut_of_demonstrations_gives_the_same_gradient(
    learner: Callable[..., LanguagePolicy], tmp_path: Path, dtype: str, tolerance: float
) -> None:
    policy = learner(dtype)
    batch = policy.encode(UNEQUAL)
    whole = gradient(policy, batch, Supervised(), tmp_path / "whole", micro_batch=10_000)
    assert len(list(policy.cut(batch, 1))) == len(UNEQUAL)  # the smallest budget: one of these has no loss token
    for budget in (1, 25, 60, 120):
        for objective in (Supervised(), EveryRow()):
            folder = tmp_path / f"{budget}-{type(objective).__name__}"
            found = gradient(policy, batch, objective, folder, micro_batch=budget)
            assert distance(found, whole) <= tolerance, (budget, objective)


def graded(policy: Any, tasks: list[Any], reward: Callable[..., float | None], *, n: int = 4, tokens: int = 6) -> Batch:
    grader = Reward(lambda record: Score(value=reward(record), error="" if reward(record) is not None else "lost"))
    steps = Rollouts(policy, tasks, grader, Sampling(n=n, max_tokens=tokens), prompts=len(tasks))
    return steps(0).batch


@pytest.mark.parametrize("aggregate", ["decisions", "outputs", "constant"])
def test_every_cut_of_rollouts_gives_the_same_gradient(
    learner: Callable[..., LanguagePolicy], tmp_path: Path, aggregate: Any
) -> None:
    policy = learner()
    tasks = [Task("hi"), Task("what is the answer to that"), Task("the cat")]
    batch = graded(policy, tasks, lambda record: float(sum(record.decisions) % 3))
    objective = Reinforcement(aggregate=aggregate, length=6, beta=0.1, entropy=0.01)
    whole = gradient(policy, batch, objective, tmp_path / "whole", micro_batch=10_000)
    for budget in (1, 30, 50):
        assert distance(gradient(policy, batch, objective, tmp_path / str(budget), micro_batch=budget), whole) <= 1e-12


def test_rows_without_an_advantage_are_spared_and_still_counted(tmp_path: Path) -> None:
    policy = Tabular(("a", "b", "c"))
    batch = graded(policy, tasks_for(policy), lambda r: 1.0 if r.inputs == "b" else float(r.decisions[0] % 2))
    folder = tmp_path / "spared"
    spared = gradient(policy, batch, Reinforcement(), folder)
    full = gradient(policy, batch, EveryOutput(), tmp_path / "full")
    assert distance(spared, full) <= 1e-14
    run = fit(policy, Fixed([batch]), Reinforcement(), FitConfig())
    assert 0 < run.last("rows") <= 8 < len(batch)


def test_outputs_nobody_could_grade_neither_learn_nor_count(tmp_path: Path) -> None:
    policy = Tabular(("a", "b"))
    lost = {0, 5}
    batch = graded(policy, tasks_for(policy), lambda r: float(sum(r.decisions)))
    rewards = batch.columns["rewards"].clone()
    rewards[list(lost)] = math.nan
    without = batch.select([row for row in range(len(batch)) if row not in lost])
    for objective in (Reinforcement(aggregate=a, beta=0.1, entropy=0.1) for a in ("decisions", "outputs", "constant")):
        name = objective.aggregate
        found = gradient(policy, batch.with_columns(rewards=rewards), objective, tmp_path / f"nan-{name}")
        assert distance(found, gradient(policy, without, objective, tmp_path / f"without-{name}")) <= 1e-14


def test_all_truncated_leaves_the_weights_bitwise_as_they_were() -> None:
    policy = Tabular(("a", "b"), stops=True, spread=0.1)
    batch = graded(policy, tasks_for(policy), lambda r: float(sum(r.decisions)))
    batch = batch.with_columns(truncated=torch.ones(len(batch), dtype=torch.bool))
    before = policy.state()["logits"].clone()
    for minibatches in (1, 2):
        config = FitConfig(weight_decay=0.1, minibatches=minibatches)
        run = fit(policy, Fixed([batch] * 3), Reinforcement(drop_truncated=True, beta=0.1), config)
        assert torch.equal(policy.state()["logits"], before)
        assert [row["loss"] for row in run.metrics] == [0.0] * 3
        assert run.skipped == 0


def test_truncated_outputs_are_dropped_and_the_others_compared_without_them(tmp_path: Path) -> None:
    policy = Tabular(("a", "b"), stops=True, spread=0.1)
    batch = graded(policy, tasks_for(policy), lambda r: float(sum(r.decisions)), n=8)
    cut = batch.columns["truncated"]
    assert 0 < int(cut.sum()) < len(batch)
    kept = batch.select((~cut).nonzero()[:, 0].tolist())
    found = gradient(policy, batch, Reinforcement(drop_truncated=True), tmp_path / "drop")
    assert distance(found, gradient(policy, kept, Reinforcement(), tmp_path / "kept")) <= 1e-14


def test_the_overlong_penalty_is_taken_from_the_reward() -> None:
    policy = Tabular(stops=True, spread=0.1)
    batch = graded(policy, tasks_for(policy), lambda r: 1.0, n=16, tokens=3)
    lengths = batch.mask.sum(1)
    assert len(set(lengths.tolist())) > 1
    prepared = Reinforcement(overlong_margin=2).prepare(Step(batch), policy).batch
    rewards = [1.0 - max(0.0, (n - 1) / 2) for n in lengths.tolist()]
    mean = statistics.fmean(rewards)
    assert prepared.columns["advantages"].tolist() == pytest.approx([r - mean for r in rewards], abs=1e-12)


# ---------------------------------------------------------------- the closed-form table

GROUPS = [0, 0, 0, 1, 1, 1]
LENGTHS = [1, 2, 3, 3, 2, 1]
REWARDS = [1.0, 0.0, 0.5, 0.0, 2.0, 1.0]
OLD = [-1.0, -0.5, -2.0]  # log-prob of the decision at each place when it was sampled
SHIFTS = {"on": [0.0] * 3, "near": [0.05, -0.1, 0.1], "high": [0.5, 0.6, 0.4], "low": [-0.5, -0.4, -0.6]}


class NoPolicy:
    """Must never be asked: everything needed was recorded when sampling."""


def hand(estimator: str, std: bool, aggregate: str, low: float, high: float, shift: list[float]) -> tuple[float, list]:
    """Loss and its slope by every decision's log-prob, in plain floats from the papers."""
    members = {g: [r for k, r in zip(GROUPS, REWARDS) if k == g] for g in GROUPS}
    loss, slopes = 0.0, []
    for group, length, reward in zip(GROUPS, LENGTHS, REWARDS):
        rewards = members[group]
        if estimator == "leave_one_out":  # arXiv:2402.14740 eq. 6
            others = rewards.copy()
            others.remove(reward)
            advantage = reward - statistics.fmean(others)
        else:  # arXiv:2402.03300 §4.1.2; without the division arXiv:2503.20783
            advantage = reward - statistics.fmean(rewards)
            advantage /= statistics.stdev(rewards) + 1e-4 if std else 1.0
        share = {  # of one decision in the step's loss
            "decisions": 1 / sum(LENGTHS),  # arXiv:2503.14476 eq. 8
            "outputs": 1 / len(LENGTHS) / length,  # arXiv:2402.03300 eq. 3
            "constant": 1 / len(LENGTHS) / 8,  # arXiv:2503.20783, with 8 decisions as the constant
        }[aggregate]
        for place in range(length):
            ratio = math.exp(shift[place])
            clipped = min(max(ratio, 1 - low), 1 + high)
            loss -= share * min(ratio * advantage, clipped * advantage)  # arXiv:1707.06347 eq. 7
            slopes.append(-share * ratio * advantage if ratio * advantage <= clipped * advantage else 0.0)
    return loss, slopes


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28), (0.1, 1.0)])
@pytest.mark.parametrize("aggregate", ["decisions", "outputs", "constant"])
@pytest.mark.parametrize(
    ("estimator", "std"), [("group_relative", False), ("group_relative", True), ("leave_one_out", False)]
)
def test_every_variant_has_the_papers_numbers(
    estimator: Any, std: bool, aggregate: Any, low: float, high: float
) -> None:
    objective = Reinforcement(
        estimator=estimator, divide_by_std=std, aggregate=aggregate, length=8, clip_low=low, clip_high=high
    )
    for shift, padding in product(SHIFTS.values(), (0, 3)):
        batch, log_probs = table(shift)
        prepared = padded(objective.prepare(Step(batch), NoPolicy()).batch, padding)
        scored = torch.nn.functional.pad(log_probs, (0, padding), value=math.nan)
        (term,) = objective.loss(Scored(scored), prepared)
        loss = term.total / objective.counts(prepared)["policy"]
        slope = torch.autograd.grad(loss, log_probs)[0]
        expected, slopes = hand(estimator, std, aggregate, low, high, shift)
        assert loss.item() == pytest.approx(expected, abs=1e-12)
        assert slope[batch.mask].tolist() == pytest.approx(slopes, abs=1e-12)
        assert not bool(slope[~batch.mask].any())


def table(shift: list[float]) -> tuple[Batch, Tensor]:
    """The table as a batch, and its current log-probs; masked places hold garbage."""
    mask = torch.arange(3)[None, :] < torch.tensor(LENGTHS)[:, None]
    old = torch.tensor(OLD, dtype=torch.float64).expand(6, -1)
    moved = old + torch.tensor(shift, dtype=torch.float64)
    columns = {
        "rewards": torch.tensor(REWARDS, dtype=torch.float64),
        "behavior_log_probs": old.masked_fill(~mask, math.nan),
    }
    batch = Batch([0] * 6, [0] * 6, mask, mask.double(), torch.tensor(GROUPS), columns)
    return batch, moved.masked_fill(~mask, math.nan).requires_grad_()


def padded(batch: Batch, padding: int) -> Batch:
    """The same batch with columns of padding that hold garbage."""

    def pad(column: Tensor) -> Tensor:
        fill = math.nan if column.is_floating_point() else 0
        return torch.nn.functional.pad(column, (0, padding), value=fill) if column.dim() == 2 else column

    columns = {name: pad(column) for name, column in batch.columns.items()}
    return replace(batch, mask=pad(batch.mask), weights=pad(batch.weights), columns=columns)


def test_padding_columns_change_nothing_for_demonstrations() -> None:
    policy = Tabular()
    batch = policy.encode([Demonstration("a", (1, 2, 3)), Demonstration("a", (4,), weight=2.0)])
    objective = Supervised()
    scored = policy.score(batch)
    expected = (-scored.log_probs[0].sum() - 2 * scored.log_probs[1, 0]) / 5
    garbage = torch.full((2, 2), math.nan, dtype=torch.float64)
    wide = replace(scored, log_probs=torch.cat([scored.log_probs, garbage], 1))
    for part, found in ((batch, scored), (padded(batch, 2), wide)):
        (term,) = objective.loss(found, part)
        assert (term.total / objective.counts(part)["nll"]).item() == pytest.approx(expected.item(), abs=1e-15)
        assert objective.active(part) == [0, 1]


@pytest.mark.parametrize("method", ["supervised", "reinforcement"])
def test_gradients_through_a_language_model_equal_finite_differences(
    learner: Callable[..., LanguagePolicy], tmp_path: Path, method: str
) -> None:
    policy = learner()
    objective: Any
    if method == "supervised":
        objective, batch = Supervised(), policy.encode(UNEQUAL)
    else:
        objective = Reinforcement(aggregate="decisions", entropy=0.2)
        batch = graded(policy, [Task("hi"), Task("the cat")], lambda record: float(sum(record.decisions) % 3))
    prepared = objective.prepare(Step(batch), policy).batch
    found = gradient(policy, batch, objective, tmp_path)
    source = torch.Generator().manual_seed(1)
    start = {name: tensor.clone() for name, tensor in policy.state().items()}
    move = {n: torch.randn(t.shape, generator=source, dtype=t.dtype) for n, t in start.items()}

    @torch.no_grad()
    def loss(sign: float) -> float:
        policy.load_state({name: start[name] + sign * 1e-6 * move[name] for name in start})
        counts, rows = objective.counts(prepared), objective.active(prepared)
        part = prepared.select(rows)
        terms = objective.loss(policy.score(part, objective.want), part)
        return sum(float(term.total) * term.weight / counts[term.name] for term in terms)

    slope = sum(float((found[name] * move[name]).sum()) for name in found)
    assert (loss(1) - loss(-1)) / 2e-6 == pytest.approx(slope, rel=1e-6, abs=1e-6)
