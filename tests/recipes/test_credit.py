"""the credit recipes: costs add up as stated, thresholds are chosen from what was not learnt, and both run whole"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from html import unescape
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from melior.data.known_sets import known_set
from melior.errors import DataError
from melior.types import Demonstration, Record

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A recipe as a module."""
    monkeypatch.syspath_prepend(str(RECIPES))
    return import_module


@pytest.fixture
def run(recipe: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Any]:
    """Runs a recipe with --quick, and returns its summary and its page."""

    def ran(name: str) -> Any:
        monkeypatch.setattr(sys, "argv", [name, "--quick", "--out", str(tmp_path)])
        recipe(name).main()
        return json.loads((tmp_path / "summary.json").read_text()), unescape((tmp_path / "report.html").read_text())

    return ran


def client(label: str, line: float = 1.0) -> Demonstration:
    return Demonstration(inputs={"LIMIT_BAL": line}, output=label, item={"label": label})


def test_prices_are_those_of_the_page_and_the_grader_is_minus_them(recipe: Callable[[str], ModuleType]) -> None:
    uci = recipe("uci_default")
    prices = uci.Prices("by stake", lambda row: 5 * row.inputs["LIMIT_BAL"], {})
    rows = [client("default", 2), client("default", 2), client("paid"), client("paid")]
    alarms = np.array([False, True, False, True])
    assert prices.of(rows, alarms).tolist() == [10, 0, 0, 1]
    records = [
        Record(inputs=row.inputs, output="default" if alarm else "paid", item=row.item)
        for row, alarm in zip(rows, alarms, strict=True)
    ]
    assert [score.value for score in prices.grade(records)] == [-10, 0, 0, -1]


def test_the_threshold_is_the_cheapest_there_is(recipe: Callable[[str], ModuleType]) -> None:
    uci = recipe("uci_default")
    prices = uci.Prices("flat", lambda row: 5.0, {})
    drawn = np.random.default_rng(0)
    found = drawn.random(200)
    rows = [client("default" if chance < found[i] else "paid") for i, chance in enumerate(drawn.random(200))]
    line = prices.threshold(rows, found)
    least = min(prices.of(rows, found >= each).mean() for each in [*found, 2.0])
    assert prices.of(rows, found >= line).mean() == pytest.approx(least, abs=0.01)


def test_the_gap_between_areas_is_that_of_paired_resamples(recipe: Callable[[str], ModuleType]) -> None:
    uci = recipe("uci_default")
    drawn = np.random.default_rng(1)
    truth = drawn.random(400) < 0.3
    ours = truth + drawn.normal(size=400)
    same = uci.area_gap(ours, ours * 2 + 1, truth, 200)
    assert (same.estimate, same.low, same.high) == pytest.approx((0, 0, 0), abs=0.01)
    worse = uci.area_gap(ours, ours + 3 * drawn.normal(size=400), truth, 200)
    assert 0 < worse.low < worse.estimate < worse.high


def test_the_threshold_of_german_credit_nears_what_the_costs_imply(recipe: Callable[[str], ModuleType]) -> None:
    """Where chances are right the cheapest threshold is 1/6, for a needless refusal costs 1 and a bad risk taken 5."""
    german = recipe("german_credit")
    drawn = np.random.default_rng(2)
    found = drawn.random(20_000)
    line = german.threshold(found, drawn.random(20_000) < found, german.Settings(draws=20))
    assert line == pytest.approx(1 / 6, abs=0.03)


def test_costs_of_decisions_are_those_of_the_matrix(recipe: Callable[[str], ModuleType]) -> None:
    german = recipe("german_credit")
    decided = german.Decided(np.zeros(4), np.array([False, True, False, True]))
    assert decided.costs(np.array([True, True, False, False])).tolist() == [5, 0, 0, 1]


def here(name: str) -> bool:
    """Whether a data set's rows can be read without fetching them."""
    from melior.data.known_sets import known_rows

    try:
        return next(iter(known_rows(f"known:{known_set(name).name}")), None) is not None
    except DataError:
        return False


@pytest.mark.slow
def test_german_credit_runs_whole(run: Callable[[str], Any]) -> None:
    if not here("german-credit"):
        pytest.skip("german-credit is not on this machine: set MELIOR_DATA")
    summary, page = run("german_credit")
    assert summary["costs"]["the majority's label"]["estimate"] == pytest.approx(1.5)  # 300 of 1,000 are bad, at 5 each
    assert summary["costs"]["the cheaper label for all"]["estimate"] == pytest.approx(0.7)
    assert summary["costs"]["logistic regression"]["estimate"] < 0.65
    assert {group["attribute"] for group in summary["tuned"]["groups"]} == {"sex", "age"}
    assert summary["sentence"] in page


@pytest.mark.slow
def test_uci_default_runs_whole(run: Callable[[str], Any]) -> None:
    if not here("uci-default"):
        pytest.skip("uci-default is not on this machine: set MELIOR_DATA")
    summary, page = run("uci_default")
    assert set(summary["savings"]) == {"flat", "by stake"}
    assert len(summary["claims"]) == 3 and all(claim in page for claim in summary["claims"])
