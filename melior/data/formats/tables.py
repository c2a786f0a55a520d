"""rows of tables with a column to decide: numbers, texts, and None where nothing is known

What a column holds is decided from all rows of the source at once, never cell by cell: one "unknown" among ten thousand
numbers makes the column text, and does so wherever it stands.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from melior.data.formats.labels import labels_of, written
from melior.data.formats.rows import ColumnKind, Format, Lost, Reading, Row, RowError
from melior.data.readers.rows import Cell, Line, Problem
from melior.errors import DataError

NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
INFINITE = re.compile(r"[+-]?inf(?:inity)?", re.I)
CODE = re.compile(r"[+-]?0\d+")  # with its zeros in front it is a code, as of an account or a place, and no number
EXACT = 2**53  # integers below it are floats without loss
SHOWN = 12  # columns that an error lists
LABEL = "label"  # what the column to decide is called in rows that melior writes


@dataclass
class Survey:
    """What the rows of a table hold: the columns in the order they appear, and how often each label stands there."""

    reading: Reading
    rows: int = 0
    kinds: dict[str, ColumnKind] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)

    def add(self, row: Row) -> None:
        """Takes a row into account."""
        self.rows += 1
        for name, value in row.items():
            found = _kind(value, self.reading.missing)
            self.kinds[name] = "text" if "text" in (found, self.kinds.get(name)) else "number"
        try:
            self.labels.update(labels_in(labels_of(row.get(self.reading.label), self.reading.label, self.reading)))
        except RowError:  # told when the row is read
            return

    @property
    def rare(self) -> frozenset[str]:
        """The labels with fewer rows than they need."""
        return frozenset(label for label, count in self.labels.items() if count < self.reading.least_rows)

    def reading_of_all(self, source: str) -> Reading:
        """The reading with every column's kind; what was declared stays as it was declared.

        Raises:
            DataError: if the label's column or another one named is absent, or all rows have one label.
        """
        asked = [self.reading.label, *self.reading.drop, *self.reading.audit, *self.reading.columns]
        asked += [self.reading.group] if self.reading.group else []
        for name in asked if self.rows else ():
            if name not in self.kinds:
                near = difflib.get_close_matches(name, self.kinds, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                shown = ", ".join(map(repr, list(self.kinds)[:SHOWN]))
                more = f" and {len(self.kinds) - SHOWN} more" if len(self.kinds) > SHOWN else ""
                raise DataError(f"{source} has no column {name!r}{hint}; it has {shown}{more}")
        if len(self.labels) == 1 and self.reading.least_rows > 1 and self.rows > 1:
            (only,) = self.labels
            raise DataError(
                f"{source} has the label {only!r} in all {self.rows} rows, so there is nothing to tell apart; "
                f"is {self.reading.label!r} the column to decide?"
            )
        return replace(self.reading, columns={**self.kinds, **self.reading.columns})


def labels_in(output: Any) -> tuple[str, ...]:
    """The labels of an output, one or several."""
    return (output,) if isinstance(output, str) else output if isinstance(output, tuple) else ()


def surveyed(lines: Iterable[Line | Problem], reading: Reading, source: str) -> Survey:
    """The survey of a source's rows.

    Raises:
        DataError: as `Survey.reading_of_all` does.
    """
    survey = Survey(reading)
    for line in lines:
        if isinstance(line, Line):
            survey.add(line.row)
    survey.reading_of_all(source)
    return survey


def _kind(value: Any, missing: tuple[str, ...]) -> ColumnKind | None:
    """What a value says of its column; None says nothing."""
    if isinstance(value, Cell):
        text = value.strip()
        if text in missing:
            return None
        number = (NUMBER.fullmatch(text) and not CODE.fullmatch(text)) or INFINITE.fullmatch(text)
        return "number" if number else "text"
    if value is None:
        return None
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else "text"


def cell(value: Any, name: str, kind: ColumnKind, missing: tuple[str, ...]) -> float | int | str | None:
    """What a cell holds: a number, a text, or None.

    Raises:
        RowError: if it is infinite, no number in a column of numbers, or several values.
    """
    text = str(value).strip() if isinstance(value, Cell) else value
    if text is None or (isinstance(value, Cell) and text in missing):
        return None
    if isinstance(text, bool):
        return str(text).lower()
    if not isinstance(text, str | int | float):
        raise RowError(f"column {name} holds {value!r:.40}; a table's cells are numbers, texts or empty")
    if kind == "text":
        return text if isinstance(text, str) else str(_whole(text))
    if isinstance(text, str) and not (NUMBER.fullmatch(text) or INFINITE.fullmatch(text)):
        raise RowError(f"column {name} holds {text!r:.40}, which is no number; correct it, or declare the column text")
    number = float(text) if isinstance(text, str) and not text.lstrip("+-").isdigit() else text
    number = int(number) if isinstance(number, str) else number
    if isinstance(number, float) and not math.isfinite(number):
        raise RowError(f"column {name} holds {text!r}, which is not finite; leave the cell empty where it is unknown")
    return _whole(number)


def _whole(number: int | float) -> int | float:
    """6.0 is 6, so that kinds of files that do not tell them apart give equal rows."""
    whole = isinstance(number, float) and number.is_integer() and abs(number) < EXACT
    return int(number) if whole else number


def typed_row(row: Row, reading: Reading) -> dict[str, Any]:
    """The row of an untyped table as typed values: numbers, texts and None; the label stays the text it is.

    Raises:
        RowError: if a cell cannot be read.
    """
    kinds = {name: reading.columns.get(name) or _kind(value, reading.missing) or "text" for name, value in row.items()}
    return {
        name: str(value) if name == reading.label else cell(value, name, kinds[name], reading.missing)
        for name, value in row.items()
    }


def _read(row: Row, reading: Reading) -> dict[str, Any]:
    label = reading.label or LABEL
    if label not in row:
        raise RowError(f"has no column {label}, which is the one to decide")
    kinds: Mapping[str, ColumnKind] = reading.columns or {
        name: _kind(value, reading.missing) or "text" for name, value in row.items()
    }
    values = {
        name: cell(row.get(name), name, kind, reading.missing)
        for name, kind in kinds.items()
        if name != label and (name not in reading.drop or name in reading.audit)
    }
    output = labels_of(row[label], label, reading)
    hidden = {label, reading.group or "group", *reading.drop}
    inputs = {name: value for name, value in values.items() if name not in hidden}
    if all(value is None for value in inputs.values()):
        raise RowError("every cell beside the label is empty" if inputs else "has no column beside the label")
    audited = {name: values[name] for name in reading.audit}
    return {
        "inputs": inputs,
        "output": output,
        "item": {LABEL: written(output), **audited},
        "used": tuple(row),
    }


def _write(example: Any, item: dict[str, Any], lost: Lost) -> dict[str, Any]:
    if not isinstance(example.inputs, Mapping) or "messages" in example.inputs or LABEL in example.inputs:
        raise RowError(f"its inputs are no row of a table without a column {LABEL}: {example.inputs!r:.60}")
    if example.output is None or isinstance(example.output, Mapping | list):
        raise RowError(f"its output is no label, but {example.output!r:.40}")
    item.pop(LABEL, None)
    for name in set(item).intersection(example.inputs):
        item.pop(name)
    return {**example.inputs, LABEL: written(example.output)}


def _fits(row: Row, reading: Reading) -> bool:
    """Whether the label's column was named, and no text or picture is meant: columns alone never tell a table."""
    told = bool(reading.label) and not reading.text and not reading.image
    return told and reading.label in row and "text" not in row


FORMATS = (
    Format(
        "table",
        "demonstrations",
        (),
        (),
        _read,
        _write,
        {"age": 67, "purpose": "radio/television", "savings": None, "label": "good"},
        _fits,
        typed_cells=True,
    ),
)
