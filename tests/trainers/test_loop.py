"""fit: what it skips, when it stops, what it keeps, and that it learns"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from probes import Fixed
from tabular import Reward, Tabular, tasks_for
from torch import Tensor

from melior.errors import CheckpointError, ConfigError, NonFiniteError
from melior.policies.base import Batch, Rates, Scored
from melior.policies.language import LanguagePolicy
from melior.trainers.checkpoints import load_checkpoint
from melior.trainers.loop import FitConfig, Run, fit
from melior.trainers.reinforcement import Reinforcement, Rollouts
from melior.trainers.steps import Step, Term
from melior.trainers.supervised import Examples, HeldoutLoss, Supervised
from melior.types import Demonstration, Sampling, Score, Task

ROWS = [Demonstration("a", output) for output in [(1, 2, 3), (4,), (0, 2), (3, 3, 3), (2, 0, 1), (1, 1)]]


def examples(policy: Any, *, epochs: int = 4, size: int = 2, seed: int = 0) -> Examples:
    return Examples(policy, ROWS, batch_size=size, epochs=epochs, seed=seed)


@dataclass(frozen=True)
class Poisoned(Supervised):
    """Supervised learning whose loss or gradient is not finite at some steps."""

    at: tuple[int, ...] = ()
    kind: str = "loss"

    def prepare(self, step: Step, policy: Any) -> Step:
        index = round(step.metrics["epoch"] * 3)  # of `examples`, three steps an epoch
        return step.with_columns(broken=torch.full((len(step.batch),), index in self.at))

    def loss(self, scored: Scored, batch: Batch) -> list[Term]:
        (term,) = super().loss(scored, batch)
        if not bool(batch.columns["broken"].any()):
            return [term]
        broken = term.total * math.nan if self.kind == "loss" else term.total + torch.sqrt(scored.log_probs.sum() * 0)
        return [Term("nll", broken)]


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(tmp_path: Path, kind: str, caplog: Any) -> None:
    policy = Tabular()
    config = FitConfig(folder=tmp_path, checkpoint_every=1, keep_checkpoints=100, weight_decay=0.1, learning_rate=0.1)
    with caplog.at_level(logging.WARNING):
        run = fit(policy, examples(policy), Poisoned(at=(2, 5, 6), kind=kind), config)
    assert run.skipped == 3
    assert [row["skipped"] for row in run.metrics] == [float(index in (2, 5, 6)) for index in range(12)]
    assert sum("skipped" in message for message in caplog.messages) == 3
    kept = [load_checkpoint(tmp_path / "checkpoints" / f"step-{step:06d}") for step in range(1, 13)]
    for index in range(1, 12):
        same = index in (2, 5, 6)
        for before, after in (
            (kept[index - 1].tensors, kept[index].tensors),
            (kept[index - 1].optimizer, kept[index].optimizer),
        ):
            assert all(torch.equal(before[name], after[name]) for name in after) == same
    lines = [
        json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 12


def test_too_many_steps_in_a_row_stop_the_run_and_name_the_last_good_checkpoint(tmp_path: Path) -> None:
    policy = Tabular()
    config = FitConfig(folder=tmp_path, checkpoint_every=4, max_skipped=3)
    with pytest.raises(NonFiniteError, match=r"3 steps in a row.*loss nan.*checkpoint is step 4"):
        fit(policy, examples(policy), Poisoned(at=(1, 3, 4, 5, 6, 7)), config)
    with pytest.raises(NonFiniteError, match="no checkpoint yet"):
        fit(policy, examples(policy), Poisoned(at=(0, 1)), FitConfig(max_skipped=2))


# ---------------------------------------------------------------- evaluation


@dataclass
class Scripted:
    """An evaluation whose values are told in advance."""

    values: Sequence[float]
    calls: int = 0

    def __call__(self, policy: Any) -> Mapping[str, float]:
        self.calls += 1
        return {"quality": self.values[self.calls - 1]}


def watched(policy: Tabular, values: Sequence[float], **config: Any) -> tuple[Run, list[Tensor]]:
    """The run, and the weights after each step."""
    weights: list[Tensor] = []
    settings = FitConfig(evaluate_every=2, best_metric="quality", learning_rate=0.1, **config)
    steps = examples(policy)
    run = fit(
        policy,
        steps,
        Supervised(),
        settings,
        evaluation=Scripted(values),
        on_step=lambda *_: weights.append(policy.state()["logits"].clone()),
    )
    return run, weights


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize(
    ("best_is", "values"),
    [
        ("max", [0.1, 0.9, 0.3, 0.9, 0.2, 0.5]),
        ("min", [3.0, 0.5, 1.0, 0.5, 2.0, 4.0]),
        ("max", [math.nan, 0.2, math.nan, 0.1, 0.1, 0.0]),
    ],
)
def test_the_best_weights_by_held_out_metric_are_restored(
    tmp_path: Path, folder: bool, best_is: Any, values: list[float]
) -> None:
    policy = Tabular()
    run, weights = watched(policy, values, best_is=best_is, folder=tmp_path if folder else None)
    assert (run.steps, run.best_step, run.best_value, run.stopped) == (12, 4, values[1], "")
    assert torch.equal(policy.state()["logits"], weights[3])


@pytest.mark.parametrize("folder", [True, False])
def test_no_improvement_stops_early_with_the_best_weights(tmp_path: Path, folder: bool) -> None:
    policy = Tabular()
    run, weights = watched(policy, [0.5, 0.6, 0.2, 0.6, 9.0, 9.0], patience=2, folder=tmp_path if folder else None)
    assert (run.steps, run.best_step) == (8, 4)
    assert run.stopped == "quality has not improved for 2 evaluations"
    assert torch.equal(policy.state()["logits"], weights[3])
    if folder:  # a finished run stays finished
        again = Tabular()
        repeated, _ = watched(again, [], patience=2, folder=tmp_path)
        assert (repeated.steps, repeated.best_step, repeated.stopped) == (8, 4, run.stopped)
        assert torch.equal(again.state()["logits"], weights[3])


def test_settings_that_cannot_work_are_refused() -> None:
    policy = Tabular()
    endless = Rollouts(policy, tasks_for(policy), Reward(lambda r: Score(value=0.0)), Sampling(n=2))
    scripted = Scripted([1.0] * 6)
    for steps, config, evaluation, told in [
        (endless, FitConfig(), None, "never end"),
        (examples(policy), FitConfig(best_metric="quality"), None, "pass evaluation"),
        (examples(policy), FitConfig(patience=2), scripted, "needs best_metric"),
        (examples(policy), FitConfig(best_metric="loss", evaluate_every=1), scripted, "'loss' is not among .* quality"),
    ]:
        with pytest.raises(ConfigError, match=told):
            fit(policy, steps, Supervised(), config, evaluation=evaluation)


def test_nothing_to_train_is_refused() -> None:
    class Frozen(Tabular):
        def parameter_groups(self, rates: Rates) -> list[Any]:
            return []

    policy = Frozen()
    with pytest.raises(ConfigError, match="0 parameters"):
        fit(policy, examples(policy), Supervised())


def test_held_out_loss_is_the_mean_over_decisions() -> None:
    policy = Tabular()
    batch = policy.encode(ROWS)
    with torch.no_grad():
        expected = -policy.score(batch).log_probs.sum() / batch.mask.sum()
    assert HeldoutLoss(policy, ROWS)(policy)["heldout_loss"] == pytest.approx(float(expected), abs=1e-12)


# ---------------------------------------------------------------- updates


def test_two_minibatches_are_two_updates_on_half_the_groups_each() -> None:
    once, twice = Tabular(), Tabular()
    batch = once.encode(ROWS)
    halves = [batch.select([0, 1, 2]), batch.select([3, 4, 5])]
    config = {"schedule": "constant", "learning_rate": 0.1}
    fit(once, Fixed([batch]), Supervised(), FitConfig(minibatches=2, **config))
    fit(twice, Fixed(halves), Supervised(), FitConfig(**config))
    assert torch.equal(once.state()["logits"], twice.state()["logits"])


def test_minibatches_never_cut_a_group_and_are_clipped_against_the_sampler() -> None:
    policy = Tabular()
    sizes = []

    @dataclass(frozen=True, kw_only=True)
    class Watched(Reinforcement):
        def counts(self, batch: Batch) -> Mapping[str, float]:
            sizes.append(sorted(batch.groups.tolist()))
            return super().counts(batch)

    steps = Rollouts(policy, [Task("a")] * 3, Reward(lambda r: Score(value=float(sum(r.decisions)))), Sampling(n=4))
    run = fit(policy, steps, Watched(), FitConfig(steps=1, minibatches=2, learning_rate=0.5))
    assert [len(set(groups)) for groups in sizes] == [2, 1]
    assert all(groups.count(group) == 4 for groups in sizes for group in groups)
    assert run.last("policy/sampler_gap") > 1e-2  # the second update sees samples of a policy that has moved


def test_schedule_and_warm_up_reach_the_optimizer() -> None:
    policy = Tabular()
    run = fit(policy, examples(policy), Supervised(), FitConfig(schedule="linear", warmup=3, learning_rate=0.9))
    expected = [0.3, 0.6, 0.9] + [0.9 * (1 - index / 9) for index in range(9)]
    assert [row["learning_rate"] for row in run.metrics] == pytest.approx(expected)


# ---------------------------------------------------------------- interruption and resuming


def without_times(run: Run) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if not name.startswith("seconds")} for row in run.metrics]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, number: int) -> None:
    whole, policy = Tabular(), Tabular()
    config = {"learning_rate": 0.1, "evaluate_every": 3}
    expected = fit(whole, examples(whole), Supervised(), FitConfig(**config), evaluation=HeldoutLoss(whole, ROWS))

    def interrupt(done: int, total: int, metrics: Any) -> None:
        if done == 5:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    settings = FitConfig(folder=tmp_path, **config)
    with pytest.raises(KeyboardInterrupt, match="after step 5"):
        fit(policy, examples(policy), Supervised(), settings, evaluation=HeldoutLoss(policy, ROWS), on_step=interrupt)
    assert signal.getsignal(number) is before
    again = Tabular(seed=7)  # whatever the weights are, those of the checkpoint count
    run = fit(again, examples(again), Supervised(), settings, evaluation=HeldoutLoss(again, ROWS))
    assert without_times(run) == without_times(expected)
    assert torch.equal(again.state()["logits"], whole.state()["logits"])
    logged = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert logged == list(range(12))


def interrupt_after(step: int) -> Callable[..., None]:
    def on_step(done: int, total: int, metrics: Any) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGINT)

    return on_step


@pytest.mark.parametrize("after", range(5, 8))
def test_patience_outlives_an_interruption(tmp_path: Path, after: int) -> None:
    policy = Tabular()
    values = [0.5, 0.6, 0.1, 0.2, 0.9, 0.9]  # after steps 2, 4, …
    config = FitConfig(folder=tmp_path, evaluate_every=2, best_metric="quality", patience=2)
    scripted = Scripted(values)
    with pytest.raises(KeyboardInterrupt):
        fit(policy, examples(policy), Supervised(), config, evaluation=scripted, on_step=interrupt_after(after))
    run = fit(policy, examples(policy), Supervised(), config, evaluation=scripted)
    assert (run.steps, run.best_step, scripted.calls) == (8, 4, 4)


def test_skips_in_a_row_outlive_an_interruption(tmp_path: Path) -> None:
    policy = Tabular()
    config = FitConfig(folder=tmp_path, max_skipped=2)
    with pytest.raises(KeyboardInterrupt):
        fit(policy, examples(policy), Poisoned(at=(4, 5)), config, on_step=interrupt_after(5))
    with pytest.raises(NonFiniteError, match=r"2 steps in a row, the last of them 5.*checkpoint is step 5"):
        fit(policy, examples(policy), Poisoned(at=(4, 5)), config)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": {"learning_rate": 0.2}}, r"config\.learning_rate \(0\.1 there, 0\.2 here\)"),
        ({"config": {"rates": {"logits": 0.5}}}, r"config\.rates"),
        ({"objective": Poisoned()}, r"objective\."),
        ({"steps": {"seed": 1}}, "steps"),
        ({"policy": {"vocabulary": 6}}, "policy"),
    ],
)
def test_a_folder_with_other_settings_is_refused_by_name(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    def run(change: dict[str, Any]) -> None:
        policy = Tabular(**change.get("policy", {}))
        config = FitConfig(folder=tmp_path, **{"learning_rate": 0.1, **change.get("config", {})})
        fit(policy, examples(policy, **change.get("steps", {})), change.get("objective", Supervised()), config)

    run({})
    run({"config": {"checkpoint_every": 7, "keep_checkpoints": 9}})  # how often is free
    with pytest.raises(CheckpointError, match=named):
        run(change)


def test_samples_of_any_text_survive_a_cut_log(tmp_path: Path) -> None:
    """A line cut off in the middle of a letter, and the line separators that Unicode knows besides the newline."""
    policy = Tabular()

    class Told(Fixed):
        def __call__(self, index: int) -> Step:
            return Step(self.batches[index], {}, [{"output": "one\u2028two\x85three é"}])

    def run(steps: int) -> Run:
        config = FitConfig(folder=tmp_path, checkpoint_every=2)
        return fit(policy, Told([policy.encode(ROWS)] * 4), Supervised(), config, on_step=interrupt_after(steps))

    with pytest.raises(KeyboardInterrupt):
        run(3)
    with (tmp_path / "samples.jsonl").open("ab") as file:
        file.write('{"step": 3, "output": "of a step that is repeated"}\n{"step": 4, "output": "é'.encode()[:-1])
    assert run(99).steps == 4
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_bytes().split(b"\n") if line]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert {row["output"] for row in rows} == {"one\u2028two\x85three é"}


# ---------------------------------------------------------------- learning


def test_eight_demonstrations_are_learned_by_heart(learner: Callable[..., LanguagePolicy]) -> None:
    policy = learner("float32", adapter=False)
    rows = [
        Demonstration(f"what is {number}", f"the {word}")
        for number, word in enumerate(["cat", "mat", "hat", "man", "sat", "on", "to", "42"])
    ]
    config = FitConfig(learning_rate=1e-2, schedule="linear")
    fit(policy, Examples(policy, rows, batch_size=8, epochs=60), Supervised(), config)
    assert HeldoutLoss(policy, rows)(policy)["heldout_loss"] < 0.01


@pytest.mark.parametrize("seed", range(5))
def test_a_three_token_task_is_learned_from_rewards(seed: int) -> None:
    """The one output of 27 that is worth 1 ends up with a chance of 0.95, which enumeration tells exactly."""
    policy = Tabular(vocabulary=3, seed=seed, spread=0.1)
    steps = Rollouts(
        policy,
        tasks_for(policy),
        Reward(lambda r: Score(value=float(r.decisions == (2, 0, 1)))),
        Sampling(n=64, seed=seed),
    )
    fit(policy, steps, Reinforcement(), FitConfig(steps=60, learning_rate=0.3, schedule="constant"))
    batch = policy.encode([Demonstration("a", (2, 0, 1))])
    assert policy.score(batch).log_probs.sum().exp().item() >= 0.95


@pytest.mark.parametrize("seed", range(2))
def test_a_language_model_learns_from_rewards_and_its_sampler_agrees(
    learner: Callable[..., LanguagePolicy], seed: int
) -> None:
    policy = learner("float32", adapter=False)
    tasks = [Task("the cat"), Task("the mat")]

    def even(record: Any) -> Score:
        return Score(value=sum(token % 2 == 0 for token in record.decisions) / len(record.decisions))

    steps = Rollouts(policy, tasks, Reward(even), Sampling(n=24, max_tokens=3, seed=seed))
    run = fit(policy, steps, Reinforcement(), FitConfig(steps=25, learning_rate=1e-2, schedule="constant"))
    assert run.metrics[0]["reward"] < 0.8
    assert run.last("reward") >= 0.95
    gaps = [row["policy/sampler_gap"] for row in run.metrics if "policy/sampler_gap" in row]
    assert len(gaps) > 5 and max(gaps) <= 1e-5
