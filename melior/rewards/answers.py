"""what comes back from a process that ran user code, taken for nothing but data

User code can write whatever it likes into the pipe on which scores come, so every field is checked here; a score
that is not in shape is a failure of the grader.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from melior.rewards.base import LONGEST_ERROR, LONGEST_TRACEBACK, failed
from melior.types import Score

MOST_PARTS = 100  # sub-scores of one score
LONGEST_NAME = 200  # characters
LONGEST_REASON = 4_000  # characters
LONGEST_OUTPUT = 16_384  # characters of what a process printed last


def message_in(line: bytes) -> dict[str, Any] | None:
    """The JSON object on a line; None if it holds anything else."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None  # cut short by a kill, or written by user code
    return message if isinstance(message, dict) else None


def score_in(name: str, answer: Any) -> Score:
    """The score in an answer; a failure if it is not in shape."""
    if not isinstance(answer, Mapping):
        return _forged(name, answer)
    value, error = answer.get("value"), text_in(answer.get("error"), LONGEST_ERROR)
    if error:
        trace = text_in(answer.get("traceback"), LONGEST_TRACEBACK)
        score = failed(name, error, trace, text_in(answer.get("kind"), LONGEST_NAME) or "other_error")
        return Score(**{**vars(score), "parts": _parts(answer.get("parts")), "seconds": _seconds(answer)})
    if value is not None and not _is_number(value):
        return _forged(name, value)
    return Score(
        value=None if value is None else float(value),
        name=name,
        reason=text_in(answer.get("reason"), LONGEST_REASON),
        parts=_parts(answer.get("parts")),
        seconds=_seconds(answer),
        kind=text_in(answer.get("kind"), LONGEST_NAME),
    )


def text_in(value: Any, longest: int) -> str:
    """A text as it can be stored anywhere, cut to a length; empty for anything but a text."""
    return value[-longest:].encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _parts(value: Any) -> dict[str, float]:
    pairs = value.items() if isinstance(value, Mapping) and len(value) <= MOST_PARTS else ()
    return {text_in(key, LONGEST_NAME): float(part) for key, part in pairs if _is_number(part)}


def _seconds(answer: Mapping[str, Any]) -> float:
    seconds = answer.get("seconds")
    return max(0.0, float(seconds)) if _is_number(seconds) else 0.0


def _is_number(value: Any) -> TypeGuard[float]:
    """Whether this is a finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _forged(name: str, value: Any) -> Score:
    shown = text_in(repr(value)[:60], 60)
    return failed(name, f"{name} answered {shown}, which is no score; its code wrote to melior's pipe")
