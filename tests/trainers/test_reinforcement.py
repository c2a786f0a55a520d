"""rollouts as steps: which tasks, which groups, and what failing graders do"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tabular import Reward, Tabular, tasks_for

from melior.errors import ConfigError, DataError, GraderError, MissingLogProbs
from melior.policies.base import LOG_PROBS, Want
from melior.trainers.checkpoints import newest_checkpoint
from melior.trainers.loop import FitConfig, fit
from melior.trainers.reinforcement import RATIO_EDGES, Reinforcement, Rollouts
from melior.trainers.steps import Histogram, Step
from melior.types import Record, Sampling, Score, Task

LETTERS = "abcdefg"
SOMETIMES = Reward(lambda r: Score(value=float(r.decisions[0] == 0 and r.inputs in "abc")))


def steps_of(policy: Tabular, grader: Any = SOMETIMES, *, n: int = 2, **settings: Any) -> Rollouts:
    return Rollouts(policy, tasks_for(policy), grader, Sampling(n=n, max_tokens=3), **settings)


def test_every_task_comes_once_before_any_comes_again() -> None:
    policy = Tabular(LETTERS)
    steps = steps_of(policy, prompts=3)
    drawn = [row for index in range(7) for row in steps(index).batch.inputs[::2]]
    for epoch in range(3):
        assert sorted(drawn[epoch * 7 : (epoch + 1) * 7]) == list(range(7))
    assert drawn[:7] != drawn[7:14]  # another order in another epoch


def test_a_step_is_a_function_of_seed_index_and_policy() -> None:
    policy = Tabular(LETTERS)
    first, second = steps_of(policy, prompts=3, resample=2), steps_of(policy, prompts=3, resample=2)
    second(0)
    second(5)
    assert same(first(4), second(4))
    assert not same(first(4), first(3))
    assert not same(first(4), steps_of(policy, prompts=3, resample=2, seed=1)(4))


def test_no_two_draws_share_their_randomness() -> None:
    seen = []

    class Watched(Tabular):
        def sample(self, inputs: Any, settings: Sampling, *, step: int = 0) -> list[Record]:
            seen.append(step)
            return super().sample(inputs, settings, step=step)

    steps = steps_of(Watched(LETTERS), Reward(lambda r: Score(value=1.0)), prompts=3, resample=2)
    for index in range(4):
        steps(index)
    assert len(seen) == len(set(seen)) == 12


def same(one: Step, other: Step) -> bool:
    equal = torch.equal(one.batch.columns["rewards"], other.batch.columns["rewards"])
    return equal and (one.batch.outputs, one.batch.inputs) == (other.batch.outputs, other.batch.inputs)


def test_resampling_keeps_only_groups_that_vary_and_draws_until_there_are_enough() -> None:
    policy = Tabular(LETTERS, spread=0.1)
    plain, resampled = steps_of(policy, prompts=3), steps_of(policy, prompts=3, resample=30)
    varied = [spread(plain(index)) for index in range(6)]
    assert any(0 in groups for groups in varied)  # without it some groups do not vary
    for index in range(6):
        step = resampled(index)
        assert spread(step) == [2, 2, 2]
        assert step.metrics["rounds"] > 1 or spread(plain(index)) == [2, 2, 2]


def spread(step: Step) -> list[int]:
    """For each group 2 if its rewards differ, else 0."""
    rewards = step.batch.columns["rewards"].reshape(-1, 2)
    return [2 * int(low != high) for low, high in rewards.tolist()]


def test_where_no_group_varies_the_first_draw_serves() -> None:
    policy = Tabular(LETTERS)
    step = steps_of(policy, Reward(lambda r: Score(value=1.0)), prompts=3, resample=2)(0)
    assert (len(step.batch), step.metrics["rounds"]) == (6, 3.0)
    before = policy.state()["logits"].clone()
    steps = steps_of(policy, Reward(lambda r: Score(value=1.0)), prompts=3)
    run = fit(policy, steps, Reinforcement(), FitConfig(steps=2, weight_decay=0.1))
    assert torch.equal(policy.state()["logits"], before)
    assert run.last("frac_reward_zero_std") == 1.0


def test_what_was_sampled_is_what_is_trained() -> None:
    policy = Tabular(("a", "b"))
    batch = steps_of(policy, n=4)(0).batch
    with torch.no_grad():
        gap = policy.score(batch).log_probs - batch.columns["behavior_log_probs"]
    assert float(gap.abs().max()) < 1e-12
    prepared = Reinforcement().prepare(Step(batch), policy).batch
    assert torch.equal(prepared.columns["old_log_probs"], batch.columns["behavior_log_probs"])


def test_a_truncating_sampler_is_compared_with_the_policy_not_with_itself() -> None:
    """Log-probs under top-k are of another distribution than the one trained, so they are computed anew."""
    policy = Tabular(("a", "b"))
    steps = Rollouts(policy, tasks_for(policy), SOMETIMES, Sampling(n=4, max_tokens=3, top_p=0.9))
    batch = steps(0).batch
    assert "behavior_log_probs" not in batch.columns
    rewards = batch.columns["rewards"].clone()
    rewards[1] = math.nan  # a row that takes no part is not scored either
    prepared = Reinforcement(beta=0.1).prepare(Step(batch.with_columns(rewards=rewards)), policy).batch
    assert len(prepared) == len(batch) - 1
    with torch.no_grad():
        torch.testing.assert_close(prepared.columns["old_log_probs"], policy.score(prepared).log_probs)


def test_records_without_log_probs_are_refused_with_their_number() -> None:
    class Forgetful(Tabular):
        def sample(self, *args: Any, **settings: Any) -> list[Record]:
            return [replace(record, behavior_log_probs=None) for record in super().sample(*args, **settings)]

    with pytest.raises(MissingLogProbs, match="4 of 4 records"):
        steps_of(Forgetful(("a", "b")))(0)


def test_settings_that_teach_nothing_are_refused() -> None:
    policy = Tabular()
    with pytest.raises(DataError, match="0 tasks"):
        Rollouts(policy, [], SOMETIMES, Sampling(n=2))
    with pytest.raises(ConfigError, match="n ≥ 2, got 1"):
        Rollouts(policy, [Task("a")], SOMETIMES, Sampling(n=1))
    with pytest.raises(ConfigError, match="temperature > 0"):
        Rollouts(policy, [Task("a")], SOMETIMES, Sampling(n=2, temperature=0))


# ---------------------------------------------------------------- failing graders


class Flaky(Reward):
    """Fails on every tenth output."""

    def grade(self, records: Any) -> list[Score]:
        scores = super().grade(records)
        first = self.calls - len(records)
        return [
            Score(value=None, error="the endpoint answered 500") if (first + place) % 10 == 9 else score
            for place, score in enumerate(scores)
        ]


def test_a_few_failures_are_excluded_and_counted() -> None:
    policy = Tabular(("a", "b"))
    grader = Flaky(lambda r: Score(value=float(r.decisions[0])))
    run = fit(policy, steps_of(policy, grader, n=8), Reinforcement(beta=0.1), FitConfig(steps=20))
    assert (run.steps, run.skipped) == (20, 0)
    assert sum(row["grader_errors"] for row in run.metrics) == 20 * 16 // 10
    assert all(row["rows"] == 16 - row["grader_errors"] for row in run.metrics)
    assert all(math.isfinite(row["reward"]) and math.isfinite(row["loss"]) for row in run.metrics)


def test_a_grader_that_always_fails_stops_the_run_at_once_by_name() -> None:
    policy = Tabular(("a", "b"))
    before = policy.state()["logits"].clone()
    broken = Reward(lambda r: Score(value=None, error="judge raised KeyError: 'answer'"), name="judge")
    with pytest.raises(GraderError, match=r"grader judge failed on 16 of 16 .*KeyError"):
        fit(policy, steps_of(policy, broken, n=8), Reinforcement(), FitConfig(steps=3))
    assert broken.calls == 16
    assert torch.equal(policy.state()["logits"], before)


def test_what_was_learned_before_a_grader_broke_is_kept(tmp_path: Path) -> None:
    policy = Tabular(("a", "b"))

    def grade(record: Record) -> Score:
        if grader.calls > 16 * 7:
            raise GraderError("the judge is gone")
        return Score(value=float(record.decisions[0]))  # type: ignore[index]

    grader = Reward(grade)
    config = FitConfig(folder=tmp_path, steps=30, checkpoint_every=25)
    with pytest.raises(GraderError, match="gone"):
        fit(policy, steps_of(policy, grader, n=8), Reinforcement(), config)
    found = newest_checkpoint(tmp_path / "checkpoints")
    assert found is not None and found.step == 7
    assert torch.equal(found.tensors["logits"], policy.state()["logits"])


# ---------------------------------------------------------------- what a step tells of itself


def told_by(folder: Path, **objective: Any) -> tuple[list[dict[str, float]], list[dict[str, Any]]]:
    """Metrics and histograms of five steps."""
    policy = Tabular(LETTERS, spread=0.1)
    minibatches = objective.pop("minibatches", 1)
    settings = FitConfig(folder=folder, steps=5, learning_rate=0.5, minibatches=minibatches)
    run = fit(policy, steps_of(policy, n=4, prompts=7), Reinforcement(**objective), settings)
    return run.metrics, [json.loads(line) for line in (folder / "histograms.jsonl").read_text().splitlines()]


def test_on_policy_every_ratio_is_one_and_nothing_is_clipped(tmp_path: Path) -> None:
    metrics, histograms = told_by(tmp_path)
    for row, drawn in zip(metrics, histograms, strict=True):
        assert row["policy/ratio"] == pytest.approx(1) and abs(row["policy/kl_old"]) < 1e-12
        assert row["policy/clip_low"] == row["policy/clip_high"] == 0
        counts = drawn["ratio"]["counts"]
        assert sum(counts) == counts[RATIO_EDGES.index(0.99)] > 0


def test_later_updates_of_a_step_move_away_and_are_clipped(tmp_path: Path) -> None:
    metrics, _ = told_by(tmp_path, minibatches=4, clip_low=1e-6, clip_high=1e-6)
    assert all(row["policy/kl_old"] >= 0 for row in metrics)
    assert max(row["policy/kl_old"] for row in metrics) > 0
    assert 0 < max(row["policy/clip_low"] + row["policy/clip_high"] for row in metrics) <= 1


def test_histograms_do_not_depend_on_how_a_batch_is_cut(tmp_path: Path) -> None:
    policy = Tabular(LETTERS, spread=0.1)

    def drawn(name: str, micro_batch: int | None) -> str:
        config = FitConfig(folder=tmp_path / name, steps=3, micro_batch=micro_batch)
        fresh = Tabular(LETTERS, spread=0.1)
        fit(fresh, steps_of(fresh, n=4, prompts=7), Reinforcement(), config)
        return (tmp_path / name / "histograms.jsonl").read_text()

    assert policy.discrete and drawn("whole", None) == drawn("cut", 1)


def test_every_output_is_in_the_histograms_of_lengths_and_rewards(tmp_path: Path) -> None:
    _, histograms = told_by(tmp_path)
    for drawn in histograms:
        assert sum(drawn["length"]["counts"]) == sum(drawn["reward"]["counts"]) == 28


def test_steps_share_the_bins_of_their_rewards_wherever_those_lie(tmp_path: Path) -> None:
    policy = Tabular(LETTERS)
    odd = Reward(lambda r: Score(value=-0.7 * r.decisions[0] + 0.31 * r.decisions[-1]))
    config = FitConfig(folder=tmp_path, steps=6)
    fit(policy, steps_of(policy, odd, n=4, prompts=7), Reinforcement(), config)
    lines = [json.loads(line)["reward"] for line in (tmp_path / "histograms.jsonl").read_text().splitlines()]
    ends = {abs(line["edges"][place]) for line in lines for place in (0, -1)}
    assert ends <= {1.0, 2.0, 5.0} and max(ends) > 1
    assert all(sum(line["counts"]) == 28 for line in lines)


def test_an_update_that_computed_nothing_has_no_say_in_means_over_decisions() -> None:
    policy = Tabular(("a", "b"))
    grader = Reward(lambda r: Score(value=float(r.inputs == "a") * r.decisions[0]))
    config = FitConfig(steps=4, minibatches=2, learning_rate=1e-9)
    run = fit(policy, steps_of(policy, grader, n=8), Reinforcement(), config)
    assert all(0 < row["rows"] <= 4 for row in run.metrics)  # the mean of up to eight rows and of none
    assert [row["policy/ratio"] for row in run.metrics] == pytest.approx([1.0] * 4, abs=1e-3)


def test_the_outer_bins_take_what_lies_beyond() -> None:
    found = Histogram.of(torch.tensor([-9.0, 0.0, 0.5, 1.0, 1.5, 99.0, math.nan, math.inf]), (0.0, 0.5, 1.0, 1.5))
    assert found.counts.tolist() == [2, 1, 3] and (found + found).counts.tolist() == [4, 2, 6]


def test_the_entropy_of_samples_is_that_of_the_policy(tmp_path: Path) -> None:
    policy = Tabular("a", spread=1.0)
    steps = Rollouts(policy, tasks_for(policy), SOMETIMES, Sampling(n=4000, max_tokens=3))
    step = steps(0)
    entropy = policy.score(step.batch, LOG_PROBS | {Want.ENTROPY}).entropy
    assert entropy is not None
    exact = float(entropy.detach()[step.batch.mask].mean())
    assert step.metrics["sampled_entropy"] == pytest.approx(exact, abs=0.05)


def test_parts_of_a_score_are_told_apart() -> None:
    policy = Tabular(LETTERS)
    graded = Reward(lambda r: Score(value=1.0, parts={"right": 1.0, "brief": r.decisions[0] / 4}, reason="so"))
    step = steps_of(policy, graded)(0)
    assert step.metrics["rewards/right/mean"] == 1.0 and 0 <= step.metrics["rewards/brief/mean"] <= 1
    assert {"reason", "parts", "finish", "tokens", "group"} <= step.samples[0].keys()
