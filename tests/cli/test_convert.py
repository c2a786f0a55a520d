"""melior convert: as a person calls it, mistakes included"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from melior.cli.main import app
from melior.data.formats import FORMATS

runner = CliRunner()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "faq.csv"
    path.write_text("question,answer\nWhere?,Here\nWhen?,\n")
    return path


def test_a_table_becomes_chats(table: Path, tmp_path: Path) -> None:
    names = ["--rename", "question=prompt", "--rename", "answer=completion"]
    stopped = runner.invoke(app, ["convert", str(table), *names, "--out", str(tmp_path / "chats.jsonl")])
    assert stopped.exit_code == 1
    assert "faq.csv, line 3: completion is empty: nothing to learn" in stopped.stderr and "--skip" in stopped.stderr
    out = ["--to", "openai-sft", "--out", str(tmp_path / "chats.jsonl"), "--skip"]
    done = runner.invoke(app, ["convert", str(table), *names, *out])
    assert done.exit_code == 0 and "1 rows in messages, from 1 rows in prompt-completion" in done.stdout
    assert "left out: line 3" in done.stderr
    roles = [message["role"] for message in json.loads((tmp_path / "chats.jsonl").read_text())["messages"]]
    assert roles == ["user", "assistant"]
    told = json.loads(runner.invoke(app, ["convert", str(table), *names, *out, "--json"]).stdout)
    assert (told["read"], told["written"], told["to"], len(told["unreadable"])) == (1, 1, "messages", 1)


def test_the_list_shows_every_format_with_a_row() -> None:
    told = json.loads(runner.invoke(app, ["convert", "--list", "--json"]).stdout)
    assert [one["name"] for one in told] == [format.name for format in FORMATS]
    plain = runner.invoke(app, ["convert", "--list"]).stdout
    assert all(format.name in plain for format in FORMATS)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "the source is missing"),
        (["{table}"], "--out is missing"),
        (["{table}", "--out", "x.doc"], "found the columns answer, question"),
        (["{table}", "--out", "x.jsonl", "--rename", "question"], "--rename is OLD=NEW"),
        (["{table}", "--out", "x.jsonl", "--alpaca", "mine"], "joined or published"),
        (["none.jsonl", "--out", "x.jsonl"], "cannot be read"),
        (["{table}", "--out", "x.jsonl", "--from", "alpacca"], "did you mean 'alpaca'"),
    ],
)
def test_mistakes_are_one_sentence(table: Path, arguments: list[str], reason: str) -> None:
    done = runner.invoke(app, ["convert", *(argument.format(table=table) for argument in arguments)])
    assert done.exit_code == 1 and reason in done.stderr and done.stderr.count("\n") == 1
