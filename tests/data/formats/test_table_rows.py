"""tables: columns are decided from all rows, nothing is guessed cell by cell, every fault has its line"""

from __future__ import annotations

from pathlib import Path

import pytest

from melior.data.formats import Reading, read_examples
from melior.data.writers import write_examples
from melior.errors import DataError

LABEL = Reading(label="risk", least_rows=1)


def write(folder: Path, text: str, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def column(folder: Path, *cells: str, reading: Reading = LABEL) -> list[object]:
    """How a column of a CSV file is read."""
    rows = "".join(f'"{cell}",x,{"ab"[place % 2]}\n' for place, cell in enumerate(cells))
    found = read_examples(write(folder, f"c,other,risk\n{rows}"), reading=reading).rows
    return [row.inputs["c"] for row in found]


def test_a_column_is_numbers_or_text_as_a_whole(tmp_path: Path) -> None:
    assert column(tmp_path, "1", "2.50", "-3e2", "") == [1, 2.5, -300, None]
    assert column(tmp_path, "1", "2.50", "unknown", "NA") == ["1", "2.50", "unknown", None]
    assert column(tmp_path, "unknown", "7") == ["unknown", "7"]  # wherever it stands


def test_codes_stay_text_and_missing_is_none(tmp_path: Path) -> None:
    assert column(tmp_path, "01067", "80331") == ["01067", "80331"]
    assert column(tmp_path, "0", "0.5") == [0, 0.5]
    assert column(tmp_path, "NA", "NaN", "nan", "null", "1") == [None, None, None, None, 1]
    assert column(tmp_path, "?", "1", reading=Reading(label="risk", least_rows=1, missing=("?",))) == [None, 1]
    declared = Reading(label="risk", least_rows=1, columns={"c": "text"})
    assert column(tmp_path, "1", "2", reading=declared) == ["1", "2"]


@pytest.mark.parametrize("cell", ["inf", "-Infinity", "1e999"])
def test_infinite_numbers_are_told_with_their_line(tmp_path: Path, cell: str) -> None:
    with pytest.raises(DataError, match=r"rows.csv:3: column c holds .*not finite"):
        column(tmp_path, "1", cell, "2")


def test_labels_audits_and_dropped_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "id,sex,age,risk\n1,f,30,good\n2,m,40,bad\n")
    reading = Reading(label="risk", drop=("id", "sex"), audit=("sex",), least_rows=1, label_names={"bad": "poor"})
    one, two = read_examples(path, reading=reading).rows
    assert one.inputs == {"age": 30} and one.output == "good" and one.item == {"label": "good", "sex": "f"}
    assert two.output == "poor" and two.id == "rows.csv:3"
    kept = read_examples(path, reading=Reading(label="risk", audit=("sex",), least_rows=1)).rows[0]
    assert kept.inputs == {"id": 1, "sex": "f", "age": 30} and kept.item["sex"] == "f"
    grouped = read_examples(path, reading=Reading(label="risk", group="id", least_rows=1)).rows[0]
    assert grouped.group == "1" and "id" not in grouped.inputs


def test_several_labels(tmp_path: Path) -> None:
    path = write(tmp_path, "age,risk\n30,a;b\n40,\n50,b; a;b\n")
    found = read_examples(path, reading=Reading(label="risk", separator=";", least_rows=1)).rows
    assert [row.output for row in found] == [("a", "b"), (), ("b", "a")]
    lists = write(tmp_path, '{"age": 3, "risk": ["a", "b"]}\n{"age": 4, "risk": []}\n', "rows.jsonl")
    assert [row.output for row in read_examples(lists, reading=LABEL).rows] == [("a", "b"), ()]


def test_a_table_without_header(tmp_path: Path) -> None:
    path = write(tmp_path, "A11;6;1\nA12;48;2\n")
    reading = Reading(label="risk", names=("status", "months", "risk"), least_rows=1)
    assert [row.inputs for row in read_examples(path, reading=reading).rows] == [
        {"status": "A11", "months": 6},
        {"status": "A12", "months": 48},
    ]
    with pytest.raises(DataError, match="has 3 fields, the header has 2"):
        read_examples(path, reading=Reading(label="b", names=("a", "b"), least_rows=1))


def test_labels_that_cannot_be_learnt_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, "age,risk\n1,good\n2,good\n3,bad\n4,\n")
    with pytest.raises(DataError, match=r"no column 'rsik' \(did you mean 'risk'\?\)"):
        read_examples(path, reading=Reading(label="rsik"))
    found = read_examples(path, on_error="skip", reading=Reading(label="risk"))
    assert len(found) == 2 and [problem.line for problem in found.problems] == [4, 5]
    assert "'bad' has fewer than 2 rows" in found.problems[0].reason and "empty" in found.problems[1].reason
    same = write(tmp_path, "age,risk\n1,good\n2,good\n", "same.csv")
    with pytest.raises(DataError, match="'good' in all 2 rows"):
        read_examples(same, reading=Reading(label="risk"))
    assert len(read_examples(same, reading=LABEL)) == 2  # rows to measure on


def test_held_out_rows_are_read_as_the_training_rows_were(tmp_path: Path) -> None:
    train = read_examples(write(tmp_path, "code,risk\n12,a\nx,b\n"), reading=LABEL)
    heldout = write(tmp_path, "code,risk\n13,a\n14,b\n", "heldout.csv")
    assert [row.inputs["code"] for row in read_examples(heldout, reading=LABEL).rows] == [13, 14]
    assert [row.inputs["code"] for row in read_examples(heldout, reading=train.reading).rows] == ["13", "14"]


def test_columns_that_some_rows_lack_are_none(tmp_path: Path) -> None:
    path = write(tmp_path, '{"a": 1, "risk": "x"}\n{"b": 2.0, "risk": "y"}\n{"a": "z", "risk": "x"}\n', "rows.jsonl")
    assert [row.inputs for row in read_examples(path, reading=LABEL).rows] == [
        {"a": "1", "b": None},
        {"a": None, "b": 2},
        {"a": "z", "b": None},
    ]
    nested = write(tmp_path, '{"a": [1], "risk": "x"}\n{"a": 2, "risk": "y"}\n', "nested.jsonl")
    with pytest.raises(DataError, match="column a holds"):
        read_examples(nested, reading=LABEL)


def test_what_is_a_text_with_a_label_stays_one(tmp_path: Path) -> None:
    path = write(tmp_path, "text,category\nwhere is my card,card\nhello,other\n")
    reading = Reading(label="category", least_rows=1)
    assert read_examples(path, reading=reading).rows[0].inputs == "where is my card"
    assert read_examples(path, format="table", reading=reading).rows[0].inputs == {"text": "where is my card"}
    other = write(tmp_path, "utterance,intent\nhello,other\nbye,end\n", "other.csv")
    named = Reading(text="utterance", label="intent", least_rows=1)
    assert read_examples(other, reading=named).rows[0].inputs == "hello"


def test_a_csv_table_says_what_it_cannot_keep(tmp_path: Path) -> None:
    rows = read_examples(write(tmp_path, "c,risk\n01,a\n02,b\n"), reading=LABEL).rows
    written = write_examples(tmp_path / "out.csv", rows, "table")
    assert any("text of c" in what for what in written.lost)
    assert not write_examples(tmp_path / "out.jsonl", rows, "table").lost
