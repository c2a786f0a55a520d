"""every file in recipes/ is read, and draws the rows it says"""

from __future__ import annotations

from pathlib import Path

import pytest

from melior.cycles.recipe import load_recipe
from melior.cycles.rows import load_rows
from melior.cycles.sections import Generated
from melior.data.splits import check_disjoint

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_draws_what_it_says(path: Path) -> None:
    recipe = load_recipe(path)
    rows = load_rows(recipe)
    if isinstance(recipe.data.train, Generated):
        assert len(rows.train) == recipe.data.train.size
        assert len(rows.tasks) == recipe.data.heldout
    assert len(rows.train) > len(rows.tasks) > 0
    check_disjoint(rows.train, rows.tasks)


def test_there_are_recipes() -> None:
    assert {load_recipe(path).method for path in RECIPES} == {"sft", "rft"}
