"""PPO: who is credited with what, whatever the policy decides; cuts, resuming, and what truncation means"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from probes import Fixed, distance, gradient
from tabular import Reward, Tabular, tasks_for
from tiny import AllDouble
from torch import Tensor

from melior.errors import ConfigError, ModelError
from melior.losses.divergence import adaptive_beta
from melior.policies.base import Batch
from melior.policies.classifier import Classifier, ClassifierPolicy
from melior.policies.language import LanguagePolicy
from melior.policies.slate import SlatePolicy
from melior.policies.slate_network import Slate
from melior.policies.tables import Table
from melior.policies.values import ActorCritic, values_of
from melior.trainers.loop import FitConfig, Run, fit
from melior.trainers.ppo import Ppo, ppo
from melior.trainers.reinforcement import Rollouts
from melior.trainers.steps import Step
from melior.types import Demonstration, Item, Record, Sampling, Score, SlateRequest, Task


def sum_of(record: Record) -> float:
    return float(sum((1 + place) * decided for place, decided in enumerate(record.decisions or ())))


def spread(actor: ActorCritic, scale: float = 1.0) -> ActorCritic:
    """A value function that tells states apart."""
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in actor.head.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=source, dtype=parameter.dtype))
    return actor


def table(**how: Any) -> ActorCritic:
    """Two inputs, up to three decisions, away from the reference."""
    policy = Tabular(("a", "b"), stops=True, spread=0.3)
    source = torch.Generator().manual_seed(1)
    policy.reference += torch.randn(policy.reference.shape, generator=source, dtype=torch.float64)
    return spread(ActorCritic.make(policy, **how))  # type: ignore[arg-type]


def sampled(actor: ActorCritic, of: Callable[[Record], Any] = sum_of, *, n: int = 5, **how: Any) -> Batch:
    def graded(record: Record) -> Score:
        found = of(record)
        return found if isinstance(found, Score) else Score(value=found, error="" if found is not None else "lost")

    tasks = tasks_for(actor.policy)  # type: ignore[arg-type]
    return Rollouts(actor, tasks, Reward(graded), Sampling(n=n, max_tokens=3), **how)(0).batch


def prepared(actor: ActorCritic, batch: Batch, **settings: Any) -> Step:
    return Ppo(**{"whiten": False, **settings}).prepare(Step(batch), actor)


# ---------------------------------------------------------------- who earns what


def test_the_last_decision_earns_the_grade_and_each_pays_for_its_own_divergence() -> None:
    actor = table()
    batch = sampled(actor)
    gaps = batch.columns["behavior_log_probs"] - actor.reference_log_probs(batch)
    found = prepared(actor, batch, beta=0.5, trace=1.0).batch.columns["returns"]
    for row, length in enumerate(batch.mask.sum(1).tolist()):
        for place in range(length):
            wanted = float(batch.columns["rewards"][row] - 0.5 * gaps[row, place:length].sum())
            assert float(found[row, place]) == pytest.approx(wanted, abs=1e-12)
    assert not bool(found[~batch.mask].any())


def test_decisions_earn_what_a_score_says_they_did() -> None:
    def each(record: Record) -> Score:
        parts = tuple(float(decided) for decided in record.decisions or ())
        return Score(value=sum(parts), decisions=parts)

    actor = table()
    batch = sampled(actor, each)
    found = prepared(actor, batch, trace=1.0).batch.columns["returns"]
    for row, (decided, _) in enumerate(batch.outputs):
        wanted = [float(sum(decided[place:])) for place in range(len(decided))]
        assert found[row, : len(decided)].tolist() == pytest.approx(wanted, abs=1e-12)


def test_old_values_are_those_before_the_update_and_advantages_add_up_to_returns() -> None:
    actor = table()
    batch = sampled(actor)
    step = prepared(actor, batch, trace=0.5)
    columns = step.batch.columns
    torch.testing.assert_close(columns["old_values"], values_of(actor, batch)[:, :-1].masked_fill(~batch.mask, 0.0))
    torch.testing.assert_close(columns["advantages"] + columns["old_values"], columns["returns"])
    assert not any(columns[name].requires_grad for name in ("advantages", "returns", "old_values", "old_log_probs"))
    errors = (columns["returns"] - columns["old_values"])[batch.mask]
    share = 1 - float(errors.var(unbiased=False) / columns["returns"][batch.mask].var(unbiased=False))
    assert step.metrics["explained_variance"] == pytest.approx(share)


def test_whitened_advantages_have_mean_zero_and_std_one_over_all_decisions() -> None:
    actor = table()
    batch = sampled(actor)
    found = prepared(actor, batch, whiten=True).batch.columns["advantages"]
    assert float(found[batch.mask].mean()) == pytest.approx(0, abs=1e-9)
    assert float(found[batch.mask].std(unbiased=False)) == pytest.approx(1, abs=1e-6)
    assert not bool(found[~batch.mask].any())


def test_what_nobody_could_grade_takes_no_part() -> None:
    actor = table()
    batch = sampled(actor)
    rewards = batch.columns["rewards"].clone()
    rewards[[1, 6]] = math.nan
    kept = [row for row in range(len(batch)) if row not in (1, 6)]
    found = prepared(actor, batch.with_columns(rewards=rewards)).batch
    wanted = prepared(actor, batch.select(kept)).batch
    assert len(found) == len(batch) - 2
    assert torch.equal(found.columns["advantages"], wanted.columns["advantages"])


def test_groups_of_one_are_enough() -> None:
    actor = table()
    run = fit(
        actor,
        Rollouts(actor, [Task("a"), Task("b")], Reward(lambda r: Score(value=sum_of(r))), Sampling(n=1), alone=True),
        ppo(),
        FitConfig(steps=2),
    )
    assert run.last("rows") == 2 and math.isfinite(run.last("value"))


# ---------------------------------------------------------------- truncation


def test_the_three_ways_to_take_a_cut_output() -> None:
    actor = table()
    batch = sampled(actor, n=8)
    cut = batch.columns["truncated"]
    assert 0 < int(cut.sum()) < len(batch)
    steps = {how: prepared(actor, batch, truncated=how, trace=1.0) for how in ("graded", "bootstrap", "drop")}
    values = values_of(actor, batch)
    for row, length in enumerate(batch.mask.sum(1).tolist()):
        grade = float(batch.columns["rewards"][row])
        wanted = float(values[row, length]) if cut[row] else grade
        assert steps["graded"].batch.columns["returns"][row, length - 1].item() == pytest.approx(grade)
        assert steps["bootstrap"].batch.columns["returns"][row, length - 1].item() == pytest.approx(wanted)
    assert len(steps["drop"].batch) == len(batch) - int(cut.sum())
    for how, step in steps.items():
        assert step.metrics[f"truncated/{how}"] == float(cut.sum())


def test_all_cut_and_dropped_leaves_the_weights_bitwise_as_they_were() -> None:
    actor = table()
    batch = sampled(actor).with_columns(truncated=torch.ones(10, dtype=torch.bool))
    before = {name: tensor.clone() for name, tensor in actor.state().items()}
    for minibatches in (1, 2):
        settings = FitConfig(weight_decay=0.1, minibatches=minibatches)
        run = fit(actor, Fixed([batch] * 2), ppo(truncated="drop", beta=0.1), settings)
        assert [row["loss"] for row in run.metrics] == [0.0, 0.0] and run.skipped == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in actor.state().items())


def test_cut_outputs_that_bootstrap_do_not_let_values_run_away() -> None:
    """Where every output is cut, values answer for values; with the grade on top they would grow without end."""
    actor = table()
    batch = sampled(actor).with_columns(truncated=torch.ones(10, dtype=torch.bool))
    fit(actor, Fixed([batch] * 60), ppo(truncated="bootstrap"), FitConfig(learning_rate=0.1, schedule="constant"))
    assert float(values_of(actor, batch).abs().max()) < 10 < float(batch.columns["rewards"].max()) * 60


# ---------------------------------------------------------------- one step


@pytest.mark.parametrize("detach", [False, True])
def test_every_cut_gives_the_same_gradient(detach: bool, tmp_path: Path) -> None:
    actor = table(detach=detach)
    batch = sampled(actor)
    objective = ppo(beta=0.3, kl_target=1.0, entropy=0.1)
    whole = gradient(actor, batch, objective, tmp_path / "whole")
    assert all(bool(tensor.any()) for tensor in whole.values())
    for budget in (1, 4, 11):
        assert distance(gradient(actor, batch, objective, tmp_path / str(budget), micro_batch=budget), whole) <= 1e-12


def test_the_loss_is_the_papers_at_any_padding() -> None:
    actor = table()
    batch = sampled(actor)
    objective = Ppo(value_weight=0.7, value_clip=0.4, entropy=0.2, clip_low=0.1, clip_high=0.3)
    step = objective.prepare(Step(batch), actor)
    source = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for tensor in actor.state().values():
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=source, dtype=tensor.dtype))
    scored = actor.score(step.batch, objective.want)
    assert scored.values is not None and scored.entropy is not None
    total = 0.0
    for row, length in enumerate(batch.mask.sum(1).tolist()):
        for t in range(length):
            at = {name: float(column[row, t]) for name, column in step.batch.columns.items() if column.dim() == 2}
            ratio = math.exp(scored.log_probs[row, t].item() - at["old_log_probs"])
            total -= min(ratio * at["advantages"], min(max(ratio, 0.9), 1.3) * at["advantages"])
            value = scored.values[row, t].item()
            near = at["old_values"] + min(max(value - at["old_values"], -0.4), 0.4)
            total += 0.7 * max((value - at["returns"]) ** 2, (near - at["returns"]) ** 2) / 2
            total -= 0.2 * scored.entropy[row, t].item()
    garbage = torch.full((len(batch), 2), math.nan, dtype=torch.float64)
    wide_batch = replace(
        step.batch,
        mask=torch.cat([batch.mask, torch.zeros(len(batch), 2, dtype=torch.bool)], 1),
        columns={n: torch.cat([c, garbage], 1) if c.dim() == 2 else c for n, c in step.batch.columns.items()},
    )
    wide = replace(
        scored,
        log_probs=torch.cat([scored.log_probs, garbage], 1),
        entropy=torch.cat([scored.entropy, garbage], 1),
        values=torch.cat([scored.values, garbage], 1),
    )
    for part, found in ((step.batch, scored), (wide_batch, wide)):
        counts = objective.counts(part)
        terms = objective.loss(found, part)
        loss = sum(term.total.item() * term.weight / counts[term.name] for term in terms)
        assert loss == pytest.approx(total / int(batch.mask.sum()), abs=1e-12)


def test_before_the_first_update_every_ratio_is_one_and_no_value_has_moved() -> None:
    actor = table()
    run = fit(actor, Fixed([sampled(actor)]), ppo(), FitConfig(learning_rate=1e-9))
    assert run.last("policy/ratio") == pytest.approx(1.0, abs=1e-12)
    assert run.last("policy/clip_low") == run.last("policy/clip_high") == run.last("value/clipped") == 0
    assert abs(run.last("policy/kl_old")) < 1e-12


def test_gradients_equal_finite_differences(tmp_path: Path) -> None:
    actor = table()
    batch = sampled(actor)
    objective = ppo(entropy=0.2, beta=0.1)
    step = objective.prepare(Step(batch), actor)
    start = {name: tensor.clone() for name, tensor in actor.state().items()}
    source = torch.Generator().manual_seed(2)
    moved = {n: t + 0.05 * torch.randn(t.shape, generator=source, dtype=t.dtype) for n, t in start.items()}
    move = {n: torch.randn(t.shape, generator=source, dtype=t.dtype) for n, t in start.items()}

    def loss(sign: float) -> Tensor:
        actor.load_state({name: moved[name] + sign * 1e-6 * move[name] for name in start})
        counts = objective.counts(step.batch)
        terms = objective.loss(actor.score(step.batch, objective.want), step.batch)
        return torch.stack([term.total * term.weight / counts[term.name] for term in terms]).sum()

    leaves = dict(actor.candidates())
    found = torch.autograd.grad(loss(0), list(leaves.values()))
    slope = sum(float((g * move[name]).sum()) for g, name in zip(found, leaves, strict=True))
    assert (loss(1) - loss(-1)).item() / 2e-6 == pytest.approx(slope, abs=1e-6) and abs(slope) > 1e-2


# ---------------------------------------------------------------- many updates


def trained(folder: Path | None, steps: int = 6, stop: int = 0, **how: Any) -> tuple[Run, ActorCritic]:
    actor = table()
    rollouts = Rollouts(actor, [Task("a"), Task("b")], Reward(lambda r: Score(value=sum_of(r))), Sampling(n=4))
    settings = FitConfig(
        folder=folder, steps=steps, learning_rate=0.05, minibatches=2, passes=3, checkpoint_every=2, **how
    )

    def watch(done: int, total: int, metrics: dict[str, float]) -> None:
        if done == stop:
            raise InterruptedError

    return fit(actor, rollouts, ppo(beta=0.2, kl_target=0.5), settings, on_step=watch), actor


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, expected = trained(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        trained(tmp_path / "cut", stop=5)
    resumed, actor = trained(tmp_path / "cut")
    for name, tensor in expected.state().items():
        assert torch.equal(actor.state()[name], tensor), name
    assert [row["beta"] for row in resumed.metrics] == [row["beta"] for row in whole.metrics]
    assert whole.metrics[1]["beta"] == adaptive_beta(0.2, whole.metrics[0]["kl_output"], target=0.5) != 0.2


def test_later_passes_learn_from_the_same_outputs_in_another_order() -> None:
    actor, seen = table(), []

    class Watched(Ppo):
        def counts(self, batch: Batch) -> Any:
            seen.append(tuple(sorted(set(batch.groups.tolist()))))
            return super().counts(batch)

    tasks = [Task("ab"[number % 2]) for number in range(6)]
    rollouts = Rollouts(actor, tasks, Reward(lambda r: Score(value=sum_of(r))), Sampling(n=2))
    run = fit(actor, rollouts, Watched(), FitConfig(steps=1, minibatches=3, passes=4, learning_rate=0.1))
    assert len(seen) == 12
    for number in range(4):
        assert sorted(group for share in seen[3 * number : 3 * number + 3] for group in share) == list(range(6))
    assert len({tuple(seen[3 * number : 3 * number + 3]) for number in range(4)}) > 1
    assert run.last("policy/kl_old") > 1e-6  # later updates see a policy that has moved


def test_values_come_to_explain_returns() -> None:
    actor = ActorCritic.make(Tabular(("a", "b"), stops=True, spread=0.3))  # type: ignore[arg-type]
    grader = Reward(lambda r: Score(value=5.0 * (r.inputs == "a")))
    rollouts = Rollouts(actor, [Task("a"), Task("b")], grader, Sampling(n=8))
    settings = FitConfig(steps=30, passes=4, learning_rate=0.05, schedule="constant", rates={r"^value\.": 10.0})
    run = fit(actor, rollouts, ppo(value_clip=None), settings)
    assert run.metrics[0]["explained_variance"] == pytest.approx(0, abs=1e-9)
    assert run.last("explained_variance") > 0.95


def test_settings_that_cannot_be_are_refused() -> None:
    policy = Tabular()
    batch = Rollouts(policy, [Task("a")], Reward(lambda r: Score(value=1.0)), Sampling(n=2))(0)
    with pytest.raises(ModelError, match=r"wrap it: ActorCritic\.make"):
        ppo().prepare(batch, policy)
    with pytest.raises(ConfigError, match="both must be above 0"):
        ppo(kl_target=3.0)
    with pytest.raises(ConfigError, match=r"within \[0, 1\]; got 1\.1"):
        ppo(discount=1.1)
    with pytest.raises(ConfigError, match="above 0, or null"):
        ppo(value_clip=0.0)


# ---------------------------------------------------------------- whatever the policy decides


def even(record: Record) -> Score:
    return Score(value=sum(decided % 2 == 0 for decided in record.decisions or ()) / len(record.decisions or (1,)))


def language(learner: Callable[..., LanguagePolicy], **how: Any) -> tuple[Any, list[Any]]:
    return learner("float32", adapter=False), ["the cat", "the mat"]


def classifier(_: Any) -> tuple[Any, list[Any]]:
    rows = [Demonstration({"age": float(age)}, "abcd"[age % 4]) for age in range(12)]
    made = ClassifierPolicy.make(Classifier(table=Table(width=16)), rows, seed=1, device="cpu")
    return made, [row.inputs for row in rows[:4]]


def slates(_: Any) -> tuple[Any, list[Any]]:
    items = [Item(f"item {n}", {"price": float(n)}) for n in range(6)]
    requests = [SlateRequest(context={"age": 20.0 + n}) for n in range(3)]
    return SlatePolicy.make(Slate(positions=2, width=16, hidden=0.0), items, requests, seed=1), requests


MADE = {"language": language, "classifier": classifier, "slate": slates}
GOALS = {"language": 0.9, "classifier": 0.95, "slate": 0.9}


@pytest.mark.parametrize("kind", MADE)
def test_it_learns_whatever_the_policy_decides(kind: str, learner: Callable[..., LanguagePolicy]) -> None:
    policy, inputs = MADE[kind](learner)
    actor = ActorCritic.make(policy)
    rollouts = Rollouts(actor, [Task(one) for one in inputs], Reward(even), Sampling(n=24, max_tokens=3))
    settings = FitConfig(steps=25, learning_rate=1e-2, schedule="constant", minibatches=2, passes=2)
    run = fit(actor, rollouts, ppo(entropy=0.0), settings)
    assert run.metrics[0]["reward"] < 0.8
    assert run.last("reward") >= GOALS[kind]
    assert all(math.isfinite(row["value"]) and row["skipped"] == 0 for row in run.metrics)


@pytest.mark.parametrize("separate", [False, True])
def test_cuts_of_a_language_models_rollouts_give_the_same_gradient(
    separate: bool, learner: Callable[..., LanguagePolicy], tmp_path: Path
) -> None:
    with AllDouble():
        actor = spread(ActorCritic.make(learner(), critic=learner() if separate else None), 0.1)
        tasks = [Task("hi"), Task("what is the answer to that")]
        batch = Rollouts(actor, tasks, Reward(even), Sampling(n=4, max_tokens=6))(0).batch
        objective = ppo(beta=0.1, entropy=0.01)
        whole = gradient(actor, batch, objective, tmp_path / "whole", micro_batch=10_000)
        assert any(name.startswith("critic.") for name in whole) == separate
        for budget in (1, 30):
            found = gradient(actor, batch, objective, tmp_path / str(budget), micro_batch=budget)
            assert distance(found, whole) <= 1e-11
