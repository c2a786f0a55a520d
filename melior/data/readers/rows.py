"""a row with its place, or why it cannot be used

A row that cannot be used is told, not skipped in silence: whoever reads decides whether to stop.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """Why a row cannot be used."""

    line: int  # counted from 1: the line of a text file, else the row
    reason: str
    file: str = ""  # which file of a folder

    def __str__(self) -> str:
        return f"{self.file + ', ' if self.file else ''}line {self.line}: {self.reason}"


@dataclass(frozen=True)
class Line:
    """One row of a source: JSON values under names."""

    number: int  # counted from 1: the line of a text file on which the row begins, else the row
    row: Mapping[str, Any]
    file: str = ""  # which file of a folder


class Cell(str):
    """The text of a cell of an untyped table: JSON inside is looked for where a format needs it."""


def json_row(value: Any, number: int, text: str) -> Line | Problem:
    """The row that JSON `text` writes, parsed to `value`."""
    if not isinstance(value, dict):
        return Problem(number, f"a row is a JSON object, this is {_kind(value)}")
    if "\\ud" in text.lower() and not _encodable(value):
        return Problem(number, "holds half of a surrogate pair (\\ud800 to \\udfff), which is no character; remove it")
    return Line(number, value)


def refuse_constant(constant: str) -> Any:
    """What JSON parsers call on NaN and Infinity."""
    raise ValueError(f"{constant} is not a JSON value; write null or leave the key out")


def typed_row(row: Mapping[str, Any], number: int) -> Line | Problem:
    """The row of a typed table as JSON values: what is None or NaN is absent, dates are ISO 8601 text."""
    try:
        return Line(number, {str(key): _plain(value, str(key)) for key, value in row.items() if not _absent(value)})
    except ValueError as error:
        return Problem(number, str(error))


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        # Columns of structs give every struct all keys: those of other rows are None here.
        return {str(key): _plain(inner, name) for key, inner in value.items() if not _absent(inner)}
    if isinstance(value, list | tuple):
        return [None if _absent(inner) else _plain(inner, name) for inner in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal) and value.is_finite():
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bytes):
        example = base64.b64encode(value[:12]).decode()
        raise ValueError(f"{name} holds {len(value)} bytes ({example}…), which are no text; leave the column out")
    raise ValueError(f"{name} holds {value!r:.40}, which JSON cannot write; leave the column out")


def _encodable(row: Any) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
