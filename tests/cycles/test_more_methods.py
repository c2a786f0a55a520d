"""methods that learn from judgements, from their own best outputs, or from a teacher, as recipes"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_kinds import decisions, runs, write_jsonl

from melior.cycles.plan import dry_run
from melior.cycles.recipe import load_recipe, recipe_of
from melior.cycles.train import Outcome
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
__all__ = ["runs"]  # a fixture


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
