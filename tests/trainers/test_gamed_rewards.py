"""a reward that can be gamed stops a real run, with a sentence and a mark in its report; an honest one does not"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from melior.reports.files import read_run
from melior.reports.findings import findings
from melior.trainers.alarms import Alarms
from melior.trainers.loop import Run

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SEED = 0
STEPS = 45
UNHELD = Alarms()


@pytest.fixture(scope="module")
def runs() -> Iterator[ModuleType]:
    """The runs that `benchmarks/alarms.py` counts."""
    sys.path.insert(0, str(BENCHMARKS))
    yield import_module("alarm_runs")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def folder(runs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a language model lies that has learnt from demonstrations."""
    place = tmp_path_factory.mktemp("gamed")
    runs.start(place, SEED)
    return place


def exact(run: Run) -> list[float]:
    return [row["exact"] for row in run.metrics if "exact" in row]


@pytest.mark.parametrize("pays", ["detail", "phrase"])
def test_a_gamed_reward_stops_the_run(runs: ModuleType, folder: Path, pays: str) -> None:
    run = runs.practised(folder, SEED, getattr(runs, pays))
    stop = next(breach for breach in run.breaches if breach.stops)
    assert run.steps == stop.step + 1 < STEPS
    assert run.stopped == f"alarm {stop.alarm}: {stop.sentence}" and "\n" not in run.stopped
    assert any(breach.alarm == "heldout" for breach in run.breaches)
    assert run.metrics[-1]["reward"] > 2 * run.metrics[0]["reward"] and exact(run)[-1] < exact(run)[0] / 4
    assert run.folder is not None
    told, html = read_run(run.folder), (run.folder / "report.html").read_text()
    assert any(run.stopped in sentence for sentence in findings(told))
    assert f"{stop.alarm} stopped after step {run.steps}" in html and 'class="alarm stops"' in html


def test_pay_by_the_word_stops_the_run_where_nothing_is_held_out(runs: ModuleType, folder: Path) -> None:
    run = runs.practised(folder, SEED, runs.detail, alarms=UNHELD)
    assert run.stopped.startswith("alarm length_as_reward: within groups reward and length correlate by")
    assert run.steps < STEPS


def test_an_honest_reward_is_learnt_to_the_end(runs: ModuleType, folder: Path) -> None:
    run = runs.practised(folder, SEED, runs.right)
    assert (run.stopped, run.steps) == ("", STEPS)
    assert exact(run)[-1] > 1.5 * exact(run)[0]
