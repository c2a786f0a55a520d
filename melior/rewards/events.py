"""points for what people did with an output: clicks, purchases, whatever was logged"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from melior.errors import GraderError
from melior.rewards.base import call_grader, nearest
from melior.types import Record, Score

Per = Literal["output", "position"]
Unknown = Literal["refuse", "ignore"]
Levels = Mapping[str, float]  # {"one": …, "several": …}


@dataclass(frozen=True)
class Events:
    """The points of the events in `item["events"]`; each position's share is in the score's `decisions`.

    An event is a mapping with a `type`, a `position` (from 0, as in the output) or the `item` shown there, and an `id`
    if it may be told twice: of two events with one id the first counts.
    """

    name: str
    spec: Mapping[str, Any]
    points: Mapping[str, float | Levels]
    per: Per
    unknown: Unknown
    noticed: Counter[str] = field(default_factory=Counter, compare=False)  # what was left out so far, and how often

    def load(self) -> None:
        """Nothing to import."""

    def grade_many(self, records: Sequence[Record]) -> list[Score]:
        """One score per record, in order; records whose events cannot be read fail alone."""
        return [call_grader(self, record) for record in records]

    def grade(self, record: Record) -> Score:
        """The points of one output.

        Raises:
            GraderError: if the item has no events, or one of them cannot be read.
        """
        happened = self._happened(record)
        placed = [(event["type"], _position(event, record)) for event in happened]
        width = _width(record)
        parts: dict[str, float] = {}
        earned = [0.0] * width
        for kind, worth in self.points.items():
            where = Counter(place for found, place in placed if found == kind)
            shares = self._shares(worth, where)
            parts[kind] = math.fsum(shares.values())
            for place, share in shares.items():
                if place is not None:
                    earned[place] += share
        value = math.fsum(parts.values())
        # Points of an event that belongs to no position cannot be told apart, and then none are.
        told = math.isclose(math.fsum(earned), value, rel_tol=1e-9, abs_tol=1e-9)
        return Score(value=value, parts=parts, decisions=tuple(earned) if told else ())

    def _happened(self, record: Record) -> list[Mapping[str, Any]]:
        """The events that count, each once."""
        events = record.item.get("events")
        if not isinstance(events, list | tuple):
            have = f"it has {', '.join(map(str, record.item)) or 'nothing'}"
            raise GraderError(f"{self.name} needs a list of events in the item ({have}); write [] where none happened")
        kept: list[Mapping[str, Any]] = []
        seen: set[Any] = set()
        for event in events:
            if not isinstance(event, Mapping) or not isinstance(event.get("type"), str):
                raise GraderError(f'{self.name} needs events such as {{"type": "click"}}, got {event!r:.60}')
            kind, name = event["type"], event.get("id")
            if name is not None and name in seen:
                self.noticed[f"an event of type {kind} told twice"] += 1
            elif kind in self.points:
                kept.append(event)
            elif self.unknown == "refuse":
                raise GraderError(
                    f"{self.name} has no points for events of type {kind!r}{nearest(kind, self.points)} (it has "
                    f"{', '.join(self.points)}); give them 0, or set unknown to ignore"
                )
            else:
                self.noticed[f"an event of type {kind}, which has no points"] += 1
            seen.add(name)
        return kept

    def _shares(self, worth: float | Levels, where: Counter[int | None]) -> dict[int | None, float]:
        """What events of one type, so many at each position, are worth there."""
        if not isinstance(worth, Mapping):
            return {place: worth * count for place, count in where.items()}
        if self.per == "position":
            return {place: worth["one" if count == 1 else "several"] for place, count in where.items()}
        total = where.total()
        whole = worth["one" if total == 1 else "several"]
        return {place: whole * count / total for place, count in where.items()}


def _position(event: Mapping[str, Any], record: Record) -> int | None:
    """Where in the output the event happened; None where it does not say.

    Raises:
        GraderError: if the output has no such position or item, or the two disagree.
    """
    place, item = event.get("position"), event.get("item")
    shown = list(record.output) if isinstance(record.output, list | tuple) else [record.output]
    if item is not None and str(item) not in map(str, shown):
        raise GraderError(f"a {event['type']} on {item!r} is logged for an output that did not show it: {shown!r:.80}")
    if place is None:
        return None if item is None else [str(each) for each in shown].index(str(item))
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < _width(record):
        raise GraderError(
            f"a {event['type']} is logged at position {place!r}, the output has {_width(record)}, counted from 0"
        )
    if item is not None and str(shown[place]) != str(item):
        raise GraderError(
            f"a {event['type']} on {item!r} is logged at position {place}, where {shown[place]!r} was shown"
        )
    return place


def _width(record: Record) -> int:
    """How many decisions the output holds."""
    if record.decisions is not None:
        return len(record.decisions)
    return len(record.output) if isinstance(record.output, list | tuple) else 1


def events(spec: Mapping[str, Any], name: str | None) -> Events:
    """The grader of a setting.

    Raises:
        GraderError: if points are no numbers, or `per` or `unknown` is none that there is.
    """
    points = spec["points"]
    if not isinstance(points, Mapping) or not points:
        raise GraderError('grader events needs points by event type, such as {"click": 1, "purchase": 10}')
    per, unknown = spec.get("per", "output"), spec.get("unknown", "refuse")
    if per not in ("output", "position"):
        raise GraderError(f"grader events counts several per output or per position, not per {per!r}")
    if unknown not in ("refuse", "ignore"):
        raise GraderError(f"grader events can refuse or ignore unknown events, not {unknown!r}")
    named = name or "events"
    read = {str(kind): _worth(str(kind), worth) for kind, worth in points.items()}
    return Events(named, {**spec, "name": named}, read, per, unknown)


def _worth(kind: str, worth: Any) -> float | Levels:
    if isinstance(worth, Mapping):
        if set(worth) != {"one", "several"}:
            raise GraderError(
                f"points of {kind!r} are a number, or one and several; got the keys {', '.join(map(str, worth))}"
            )
        return {level: _number(f"{kind}.{level}", value) for level, value in worth.items()}
    return _number(kind, worth)


def _number(what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise GraderError(f"points of {what!r} must be a finite number, got {value!r}")
    return float(value)
