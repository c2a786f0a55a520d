"""melior export, melior trace, and a model's lineage, as a person types them"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from melior.cli.main import app
from melior.data.formats import read_examples
from melior.store import Store
from melior.types import Record

ASKED = [{"role": "user", "content": "Where is my parcel?"}]


@pytest.fixture
def log(tmp_path: Path) -> list[str]:
    """Options that name a store in which a better answer was learnt from."""
    where = str(tmp_path / "melior.db")
    with Store.open(where) as store:
        old = store.add_version("bot", "/m", fingerprint="f", files={}, base_model="tiny", method="sft").id
        name = store.add_records([Record(inputs=ASKED, output="=SUM(A1)", policy_version=old)], alias="prod")[0]
        store.add_feedback("demonstration", "On its way.", decision_id=name, source="ann", feedback_id="fb_better")
        store.add_feedback("helpful", "hardly", decision_id=name, source="\x1b[31mben", feedback_id="fb_words")
        store.add_feedback("helpful", False, decision_id=name, source="ben", feedback_id="fb_no")
        store.promote("bot", "prod", old, expected=None, forced=True)
    return ["--store", where]


def run(*words: str, status: int = 0) -> tuple[str, str]:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == status, done.stderr
    return done.stdout, done.stderr


def test_rows_are_written_and_what_is_left_out_is_said(log: list[str], tmp_path: Path) -> None:
    out = str(tmp_path / "liked.csv")
    said, warned = run("export", "ratings", "--metric", "helpful", "--format", "kto", "--to", out, *log)
    assert said.startswith(f"{out}: 1 rows of ratings in prompt-completion-label, data set ds_")
    assert "said by: ben 1" in said and "left out: 1 a value that is no number (first: fb_words)" in warned
    (row,) = read_examples(out).rows
    assert row.output == "=SUM(A1)" and row.rating == 0.0 and row.item["feedback_id"] == "fb_no"
    told, _ = run("export", "demonstrations", "--to", str(tmp_path / "rows.jsonl"), "--json", "--no-origin", *log)
    assert json.loads(told)["rows"] == 1 and "feedback_id" not in (tmp_path / "rows.jsonl").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["everything", "--to", "a.jsonl"], "kinds are demonstrations, preferences, ratings, tasks, decisions"),
        (["ratings", "--to", "a.jsonl"], "ratings are of one metric, such as helpful"),
        (["tasks", "--to", "a.txt"], "a.txt ends with none of .jsonl"),
        (["demonstrations", "--to", "a.jsonl", "--format", "mesages"], "did you mean 'messages'"),
        (["demonstrations", "--to", "a.jsonl", "--version", "ver_x"], "there is no version 'ver_x'"),
        (["demonstrations", "--to", "a.jsonl", "--since", "2999-01-01"], "the log has no demonstrations such as these"),
        (["decisions", "--to", "a.jsonl", "--most-per-source", "0.5"], "most_per_source says nothing of decisions"),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    log: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said, warned = run("export", *words, *log, status=1)
    assert said == "" and told in warned and warned.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("melior.db")] == []


def test_a_trace_is_a_tree_both_ways_and_a_lineage_too(log: list[str], tmp_path: Path) -> None:
    run("export", "demonstrations", "--to", str(tmp_path / "rows.jsonl"), *log)
    tree, _ = run("trace", "fb_better", *log)
    assert tree.splitlines()[0] == "feedback fb_better  demonstration = “On its way.” by ann"
    assert "└─ of: decision dec_" in tree and "decided by: version ver_" in tree and "row of: dataset ds_" in tree
    told = json.loads(run("trace", "bot@prod", "--json", *log)[0])
    assert told["kind"] == "version" and told["facts"]["decisions"] == 1 and told["came_from"] == []
    lineage, _ = run("models", "lineage", "bot", *log)
    assert "decided 1 outputs, on which 3 opinions were heard" in lineage and "1 rows of demonstrations" in lineage
    assert "\x1b" not in run("trace", "fb_words", *log)[0]
    assert "nothing here has the id 'fb_unknown'" in run("trace", "fb_unknown", *log, status=1)[1]
