"""examples become files: JSONL, a JSON list, CSV, TSV or Parquet, in any known format

What a format or a kind of file cannot hold is counted and told. A file is the old one or the new one, whole.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from melior.data.formats.known import FORMATS, format_named, format_of
from melior.data.formats.rows import MISSING, Example, Format, Kind, Lost, Reading, RowError, parsed
from melior.data.formats.tables import LABEL, NUMBER
from melior.data.readers import Problem
from melior.data.readers.delimited import RISKY, safe_cell
from melior.data.readers.parquet import JSON_TEXT, load_pyarrow
from melior.data.readers.sources import suffix_of
from melior.durable import durable_file
from melior.errors import ConfigError, DataError
from melior.types import Demonstration, Preference, Rated, Record, Task

GROUP = 1024  # rows of one Parquet group: a few megabytes of conversations
NUMBERS = ("margin", "probability", "rating", "score", "label")  # columns that formats read as numbers from text
TOLD = Reading(label=LABEL)  # of tables, which no column tells
KINDS: Mapping[type, Kind] = {
    Demonstration: "demonstrations",
    Task: "tasks",
    Preference: "preferences",
    Rated: "rated",
    Record: "logged",
}


@dataclass(frozen=True)
class Written:
    """What became of the examples: how many rows there are, what was lost, what could not be written."""

    rows: int
    format: str
    lost: Lost = field(default_factory=Counter)  # what the format or file does not hold, and in how many rows
    problems: list[Problem] = field(default_factory=list)  # line: the example's place, counted from 1


def write_examples(
    path: str | Path,
    examples: Iterable[Example],
    format: str | None = None,
    *,
    columns: bool = True,
    spreadsheet: bool = False,
    strict: bool = False,
    rename: Mapping[str, str] | None = None,
) -> Written:
    """Writes examples in a format, the kind of file told by the suffix (.gz compresses text), one at a time.

    `format`: the first that holds the kind of example if None. `columns=False` leaves the item out. `rename` gives
    columns of the format other names. `spreadsheet` makes a CSV file safe to open in one: cells that it would run as
    formulas get an apostrophe in front, which reading takes away again. `strict` stops at the first example that the
    format cannot hold, which is else listed.

    Raises:
        ConfigError: for an unknown format or suffix.
        DataError: if the format is for another kind of examples, or not one example can be written.
        CheckpointError: if the disk refuses; what was at `path` before is still there.
    """
    path = Path(path)
    suffix = suffix_of(path)
    if suffix not in WRITERS:
        raise ConfigError(f"{path} has the suffix {path.suffix!r}; files to write are {', '.join(WRITERS)}")
    if spreadsheet and suffix not in (".csv", ".tsv"):
        raise ConfigError(f"only CSV and TSV are made safe for spreadsheets, and {path.name} is neither")
    if suffix == ".parquet" and path.suffix.lower() != ".parquet":
        raise ConfigError(f"{path} is compressed twice: Parquet compresses itself; leave {path.suffix} out")
    chosen = format_named(format) if format else None
    rows = _Rows(examples, chosen, columns, strict, rename or {})
    with ExitStack() as stack:
        file = stack.enter_context(durable_file(path))
        if path.suffix.lower() == ".gz":
            zipped = gzip.GzipFile(path.stem, "wb", fileobj=file, mtime=0)  # equal rows, equal bytes
            file = cast(IO[bytes], stack.enter_context(zipped))
        elif suffix != ".parquet" and path.suffix.lower() != suffix:
            raise ConfigError(f"{path}: of compressions only .gz is written")
        WRITERS[suffix](file, rows, spreadsheet)
        if rows.count == 0:
            why = f", first: {rows.problems[0]}" if rows.problems else ": there are none"
            raise DataError(f"0 of {len(rows.problems)} examples can be written{why}")
    return Written(rows.count, rows.chosen.name, rows.lost, rows.problems)


class _Rows:
    """The rows of examples in one format, made as they are asked for, and what is lost on the way."""

    def __init__(
        self, examples: Iterable[Example], format: Format | None, columns: bool, strict: bool, rename: Mapping[str, str]
    ) -> None:
        self.rename = rename
        self.examples = examples
        self.format = format
        self.columns = columns
        self.strict = strict
        self.count = 0
        self.lost: Lost = Counter()
        self.problems: list[Problem] = []

    @property
    def chosen(self) -> Format:
        """The format, known once the first row was made."""
        assert self.format is not None
        return self.format

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, example in enumerate(self.examples, start=1):
            kind = KINDS[type(example)]
            self.format = self.format or next(format for format in FORMATS if format.kind == kind)
            if self.format.kind != kind:
                fitting = ", ".join(format.name for format in FORMATS if format.kind == kind)
                raise DataError(f"{self.format.name} holds {self.format.kind}, these are {kind}; write {fitting}")
            lost: Lost = Counter()
            id = getattr(example, "id", "")  # logged decisions have none
            try:
                row = self._row(self.format, example, lost)
            except (RowError, DataError) as error:
                if self.strict:
                    where = id or f"example {number}"
                    raise DataError(
                        f"{where} cannot be written as {self.format.name}: {error}; correct it, or leave such rows out "
                        "with --skip"
                    ) from error
                self.problems.append(Problem(number, f"{id}: {error}" if id else str(error)))
                continue
            self.count += 1
            self.lost.update(lost.keys())  # in how many rows, however often in each
            yield row

    def _row(self, format: Format, example: Example, lost: Lost) -> dict[str, Any]:
        row = format.row(example, lost)
        if not self.columns:
            own = {*format.columns, *format.optional, "group"}
            lost.update(f"column {name}" for name in row if name not in own)
            row = {name: value for name, value in row.items() if name in own}
        found = format_of(row, format.kind, TOLD if format.typed_cells else Reading())
        if found is not format:
            others = ", ".join(sorted(set(found.columns) - set(format.columns)))
            raise RowError(f"its columns {others} would make it read as {found.name}; rename them in the source")
        taken = next((new for old, new in self.rename.items() if old != new and new in row), None)
        if taken is not None:
            raise RowError(f"has a column {taken} already; rename it in the source")
        try:
            _json(row).encode()
        except UnicodeEncodeError as error:
            raise RowError(f"has half a character, which no file in UTF-8 can hold ({error.reason})") from error
        return {self.rename.get(name, name): value for name, value in row.items()}


def _write_lines(file: IO[bytes], rows: _Rows, spreadsheet: bool) -> None:
    for row in rows:
        file.write(_json(row).encode() + b"\n")


def _write_list(file: IO[bytes], rows: _Rows, spreadsheet: bool) -> None:
    opening = b"[\n"
    for row in rows:
        file.write(opening + _json(row).encode())
        opening = b",\n"
    file.write(b"\n]\n")


def _write_csv(file: IO[bytes], rows: _Rows, spreadsheet: bool, delimiter: str = ",") -> None:
    """The header needs the columns of all rows, so they wait in a temporary file."""
    spool = _Spool(rows)
    encoding = "utf-8-sig" if spreadsheet else "utf-8"  # by the mark a spreadsheet knows that it is UTF-8
    if not spool.columns:
        return
    text = io.TextIOWrapper(file, encoding, newline="", write_through=True)
    writer = csv.writer(text, delimiter=delimiter)  # ends lines as RFC 4180 has it, which also quotes a lone \r
    writer.writerow([safe_cell(name) if spreadsheet else name for name in spool.columns])
    for row in spool:
        cells = [_cell(row, name, rows.chosen, rows.lost) for name in spool.columns]
        risky = sum(cell.startswith(RISKY) for cell in cells)
        if risky:
            told = "cells with an apostrophe in front, so that no spreadsheet runs them"
            rows.lost[told if spreadsheet else "cells a spreadsheet would run as formulas (see --spreadsheet)"] += risky
        writer.writerow([safe_cell(cell) if spreadsheet else cell for cell in cells])
    text.detach()


def _write_tsv(file: IO[bytes], rows: _Rows, spreadsheet: bool) -> None:
    _write_csv(file, rows, spreadsheet, "\t")


def _cell(row: Mapping[str, Any], name: str, format: Format, lost: Lost) -> str:
    """A value as text; what will not read back as it was is counted."""
    value = row.get(name)
    if format.typed_cells:
        return _table_cell(value, name, lost)
    own = name in (*format.columns, *format.optional)
    if value is None:
        if not own and name != "group":
            lost[f"absence of {name}: an empty text in this kind of file"] += 1
        return ""
    if isinstance(value, str):
        if own and parsed(value) is not value:
            lost[f"text of {name} that reads as JSON in this kind of file"] += 1
        return value
    if not (own and (isinstance(value, list | dict) or name in NUMBERS)):
        lost[f"type of {name}: text in this kind of file"] += 1
    return _json(value)


def _table_cell(value: Any, name: str, lost: Lost) -> str:
    """A table's cell, whose number or absence is read back from its text."""
    if isinstance(value, str) and (value.strip() in MISSING or NUMBER.fullmatch(value) or value != value.strip()):
        lost[f"text of {name} that reads as a number or as nothing in this kind of file"] += 1
    return "" if value is None else value if isinstance(value, str) else _json(value)


