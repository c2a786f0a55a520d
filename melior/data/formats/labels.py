"""labels as rows write them: one, or several at once"""

from __future__ import annotations

from typing import Any

from melior.data.formats.rows import Reading, RowError, opened
from melior.data.readers.rows import Cell

LABELS = ("label", "labels", "category", "intent", "class")


def label_column(row: Any, reading: Reading) -> str | None:
    """The column of the label: the one that was named, or the first whose name tells it."""
    names = (reading.label,) if reading.label else LABELS
    return next((name for name in names if name in row), None)


def labels_of(value: Any, name: str, reading: Reading) -> str | tuple[str, ...]:
    """One label, or a tuple of them where the cell is a list, or a separator parts it.

    Raises:
        RowError: if there is none, or one is no text, number or boolean.
    """
    value = opened(value)
    if reading.separator and isinstance(value, str):
        value = [part.strip() for part in value.split(reading.separator) if part.strip()]
    if isinstance(value, list | tuple):
        return tuple(dict.fromkeys(_label(part, name, reading) for part in value))
    return _label(value, name, reading)


def written(output: str | tuple[str, ...]) -> str | list[str]:
    """An output as JSON holds it."""
    return output if isinstance(output, str) else list(output)


def _label(value: Any, name: str, reading: Reading) -> str:
    """One label by its name."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise RowError(f"{name} is empty: nothing to learn")
    if isinstance(value, Cell) and value.strip() in reading.missing:
        raise RowError(f"{name} is {value.strip()!r}, which is written where nothing is known: nothing to learn")
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float):
        raise RowError(f"{name} must be one label or a list of them, got {value!r:.40}")
    text = str(value).strip()
    return reading.label_names.get(text, text)
