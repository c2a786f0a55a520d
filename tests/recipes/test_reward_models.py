"""the recipe of reward models: no row is judged by what saw its group, differences are paired, and folds are kept"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from html import unescape
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from melior.data.known_parts import data_folder
from melior.rewards.workers import GraderPool
from melior.types import Preference, Rated, Record, Segment

RECIPES = Path(__file__).parents[2] / "recipes"
here = pytest.mark.skipif(not (data_folder() / "pref_mujoco_human").is_dir(), reason="needs the data of MELIOR_DATA")


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(RECIPES))
    return import_module("reward_models")


def segment(*numbers: float) -> Segment:
    steps = np.array([numbers], dtype=np.float32)
    return Segment(steps.tobytes(), steps.shape)


def pairs(count: int, seed: int) -> list[Preference]:
    """Segments of one step, of which the one with the larger first number is preferred."""
    drawn = np.random.default_rng(seed).normal(size=(count, 2, 3))
    sides = [[segment(*one), segment(*two)] for one, two in drawn]
    made = [sorted(pair, key=lambda each: -float(np.asarray(each)[0, 0])) for pair in sides]
    return [Preference(None, best, worse, id=str(number)) for number, (best, worse) in enumerate(made)]


def test_accuracy_counts_ties_half(recipe: ModuleType) -> None:
    rewards = np.array([[2.0, 1.0], [1.0, 2.0], [0.5, 0.5], [0.1 + 0.2, 0.3]])
    assert recipe.right(rewards).tolist() == [1.0, 0.0, 0.5, 0.5]


def test_a_method_gains_nothing_over_itself_and_ties_are_not_judged(recipe: ModuleType) -> None:
    rows = [*pairs(40, 0), Preference(None, segment(1.0, 0.0, 0.0), segment(0.0, 0.0, 0.0), 0.5, id="tie")]
    judged = recipe.Judged.of(rows)
    assert len(judged.rows) == 40
    drawn = np.random.default_rng(1).normal(size=(41, 2))
    kept = judged.kept(rows, drawn.ravel())
    assert kept.tolist() == drawn[:40].tolist()
    gain = judged.gain(kept, 3 * kept + 1)
    assert gain.estimate == 0 and gain.low <= 0 <= gain.high
    perfect = np.tile([1.0, 0.0], (40, 1))
    assert judged.gain(perfect, kept).estimate == pytest.approx(1 - recipe.right(kept).mean())


def test_areas_under_curves_are_compared_pair_by_pair(recipe: ModuleType) -> None:
    drawn = np.random.default_rng(2)
    rows = [Rated("a", str(n), float(n % 3 > 0), id=str(n), group=str(n // 4)) for n in range(200)]
    judged = recipe.Judged.of(rows)
    truth = np.array([[row.rating] for row in rows])
    ours, theirs = truth + drawn.normal(size=(200, 1)), truth + 4 * drawn.normal(size=(200, 1))
    assert judged.gain(ours, ours * 2).estimate == 0
    assert judged.gain(ours, theirs).low > 0
    assert judged.measure(truth).estimate == 1


def test_the_best_of_what_was_logged_is_taken_where_there_is_a_choice(recipe: ModuleType) -> None:
    rows = [Rated(prompt, f"{prompt}{n}", float(n == 2), id=f"{prompt}{n}") for prompt in "abc" for n in range(4)]
    rows += [Rated("d", "x", 1.0, id="dx"), Rated("d", "y", 1.0, id="dy")]  # no choice between good and bad
    told = recipe.picks(rows, np.array([[row.rating] for row in rows]))
    assert [each.estimate for each in told.values()] == [1.0, 0.25, 0.75]
    assert all("3 inputs" in name for name in told)


def test_models_learn_what_decides_and_the_stack_keeps_it(recipe: ModuleType) -> None:
    learnt, unseen = pairs(80, 3), pairs(60, 4)
    settings = recipe.Settings(outer=2, inner=2, members=1)
    fold = recipe.measured(recipe.FIELDS["can"], learnt, unseen, settings)
    assert fold.rows == [row.id for row in unseen]
    for rewards in fold.rewards.values():
        assert recipe.right(np.reshape(rewards, (-1, 2))).mean() > 0.9


def test_inner_choices_are_made_by_rows_that_were_not_learnt(recipe: ModuleType) -> None:
    """What remembers is chosen over what is weak but right only if it is told the rows it is judged on."""
    rows = pairs(60, 5)
    truth = {side: float(np.asarray(side)[0, 0]) for row in rows for side in (row.chosen, row.rejected)}

    def way(learnt: list[Preference], examples: list[Any], names: list[str]) -> dict[str, np.ndarray]:
        known = {row.chosen: 10.0 for row in learnt}
        remembered = np.array([known.get(each.output, 0.0) for each in examples])
        return {"remembers": remembered, "weak": np.array([0.5 * truth[each.output] for each in examples])}

    name, rewards = recipe.chosen_inside(rows, recipe.folds(rows, 3), way, ["remembers", "weak"])
    assert name == "weak" and recipe.right(rewards.reshape(-1, 2)).mean() == 1


@here
def test_a_robots_segments_run_whole_and_go_on_from_kept_folds(
    recipe: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = replace(recipe.FIELDS["hopper"], trials=(replace(recipe.FIELDS["hopper"].trials[0], epochs=10),))
    monkeypatch.setitem(recipe.FIELDS, "hopper", quick)
    monkeypatch.setattr(sys, "argv", ["reward_models", "hopper", "--quick", "--out", str(tmp_path)])
    recipe.main()
    first = json.loads((tmp_path / "summary.json").read_text())
    page = unescape((tmp_path / "report.html").read_text())
    assert first["sentence"] in page and all(limit in page for limit in first["limits"])
    assert first["rows"] == 72 and first["rules"]["the first listed"]["estimate"] == pytest.approx(32 / 72)
    assert first["rules"]["the faster one"]["estimate"] == pytest.approx(31 / 72)  # people do not prefer the faster
    assert {"linear Bradley–Terry", "melior", "melior, stacked on the linear model"} == set(first["measures"])
    capsys.readouterr()
    recipe.main()
    told = capsys.readouterr().out
    assert "fold 1" not in told and json.loads((tmp_path / "summary.json").read_text())["measures"] == first["measures"]
    with GraderPool({"type": "learned", "model": str(tmp_path / "model")}) as grader:
        rows = recipe.read_examples("known:hopper-preferences@human-eval").rows
        scores = grader.grade([Record(inputs=None, output=row.chosen) for row in rows])
    assert all(score.value is not None for score in scores)
