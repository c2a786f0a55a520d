"""every kind of source gives the same rows, each with its place"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from melior.data.readers import Line, Problem, is_part_of, read_rows
from melior.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"prompt": "one", "completion": "eins"},
    {"prompt": "two,\n with a line", "completion": 'zwei "quoted"'},
    {"prompt": "three", "completion": "drei ✓"},
]


def lines(rows: list[dict[str, Any]] = ROWS) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def table(rows: list[dict[str, Any]], delimiter: str) -> bytes:
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in row.values()] for row in rows]
    return "\r\n".join(delimiter.join(cells) for cells in [list(rows[0]), *quoted]).encode()


def parquet(folder: Path) -> bytes:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(arrow.Table.from_pylist(ROWS), folder / "made.parquet")
    return (folder / "made.parquet").read_bytes()


KINDS: dict[str, Callable[[Path], bytes]] = {
    "rows.jsonl": lambda folder: lines(),
    "rows.ndjson": lambda folder: lines().replace(b"\n", b"\r\n"),
    "rows.jsonl.gz": lambda folder: gzip.compress(lines()),
    "rows.jsonl.bz2": lambda folder: bz2.compress(lines()),
    "rows.jsonl.xz": lambda folder: lzma.compress(lines()),
    "rows.json": lambda folder: json.dumps(ROWS, indent=2).encode(),
    "list.jsonl": lambda folder: json.dumps(ROWS).encode(),
    "lines.json": lambda folder: lines(),
    "rows.csv": lambda folder: b"\xef\xbb\xbf" + table(ROWS, ","),
    "rows.csv.gz": lambda folder: gzip.compress(table(ROWS, ";")),
    "rows.tsv": lambda folder: table(ROWS, "\t"),
    "rows.parquet": parquet,
    "lines_without_suffix": lambda folder: lines(),
    "list_without_suffix": lambda folder: json.dumps(ROWS).encode(),
    "table.txt": lambda folder: table(ROWS, "|"),
    "parquet.data": parquet,
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(KINDS[name](tmp_path))
    found = list(read_rows(path))
    assert [line.row for line in found if isinstance(line, Line)] == ROWS
    assert list(read_rows(str(path))) == found


def test_a_damaged_archive_is_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    whole = gzip.compress(os.urandom(50_000).hex().join(['{"a": "', '"}\n']).encode() * 3)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged or cut short"):
        list(read_rows(path))


@pytest.mark.parametrize(("content", "reason"), [(b"", "is empty"), (b"just words\n", "no known kind")])
def test_a_file_of_no_known_kind_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        list(read_rows(path))
    with pytest.raises(DataError, match="check the path"):
        list(read_rows(tmp_path / "none.csv"))


def test_a_folder_of_files_is_read_in_turn_and_its_splits_apart(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000-of-00002.jsonl").write_bytes(lines(ROWS[:1]))
    (tmp_path / "data" / "train-00001-of-00002.csv").write_bytes(table(ROWS[1:2], ","))
    (tmp_path / "data" / "test.jsonl").write_bytes(lines(ROWS[2:]) + b"{broken\n")
    (tmp_path / "README.md").write_text("# data")
    found = list(read_rows(f"{tmp_path}@train"))
    assert [line.row for line in found if isinstance(line, Line)] == ROWS[:2]
    assert [(line.file, getattr(line, "number", None)) for line in found] == [
        ("data/train-00000-of-00002.jsonl", 1),
        ("data/train-00001-of-00002.csv", 2),
    ]
    _, problem = read_rows(f"{tmp_path}@test")
    assert isinstance(problem, Problem) and str(problem).startswith("data/test.jsonl, line 2: not JSON")
    with pytest.raises(DataError, match=r"2 splits \(test, train\); choose one"):
        list(read_rows(tmp_path))
    with pytest.raises(DataError, match="no split 'dev'; it has test, train"):
        list(read_rows(f"{tmp_path}@dev"))
    with pytest.raises(DataError, match="is a file and has no splits"):
        list(read_rows(f"{tmp_path}/data/test.jsonl@train"))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no data file"):
        list(read_rows(tmp_path))


def test_held_out_files_are_never_read_as_training(tmp_path: Path) -> None:
    for name in ("train.jsonl", "test2.jsonl", "held-out.jsonl"):
        (tmp_path / name).write_text(json.dumps({"prompt": name}) + "\n")
    with pytest.raises(DataError, match=r"3 splits \(heldout, test, train\); choose one"):
        list(read_rows(tmp_path))
    assert [line.file for line in read_rows(f"{tmp_path}@heldout")] == ["held-out.jsonl"]
    assert [line.file for line in read_rows(f"{tmp_path}@test")] == ["test2.jsonl"]


def test_what_writing_would_change_of_a_source_is_known(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = tmp_path / "data" / "rows.jsonl"
    rows.write_bytes(lines())
    (tmp_path / "link.jsonl").symlink_to(rows)
    for same in (rows, tmp_path / "link.jsonl", tmp_path / "data" / ".." / "data" / "rows.jsonl"):
        assert is_part_of(same, rows)
    for folder in (tmp_path / "data", f"{tmp_path}/data@train"):
        assert is_part_of(rows, folder) and is_part_of(tmp_path / "data" / "new.jsonl", folder)
    for source in (rows, tmp_path / "data", "hub:someone/rows@train"):
        assert not is_part_of(tmp_path / "other.jsonl", source)
