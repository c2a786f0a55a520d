"""CSV as people have it: quotes, line ends inside fields, delimiters, and every fault told with its line"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.data.readers import Line, Problem, delimited
from melior.data.readers.delimited import read_delimited
from melior.errors import DataError

cells = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12)


def read(folder: Path, content: bytes, name: str = "rows.csv") -> list[Line | Problem]:
    path = folder / name
    path.write_bytes(content)
    return list(read_delimited(path))


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=5), st.sampled_from(",\t;|"))
def test_what_the_csv_module_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], delimiter: str
) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows([("first", "second"), *rows])
    found = read(tmp_path_factory.mktemp("rows"), text.getvalue().encode())
    assert [line.row for line in found if isinstance(line, Line)] == [{"first": a, "second": b} for a, b in rows]


def test_a_row_has_the_line_on_which_it_begins(tmp_path: Path) -> None:
    found = read(tmp_path, b'a,b\r\n1,"two\r\nlines"\r\n\r\n2,x\r\n')
    assert found == [Line(2, {"a": "1", "b": "two\r\nlines"}), Line(5, {"a": "2", "b": "x"})]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"1,2,3", "has 3 fields, the header has 2"),
        (b"1", "has 1 fields, the header has 2"),
        (b'"1"x,2', "not CSV"),
        (b"\xe9,2", "0xe9 in a is not UTF-8"),
    ],
)
def test_a_broken_row_is_told_and_the_others_are_read(tmp_path: Path, raw: bytes, reason: str) -> None:
    first, broken, last = read(tmp_path, b"a,b\n1,2\n" + raw + b"\n3,4\n")
    assert (first, last) == (Line(2, {"a": "1", "b": "2"}), Line(4, {"a": "3", "b": "4"}))
    assert isinstance(broken, Problem) and broken.line == 3 and reason in broken.reason


def test_a_quote_that_nobody_closes_is_told_where_it_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, broken = read(tmp_path, b'a,b\n1,2\n3,"four\n5,6\n')
    assert isinstance(first, Line) and isinstance(broken, Problem)
    assert broken.line == 3 and "a quoted field has no end" in broken.reason
    monkeypatch.setattr(delimited, "LONGEST_FIELD", 1000)
    before = csv.field_size_limit(1000)
    try:
        found = read(tmp_path, b'a,b\n1,2\n3,"four\n' + b"5,6\n" * 500)
    finally:
        csv.field_size_limit(before)
    assert next(one.line for one in found if isinstance(one, Problem)) == 3
    assert len([one for one in found if isinstance(one, Line)]) > 200  # the rows behind it are found again


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"a,b\n\n", "no rows; write at least one"),
        (b"a,b,a\n1,2,3\n", "'a' 2 times"),
        ("a,b".encode("utf-16"), "UTF-16"),
    ],
)
def test_a_header_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read(tmp_path, content)


def test_a_saved_index_gets_a_name(tmp_path: Path) -> None:
    assert read(tmp_path, b",text\n0,hello\n") == [Line(2, {"column_1": "0", "text": "hello"})]


def test_a_delimiter_inside_quotes_of_the_header_does_not_count(tmp_path: Path) -> None:
    assert read(tmp_path, b'"a,b,c";d\n1;2\n') == [Line(2, {"a,b,c": "1", "d": "2"})]
