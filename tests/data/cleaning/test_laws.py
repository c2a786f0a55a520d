"""laws of a check: a fixed file has no errors, findings do not depend on order, nothing is lost"""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plants import KEY
from real_rows import write

from melior.data.cleaning import CODES, CheckConfig, CheckReport, check_file
from melior.data.formats import FORMATS, Example, Reading, read_examples
from melior.data.readers import Line, read_rows
from melior.types import Record

QUIET = CheckConfig(languages=False)
WORDS = (
    "card",
    "money",
    "arrived",
    "pending",
    "transfer",
    "why",
    "cash",
    "today",
    "bank",
    "top-up",
    "fee",
    "é",
    "10",
    "25",
)
DIRT = (
    "",
    "",
    "",
    "\u200b",
    "\x07",
    "Ã©",
    "&amp;",
    "jane.doe@acme-mail.com",
    KEY,
    "+49 30 901820 55",
    "e\u0301",
    "\ufffd",
)

texts = st.builds(
    lambda words, dirt, place: " ".join([*words[:place], *([dirt] if dirt else []), *words[place:]]),
    st.lists(st.sampled_from(WORDS), min_size=3, max_size=14),
    st.sampled_from(DIRT),
    st.integers(0, 14),
)
answers = st.one_of(texts, st.sampled_from(["", "  ", "yes", "Yes", "no", "\u200b", "42"]))
pairs = st.builds(lambda prompt, completion: {"prompt": prompt, "completion": completion}, texts, answers)
preferences = st.builds(lambda p, a, b: {"prompt": p, "chosen": a, "rejected": b}, texts, answers, answers)
tasks = st.builds(
    lambda prompt, answer: {"prompt": prompt, **({"answer": answer} if answer is not None else {})},
    texts,
    st.one_of(st.none(), answers),
)
chats = st.builds(
    lambda prompt, answer, weight: {
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer, "weight": weight},
        ]
    },
    texts,
    answers,
    st.sampled_from([0, 1, 1]),
)
broken = st.sampled_from(['{"prompt": "a', "{}", '{"frage": "wo?"}', '{"prompt": ["x"], "completion": "y"}'])
files = st.builds(
    lambda rows, others, again, seed: random.Random(seed).sample(
        rows + others + rows[:again], len(rows) + len(others) + min(again, len(rows))
    ),
    st.one_of(*(st.lists(kind, min_size=4, max_size=14) for kind in (pairs, preferences, tasks, chats))),
    st.lists(st.one_of(broken, pairs, tasks), max_size=3),
    st.integers(0, 3),
    st.integers(0, 99),
)
heldouts = st.one_of(
    st.none(), st.lists(texts.map(lambda text: {"prompt": text, "completion": "yes"}), min_size=1, max_size=4)
)
laws = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def checked(folder: Path, rows: list[Any], heldout: list[Any] | None = None, **how: Any) -> CheckReport:
    path = write(folder / "rows.jsonl", rows)
    other = write(folder / "heldout.jsonl", heldout) if heldout else None
    return check_file(path, QUIET, heldout=other, **how)


@laws
@given(files, heldouts)
def test_a_fixed_file_has_no_errors_and_fixing_it_again_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], heldout: list[Any] | None
) -> None:
    folder = tmp_path_factory.mktemp("fix")
    fixed = checked(folder, rows, heldout, fix=folder / "clean.jsonl").fixed
    assert fixed is not None
    left = [line.row for line in read_rows(folder / "clean.jsonl")] if fixed.kept else []  # type: ignore[union-attr]
    if left:
        again = checked(folder, left, heldout, fix=folder / "again.jsonl")
        assert [finding.code for finding in again.of("error")] == []
        assert again.fixed is not None and again.fixed.changed == {}


@laws
@given(files, heldouts, st.randoms(use_true_random=False))
def test_findings_do_not_depend_on_the_order_of_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], heldout: list[Any] | None, draw: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("order")
    shuffled = draw.sample(rows, len(rows))

    def told(rows: list[Any]) -> Counter[tuple[str, str]]:
        report = checked(folder, rows, heldout)
        alone = [finding for finding in report.findings if finding.code not in ("duplicate", "duplicate-id")]
        found = Counter((f.code, json.dumps(rows[int(line) - 1])) for f in alone for line in f.lines)
        return found + Counter({(f.code, ""): f.count for f in report.findings})

    assert told(rows) == told(shuffled)


