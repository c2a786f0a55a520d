"""fingerprints of examples: of their content and order, not of their names"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from melior.types import Image, Item, Segment


def fingerprint(rows: Iterable[Any]) -> str:
    """sha256 of the examples' content in order, as hexadecimal; ids, which name files and lines, do not count.

    `rows` are dataclasses of `melior.types`, or JSON values.
    """
    digest = hashlib.sha256()
    for row in rows:
        digest.update(canonical(_content(row)).encode() + b"\n")
    return digest.hexdigest()


def _content(row: Any) -> Any:
    """A row as JSON, with its type and without its id."""
    if not is_dataclass(row):
        return row
    values = {field.name: getattr(row, field.name) for field in fields(row) if field.name != "id"}
    return {"type": type(row).__name__, **values}


def canonical(value: Any) -> str:
    """The one JSON text of a value: keys sorted, ASCII, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)


def as_json(inputs: Any) -> Any:
    """Inputs or an output of any policy as JSON has them, for people; pictures and segments by their hash."""
    return json.loads(json.dumps(inputs, default=_plain))


def _plain(value: Any) -> Any:
    """What JSON has no word for: a mapping, a noun of `melior.types`; pictures and arrays by their hash."""
    if isinstance(value, Image):  # the same picture in two folders is one
        return f"Image(sha256 {value.sha256})" if value.sha256 else repr(value)
    if isinstance(value, Segment):
        return repr(value)
    if isinstance(value, Item):  # its id says what it is, not which line it came from
        return {**_content(value), "id": value.id}
    if isinstance(value, np.ndarray):  # of a trajectory: long, so by its hash
        return f"array {value.dtype.str}{list(value.shape)} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, np.generic):
        return value.item()
    return _content(value) if is_dataclass(value) else dict(value)
