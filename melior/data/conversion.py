"""rows of one format and file become rows of another"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from melior.data.formats.reading import ExampleStream
from melior.data.formats.rows import Example, Reading
from melior.data.formats.tables import LABEL
from melior.data.readers import Problem, is_part_of
from melior.data.writers import Written, write_examples
from melior.errors import ConfigError, DataError


@dataclass(frozen=True)
class Conversion:
    """What was read, what was written, and what stayed behind."""

    read: int
    source_format: str
    written: Written
    unread: list[Problem]

    def to_json(self) -> dict[str, Any]:
        """The counts, and every row left out with its reason."""
        return {
            "read": self.read,
            "from": self.source_format,
            "written": self.written.rows,
            "to": self.written.format,
            "not_kept": dict(self.written.lost),
            "unreadable": [str(problem) for problem in self.unread],
            "unwritable": [str(problem) for problem in self.written.problems],
        }


def convert(
    source: str | Path,
    out: str | Path,
    format: str | None = None,
    *,
    source_format: str | None = None,
    reading: Reading = Reading(),  # noqa: B008  frozen
    skip: bool = False,
    columns: bool = True,
    spreadsheet: bool = False,
) -> Conversion:
    """Reads a source and writes it in another format or kind of file, a row at a time; `format` is its own if None.

    Raises:
        ConfigError: for an unknown format or suffix, or if the source would be overwritten.
        DataError: if a row cannot be read or written and `skip` is False, or no row can be; nothing is written then.
    """
    if is_part_of(Path(out), source):
        raise ConfigError(f"{out} is the source itself, or stands in its folder; write to another place")
    stream = ExampleStream(source, format=source_format, reading=reading)
    unread: list[Problem] = []
    counted = [0]
    examples = _usable(stream, unread, counted, skip)
    first = list(islice(examples, 1))
    if not first:
        raise DataError(f"0 of {len(unread)} rows of {stream.name} can be read, first: {unread[0]}")
    assert stream.format is not None  # an example was read
    table = stream.format.typed_cells and format in (None, stream.format.name)
    written = write_examples(
        out,
        chain(first, examples),
        format or stream.format.name,
        rename={LABEL: reading.label} if table and reading.label else None,
        columns=columns,
        spreadsheet=spreadsheet,
        strict=not skip,
    )
    return Conversion(counted[0], stream.format.name, written, unread)


def _usable(stream: ExampleStream, unread: list[Problem], counted: list[int], skip: bool) -> Iterator[Example]:
    for found in stream:
        if isinstance(found, Problem):
            if not skip:
                raise DataError(f"{stream.name}, {found}; correct it, or leave such rows out with --skip")
            unread.append(found)
        else:
            counted[0] += 1
            yield found