@laws
@given(files)
def test_every_row_is_kept_as_it_was_or_told(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("lost")
    report = checked(folder, rows, fix=folder / "clean.jsonl")
    assert report.fixed is not None
    assert report.fixed.kept + report.fixed.removed_count == report.rows == len(rows)
    gone = {line for lines in report.fixed.removed.values() for line in lines}
    changed = {line for lines in report.fixed.changed.values() for line in lines} - gone
    out = (folder / "clean.jsonl").read_text().splitlines()
    kept = [number for number in range(1, len(rows) + 1) if number not in gone]
    for number, line in zip(kept, out, strict=True):
        if number not in changed:
            assert json.loads(line) == rows[number - 1]
    removed = [json.loads(line) for line in (folder / "clean.removed.jsonl").read_text().splitlines()]
    assert {told["line"] for told in removed} == gone and all(told["reason"] for told in removed)
    before = {told["line"]: told["before"] for told in map(json.loads, (folder / "clean.changed.jsonl").open())}
    assert before == {number: rows[number - 1] for number in changed}
    assert all(finding.count == len(set(finding.lines)) for finding in report.findings)


def test_two_workers_find_what_one_does(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [
        {
            "prompt": " ".join(draw.choices(WORDS, k=8)),
            "completion": " ".join(draw.choices(WORDS, k=draw.randint(0, 6))),
        }
        for _ in range(3000)
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    one, two = (check_file(path, CheckConfig(languages=False, workers=n)).to_json() for n in (1, 2))
    assert one == two


def test_a_folder_names_the_file_of_each_row(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    write(tmp_path / "rows" / "a.jsonl", [{"prompt": "one thing", "completion": "yes"}])
    write(
        tmp_path / "rows" / "b.jsonl",
        [{"prompt": "another", "completion": "no"}, {"prompt": "third", "completion": ""}],
    )
    finding = check_file(tmp_path / "rows", QUIET).finding("empty-answer")
    assert finding is not None and list(finding.lines) == ["b.jsonl:2"]


def test_lines_are_those_of_the_file_not_of_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion\n"two\nlines",yes\nsecond,\nthird,no\n')
    finding = check_file(path, QUIET, fix=tmp_path / "out.jsonl").finding("empty-answer")
    assert finding is not None and list(finding.lines) == [4]
    assert [line.row["prompt"] for line in read_rows(tmp_path / "out.jsonl") if isinstance(line, Line)] == [
        "two\nlines",
        "third",
    ]


ROWS = [(format.name, format.sample) for format in FORMATS]
ROWS += [("alpaca", {"instruction": "Write JSON.", "output": '{"a": [1, 2]}', "history": ""})]


@pytest.mark.parametrize(("name", "row"), ROWS)
@pytest.mark.parametrize("note", ["nothing amiss", "Tom &amp; Jerry"])
def test_a_table_is_fixed_to_rows_that_read_the_same(tmp_path: Path, name: str, row: dict[str, Any], note: str) -> None:
    source = tmp_path / "rows.csv"
    cells = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in {**row, "note": note}.items()
    }
    with source.open("w", newline="") as file:
        csv.writer(file).writerows([cells.keys(), cells.values()])
    reading = Reading(label="label", drop=("note",), least_rows=1) if name == "table" else Reading()
    fixed = check_file(source, replace(QUIET, reading=reading), fix=tmp_path / "clean.jsonl").fixed
    assert fixed is not None and fixed.kept == 1

    def read(path: Path) -> list[Example]:
        rows = read_examples(path, format=name, reading=reading).rows
        kept = [{key: value for key, value in example.item.items() if key != "note"} for example in rows]
        unnamed = [example if isinstance(example, Record) else replace(example, id="") for example in rows]
        return [replace(example, item=item) for example, item in zip(unnamed, kept, strict=True)]

    assert read(tmp_path / "clean.jsonl") == read(source)


def test_what_cannot_be_read_is_removed_even_where_nobody_asks(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"prompt": "What is it?", "completion": "It."}, '{"prompt": "a'])
    config = CheckConfig(languages=False, ignore=frozenset(code.name for code in CODES) - {"duplicate"})
    report = check_file(path, config, fix=tmp_path / "clean.jsonl")
    assert report.findings == [] and report.fixed is not None
    assert report.fixed.kept == 1 and report.fixed.removed == {"invalid-row": [2]}
    assert "cut short" in json.loads((tmp_path / "clean.removed.jsonl").read_text())["reason"]
