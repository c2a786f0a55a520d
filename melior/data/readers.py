"""rows of a JSONL file, each with its line number

A line that cannot be used is told, not skipped in silence: whoever reads decides whether to stop.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from melior.errors import DataError


@dataclass(frozen=True)
class Problem:
    """Why a line cannot be used."""

    line: int  # counted from 1
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


@dataclass(frozen=True)
class Line:
    """One row of a file."""

    number: int  # counted from 1
    row: Mapping[str, Any]


def read_jsonl(path: str | Path) -> Iterator[Line | Problem]:
    """The rows of a UTF-8 file, one JSON object per line, read as they are asked for; blank lines are passed over.

    A byte order mark and CRLF line ends are accepted.

    Raises:
        DataError: if the file cannot be opened, is empty, or is another kind of file altogether.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            empty = True
            for number, raw in enumerate(file, start=1):
                if number == 1:
                    raw = _without_mark(raw, path)
                if raw.strip():
                    empty = False
                    yield _parsed(raw, number)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; check the path") from error
    if empty:
        raise DataError(f"{path} is empty; write one JSON object per line")


def _without_mark(raw: bytes, path: Path) -> bytes:
    """The first line without its byte order mark."""
    for mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        if raw.startswith(mark):
            raise DataError(f"{path} is UTF-16; save it as UTF-8")
    raw = raw.removeprefix(codecs.BOM_UTF8)
    if raw.lstrip().startswith(b"["):
        raise DataError(f"{path} holds a JSON list; write one JSON object per line (jq -c '.[]' does it)")
    return raw


def _parsed(raw: bytes, number: int) -> Line | Problem:
    try:
        text = raw.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        return Problem(number, f"byte {error.start + 1} ({raw[error.start]:#04x}) is not UTF-8; save the file as UTF-8")
    try:
        row = json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        cut = "; the line seems cut short" if error.pos >= len(text) - 1 or "Unterminated" in error.msg else ""
        return Problem(number, f"not JSON at column {error.colno}: {error.msg}{cut}")
    except (ValueError, RecursionError) as error:
        return Problem(number, f"not JSON: {error}")
    if not isinstance(row, dict):
        return Problem(number, f"a row is a JSON object, this is {_kind(row)}")
    if "\\ud" in text.lower() and not _encodable(row):
        return Problem(number, "holds half of a surrogate pair (\\ud800 to \\udfff), which is no character; remove it")
    return Line(number, row)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON value; write null or leave the key out")


def _encodable(row: Any) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
