"""rows of a JSON document: a list of objects, or objects one after another over several lines"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from melior.data.readers.opening import opened, without_mark
from melior.data.readers.rows import Line, Problem, json_row, refuse_constant
from melior.errors import DataError

CHUNK = 1 << 20  # bytes read at a time
LONGEST_ROW = 1 << 26  # characters; a row that is not whole within them has lost its end
SPACE = re.compile(r"[ \t\r\n]*")


def read_json(path: str | Path) -> Iterator[Line | Problem]:
    """The objects of a JSON list, or of a sequence of JSON objects, read as they are asked for and counted from 1.

    What cannot be parsed has no end, so nothing behind it is read: it is the last thing told. So is what stands behind
    the end of the list, as where two lists were put into one file.

    Raises:
        DataError: if the file cannot be read or is empty.
    """
    path = Path(path)
    number = 0
    with opened(path) as file:
        window = _Window(file, path)
        listed = window.peek() == "["
        if listed:
            window.skip()
        while (following := window.peek()) and following != "]":
            number += 1
            found = window.value(number)
            yield found
            if isinstance(found, Problem) and found.reason.startswith("not "):
                return
            if listed and window.peek() == ",":
                window.skip()
            elif listed and window.peek() != "]":
                yield Problem(number + 1, _unexpected(window.peek(), "a comma or ]"))
                return
        if listed and not following:
            yield Problem(number + 1, "the list has no end: the file is cut short, so rows are missing")
        elif following:
            yield from _behind(window, listed, number)
    if number == 0:
        raise DataError(f"{path} is empty; write a list of JSON objects")


def _behind(window: _Window, listed: bool, number: int) -> Iterator[Problem]:
    """What is told of a text that goes on behind a `]`."""
    if listed:
        window.skip()
    if rest := window.peek():
        remedy = "put all rows into one list" if listed else "write a list, or objects one after another"
        yield Problem(number + 1, f"not JSON: {rest!r} stands behind the last row; {remedy}; it was not read")


def _unexpected(following: str, expected: str) -> str:
    seen = f"{following!r} stands where {expected} is expected" if following else "the list has no end"
    return f"not JSON: {seen}; nothing behind it was read"


class _Window:
    """The part of a text that is not read yet, as far as it was needed."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.file = file
        self.path = path
        self.decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")  # a bad byte spoils one row only
        self.parser = json.JSONDecoder(parse_constant=refuse_constant)
        self.text = self.decoder.decode(without_mark(file.read(CHUNK), path))
        self.place = 0
        self.ended = False

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            self.place = SPACE.match(self.text, self.place).end()  # type: ignore[union-attr]
            if self.place < len(self.text):
                return self.text[self.place]
            if not self._more(CHUNK):
                return ""

    def skip(self) -> None:
        """Passes over the character that was peeked."""
        self.place += 1

    def value(self, number: int) -> Line | Problem:
        """The JSON value that begins here."""
        self.peek()
        size = CHUNK
        while True:
            try:
                value, end = self.parser.raw_decode(self.text, self.place)
            except json.JSONDecodeError as error:
                length = len(self.text) - self.place
                if self._may_go_on(error) and length < LONGEST_ROW and self._more(size):
                    size *= 2  # so that a long row is parsed again a few times only
                    continue
                cut = "; the file seems cut short" if self.ended and self._may_go_on(error) else ""
                return Problem(number, f"not JSON: {error.msg}{cut}; nothing behind it was read")
            except (ValueError, RecursionError) as error:
                return Problem(number, f"not JSON: {error}; nothing behind it was read")
            text = self.text[self.place : end]
            self.place = end
            return self._row(value, number, text)

    def _row(self, value: Any, number: int, text: str) -> Line | Problem:
        bad = next((character for character in text if "\udc80" <= character <= "\udcff"), None)
        if bad is not None:
            return Problem(number, f"byte {ord(bad) - 0xDC00:#04x} of it is not UTF-8; save the file as UTF-8")
        return json_row(value, number, text)

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        """Whether the error may be that the value's end is not read yet: keywords and \\u escapes are 10 at most."""
        return "Unterminated" in error.msg or error.pos >= len(self.text) - 12

    def _more(self, size: int) -> bool:
        """Reads on; False at the end of the file."""
        raw = b"" if self.ended else self.file.read(size)
        self.ended = not raw
        self.text = self.text[self.place :] + self.decoder.decode(raw, final=self.ended)
        self.place = 0
        return not self.ended
