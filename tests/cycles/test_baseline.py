"""laws of the baseline: its advice follows from what was seen, and only what cannot work is refused"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from melior.cycles.baseline import ENOUGH, Baseline, declared_bounds, judged, sample_baseline
from melior.cycles.recipe import Recipe, recipe_of
from melior.cycles.train import run_recipe
from melior.errors import GraderError, TrainingError
from melior.evaluation.evaluate import Evaluation
from melior.store import Store
from melior.types import Record, Sampling, Score, Task


class Numbers:
    """A policy whose n-th output of a task is the n-th number of its input."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, int]] = []

    def sample(self, inputs: Sequence[Any], settings: Sequence[Sampling]) -> list[Record]:
        self.seen += [(numbers, each.seed) for numbers, each in zip(inputs, settings, strict=True)]
        return [
            Record(inputs=numbers, output=numbers[n % len(numbers)], finish="length" if n == 0 else "stop")
            for numbers, each in zip(inputs, settings, strict=True)
            for n in range(each.n)
        ]


class Reads:
    """A grader that reads the number; None is a failure."""

    def grade(self, records: Sequence[Record]) -> list[Score]:
        return [Score(value=r.output, name="reads", error="unreadable" * (r.output is None)) for r in records]


def sampled(tasks: Sequence[Sequence[float | None]], n: int = 4, **how: Any) -> Evaluation:
    rows = [Task(list(numbers), id=str(index)) for index, numbers in enumerate(tasks)]
    return sample_baseline(Numbers(), rows, Reads(), Sampling(n=n), prompts=len(rows), **how)


def found(tasks: Sequence[Sequence[float | None]], **how: Any) -> Baseline:
    return judged(sampled(tasks), prompts_per_step=16, **how)


def test_what_is_nearly_always_right_needs_no_rft() -> None:
    baseline = found([[1.0]] * 60 + [[1, 1, 1, 0]] * 4)
    assert baseline.outlook == "easy" and "98.4%" in baseline.sentence and not baseline.refused
    assert found([[1.0]] * 64).outlook == "easy"
    assert found([[0.9, 1.0]] * 64).outlook != "sparse"


def test_what_is_never_right_is_refused() -> None:
    baseline = found([[0.0]] * 64)
    assert baseline.outlook == "hopeless" and baseline.refused and "None of 256 outputs" in baseline.sentence
    assert 0.05 < baseline.useful.high < 0.06  # none among 64 prompts does not mean never
    with pytest.raises(TrainingError, match=r"demonstrations first; .*to train all the same, pass --anyway or write"):
        baseline.check()


def test_a_few_prompts_are_not_enough_to_refuse() -> None:
    few, enough = found([[0.0]] * (ENOUGH - 1)), found([[0.0]] * ENOUGH)
    assert few.outlook == "hopeless" and not few.refused and "only 31 prompts" in few.sentence
    assert enough.refused
    few.check()


def test_a_single_useful_group_is_not_hopeless() -> None:
    baseline = found([[0.0]] * 63 + [[0, 0, 1, 0]])
    assert baseline.outlook == "sparse" and not baseline.refused and "Only 0.4%" in baseline.sentence


def test_consolations_are_not_earnings() -> None:
    baseline = found([[0.0, 0.01]] * 64)
    assert baseline.outlook == "sparse" and baseline.earned is not None and baseline.earned.estimate == 0
    assert baseline.useful.estimate == 1  # they differ, so training is not refused


def test_the_middle_is_good_and_says_how_many_groups_help() -> None:
    baseline = found([[0, 1]] * 32 + [[0.0]] * 16 + [[1.0]] * 16)
    assert baseline.outlook == "good" and baseline.useful.estimate == 0.5
    steps = baseline.useful_per_step
    assert steps.estimate == 8 and 6 < steps.low < 8 < steps.high < 10
    assert "about 8.0 [" in baseline.sentence


def test_rewards_without_a_range_are_judged_by_groups_alone() -> None:
    baseline = found([[-3, 7]] * 64)
    assert (baseline.outlook, baseline.bounds, baseline.earned) == ("good", None, None)
    constant = found([[-3.0]] * 32 + [[7.0]] * 32)
    assert constant.refused and "equal in each of 64 groups" in constant.sentence
    assert found([[-3, 7]] * 64, bounds=(-5.0, 10.0)).bounds == (-5.0, 10.0)


def test_a_declared_range_scales_the_limits() -> None:
    assert found([[1.0]] * 64).outlook == "easy"  # seen within 0 and 1, so taken to stay there
    assert found([[1.0, 1.5]] * 64, bounds=(1.0, 5.0)).outlook == "good"
    assert found([[1.0]] * 64, bounds=(1.0, 5.0)).refused
    assert found([[4.9, 5.0]] * 64, bounds=(1.0, 5.0)).outlook == "easy"


def test_which_graders_declare_a_range() -> None:
    assert declared_bounds({"type": "score_model", "range": [1, 5]}) == (1.0, 5.0)
    assert declared_bounds({"type": "score_model", "range": None}) == (0.0, 1.0)  # as the grader reads it
    assert declared_bounds({"type": "score_model"}) == declared_bounds({"type": "string_check"}) == (0.0, 1.0)
    assert declared_bounds("rewards.py:grade") is None and declared_bounds({"type": "http", "url": "x"}) is None


def test_truncation_and_errors_are_told() -> None:
    baseline = found([[0, 1, None, 0.5]] * 64)
    assert baseline.errors == 0.25 and "25.0% of gradings failed, first with: unreadable" in baseline.sentence
    assert baseline.truncated.estimate == 0.25 and "cut by max_tokens" in baseline.sentence
    with pytest.raises(GraderError, match="gradings failed"):
        found([[None]] * 64)


