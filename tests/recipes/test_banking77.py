"""the banking77 recipe: differences are paired, labels come back as they were, and both models run whole"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from melior.errors import DataError, ModelError
from melior.policies.texts import minilm
from melior.policies.weights import resolve
from melior.types import Demonstration

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The recipe as a module."""
    monkeypatch.syspath_prepend(str(RECIPES))
    return import_module("banking77")


def test_the_gain_is_paired_and_the_floor_decides(recipe: ModuleType) -> None:
    labels = ["a", "b", "c"]
    rows = [Demonstration(f"message {number}", labels[number % 3], id=str(number)) for number in range(300)]
    truth = [str(row.output) for row in rows]
    wrong = ["b" if label == "a" else label for label in truth]
    chances = np.full((300, 3), 0.1)
    chances[np.arange(300), [labels.index(label) for label in truth]] = 0.8
    good = recipe.outcome("minilm", labels, rows, recipe.Answers(truth, chances), wrong, 1.0)
    assert good.met and good.accuracy.estimate == 1 and good.sentence.startswith("Met:")
    assert good.baseline.estimate == pytest.approx(2 / 3) and good.gain.estimate == pytest.approx(1 / 3)
    bad = recipe.outcome("minilm", labels, rows, recipe.Answers(wrong), truth, 1.0)
    assert not bad.met and bad.gain.high < 0 and "Not met: minilm" in bad.sentence
    assert json.loads(json.dumps(bad.to_json()))["met"] is False


def ran(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, model: str) -> tuple[dict[str, object], str]:
    """Summary and page of a run with --quick."""
    monkeypatch.setattr(sys, "argv", ["banking77", model, "--quick", "--out", str(folder)])
    try:
        recipe.main()
    except DataError as error:
        pytest.skip(str(error))
    return json.loads((folder / "summary.json").read_text()), (folder / "report.html").read_text()


def test_minilm_runs_whole(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    skip_without(minilm)
    summary, page = ran(recipe, monkeypatch, tmp_path, "minilm")
    assert 0 <= summary["accuracy"]["estimate"] <= 1 and "auc" in str(summary["classification"])  # type: ignore[index]
    assert "card" in page and (tmp_path / "model" / "policy.json").is_file()


@pytest.mark.slow
def test_smollm2_runs_whole(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    skip_without(lambda: resolve("smollm2-135m-instruct"))
    summary, _ = ran(recipe, monkeypatch, tmp_path, "smollm2")
    assert summary["classification"]["rows"] == 41  # type: ignore[index]
    assert (tmp_path / "model" / "adapter_config.json").is_file()


def skip_without(found: Callable[[], object]) -> None:
    """Skips where weights are not on this machine."""
    try:
        found()
    except ModelError as error:
        pytest.skip(str(error))
