"""melior check says what is wrong, fails on errors, and writes the file without them"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from melior.cli.main import app
from melior.data.cleaning import CODES

GOOD = [{"prompt": f"What is the colour of thing number {i}?", "completion": "Blue."} for i in range(9)]


def call(*arguments: Any, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["check", *map(str, arguments), "--no-languages"])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = [
        *GOOD,
        {**GOOD[0]},
        {"prompt": "Is it empty?", "completion": ""},
        {"prompt": "\u200bHi there", "completion": "Hi."},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_errors_end_with_status_1_and_the_next_command(source: Path) -> None:
    shown = call(source, code=1).stdout
    assert "✗ empty-answer" in shown.replace("✗  ", "✗ ") and "11: completion is empty" in shown
    assert "10: like line 1" in shown
    assert f"check {source} --fix rows.clean.jsonl" in shown


def test_the_fixed_file_passes_and_the_report_lists_every_line(source: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "clean.jsonl", tmp_path / "report.json"
    shown = call(source, "--fix", out, "--report", report, code=1).stdout
    assert f"{out}: 10 rows, 1 of them changed" in shown and "2 rows that were removed" in shown
    told = json.loads(report.read_text())
    assert told["fixed"]["removed"] == {"empty-answer": [11], "duplicate": [10]}
    assert told["fixed"]["changed"] == {"invisible-characters": [12]}
    again = call(out).stdout
    assert "Nothing found" in again


def test_json_holds_what_the_report_holds(source: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    printed = json.loads(call(source, "--report", report, "--json", code=1).stdout)
    assert printed == json.loads(report.read_text())


def test_strict_fails_on_warnings_and_only_narrows(source: Path) -> None:
    call(source, "--only", "duplicate")
    call(source, "--only", "duplicate", "--strict", code=1)
    assert "Nothing found" in call(source, "--only", "leak-exact").stdout


def test_mistakes_are_told_in_one_sentence(source: Path) -> None:
    for arguments, words in (
        (["nowhere.jsonl"], "nowhere.jsonl"),
        ([source, "--ignore", "duplicates"], "did you mean duplicate"),
        ([source, "--max-length", "10"], "name the model"),
        ([source, "--fix", source], "write the cleaned rows to another"),
        ([source, "--near", "7"], "from 0.5 to 1"),
        ([source, "--report", source], "write it to another place"),
        ([source, "--fix", "out.jsonl", "--report", "out.jsonl"], "write it to another place"),
        ([], "name the file"),
    ):
        told = call(*arguments, code=1).stderr.strip().splitlines()
        assert told[-1].startswith("melior: ") and words in told[-1]


def test_codes_are_listed() -> None:
    assert "near-duplicate" in call("--codes").stdout
    assert len(json.loads(call("--codes", "--json").stdout)) > 30


def test_a_file_cannot_steer_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"\x1b[2Jquestion": "\x1b[31mred"}) + "\n")
    result = call(path, code=1)
    assert "\x1b" not in result.output and "none of them usable" in result.stdout
    out = tmp_path / "out.jsonl"
    stopped = CliRunner().invoke(app, ["convert", str(path), "--out", str(out)])
    assert stopped.exit_code == 1 and "\x1b" not in stopped.output and "question" in stopped.stderr


def test_the_page_on_data_names_every_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    assert [code.name for code in CODES if f"`{code.name}`" not in page] == []
