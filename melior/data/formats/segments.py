"""pairs of segments: which of two stretches of an episode was preferred

{"chosen_segment": [[0.1, 0.2], …], "rejected_segment": [[…], …], "probability": 0.5}      one list per step
"""

from __future__ import annotations

import math
from array import array
from typing import Any

from melior.data.formats.rows import Format, Lost, Reading, Row, RowError, opened
from melior.data.formats.trl import read_strength, strength_columns
from melior.errors import DataError
from melior.types import Segment


def segment_of(value: Any, name: str) -> Segment:
    """A segment, or one written as a list of steps, each a list of as many numbers.

    Raises:
        RowError: if it is neither.
    """
    value = opened(value)
    if isinstance(value, Segment):
        return value
    if not isinstance(value, list) or not value or not all(isinstance(step, list) for step in value):
        raise RowError(f"{name} must be a list of steps, each a list of numbers, got {value!r:.40}")
    widths = {len(step) for step in value}
    numbers = [number for step in value for number in step]
    if len(widths) > 1 or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        raise RowError(f"{name} must have as many finite numbers in each of its {len(value)} steps")
    try:
        return Segment(array("f", numbers).tobytes(), (len(value), widths.pop()))
    except DataError as error:
        raise RowError(f"{name}: {error}") from error


def _read(row: Row, reading: Reading) -> dict[str, Any]:
    chosen, rejected = (segment_of(row[name], name) for name in ("chosen_segment", "rejected_segment"))
    if chosen.shape[1] != rejected.shape[1]:
        raise RowError(f"the steps of the two segments have {chosen.shape[1]} and {rejected.shape[1]} numbers")
    return {"inputs": None, "chosen": chosen, "rejected": rejected, **read_strength(row)}


def _write(example: Any, item: dict[str, Any], lost: Lost) -> dict[str, Any]:
    sides = {"chosen_segment": example.chosen, "rejected_segment": example.rejected}
    if not all(isinstance(side, Segment) for side in sides.values()):
        raise RowError("its outputs are no segments")
    return {**{name: steps_of(side) for name, side in sides.items()}, **strength_columns(example)}


def steps_of(segment: Segment) -> list[list[float]]:  # [t][D]
    """A segment as JSON has it."""
    numbers = array("f")
    numbers.frombytes(segment.steps)
    _, width = segment.shape
    return [list(numbers[start : start + width]) for start in range(0, len(numbers), width)]


FORMATS = (
    Format(
        "segment-preference",
        "preferences",
        ("chosen_segment", "rejected_segment"),
        ("probability", "margin"),
        _read,
        _write,
        {"chosen_segment": [[0.5, 1.0], [0.25, 1.0]], "rejected_segment": [[0.0, 1.0], [0.5, -1.0]]},
    ),
)
