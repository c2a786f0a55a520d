"""the recipe of judges: canaries are taught as the worse of a pair, and messages keep their topic"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from melior.data.known_parts import data_folder
from melior.data.splits import input_key, split
from melior.rewards.canaries import QUESTION
from melior.types import Preference

RECIPES = Path(__file__).parents[2] / "recipes"
ROWS = [Preference(f"question {number}", "good", "bad") for number in range(6)]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(RECIPES))
    sys.modules.pop("judges", None)
    return import_module("judges")


def test_canaries_are_the_worse_of_a_pair_in_turn_or_each(recipe: ModuleType) -> None:
    assert recipe.with_canaries(ROWS, recipe.Taught()) == ROWS
    turns = recipe.with_canaries(ROWS, recipe.Taught(canaries=("empty", QUESTION), weight=0.5))[6:]
    assert [row.rejected for row in turns] == ["", "question 1", "", "question 3", "", "question 5"]
    assert all(row.chosen == "good" and row.weight == 0.5 for row in turns)
    each = recipe.with_canaries(ROWS, recipe.Taught(canaries=("empty", QUESTION), each=True))
    assert len(each) == 6 + 12


@pytest.mark.skipif(not (data_folder() / "banking77").is_dir(), reason="needs the data of MELIOR_DATA")
def test_messages_keep_their_topic_and_parts_share_none(recipe: ModuleType) -> None:
    first, second = recipe.intents(count=200), recipe.intents(part=1, count=200)
    assert first == recipe.intents(count=200) and all(row.chosen != row.rejected for row in first)
    assert not {row.inputs for row in first} & {row.inputs for row in second}
    learnt, judged = split(first, 0.4, 0)
    assert not {input_key(row) for row in learnt} & {input_key(row) for row in judged}
    assert recipe.length(first[0]) == len(first[0].inputs) + len(first[0].chosen) + len(first[0].rejected)
