"""rows of CSV and TSV files: a header, then one record per row, which may span lines"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from melior.data.readers.opening import beginning, has_mark, opened
from melior.data.readers.rows import Cell, Line, Problem
from melior.errors import DataError

DELIMITERS = ",\t;|"
RISKY = ("=", "+", "-", "@", "\t", "\r")  # with what a cell begins that a spreadsheet would run as a formula
LONGEST_FIELD = 1 << 24  # characters; a longer one is a quote that nobody closed


def read_delimited(
    path: str | Path, delimiter: str | None = None, names: Sequence[str] = ()
) -> Iterator[Line | Problem]:
    """The records under a header, every cell a string, numbered by the line on which they begin.

    `delimiter`: told by the first line where it is None. `names`: of the columns, where the first line is a row. Fields
    may hold line ends and doubled quotes (RFC 4180); a byte order mark, CRLF and compression are accepted; blank lines
    are passed over. Where there is a byte order mark, as spreadsheets and files made safe for them have, an apostrophe
    in front of what a spreadsheet would run as a formula is taken away again.

    Raises:
        DataError: if the file cannot be read, has no rows, or its header is unusable.
    """
    path = Path(path)
    delimiter = delimiter or delimiter_of(beginning(path))
    marked = has_mark(path)
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))
    with opened(path) as file, io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="") as text:
        records = csv.reader(text, delimiter=delimiter, strict=True)
        header = _checked(names, f"the names for {path}") if names else _header(records, path, marked)
        empty = True
        while True:
            start = records.line_num + 1
            try:
                cells = next(records)
            except StopIteration:
                break
            except csv.Error as error:
                empty = False
                yield Problem(start, _broken(error))
                continue
            if cells:
                empty = False
                yield _row(header, list(map(plain_cell, cells)) if marked else cells, start)
    if empty:
        raise DataError(f"{path} has {'no rows' if names else 'a header and no rows'}; write at least one")


def delimiter_of(start: bytes) -> str:
    """The one of , tab ; | that the header has most of, outside quotes."""
    header = start.decode("utf-8", "replace").lstrip().partition("\n")[0]
    outside = "".join(header.split('"')[::2])
    return max(DELIMITERS, key=outside.count)


def safe_cell(cell: str) -> str:
    """The cell, with an apostrophe in front where a spreadsheet would run it, or would without those it has."""
    return f"'{cell}" if cell.lstrip("'").startswith(RISKY) else cell


def plain_cell(cell: str) -> str:
    """The cell that `safe_cell` made safe."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(RISKY) else cell


def _header(records: Iterator[list[str]], path: Path, marked: bool) -> list[str]:
    try:
        header = [name.strip() for name in next((cells for cells in records if cells), [])]
        header = list(map(plain_cell, header)) if marked else header
    except csv.Error as error:
        raise DataError(f"{path} has no usable header: {_broken(error)}") from error
    if not header:
        raise DataError(f"{path} is empty; write a header with the columns' names, then one row per line")
    return _checked(header, f"the header of {path}")


def _checked(names: Sequence[str], whose: str) -> list[str]:
    header = [name or f"column_{place}" for place, name in enumerate(names, start=1)]  # as of a saved index
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise DataError(f"{whose} has {twice[0]!r} {header.count(twice[0])} times; give each its own name")
    return header


def _row(header: Sequence[str], cells: Sequence[str], number: int) -> Line | Problem:
    if len(cells) != len(header):
        remedy = "put fields with the delimiter inside into double quotes"
        return Problem(number, f"has {len(cells)} fields, the header has {len(header)}; {remedy}")
    for name, cell in zip(header, cells, strict=True):
        bad = next((character for character in cell if "\ud800" <= character <= "\udfff"), None)
        if bad is not None:
            return Problem(number, f"byte {ord(bad) - 0xDC00:#04x} in {name} is not UTF-8; save the file as UTF-8")
    return Line(number, dict(zip(header, map(Cell, cells), strict=True)))


def _broken(error: csv.Error) -> str:
    if "limit" in str(error) or "end of data" in str(error):
        return f"a quoted field has no end ({error}); close its double quote, and write quotes inside it twice"
    return f"not CSV: {error}; write quotes inside a quoted field twice"
