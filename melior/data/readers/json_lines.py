"""rows of a JSONL file: one JSON object per line"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from melior.data.readers.opening import opened, without_mark
from melior.data.readers.rows import Line, Problem, json_row, refuse_constant
from melior.errors import DataError


def read_jsonl(path: str | Path) -> Iterator[Line | Problem]:
    """The rows of a UTF-8 file, one JSON object per line, read as they are asked for; blank lines are passed over.

    A byte order mark, CRLF line ends and compression (gzip, bzip2, xz) are accepted.

    Raises:
        DataError: if the file cannot be read, is empty, or is another kind of file altogether.
    """
    path = Path(path)
    empty = True
    with opened(path) as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = _checked(raw, path)
            if raw.strip():
                empty = False
                yield _parsed(raw, number)
    if empty:
        raise DataError(f"{path} is empty; write one JSON object per line")


def _checked(raw: bytes, path: Path) -> bytes:
    """The first line without its byte order mark."""
    raw = without_mark(raw, path)
    if raw.lstrip().startswith(b"["):
        raise DataError(f"{path} holds a JSON list; write one JSON object per line (jq -c '.[]' does it)")
    return raw


def _parsed(raw: bytes, number: int) -> Line | Problem:
    try:
        text = raw.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        return Problem(number, f"byte {error.start + 1} ({raw[error.start]:#04x}) is not UTF-8; save the file as UTF-8")
    try:
        return json_row(json.loads(text, parse_constant=refuse_constant), number, text)
    except json.JSONDecodeError as error:
        cut = "; the line seems cut short" if error.pos >= len(text) - 1 or "Unterminated" in error.msg else ""
        return Problem(number, f"not JSON at column {error.colno}: {error.msg}{cut}")
    except (ValueError, RecursionError) as error:
        return Problem(number, f"not JSON: {error}")
