"""laws of a run's page as fit writes it: whatever ends a run, its page says so"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tabular import Tabular

from melior.errors import CheckpointError
from melior.trainers.loop import FitConfig, fit
from melior.trainers.supervised import Examples, HeldoutLoss, Supervised
from melior.types import Demonstration

ROWS = [Demonstration("a", (0, 1, 2)), Demonstration("a", (2, 1, 0))] * 6


def train(folder: Path, *, on_step: Any = lambda *_: None, **config: Any) -> None:
    policy = Tabular()
    settings = FitConfig(folder=folder, evaluate_every=2, **config)
    steps = Examples(policy, ROWS, batch_size=2)
    fit(policy, steps, Supervised(), settings, evaluation=HeldoutLoss(policy, ROWS), on_step=on_step)


def state(folder: Path) -> str:
    return str(json.loads((folder / "status.json").read_text())["state"])


def test_a_run_of_fit_alone_has_a_page(tmp_path: Path) -> None:
    train(tmp_path / "mine")
    text = (tmp_path / "mine" / "report.html").read_text()
    assert state(tmp_path / "mine") == "trained" and "mine" in text and "held-out" in text


@pytest.mark.parametrize("done", [1, 3])
def test_an_interrupted_run_says_so_until_it_goes_on(tmp_path: Path, done: int) -> None:
    def stop(at: int, total: int, metrics: Any) -> None:
        if at == done:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, on_step=stop)
    assert state(tmp_path) == "interrupted"
    assert f"interrupted after {done} of 6 steps" in (tmp_path / "report.html").read_text()
    train(tmp_path)
    assert state(tmp_path) == "trained" and "interrupted after" not in (tmp_path / "report.html").read_text()


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    def fail(at: int, total: int, metrics: Any) -> None:
        if at == 4:
            raise RuntimeError("the sensor came <loose>")

    with pytest.raises(RuntimeError):
        train(tmp_path, on_step=fail)
    text = (tmp_path / "report.html").read_text()
    assert state(tmp_path) == "failed" and "failed after 3 of 6 steps: the sensor came &lt;loose&gt;" in text


def test_a_run_that_is_refused_leaves_the_other_ones_page_alone(tmp_path: Path) -> None:
    train(tmp_path)
    before = (tmp_path / "report.html").read_bytes()
    with pytest.raises(CheckpointError, match="learning_rate"):
        train(tmp_path, learning_rate=0.5)
    assert state(tmp_path) == "trained" and (tmp_path / "report.html").read_bytes() == before