def _write_parquet(file: IO[bytes], rows: _Rows, spreadsheet: bool) -> None:
    """Types need all rows, so they wait in a temporary file; what no one type holds is JSON text, marked as such."""
    arrow = load_pyarrow()
    spool = _Spool(rows)
    if not spool.columns:
        return
    rows.lost.update({f"null of {name}, now absent": count for name, count in spool.nulls.items()})
    schema, texts = _schema(arrow, spool)
    with arrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for part in spool.parts():
            for row in part:
                row.update({name: _json(row[name]) for name in texts if name in row})
            writer.write_table(arrow.Table.from_pylist(part, schema=schema))


def _schema(arrow: Any, spool: _Spool) -> tuple[Any, list[str]]:
    """One type per column, and the columns that have none."""
    types: dict[str, Any] = {}
    texts: list[str] = []
    for part in spool.parts():
        for name in spool.columns:
            values = [row[name] for row in part if name in row]
            found = None if name in texts or not values else _type(arrow, values, types.get(name))
            if found is None and values and name not in texts:
                texts.append(name)
            elif found is not None:
                types[name] = found
    fields = [
        arrow.field(name, arrow.string(), metadata={JSON_TEXT: b"1"})
        if name in texts
        else arrow.field(name, types[name])
        for name in spool.columns
        if name in texts or name in types  # a column of nulls alone is absent
    ]
    return arrow.schema(fields), texts


