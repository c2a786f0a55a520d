"""all formats, and which one a row is in"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from melior.data.formats import (
    argilla,
    bedrock,
    decisions,
    instructions,
    label_studio,
    openai,
    pictures,
    segments,
    sharegpt,
    tables,
    trl,
)
from melior.data.formats.rows import Format, Kind, Reading, Row, RowError
from melior.data.pictures import written
from melior.data.readers.rows import Cell
from melior.errors import ConfigError
from melior.types import Image

FORMATS: tuple[Format, ...] = (
    *openai.FORMATS,
    *trl.FORMATS,
    *bedrock.FORMATS,
    *instructions.FORMATS,
    *sharegpt.FORMATS,
    *argilla.FORMATS,
    *label_studio.FORMATS,
    *tables.FORMATS,
    *pictures.FORMATS,
    *decisions.FORMATS,
    *segments.FORMATS,
)
BY_NAME: Mapping[str, Format] = {format.name: format for format in FORMATS}
SHOWN = 6  # sets of columns that an error lists, those that share most with the row first
ALIASES: Mapping[str, str] = {  # what people call them
    "openai-sft": "messages",
    "openai-dpo": "openai-preference",
    "openai-rft": "messages-task",
    "bedrock-sft": "bedrock-conversation",
    "bedrock-rft": "bedrock-task",
    "dpo": "prompt-preference",
    "kto": "prompt-completion-label",
}


def format_named(name: str) -> Format:
    """The format of a name or of an alias.

    Raises:
        ConfigError: if there is none, with the nearest.
    """
    found = BY_NAME.get(ALIASES.get(name, name))
    if found is None:
        near = difflib.get_close_matches(name, [*BY_NAME, *ALIASES], n=1)
        hint = f", did you mean {near[0]!r}?" if near else ";"
        raise ConfigError(f"unknown format {name!r}{hint} known are {', '.join(BY_NAME)}")
    return found


def format_of(row: Row, kind: Kind | None = None, reading: Reading = Reading()) -> Format:  # noqa: B008  frozen
    """The format a row is written in; of several, the one of the wanted kind, then the one with most columns.

    A row of demonstrations, preferences or ratings never counts as a task, though its prompt could be one.

    Raises:
        RowError: if its columns are those of none.
    """
    fitting = [format for format in FORMATS if format.matches(row, reading)]
    if not fitting:
        known = list(dict.fromkeys(format.columns for format in FORMATS if format.columns))
        near = sorted(known, key=lambda columns: -len(row.keys() & columns))[:SHOWN]
        shown = "; ".join(map(" + ".join, near))
        raise RowError(
            f"found the columns {', '.join(sorted(row)) or '(none)'}, expected one of: {shown}; or of "
            f"{len(known) - SHOWN} others; where only the names differ, melior convert --rename OLD=NEW changes them; "
            "of a table, name the column to decide: label"
        )
    best = max(fitting, key=lambda format: (len(format.columns), format.fits is not None))
    if kind not in (None, best.kind, "tasks"):
        wanted = [format for format in fitting if format.kind == kind]
        return max(wanted, key=lambda format: len(format.columns)) if wanted else best
    return best


def typed(row: Row, reading: Reading = Reading()) -> Row:  # noqa: B008  frozen
    """The row of an untyped table with the JSON values that its format reads in it, so that JSON can hold it.

    Pictures become what JSON holds of them. Other rows, and those of no format, are as they were.
    """
    if any(isinstance(value, Image) for value in row.values()):
        row = {name: written(value) if isinstance(value, Image) else value for name, value in row.items()}
    if not any(isinstance(value, Cell) for value in row.values()):
        return row
    try:
        found = format_of(row, None, reading)
        return tables.typed_row(row, reading) if found.typed_cells else found.typed(row)
    except RowError:
        return row