def test_a_grader_that_breaks_its_word_is_judged_by_groups_alone() -> None:
    baseline = found([[0.5, 1.5]] * 64, bounds=(0.0, 1.0))
    assert (baseline.outlook, baseline.bounds, baseline.earned) == ("good", None, None)


def test_prompts_whose_gradings_failed_refuse_nothing() -> None:
    baseline = found([[0.0]] * 20 + [[None]] * 44)
    assert baseline.outlook == "hopeless" and baseline.prompts == 20 and not baseline.refused
    assert "None of 80 outputs" in baseline.sentence and "68.8% of gradings failed" in baseline.sentence


def test_the_draw_is_random_repeatable_and_of_different_tasks() -> None:
    tasks = [Task([index / 200, 1], id=str(index)) for index in range(200)]
    draws = []
    for seed in (0, 0, 1):
        policy = Numbers()
        evaluation = sample_baseline(policy, [*tasks, *tasks], Reads(), Sampling(n=2, seed=seed), prompts=64, seed=seed)
        assert len(set(evaluation.items)) == len(evaluation.items) == 64 and evaluation.sampling.n == 2
        draws.append(policy.seen)
    assert draws[0] == draws[1] != draws[2]
    assert {seed for _, seed in draws[0]} != {0}  # not the draws of a training step


def test_it_becomes_json() -> None:
    told = json.loads(json.dumps(found([[0, 1]] * 40).to_json()))
    assert told["outlook"] == "good" and told["bounds"] == [0.0, 1.0] and told["prompts"] == 40
    assert set(told["useful"]) == {"estimate", "low", "high", "level"}


# ---------------------------------------------------------------------- in a run


def hopeless_recipe(recipe_for: Callable[..., Recipe], tmp_path: Path, **rft: Any) -> Recipe:
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(44)))
    never = {"type": "string_check", "operation": "eq", "input": "{{sample.output_text}}", "reference": "never said"}
    data = {"train": str(path), "heldout": 4}
    return recipe_for("rft", data=data, grader=never, rft={"prompts": 3, **rft}, sampling={"n": 2, "max_tokens": 2})


def test_a_hopeless_run_is_refused_before_it_costs_anything(
    recipe_for: Callable[..., Recipe], tmp_path: Path, store: Store
) -> None:
    recipe, folder = hopeless_recipe(recipe_for, tmp_path), tmp_path / "run"
    said: list[str] = []
    with pytest.raises(TrainingError, match="None of 80 outputs earned a reward"):
        run_recipe(recipe, folder, store=store, report=lambda what, done, total, note: said.append(f"{what} {note}"))
    assert said[-1] == "sampling a baseline "  # what the error says is not said twice
    assert (folder / "baseline.json").is_file() and not (folder / "evaluation-before.json").exists()
    assert store.runs()[-1].status == "failed" and not (folder / "checkpoints").exists()
    written = (folder / "baseline.json").read_bytes()
    outcome = run_recipe(
        recipe, folder, store=store, anyway=True, report=lambda what, done, total, note: said.append(f"{what} {note}")
    )
    assert any(line.startswith("baseline None of 80") for line in said)
    assert outcome.steps == 3 and outcome.baseline is not None and outcome.baseline["outlook"] == "hopeless"
    assert (folder / "baseline.json").read_bytes() == written  # measured once


def test_a_recipe_may_say_train_anyway_or_measure_nothing(
    recipe_for: Callable[..., Recipe], tmp_path: Path, store: Store
) -> None:
    told = run_recipe(hopeless_recipe(recipe_for, tmp_path, hopeless="train"), tmp_path / "told", store=store)
    none = run_recipe(hopeless_recipe(recipe_for, tmp_path, baseline=0), tmp_path / "none", store=store)
    assert told.baseline is not None and none.baseline is None
    assert not (tmp_path / "none" / "baseline.json").exists()


def test_the_baseline_changes_no_number_of_training(
    recipe_for: Callable[..., Recipe], tmp_path: Path, store: Store
) -> None:
    weights = []
    for prompts in (0, 5):
        recipe = recipe_for("rft", rft={"prompts": 3, "baseline": prompts})
        outcome = run_recipe(recipe, tmp_path / str(prompts), store=store)
        weights.append((outcome.folder / "model" / "adapter_model.safetensors").read_bytes())
        assert (outcome.baseline or {}).get("prompts", 0) == prompts
        assert run_recipe(recipe, tmp_path / str(prompts), store=store) == outcome
    assert weights[0] == weights[1]


def test_sft_has_no_baseline(recipe_for: Callable[..., Recipe], tmp_path: Path, store: Store) -> None:
    outcome = run_recipe(recipe_for("sft"), tmp_path / "run", store=store)
    assert outcome.baseline is None and not (tmp_path / "run" / "baseline.json").exists()


def test_files_of_lambda_graders_stand_beside_the_recipe(tmp_path: Path) -> None:
    raw = {"method": "rft", "model": {"path": "m"}, "data": {"train": "t.jsonl"}, "fit": {"steps": 1}}
    raw["sampling"] = {"n": 2}
    for given, wanted in (("reward.py", tmp_path / "reward.py"), ("reward.py:f", f"{tmp_path / 'reward.py'}:f")):
        recipe = recipe_of({**raw, "grader": {"type": "lambda", "lambda": {"function": given}}}, folder=tmp_path)
        assert isinstance(recipe.grader, dict) and recipe.grader["lambda"]["function"] == str(wanted)
    url = "https://rewards.example/reward.py"
    recipe = recipe_of({**raw, "grader": {"type": "lambda", "function": url}}, folder=tmp_path)
    assert isinstance(recipe.grader, dict) and recipe.grader["function"] == url
