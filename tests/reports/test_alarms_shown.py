"""where alarms rang: marks on the curves they read, a list on the page, one sentence each in findings"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from folders import EVALUATION, metrics, write_run
from test_page import HOSTILE, parsed

from melior.reports.curves import charts_of
from melior.reports.files import read_run
from melior.reports.findings import findings
from melior.reports.page import page

RUNG = {
    "alarm": "length",
    "step": 11,
    "metrics": ["completions/mean_length"],
    "value": 2.4,
    "limit": 2.0,
    "stops": False,
    "sentence": "outputs grew from 5 to 12 decisions, 2.4× (limit 2×); punish length",
}
STOPPED = {
    "alarm": "heldout",
    "step": 18,
    "metrics": ["reward", "heldout_accuracy"],
    "value": 0.001,
    "limit": 0.005,
    "stops": True,
    "sentence": "reward rose to 0.9 while heldout_accuracy fell from 0.8 to 0.3, held out; the reward is being gamed",
}

ENDED = {"state": "trained", "stopped": f"alarm heldout: {STOPPED['sentence']}"}


def alarmed(folder: Path, lines: list[Any], **more: Any) -> Path:
    rows = metrics(30)
    for step, row in enumerate(rows):
        if step % 5 == 4:
            row["heldout_accuracy"] = 0.8 - step / 50
    write_run(folder, rows, **{"run": {"total": 40, "objective": {"name": "Reinforcement"}}, **more})
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (folder / "alarms.jsonl").write_text(text)
    return folder


def test_an_alarm_is_marked_on_every_curve_it_read_and_on_no_other(tmp_path: Path) -> None:
    charts = {chart.title: chart.marks for chart in charts_of(read_run(alarmed(tmp_path, [RUNG, STOPPED])))}
    assert charts["Length of completions"] == [(12.0, "length warned", False)]
    assert charts["Reward"] == charts["held-out accuracy"] == [(19.0, "heldout stopped", True)]
    assert not charts["Gradient norm"] and not charts["Loss"]


def test_the_page_lists_what_rang_and_draws_it(tmp_path: Path) -> None:
    found = parsed(alarmed(tmp_path, [RUNG, STOPPED], status=ENDED))
    for told in (
        "Alarms",
        "stopped by an alarm",
        "Outputs grew from 5 to 12",
        "heldout stopped",
        "Training ended early",
    ):
        assert told in found.text
    drawn = [a for tag, a in found.elements if tag == "g" and str(a.get("class", "")).startswith("alarm")]
    assert [a["class"] for a in drawn].count("alarm stops") == 2 and len(drawn) == 3
    described = " ".join(str(a.get("aria-label")) for _, a in found.elements if a.get("aria-label"))
    assert "alarm heldout stopped after step 19" in described


def test_a_run_that_went_on_is_not_called_stopped(tmp_path: Path) -> None:
    found = parsed(alarmed(tmp_path, [RUNG, STOPPED], status={"state": "finished", "stopped": ""}))
    assert "stopped by an alarm" not in found.text


def test_findings_tell_each_alarm_once_and_the_stop_where_the_run_ended(tmp_path: Path) -> None:
    again = {**RUNG, "step": 25}
    run = read_run(
        alarmed(tmp_path, [RUNG, STOPPED, again], status={"stopped": f"alarm heldout: {STOPPED['sentence']}"})
    )
    told = findings(run)
    assert sum("alarm heldout" in sentence.lower() for sentence in told) == 1
    assert f"Alarm length after step 12, and 1 time more: {RUNG['sentence']}." in told
    assert not any("length" in sentence for sentence in findings(run, alarms=False))


def test_lines_that_are_no_alarms_are_passed_over(tmp_path: Path) -> None:
    wrong = [{"alarm": "x"}, {**RUNG, "value": None}, {**RUNG, "metrics": 7}, "{half a li\n", 3, RUNG]
    text = page(read_run(alarmed(tmp_path, [line if isinstance(line, str | dict) else f"{line}\n" for line in wrong])))
    assert text.count("outputs grew") + text.count("Outputs grew") == 1


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_sentence_of_an_alarm_becomes_markup(tmp_path: Path, hostile: str) -> None:
    line = {**RUNG, "alarm": hostile, "sentence": hostile * 3, "metrics": ["reward", hostile]}
    found = parsed(alarmed(tmp_path, [line]))
    assert hostile in found.text


def test_a_run_without_alarms_has_no_list_of_them(tmp_path: Path) -> None:
    assert 'id="alarms"' not in page(read_run(alarmed(tmp_path, [])))


# ---------------------------------------------------------------- what lengths mean


@pytest.mark.parametrize("kind", ["language", "classifier", "slate", ""])
def test_lengths_are_shown_of_texts_alone(tmp_path: Path, kind: str) -> None:
    edges = [0.0, 1.0, 2.0]
    drawn = [{"step": step, "length": {"edges": edges, "counts": [step, 3]}} for step in range(3)]
    folder = alarmed(
        tmp_path, [], run={"kind": kind}, histograms=drawn, evaluation_before=EVALUATION, evaluation=EVALUATION
    )
    text = parsed(folder).text
    shown = kind in ("language", "")
    for told in ("Length of completions", "Lengths of completions", "mean length"):
        assert (told in text) == shown, told


# ---------------------------------------------------------------- one and many


def test_one_is_told_as_one(tmp_path: Path) -> None:
    rows = metrics(1)
    rows[0] |= {"skipped": 1.0, "grader_errors": 1.0, "loss": None}
    evaluation = {**EVALUATION, "excluded": 1, "missing": ["a"], "error": "no"}
    folder = write_run(
        tmp_path, rows, run={"total": 1}, result={"dropped": 1, "stopped": "enough"}, evaluation=evaluation
    )
    told = " ".join(findings(read_run(folder)))
    for said in (
        "after 1 of 1 step:",
        "1 step had a loss",
        "1 grading failed in training and was left out",
        "1 held-out item has no graded sample",
        "1 training row was longer",
        "at 1 of 1 step; that is a gap",
    ):
        assert said in told, told
