"""tables and pictures: what a column shows, what leaks, and what cannot be decoded; no row is near another"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from melior.data.cleaning import CheckConfig, check_file
from melior.data.formats import Reading, read_examples

CONFIG = CheckConfig(languages=False, reading=Reading(label="risk"))


def table(folder: Path, name: str = "rows.csv", first: int = 0, rows: int = 60) -> Path:
    """A table with one fault in each column, but for `age`."""
    path = folder / name
    lines = ["id,age,country,note,decided,risk"]
    for number in range(first, first + rows):
        risk = "bad" if number % 3 == 0 else "good"
        note = "x" if number % 10 == 0 else ""
        lines.append(f"c{number},{number % 40 + 0.5},DE,{note},{'N' if risk == 'bad' else 'Y'},{risk}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_every_fault_of_a_column_is_told(tmp_path: Path) -> None:
    found = check_file(table(tmp_path), CONFIG)
    told = {finding.code: finding.detail for finding in found.findings}
    assert told == {
        "identifier-column": "id",
        "constant-column": "country",
        "missing-values": "note (90%)",
        "tells-label": "decided",
    }
    dropped = replace(CONFIG, reading=Reading(label="risk", drop=("id", "country", "note", "decided")))
    left = check_file(table(tmp_path), dropped)
    assert {finding.code for finding in left.findings} <= {"duplicate", "contradiction"}
    assert left.finding("contradiction") is not None  # 40 ages, 60 rows: some have both labels


def test_rows_of_a_table_are_equal_or_not(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    rows = [
        f"{number},a long text that is the same in every row of the table,{'ab'[number % 2]}" for number in range(30)
    ]
    path.write_text("\n".join(["x,note,risk", *rows, rows[0], rows[1].replace(",b", ",a")]) + "\n")
    found = check_file(path, CONFIG)
    assert found.finding("near-duplicate") is None
    duplicate, contradiction = found.finding("duplicate"), found.finding("contradiction")
    assert duplicate is not None and list(duplicate.lines) == [32]
    assert contradiction is not None and list(contradiction.lines) == [3, 33]


def test_rows_of_a_held_out_table_leak_exactly(tmp_path: Path) -> None:
    train, heldout = table(tmp_path), table(tmp_path, "heldout.csv", first=50)
    fixed = tmp_path / "clean.jsonl"
    found = check_file(train, CONFIG, heldout=heldout, fix=fixed)
    leak = found.finding("leak-exact")
    assert leak is not None and list(leak.lines) == list(range(52, 62))
    rows = read_examples(fixed, reading=Reading(label="risk")).rows
    assert len(rows) == 50 and rows[0].inputs["age"] == 0.5 and rows[1].inputs["note"] is None
    known = read_examples(train, reading=Reading(label="risk")).rows[:50]
    assert [row.inputs for row in rows] == [row.inputs for row in known]


def test_chats_that_open_alike_do_not_leak(tmp_path: Path) -> None:
    import json

    def chats(name: str, first: int) -> Path:
        path = tmp_path / name
        told = [["Hi", "Hello!", f"Question {n}?", f"Answer {n}."] for n in range(first, first + 5)]
        roles = ("user", "assistant", "user", "assistant")
        lines = [{"messages": [{"role": r, "content": c} for r, c in zip(roles, texts, strict=True)]} for texts in told]
        path.write_text("\n".join(map(json.dumps, lines)))
        return path

    quiet = CheckConfig(languages=False, ignore=frozenset({"leak-near"}))
    assert check_file(chats("a.jsonl", 0), quiet, heldout=chats("b.jsonl", 5)).finding("leak-exact") is None
    leak = check_file(chats("a.jsonl", 0), quiet, heldout=chats("b.jsonl", 4)).finding("leak-exact")
    assert leak is not None and list(leak.lines) == [5]


def test_pictures_that_cannot_be_decoded_are_told(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    for place in range(4):
        (tmp_path / "photos" / "ab"[place % 2]).mkdir(parents=True, exist_ok=True)
        pillow.new("RGB", (40, 40), (place * 60, 9, 9)).save(tmp_path / "photos" / "ab"[place % 2] / f"{place}.jpg")
    whole = tmp_path / "photos" / "a" / "0.jpg"
    (tmp_path / "photos" / "b" / "cut.jpg").write_bytes(whole.read_bytes()[:-200])
    (tmp_path / "photos" / "b" / "same.jpg").write_bytes(whole.read_bytes())
    found = check_file(tmp_path / "photos", CheckConfig(languages=False))
    broken, contradiction = found.finding("unreadable-image"), found.finding("contradiction")
    assert broken is not None and len(broken.lines) == 1
    assert contradiction is not None and len(contradiction.lines) == 2  # one picture, two labels
