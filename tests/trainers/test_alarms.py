"""laws of alarms: they ring on what is wrong, not on noise; and they repeat themselves exactly"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tabular import Reward, Tabular, tasks_for
from test_loop import interrupt_after, without_times

from melior.errors import ConfigError
from melior.trainers.alarm_table import ALARMS
from melior.trainers.alarms import NAMES, Alarms, Breach, Limits, Watch
from melior.trainers.loop import FitConfig, Run, fit
from melior.trainers.reinforcement import Reinforcement, Rollouts
from melior.types import Demonstration, Sampling, Score

STEPS = 60
Rows = list[dict[str, float]]


def heard(rows: Sequence[Mapping[str, float]], alarms: Alarms | None = None, **how: Any) -> list[Breach]:
    """What rings over a whole history."""
    watch = Watch(alarms or Alarms(heldout="heldout_accuracy"), **how)
    return [breach for row in rows for breach in watch.see(row)]


def clean(seed: int, steps: int = 200, every: int = 5) -> Rows:
    """A history of a run that goes well, every metric as noisy as small steps make it."""
    draw = random.Random(seed)

    def noisy(level: float, noise: float = 0.3) -> float:
        return level * math.exp(draw.gauss(0, noise))

    rows = []
    for step in range(steps):
        done = step / steps
        rows.append(
            {
                "step": step,
                "loss": draw.gauss(0, 1),
                "grad_norm": noisy(1.0, 0.6),
                "skipped": float(draw.random() < 0.005),
                "reward": 0.3 + 0.3 * done + draw.gauss(0, 0.08),
                "rewards/right/mean": 0.3 + 0.3 * done + draw.gauss(0, 0.08),
                "rewards/form/mean": 0.5 + draw.gauss(0, 0.08),
                "policy/ratio": 1 + draw.gauss(0, 0.03),
                "policy/ratio_tails": noisy(0.005),
                "policy/kl_old": noisy(0.005),
                "policy/kl_reference": noisy(0.1 * (0.01 + done)),
                "policy/sampler_gap": noisy(2e-5),
                "frac_reward_zero_std": min(1.0, noisy(0.3)),
                "sampled_entropy": noisy(1.0 - 0.6 * done, 0.15),
                "completions/mean_length": noisy(40 + 10 * done, 0.15),
                "completions/length_correlation": draw.gauss(0.1, 0.2),
                "completions/repetition": noisy(0.03),
                "completions/clipped_ratio": min(1.0, noisy(0.05)),
                "grader_error_rate": float(draw.random() < 0.1) / 16,
            }
        )
        if step % every == every - 1:
            rows[-1]["canaries/colon"] = 0.05 * (step % 2)  # one of twenty prompts, now and then
            rows[-1]["heldout_accuracy"] = 0.6 + 0.1 * done + draw.gauss(0, 0.05)
    return rows


def test_clean_runs_are_left_alone() -> None:
    """At most one run in a hundred is stopped in error; here none is, and few are warned of."""
    rung = [heard(clean(seed, steps=120)) for seed in range(50)]
    assert sum(any(breach.stops for breach in found) for found in rung) == 0
    assert sum(bool(found) for found in rung) <= 2


# metric → what it does, from a step on, that its alarm is for
WRONG: Mapping[str, Mapping[str, Callable[[float, int], float]]] = {
    "length_as_reward": {
        "completions/length_correlation": lambda value, since: 0.9,
        "completions/mean_length": lambda value, since: value * 1.9,
    },
    "canary": {"canaries/colon": lambda value, since: 0.1},
    "repetition": {"completions/repetition": lambda value, since: 0.7},
    "kl_reference": {"policy/kl_reference": lambda value, since: value + 0.02 * since},
    "kl_sampler": {"policy/kl_old": lambda value, since: 0.3},
    "ratio": {"policy/ratio": lambda value, since: value + 0.2},
    "ratio_tails": {"policy/ratio_tails": lambda value, since: 0.1},
    "sampler_gap": {"policy/sampler_gap": lambda value, since: 0.01},
    "entropy": {"sampled_entropy": lambda value, since: value * 0.9**since},
    "contrast": {"frac_reward_zero_std": lambda value, since: 0.95},
    "length": {"completions/mean_length": lambda value, since: value * (1 + since / 20)},
    "truncation": {"completions/clipped_ratio": lambda value, since: 0.5},
    "grader_errors": {"grader_error_rate": lambda value, since: 0.15},
    "parts_part": {
        "rewards/right/mean": lambda value, since: value - 0.01 * since,
        "rewards/form/mean": lambda value, since: value + 0.02 * since,
    },
    "parts_share": {"rewards/form/mean": lambda value, since: value + 0.5 * since},
    "grad_norm": {"grad_norm": lambda value, since: value * 30},
    "not_finite": {"skipped": lambda value, since: float(since % 4 == 0)},
    "heldout": {"heldout_accuracy": lambda value, since: value - 0.005 * since},
}


@pytest.mark.parametrize("name", NAMES)
def test_each_alarm_rings_on_what_it_is_for(name: str) -> None:
    rows = clean(7)
    for step, row in enumerate(rows):
        for metric, wrong in WRONG[name].items():
            if metric in row and step >= 60:
                row[metric] = wrong(row[metric], step - 60)
    found = [breach for breach in heard(rows) if breach.alarm == name]
    (alarm,) = [alarm for alarm in ALARMS if alarm.name == name]
    assert found and found[0].step >= 60
    assert found[-1].stops == (alarm.stop is not None)
    for breach in found:
        assert set(WRONG[name]) <= set(breach.metrics)
        assert "{" not in breach.sentence and alarm.remedy in breach.sentence and "\n" not in breach.sentence
        assert alarm.beyond(breach.value, breach.limit)


def test_one_wild_reading_rings_nothing() -> None:
    shares = ("frac_reward", "grader_error", "skipped", "heldout", "completions/c", "completions/r", "length_corr")
    for metric in {metric for wrongs in WRONG.values() for metric in wrongs}:
        for wild in (0.0, 1.0) if metric.startswith(shares) else (0.0, 1e3):
            if metric in ("grader_error_rate", "canaries/colon"):
                continue  # a whole step that nobody could grade is no noise, nor are canaries on twenty prompts
            rows = clean(3)
            rows[104][metric] = wild
            assert not heard(rows), metric


@pytest.mark.parametrize(("until", "stops"), [(62, False), (66, True), (200, True)])
def test_outputs_all_cut_at_one_length_are_held_to_what_was_seen_on_the_way(until: int, stops: bool) -> None:
    """From step 60 on length pays, and from `until` on every output is as long as may be: no correlation is left."""
    rows = clean(7)
    for step, row in enumerate(rows):
        if step >= 60:
            row |= {"completions/mean_length": 90.0, "completions/length_correlation": 0.95}
        if step >= until:
            del row["completions/length_correlation"]
    for row in rows[50:60]:
        del row["completions/length_correlation"]
    found = [breach for breach in heard(rows) if breach.alarm == "length_as_reward"]
    assert any(breach.stops for breach in found) == stops


def test_a_correlation_of_long_ago_is_not_held_against_a_run() -> None:
    rows = clean(7)
    for step, row in enumerate(rows):
        row["completions/length_correlation"] = 0.95
        if step >= 60:
            del row["completions/length_correlation"]
        if step >= 80:
            row["completions/mean_length"] = 90.0
    assert not any(breach.alarm == "length_as_reward" for breach in heard(rows))


def test_what_rang_rings_again_only_after_calm() -> None:
    rows = clean(5)
    for step, row in enumerate(rows):
        row["frac_reward_zero_std"] = 0.95 if 60 <= step < 90 or 150 <= step < 180 else 0.2
    steps = [breach.step for breach in heard(rows) if breach.alarm == "contrast"]
    assert len(steps) == 2 and 60 < steps[0] < 90 and 150 < steps[1] < 180


def test_the_gap_says_nothing_where_a_step_is_several_updates() -> None:
    rows = [{**row, "policy/sampler_gap": 0.2} for row in clean(1)]
    assert [breach.alarm for breach in heard(rows)] == ["sampler_gap"]
    assert not heard(rows, updates=2)


OF_TEXTS = ("length_as_reward", "repetition", "length", "truncation")


@pytest.mark.parametrize("kind", ["language", "tabular", "", "classifier", "slate"])
@pytest.mark.parametrize("name", OF_TEXTS)
def test_lengths_and_repetition_are_asked_of_texts_alone(name: str, kind: str) -> None:
    rows = clean(7)
    for row in rows[60:]:
        row.update({metric: wrong(row[metric], 1 + int(row["step"]) - 60) for metric, wrong in WRONG[name].items()})
    assert (name in {breach.alarm for breach in heard(rows, kind=kind)}) == (kind not in ("classifier", "slate"))


@pytest.mark.parametrize(
    ("metric", "read"),
    [
        ("policy/kl_reference", True),
        ("rl.policy/kl_reference", True),
        ("rl/policy/kl_reference", True),
        ("kl_reference", True),
        ("policy/old_kl_reference", False),
        ("policy/kl_reference/std", False),
    ],
)
def test_a_metric_is_known_by_its_name_whatever_stands_before_it(metric: str, read: bool) -> None:
    rows = [{"step": step, metric: 3.0} for step in range(20)]
    assert bool(heard(rows, Alarms())) == read


def test_parts_of_rewards_stand_under_any_prefix() -> None:
    rows = [
        {"step": step, "rl/rewards/a/mean": 1.0 + step + 0.1 * (step % 3), "rl/rewards/b/mean": 1.0}
        for step in range(60)
    ]
    assert [breach.alarm for breach in heard(rows, Alarms())] == ["parts_share"]


# ---------------------------------------------------------------- settings


def test_settings_change_what_an_alarm_does() -> None:
    rows = [{**row, "completions/mean_length": 40.0 * (1 + step / 10)} for step, row in enumerate(clean(2))]

    def told(**settings: Any) -> list[tuple[float, bool]]:
        return [(b.limit, b.stops) for b in heard(rows, Alarms(**settings)) if b.alarm == "length"]

    assert told() == [(2.0, False)]
    assert told(change={"length": "stop"}) == [(2.0, True)]
    assert told(change={"length": {"warn": 3, "stop": 6}}) == [(3.0, False), (6.0, True)]
    assert told(change={"length": Limits(stop=6.0)}, stops=False) == [(2.0, False)]
    assert told(change={"length": "off"}) == told(change={"length": False}) == told(enabled=False) == []
    assert told(change={"length": True}) == told()


def test_a_stopping_alarm_may_be_made_to_warn() -> None:
    rows = [{"step": step, "completions/repetition": 0.01 if step < 10 else 0.9} for step in range(40)]
    assert [b.stops for b in heard(rows, Alarms())] == [False, True]
    assert [b.stops for b in heard(rows, Alarms(change={"repetition": "warn"}))] == [False]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"change": {"lenght": "off"}}, "'lenght'.*did you mean 'length'"),
        ({"change": {"xyzzy": "off"}}, "'xyzzy', which is no alarm; there are heldout, "),
        ({"heldout": "reward"}, "'reward', the reward itself"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Alarms(**settings)


# ---------------------------------------------------------------- in the loop


def harmed(policy: Tabular) -> Mapping[str, float]:
    """What learning the reward costs: the share of outputs that do not begin as it wants."""
    batch = policy.encode([Demonstration("a", (2,))])
    with torch.no_grad():
        return {"heldout_accuracy": 1 - float(policy.score(batch).log_probs.exp())}


def learn(folder: Path | None, alarms: Alarms, *, steps: int = STEPS, policy: Tabular | None = None, **how: Any) -> Run:
    policy = policy or Tabular()
    grader = Reward(lambda record: Score(value=float(record.decisions[0] == 2)))
    rollouts = Rollouts(policy, tasks_for(policy), grader, Sampling(n=32, max_tokens=3))
    config = FitConfig(
        folder=folder, steps=steps, learning_rate=0.05, schedule="constant", evaluate_every=3, checkpoint_every=4
    )
    return fit(policy, rollouts, Reinforcement(), config, alarms=alarms, evaluation=harmed, **how)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "alarms.jsonl").read_text().splitlines()]


def test_a_reward_that_parts_from_the_held_out_metric_stops_the_run(tmp_path: Path, caplog: Any) -> None:
    run = learn(tmp_path, Alarms(heldout="heldout_accuracy"))
    last = run.breaches[-1]
    assert (last.alarm, last.stops) == ("heldout", True) and run.steps == last.step + 1 < STEPS
    assert run.stopped == f"alarm heldout: {last.sentence}"
    assert any(last.sentence in message for message in caplog.messages)
    assert [Breach.from_json(line) for line in lines(tmp_path)] == run.breaches
    again = learn(tmp_path, Alarms(heldout="heldout_accuracy"))  # it stays stopped
    assert (again.steps, again.stopped, again.breaches) == (run.steps, run.stopped, run.breaches)


def test_the_folder_says_whose_run_it_was(tmp_path: Path) -> None:
    learn(tmp_path, Alarms(), steps=1)
    assert json.loads((tmp_path / "run.json").read_text())["kind"] == Tabular.kind


def test_a_run_goes_on_where_its_alarm_no_longer_stops(tmp_path: Path) -> None:
    first = learn(tmp_path, Alarms(heldout="heldout_accuracy"))
    on = learn(tmp_path, Alarms(heldout="heldout_accuracy", change={"heldout": "warn"}))
    assert (on.steps, on.stopped) == (STEPS, "")
    assert on.breaches[: len(first.breaches)] == first.breaches and not any(
        breach.stops for breach in on.breaches[len(first.breaches) :]
    )


@pytest.mark.parametrize("after", [5, 14, 17, 18])
def test_a_resumed_run_repeats_its_alarms(tmp_path: Path, after: int) -> None:
    alarms = Alarms(heldout="heldout_accuracy", change={"contrast": {"warn": 0.05}})
    whole = learn(None, alarms)
    assert len(whole.breaches) > 1
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path, alarms, on_step=interrupt_after(after))
    run = learn(tmp_path, alarms)
    assert without_times(run) == without_times(whole)
    assert (run.breaches, run.stopped) == (whole.breaches, whole.stopped)
    assert [Breach.from_json(line) for line in lines(tmp_path)] == run.breaches


def test_a_held_out_metric_that_nobody_measures_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'heldout_acuracy'.*did you mean 'heldout_accuracy'"):
        learn(None, Alarms(heldout="heldout_acuracy"))
    with pytest.raises(ConfigError, match=r"pass evaluation=… and evaluate_every"):
        policy = Tabular()
        grader = Reward(lambda record: Score(value=0.0))
        rollouts = Rollouts(policy, tasks_for(policy), grader, Sampling(n=2))
        fit(policy, rollouts, Reinforcement(), FitConfig(steps=1), alarms=Alarms(heldout="heldout_accuracy"))