def _type(arrow: Any, values: list[Any], before: Any) -> Any:
    """The type that holds these values and those of before exactly; None if there is none."""
    try:
        found = arrow.infer_type(values)
        column = arrow.schema([arrow.field("column", found)])
        if before is not None:
            column = arrow.unify_schemas([arrow.schema([arrow.field("column", before)]), column])
        held = arrow.array(values, column.field("column").type).to_pylist()
    except (arrow.ArrowException, OverflowError, ValueError, TypeError):
        return None
    type = column.field("column").type
    exact = all(_same(one, other) for one, other in zip(values, held, strict=True))
    return type if exact and not arrow.types.is_null(type) and not _childless(arrow, type) else None


def _childless(arrow: Any, type: Any) -> bool:
    """Whether a type holds an object without a key, which Parquet cannot."""
    if arrow.types.is_struct(type) and type.num_fields == 0:
        return True
    nested = arrow.types.is_nested(type)
    return nested and any(_childless(arrow, type.field(place).type) for place in range(type.num_fields))


def _same(value: Any, held: Any) -> bool:
    """Whether a typed cell reads back as the value: the keys that a struct adds are None, and absent again then."""
    if isinstance(value, dict):
        known = isinstance(held, dict) and None not in value.values()
        return (
            known and all(_same(value.get(key), inner) for key, inner in held.items()) and value.keys() <= held.keys()
        )
    if isinstance(value, list):
        return isinstance(held, list) and len(value) == len(held) and all(map(_same, value, held))
    return type(value) is type(held) and value == held


class _Spool:
    """Rows in a temporary file, to be read more than once, and the columns they have in all."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self.file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  closed with the spool
        self.nulls: Counter[str] = Counter()
        columns: dict[str, None] = {}
        for row in rows:
            columns.update(dict.fromkeys(row))
            self.nulls.update(name for name, value in row.items() if value is None)
            self.file.write(json.dumps(row) + "\n")
        self.columns = list(columns)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.file.seek(0)
        for line in self.file:
            yield json.loads(line)

    def parts(self) -> Iterator[list[dict[str, Any]]]:
        """The rows in groups, without their columns that are None."""
        part: list[dict[str, Any]] = []
        for row in self:
            part.append({name: value for name, value in row.items() if value is not None})
            if len(part) == GROUP:
                yield part
                part = []
        if part:
            yield part


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=dict)


WRITERS: Mapping[str, Callable[[IO[bytes], _Rows, bool], None]] = {
    ".jsonl": _write_lines,
    ".ndjson": _write_lines,
    ".json": _write_list,
    ".csv": _write_csv,
    ".tsv": _write_tsv,
    ".parquet": _write_parquet,
}
