"""the Open Bandit recipe: chances add up, estimates agree with the logs' own means, and it says what it cannot know"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from melior.data import known_parts
from melior.data.formats import read_examples

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The recipe as a module."""
    if not (known_parts.data_folder() / "obd_small").is_dir():
        pytest.skip("needs the data of MELIOR_DATA")
    monkeypatch.syspath_prepend(str(RECIPES))
    return import_module("open_bandit")


def test_the_chances_of_a_policy_add_up(recipe: ModuleType) -> None:
    chances = recipe.shown_chances(read_examples("known:open-bandit@bernoulli-ts").rows[:2000])
    for slot in "123":
        assert sum(chance for (_, where), chance in chances.items() if where == slot) == pytest.approx(1)


def test_the_recipe_runs_and_claims_nothing(recipe: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    told = recipe.run(recipe.Settings(epochs=1), rows=2000)
    assert told["significant"] is False and "tell nobody" in capsys.readouterr().out
    for found in told["estimates"]:
        assert found["low"] <= found["own"]["high"] and found["own"]["low"] <= found["high"]  # the intervals overlap
