"""the recipe of all methods: households apart, feedback that tells no more than it says, and every method runs"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from melior.data.known_parts import data_folder
from melior.errors import DataError

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(RECIPES))
    found = import_module("methods")
    if not (data_folder() / found.SOURCE).is_file():
        pytest.skip("needs the data of MELIOR_DATA")
    return found


def test_no_household_stands_on_two_sides_and_no_purchase_is_lost(methods: ModuleType) -> None:
    settings = methods.Settings()
    data = methods.Purchases.read(settings)
    sides = [data.start, data.learnt, data.validation, data.heldout]
    houses = [{row.group for row in side} for side in sides]
    assert sum(map(len, houses)) == len(set().union(*houses)) == 300
    assert sum(map(len, sides)) == len({row.id for side in sides for row in side}) == 2798
    assert (len(houses[0]), len(houses[3])) == (settings.seen, 90)


def test_the_last_purchase_is_of_the_same_household_and_before(methods: ModuleType) -> None:
    before: dict[str, str] = {}
    for row in methods.purchases(data_folder() / methods.SOURCE):
        assert row.inputs["last"] == before.get(row.group, "none")
        before[row.group] = row.output


def test_a_missing_file_says_what_to_do(methods: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="MELIOR_DATA"):
        methods.purchases(tmp_path / "catsup.csv")


def test_pairs_and_thumbs_tell_one_other_brand_and_no_more(methods: ModuleType, tmp_path: Path) -> None:
    settings = methods.Settings(steps=2)
    school = methods.School(methods.Purchases.read(settings), settings, tmp_path)
    policy = methods.ClassifierPolicy.load(school.begun)
    lesson = methods.Lesson(policy, school.data.learnt[:200], school.data.start, settings, 0, lambda: school.teacher)
    assert all(pair.chosen == row.output != pair.rejected for pair, row in zip(lesson.pairs, lesson.rows, strict=True))
    assert {pair.rejected for pair in lesson.pairs} == set(methods.BRANDS)
    assert all(
        shown.rating == (shown.output == row.output) for shown, row in zip(lesson.shown, lesson.rows, strict=True)
    )
    assert 0 < np.mean([shown.rating for shown in lesson.shown]) < 1


def test_every_method_runs_and_is_compared_with_the_start(
    methods: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["methods", "all", "--quick", "--out", str(tmp_path)])
    methods.main()
    told = capsys.readouterr().out
    assert all(f"\n{name} " in told for name in methods.METHODS)
    methods.main()  # what is kept is not learnt again
    assert "validation" not in capsys.readouterr().out
    assert {path.stem for path in tmp_path.glob("*.json")} == {methods.START, *methods.METHODS}


def test_imitation_beats_the_start_on_households_of_its_own(methods: ModuleType, tmp_path: Path) -> None:
    settings = methods.Settings(steps=60, rates=(3e-3,), seeds=1)
    school = methods.School(methods.Purchases.read(settings), settings, tmp_path)
    outcomes = {name: methods.measured(name, school) for name in (methods.START, "sft")}
    (row,) = methods.compared(outcomes, school.data)
    assert row.gain.low > 0
