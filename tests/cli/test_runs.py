"""runs can be looked at: pages, curves, comparisons, CSV"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from test_commands import SFT, call, from_json, trained


@pytest.fixture
def place(tmp_path: Path, folder_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with rows and a recipe; MELIOR_HOME inside it."""
    rows = [{"prompt": f"say {i}", "completion": "the cat"} for i in range(60)]
    (tmp_path / "cats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sft.yaml").write_text(SFT.format(model=folder_of("llama")))
    monkeypatch.setenv("MELIOR_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_leaves_a_report_and_curves(place: Path) -> None:
    from melior.reports.files import read_run
    from melior.reports.page import page

    outcome = trained(place)
    run, folder = outcome["run_id"], place / "run"
    html = (folder / "report.html").read_text()
    assert html == page(read_run(folder)) and "finished" in html and outcome["gate"]["sentence"].split(":")[1] in html
    (folder / "report.html").unlink()
    assert from_json("runs", "report", run[:8]) == {"report": str(folder / "report.html")}
    assert (folder / "report.html").read_text() == html
    shown = call("runs", "show", run).stdout
    assert "Loss" in shown and "report.html" in shown and "└" in shown
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    told = from_json("runs", "show", folder, "--metric", "loss,grad_norm")
    assert told["loss"] == [[row["step"] + 1, row["loss"]] for row in steps] and len(told) == 2
    lines = list(csv.DictReader(call("runs", "show", folder, "--csv").stdout.splitlines()))
    assert [float(line["loss"]) for line in lines] == [row["loss"] for row in steps]
    assert "did you mean 'grad_norm'" in call("runs", "show", folder, "--metric", "gradnorm", code=1).stderr
    assert "holds no run" in call("runs", "show", place, code=1).stderr


def test_two_runs_share_an_axis(place: Path) -> None:
    trained(place)
    (place / "again.yaml").write_text((place / "sft.yaml").read_text() + "seed: 1\n")
    from_json("train", "again.yaml", "--folder", place / "again")
    told = from_json("runs", "compare", place / "run", place / "again", "--metric", "loss, grad_norm")
    assert len(told["loss"]) == 2 and len({str(points) for points in told["loss"].values()}) == 2
    assert "* " in call("runs", "compare", "run", "again").stdout
    assert "'nonsense'" in call("runs", "compare", "run", "again", "--metric", "nonsense", code=1).stderr


def test_a_recipe_says_where_its_numbers_go(place: Path) -> None:
    pytest.importorskip("tensorboard")
    (place / "told.yaml").write_text((place / "sft.yaml").read_text() + "report: {to: [tensorboard]}\n")
    from_json("train", "told.yaml", "--folder", "told")
    assert list((place / "told" / "tensorboard").glob("events.*"))
    (place / "wrong.yaml").write_text((place / "sft.yaml").read_text() + "report: {to: [tensorbord]}\n")
    assert "report.to" in call("train", "wrong.yaml", code=1).stderr
    # Where it reports to is no part of what it is.
    assert from_json("train", "sft.yaml", "--folder", "told")["steps"] > 0


def test_a_run_of_an_eval_says_what_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from melior.store import Store

    monkeypatch.setenv("MELIOR_HOME", str(tmp_path / "home"))
    counts = {"testing_criteria": "is short", "passed": 3, "failed": 1, "errored": 2, "mean_score": 0.75}
    with Store.open() as store:
        run = store.add_run("evaluation", {}, tmp_path)
        store.finish_run(run.id, metrics={"criteria": [counts]})
    shown = call("runs", "show", run.id).stdout
    assert "is short: 3 of 4, 2 could not be graded" in shown and "curves" not in shown and "resume" not in shown
