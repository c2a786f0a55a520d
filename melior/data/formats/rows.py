"""what a format is: rows become examples, examples become rows"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from melior.data.readers.rows import Cell
from melior.types import Demonstration, Preference, Rated, Record, Task

Kind = Literal["demonstrations", "tasks", "preferences", "rated", "logged"]
Example = Demonstration | Preference | Rated | Task | Record
Row = Mapping[str, Any]
ColumnKind = Literal["number", "text"]
Lost = Counter[str]  # what a format could not hold, and how often

KINDS: tuple[Kind, ...] = ("demonstrations", "tasks", "preferences", "rated", "logged")
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL")  # what an empty cell of a table is commonly written as


def _record(*, id: str, **made: Any) -> Record:
    """A logged decision; it has no id of its own, since the same one may be logged in any file."""
    return Record(**made)


TYPES: Mapping[Kind, Callable[..., Example]] = {
    "demonstrations": Demonstration,
    "tasks": Task,
    "preferences": Preference,
    "rated": Rated,
    "logged": _record,
}


class RowError(ValueError):
    """A row cannot become an example, or an example no row; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What rows do not say of themselves."""

    rename: Mapping[str, str] = field(default_factory=dict)  # columns of the source, to the names a format has
    alpaca: Literal["joined", "published"] = "joined"  # instruction and input alone, or in the wording Alpaca used
    question: str = ""  # of a label export: whose answers count, where several questions are answered
    prompt_field: str = ""  # of a label export: which field the policy reads; told by its name where it is ""
    label: str = ""  # the column to decide: of a table, or beside a text or an image where its name does not tell it
    text: str = ""  # the column of the text to classify, where its name does not tell it
    image: str = ""  # the column that names a picture's file, where its name does not tell it
    group: str = ""  # the column whose rows belong together (a patient, a user); "" is "group"
    drop: tuple[str, ...] = ()  # columns of a table that the policy must not read
    audit: tuple[str, ...] = ()  # columns kept in the item, to measure groups by; add them to `drop` to keep them there
    columns: Mapping[str, ColumnKind] = field(default_factory=dict)  # number or text; told from all rows where absent
    missing: tuple[str, ...] = MISSING  # what a table writes where it knows nothing
    separator: str = ""  # between the labels of a cell, where a row has several
    label_names: Mapping[str, str] = field(default_factory=dict)  # label as it is written → its name
    least_rows: int = 2  # of a label, to train and to be measured; 1 for rows that are measured only
    names: tuple[str, ...] = ()  # of the columns, where a CSV file has no header
    folder: str = ""  # where relative paths of pictures begin; "" is the folder of the file that names them


@dataclass(frozen=True)
class Format:
    """One way to write an example as a row."""

    name: str
    kind: Kind
    columns: tuple[str, ...]  # what it must have
    optional: tuple[str, ...]  # what it reads besides; all else goes into the item
    read: Callable[
        [Row, Reading], dict[str, Any]
    ]  # the fields of the example; "used": other columns that went into them
    write: Callable[[Any, dict[str, Any], Lost], dict[str, Any]]  # the columns of the row; takes them out of the item
    sample: Row  # one row, to show
    fits: Callable[[Row, Reading], bool] | None = None  # whether a row is in it, where its columns do not tell
    typed_cells: bool = False  # whether cells of an untyped table are read as the numbers they write

    def matches(self, row: Row, reading: Reading = Reading()) -> bool:
        """Whether the row can be read in this format."""
        return self.fits(row, reading) if self.fits else row.keys() >= set(self.columns)

    def example(self, row: Row, id: str, reading: Reading = Reading()) -> Example:
        """The example a row writes.

        Raises:
            RowError: if a value of the row cannot be used.
        """
        group = given(row, reading.group or "group", "")
        if not isinstance(group, str | int):
            raise RowError(f"group must be a string, got {group!r}")
        made = self.read(row, reading)
        used = {*self.columns, *self.optional, reading.group or "group", *made.pop("used", ())}
        item = {key: str(value) if isinstance(value, Cell) else value for key, value in row.items() if key not in used}
        made["item"] = {**item, **made.get("item", {})}
        return TYPES[self.kind](**made, id=id, group=str(group))

    def typed(self, row: Row) -> dict[str, Any]:
        """The row of an untyped table as JSON holds it: a cell becomes a value only where its text would not be read.

        Raises:
            RowError: if a value of the row cannot be used.
        """
        made = self.read(row, Reading())
        values = dict(row)
        for name in {*self.columns, *self.optional, *made.get("used", ())}.intersection(row):
            if isinstance(row[name], Cell):
                text = str(row[name])
                written = [{name: value} for value in (text, parsed(text), _number_in(text.strip()), None)]
                values |= next((value for value in written if self._reads({**values, **value}) == made), {})
        return values

    def _reads(self, row: Row) -> dict[str, Any] | None:
        """What the row is read as; None where it cannot be."""
        try:
            return self.read(row, Reading())
        except RowError:
            return None

    def row(self, example: Any, lost: Lost) -> dict[str, Any]:
        """The row that writes an example; what it cannot hold is counted in `lost`.

        Raises:
            RowError: if the format cannot hold the example at all.
        """
        item = dict(example.item)
        written = self.write(example, item, lost)
        taken = sorted({*self.columns, *self.optional, *written}.intersection(item))
        if taken:
            raise RowError(f"its item has the column {taken[0]}, which {self.name} uses itself; rename it")
        if example.group:
            written["group"] = example.group
        if getattr(example, "weight", 1.0) != 1.0:
            lost["weight of the row"] += 1
        return {**written, **item}


def number_of(value: Any, name: str) -> float:
    """A number, a boolean as 0.0 or 1.0, also where a cell writes it as text.

    Raises:
        RowError: if it is none, or not finite.
    """
    if isinstance(value, Cell):
        value = _number_in(value.strip())
    if isinstance(value, bool):
        return float(value)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise RowError(f"{name} must be a number, got {value!r}")
    return float(value)


def _number_in(text: str) -> Any:
    """What a cell's text writes: a boolean, a number, or only text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        return text


def given(row: Row, name: str, default: Any = None) -> Any:
    """A column's value, or the default where it is absent, null or an empty cell."""
    value = row.get(name)
    return default if value is None or (isinstance(value, Cell) and not value.strip()) else value


def opened(value: Any) -> Any:
    """What a cell writes as JSON, where it writes a list or an object; anything else as it is."""
    return parsed(value) if isinstance(value, Cell) else value


def parsed(value: Any) -> Any:
    """The list or object that a text writes as JSON; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value
