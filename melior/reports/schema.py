"""what sections read from JSON files: plain dataclasses, checked before anything is drawn of them"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import FiniteFloat, TypeAdapter, ValidationError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95 % limits; a limit that is None is unknown or infinite."""

    estimate: FiniteFloat
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None


@dataclass(frozen=True, kw_only=True)
class Point(Estimate):
    """An estimate at a place on a horizontal axis."""

    x: FiniteFloat


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve with its band."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Named(Estimate):
    """An estimate of something that has a name."""

    name: str


def read_as(kind: type[T], found: Any) -> T | None:
    """What a JSON object says, as `kind`; None where it is no such thing. Fields that `kind` lacks are passed over."""
    try:
        return TypeAdapter(kind).validate_python(found)
    except ValidationError:
        return None
