"""every way a JSONL file can be broken is told with its line"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.data.readers import Line, Problem, read_jsonl
from melior.errors import DataError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def read(folder: Path, content: bytes) -> list[Line | Problem]:
    path = folder / "rows.jsonl"
    path.write_bytes(content)
    return list(read_jsonl(path))


@given(st.lists(st.dictionaries(st.text(), json_values), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]], crlf: bool, mark: bool
) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = ("\r\n" if crlf else "\n").join(lines)
    content = (b"\xef\xbb\xbf" if mark else b"") + text.encode()
    read_back = read(tmp_path_factory.mktemp("rows"), content)
    assert read_back == [Line(number, row) for number, row in enumerate(rows, start=1)]


def test_blank_lines_are_passed_over_and_counted(tmp_path: Path) -> None:
    assert read(tmp_path, b'{"a": 1}\n\n  \r\n{"a": 2}\n\n') == [Line(1, {"a": 1}), Line(4, {"a": 2})]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"a": "b', "cut short"),
        (b'{"a": 1', "cut short"),
        (b'{"a": 1,', "cut short"),
        (b'{"a" 1}', "column 6"),
        (b'{"a": NaN}', "NaN is not a JSON value"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON value"),
        (b'{"a": "\xe9"}', "0xe9"),
        (b"[1]", "a list"),
        (b'"text"', "a string"),
        (b"null", "null"),
        (b"true", "a boolean"),
        (b"1", "a number"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "not JSON"),
    ],
)
def test_a_broken_line_is_told_and_the_others_are_read(tmp_path: Path, raw: bytes, reason: str) -> None:
    first, broken, last = read(tmp_path, b'{"a": 1}\n' + raw + b'\n{"a": 2}')
    assert (first, last) == (Line(1, {"a": 1}), Line(3, {"a": 2}))
    assert isinstance(broken, Problem) and broken.line == 2 and reason in broken.reason


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    assert read(tmp_path, b'{"a": "\\ud83d\\ude00"}') == [Line(1, {"a": "\U0001f600"})]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n \r\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        (b'[\n{"a": 1}\n]', "JSON list"),
    ],
)
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read(tmp_path, content)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(DataError, match=str(path)):
            list(read_jsonl(path))


def test_rows_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b"broken\n" * 1000)
    assert next(read_jsonl(path)) == Line(1, {"a": 1})
