"""methods that learn from judgements, from their own best outputs, from a teacher, or from several of these"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_kinds import decisions, runs, store, write_jsonl

from melior.cycles.plan import dry_run
from melior.cycles.recipe import load_recipe, recipe_of
from melior.cycles.rows import load_rows
from melior.cycles.train import Outcome, run_recipe
from melior.errors import ConfigError, DataError, TrainingError
from melior.store import Store

Runs = Callable[..., Outcome]
RIGHT = {
    "type": "string_check",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.completion}}",
}
FAST = {"learning_rate": 0.005}
__all__ = ["runs", "store"]  # fixtures


def judged(tmp_path: Path, kind: str, count: int = 200) -> dict[str, Any]:
    """Rows to learn from, and demonstrations that judge."""
    heldout = write_jsonl(tmp_path / "heldout.jsonl", decisions("demonstrations", 60, seed=4))
    return {"train": write_jsonl(tmp_path / "rows.jsonl", decisions(kind, count)), "heldout": heldout}


@pytest.fixture
def teacher(tmp_path: Path, runs: Runs) -> Outcome:
    """A classifier that knows the task."""
    data = judged(tmp_path, "demonstrations", 400)
    return runs("teacher", method="sft", data=data, sft={"epochs": 20}, fit=FAST, save={"name": "teacher"})


@pytest.mark.parametrize(
    ("kind", "more"),
    [("rated", {"threshold": 2, "epochs": 6}), ("preferences", {"epochs": 5})],
)
def test_kto_learns_from_ratings_and_from_pairs(tmp_path: Path, runs: Runs, kind: str, more: dict[str, Any]) -> None:
    outcome = runs(method="kto", data=judged(tmp_path, kind), kto=more, fit=FAST)
    assert outcome.after.grader == "accuracy" and outcome.after.reward.estimate > 0.8 and outcome.promoted


def test_a_threshold_that_parts_nothing_is_told(tmp_path: Path, runs: Runs) -> None:
    with pytest.raises(DataError, match=r"0 of 200 outputs .* threshold=9"):
        runs(method="kto", data=judged(tmp_path, "rated"), kto={"threshold": 9})


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("best_of", {"keep": 1}),
        ("best_of", {"keep": None, "weighted": {"beta": 0.5}}),
        ("online_dpo", {"pairing": "best_worst"}),
        ("online_dpo", {"pairing": "soft", "scale": 0.5}),
    ],
)
def test_own_outputs_teach_what_a_grader_sees_in_them(
    tmp_path: Path, runs: Runs, method: str, more: dict[str, Any]
) -> None:
    data = judged(tmp_path, "demonstrations", 240)
    section = {**more, "prompts": 16, "hopeless": "train"}
    fit = {"learning_rate": 0.004, "steps": 40}
    outcome = runs(method=method, data=data, grader=RIGHT, **{method: section}, fit=fit)
    assert outcome.after.reward.low > outcome.before.reward.high and outcome.after.reward.estimate > 0.7
    told = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert told.method == method and told.sampling.n == 8


def test_rewards_that_never_differ_are_refused_by_the_method_s_own_name(tmp_path: Path, runs: Runs) -> None:
    never = {**RIGHT, "reference": "maybe"}
    with pytest.raises(TrainingError, match=r"write best_of\.hopeless: train"):
        runs(method="best_of", data=judged(tmp_path, "demonstrations"), grader=never)


@pytest.mark.parametrize("method", ["distill", "on_policy_distill"])
def test_a_student_learns_what_its_teacher_knows(tmp_path: Path, runs: Runs, teacher: Outcome, method: str) -> None:
    unlabelled = [{**row, "output": "no"} for row in decisions("demonstrations", 400, seed=8)]
    heldout = write_jsonl(tmp_path / "heldout.jsonl", decisions("demonstrations", 60, seed=4))
    data = {"train": write_jsonl(tmp_path / "unlabelled.jsonl", unlabelled), "heldout": heldout}
    section: dict[str, Any] = {"teacher": "teacher@prod"}
    section |= {"k": 2, "epochs": 20} if method == "distill" else {"prompts": 32}
    fit = {"learning_rate": 0.004, **({} if method == "distill" else {"steps": 60})}
    classifier = {"labels": ["no", "yes"]}
    more: dict[str, Any] = {} if method == "distill" else {"grader": RIGHT}
    outcome = runs(method=method, data=data, classifier=classifier, **{method: section}, fit=fit, **more)
    assert outcome.after.reward.estimate > outcome.before.reward.estimate + 0.1
    assert outcome.after.reward.estimate > teacher.after.reward.estimate - 0.1, "though every row it read said no"


def test_a_teacher_is_needed_and_must_decide_the_same(tmp_path: Path, runs: Runs, teacher: Outcome) -> None:
    data = judged(tmp_path, "demonstrations")
    with pytest.raises(ConfigError, match=r"write distill\.teacher:"):
        runs("none", method="distill", data=data)
    with pytest.raises(DataError, match="Decision ids of the teacher"):
        odd = {"labels": ["maybe", "no", "yes"]}
        runs("odd", method="distill", data=data, classifier=odd, distill={"teacher": "teacher@prod"})


def test_a_teacher_s_folder_is_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "run.yaml").write_text(
        "method: distill\nmodel: {kind: classifier}\ndata: {train: rows.jsonl}\ndistill: {teacher: large}\n"
    )
    assert load_recipe(tmp_path / "run.yaml").distill.teacher == str(tmp_path / "large")


@pytest.mark.parametrize(
    ("method", "kind", "more"),
    [
        ("kto", "rated", {"kto": {"threshold": 2}}),
        ("best_of", "demonstrations", {"grader": RIGHT}),
        ("online_dpo", "demonstrations", {"grader": RIGHT}),
    ],
)
def test_they_can_be_planned(tmp_path: Path, store: Store, method: str, kind: str, more: dict[str, Any]) -> None:
    asked = {"method": method, "model": {"kind": "classifier"}, "data": judged(tmp_path, kind, 60), **more}
    plan = dry_run(recipe_of(asked), store)
    assert plan.steps > 0 and plan.seconds is not None and plan.seconds > 0 and plan.activation_bytes


# ---------------------------------------------------------------------- several methods in one run


def hybrid(tmp_path: Path, **sections: Any) -> dict[str, Any]:
    """Rewards, with demonstrations that weigh less and less."""
    shown = write_jsonl(tmp_path / "shown.jsonl", decisions("demonstrations", 60, seed=11))
    annealed = {"start": 1.0, "end": 0.0, "steps": 10}
    parts = {"rl": {"method": "rft"}, "shown": {"method": "sft", "data": shown, "weight": annealed}}
    made: dict[str, Any] = {
        "method": "hybrid",
        "model": {"kind": "classifier"},
        "hybrid": {"parts": parts},
        "data": judged(tmp_path, "demonstrations", 240),
        "grader": RIGHT,
        "rft": {"prompts": 16, "hopeless": "train"},
        "fit": {"learning_rate": 0.004, "steps": 30},
    }
    return {**made, **sections}


def test_rewards_and_demonstrations_teach_at_once(tmp_path: Path, runs: Runs) -> None:
    outcome = runs(**hybrid(tmp_path))
    assert outcome.after.reward.low > outcome.before.reward.high and outcome.promoted
    told = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["shown.weight"] for row in told[:3]] == pytest.approx([1.0, 0.9, 0.8])
    assert all(row["shown.weight"] == 0 for row in told[10:]) and all("rl.reward" in row for row in told)
    settled = json.loads((tmp_path / "run" / "resolved.json").read_text())
    assert {choice["setting"] for choice in settled["choices"]} >= {"sft.batch_size", "sft.epochs"}
    assert set(settled["recipe"]) >= {"hybrid", "rft", "sft"} and "dpo" not in settled["recipe"]


def test_a_hybrid_goes_on_to_the_same_numbers(tmp_path: Path, runs: Runs) -> None:
    whole = runs("whole", **hybrid(tmp_path, fit={"learning_rate": 0.004, "steps": 6, "checkpoint_every": 2}))

    class Stopped(BaseException):
        pass

    def stop(what: str, done: int, total: int, note: str) -> None:
        if what == "training" and done == 4:
            raise Stopped

    asked = recipe_of(hybrid(tmp_path, fit={"learning_rate": 0.004, "steps": 6, "checkpoint_every": 2}))
    with Store.open(tmp_path / "other.db") as store:
        with pytest.raises(Stopped):
            run_recipe(asked, tmp_path / "parted", store=store, report=stop)
        again = run_recipe(asked, tmp_path / "parted", store=store)
    assert again.after.values == whole.after.values


def test_one_file_is_read_for_both_parts_and_held_out_of_both(tmp_path: Path) -> None:
    asked = hybrid(tmp_path, data={"train": str(tmp_path / "rows.jsonl"), "heldout": 0.25})
    write_jsonl(tmp_path / "rows.jsonl", decisions("demonstrations", 80))
    asked["hybrid"] = {"parts": {"rl": {"method": "rft"}, "shown": {"method": "sft"}}}
    rows = load_rows(recipe_of(asked))
    assert [type(rows.parts[name].train[0]).__name__ for name in ("rl", "shown")] == ["Task", "Demonstration"]
    assert len(rows.parts["shown"].train) == len(rows.train) == 60


def test_a_part_s_own_rows_may_not_be_what_judges(tmp_path: Path) -> None:
    asked = hybrid(tmp_path)
    asked["hybrid"]["parts"]["shown"]["data"] = asked["data"]["heldout"]
    with pytest.raises(DataError, match="share 60 inputs"):
        load_rows(recipe_of(asked))


def test_ppo_with_demonstrations_is_ppo_ptx(tmp_path: Path, runs: Runs) -> None:
    asked = hybrid(tmp_path, ppo={"prompts": 16, "hopeless": "train"}, fit={"learning_rate": 0.004, "steps": 3})
    asked["hybrid"]["parts"]["rl"] = {"method": "ppo"}
    asked.pop("rft")
    outcome = runs(**asked)
    told = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert outcome.steps == 3 and all({"rl.value", "shown.nll"} <= row.keys() for row in told)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hybrid": {}}, "write hybrid.parts"),
        ({"hybrid": {"parts": {"rl": {"method": "rft", "data": "own.jsonl"}}}}, "learns from data.train"),
        ({"hybrid": {"parts": {"rl": {"method": "hybrid"}}}}, "hybrid.parts.rl.method"),
        ({"hybrid": {"parts": {"rl": {"method": "rft", "wieght": 1}}}}, "did you mean 'hybrid.parts.rl.weight'"),
        ({"hybrid": {"parts": {"rl": {"method": "rft"}}}, "grader": None}, "write grader:"),
        ({"hybrid": {"parts": {"rl": {"method": "rft", "weight": -1}}}}, "weight"),
    ],
)
def test_what_is_wrong_in_a_hybrid_is_told(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        recipe_of(hybrid(tmp_path, **change))
    assert told in str(error.value)


def test_parts_are_relative_to_the_recipe_and_groups_are_sampled(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "method: hybrid\nmodel: {kind: classifier}\ndata: {train: tasks.jsonl}\ngrader: graders.py:right\n"
        "hybrid: {parts: {shown: {method: sft, data: shown.jsonl}, rl: {method: rft, every: 2}}}\n"
    )
    found = load_recipe(tmp_path / "run.yaml")
    assert found.hybrid.parts["shown"].data == str(tmp_path / "shown.jsonl")
    assert found.lead == "rft" and found.sampling.n == 8 and recipe_of(found.to_dict()) == found


def test_a_hybrid_can_be_planned(tmp_path: Path, store: Store) -> None:
    plan = dry_run(recipe_of(hybrid(tmp_path)), store)
    assert plan.method == "hybrid" and plan.steps == 30 and plan.seconds is not None and plan.seconds > 0


def test_what_an_alarm_stopped_is_not_promoted_by_its_gate(tmp_path: Path, runs: Runs) -> None:
    outcome = runs(
        method="rft",
        data=judged(tmp_path, "demonstrations", 240),
        grader=RIGHT,
        rft={"prompts": 16, "hopeless": "train"},
        fit={"learning_rate": 0.004, "steps": 80},
        alarms={"change": {"entropy": "stop"}},
    )
    assert outcome.verdict.result == "promote" and not outcome.promoted and outcome.steps < 80
    assert "since alarm entropy stopped its training" in outcome.note
    assert [rung["alarm"] for rung in outcome.alarms if rung["stops"]] == ["entropy"]
    assert Outcome.read(tmp_path / "run").alarms[0]["sentence"] == outcome.alarms[0]["sentence"]
