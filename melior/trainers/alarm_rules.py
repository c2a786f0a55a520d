"""what an alarm makes of a run's readings: one number, or none while there are too few

A rule sees whole series of finite readings, `(steps done, value)` in order, and looks at their ends alone, so that it
costs the same at every step.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, ClassVar, Protocol

from melior.evaluation.trends import parting_chance, shift_chance

WINDOW = 10  # readings: their mean or median has about a third of the noise of one
START = 5  # first readings that growth is told against; a fast run has moved after more
SURE = 1e-4  # the chance of luck below which a part of the reward counts as risen or fallen
SPREAD = 0.02  # of a part's size: the least noise to reckon with

Readings = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class Watched:
    """Which series a rule looks at; `rising` says whether larger is better, where that matters."""

    names: tuple[str, ...]
    rising: bool = True


@dataclass(frozen=True)
class Value:
    """What a rule came to, and what a sentence may say beside it."""

    value: float
    more: Mapping[str, Any] = field(default_factory=dict)


class Rule(Protocol):
    """Makes one number of a run's readings."""

    together: ClassVar[bool]  # it compares several metrics, which are not looked at one by one
    least: ClassVar[int]  # metrics it then needs
    gaps: ClassVar[bool]  # it speaks of a step that has only some of them, too

    def __call__(self, watched: Watched, readings: Readings) -> Value | None: ...


@dataclass(frozen=True)
class Recent:
    """The median of the last readings, or its distance from `centre`; 0 where it did not rise by `rises`.

    A share, which lies between 0 and 1 and is often 0, is told by its mean; no single reading can pull that far.
    """

    together: ClassVar[bool] = False
    least: ClassVar[int] = 1
    gaps: ClassVar[bool] = False
    window: int = WINDOW
    share: bool = False
    centre: float | None = None
    rises: float = 0.0  # times the start

    def __call__(self, watched: Watched, readings: Readings) -> Value | None:
        values = _values(readings[watched.names[0]], self.window)
        if len(values) < self.window:
            return None
        start = _start(readings[watched.names[0]])
        recent = _mean(values) if self.share else median(values)
        value = recent if self.centre is None else abs(recent - self.centre)
        return Value(value if recent >= self.rises * start else 0.0, {"start": start})


@dataclass(frozen=True)
class Last:
    """The last reading itself, with the name of what was read: where one alone is made of many outputs."""

    together: ClassVar[bool] = False
    least: ClassVar[int] = 1
    gaps: ClassVar[bool] = False

    def __call__(self, watched: Watched, readings: Readings) -> Value | None:
        name = watched.names[0]
        return Value(readings[name][-1][1], {"name": name.rpartition("/")[2]})


@dataclass(frozen=True)
class Growth:
    """The median of the last readings as a multiple of the first ones' mean."""

    together: ClassVar[bool] = False
    least: ClassVar[int] = 1
    gaps: ClassVar[bool] = False

    def __call__(self, watched: Watched, readings: Readings) -> Value | None:
        series = readings[watched.names[0]]
        start, recent = _start(series), median(_values(series, WINDOW))
        if len(series) < START + WINDOW or start <= 0:
            return None
        return Value(recent / start, {"start": start, "recent": recent})


@dataclass(frozen=True)
class Jump:
    """The median of the last few readings over that of many before, or of the first ones where that is larger.

    One spike is none; nor is a jump back to where the run began, since norms fall as a task is learnt.
    """

    together: ClassVar[bool] = False
    least: ClassVar[int] = 1
    gaps: ClassVar[bool] = False
    last: int = 5
    before: int = 50
    enough: int = 20  # readings before the last few

    def __call__(self, watched: Watched, readings: Readings) -> Value | None:
        series = readings[watched.names[0]]
        values = _values(series, self.last + self.before)
        known = [value for value in values[: -self.last] if value > 0]  # a step without rows has no gradient
        if len(known) < self.enough:
            return None
        first = [value for _, value in series[: self.enough]]
        start, recent = max(median(known), median(first)), median(values[-self.last :])
        return Value(recent / start, {"start": start, "recent": recent})


@dataclass(frozen=True)
class LengthAsReward:
    """How reward and length correlate, over the last steps; 0 while outputs have not grown by `grown`.

    Where all outputs of a group are cut at one length there is no correlation: a policy that has got there is held to
    what was seen on its way.
    """

    together: ClassVar[bool] = True
    least: ClassVar[int] = 2
    gaps: ClassVar[bool] = True
    grown: float = 1.5  # times the start
    known: int = 3  # steps of the window that have a correlation, each of a whole step's outputs

    def __call__(self, watched: Watched, readings: Readings) -> Value | None:
        correlations, lengths = (readings[name] for name in watched.names)  # sorted: length_…, mean_…
        since = lengths[-1][0] - WINDOW
        found = [value for step, value in correlations[-WINDOW:] if step > since]
        if len(found) < self.known or len(lengths) < START + WINDOW:
            return None
        start, recent = _start(lengths), median(_values(lengths, WINDOW))
        return Value(_mean(found) if recent >= self.grown * start else 0.0, {"start": start, "recent": recent})


@dataclass(frozen=True)
class Contrasts:
    """What the part that fell most has lost, as a share of its start; 0 where none fell while another rose."""

    together: ClassVar[bool] = True
    least: ClassVar[int] = 2
    gaps: ClassVar[bool] = False

    def __call__(self, watched: Watched, readings: Readings) -> Value | None:
        risen, fallen = {}, {}
        for name in watched.names:
            series = readings[name]
            if len(series) < 2 * WINDOW:
                return None
            first, last = [value for _, value in series[:WINDOW]], _values(series, WINDOW)
            size = _mean([abs(value) for value in first])
            change = (_mean(last) - _mean(first)) / size if size else 0.0
            if shift_chance(first, last, floor=SPREAD * size) < SURE:
                risen[name] = change
            elif shift_chance(last, first, floor=SPREAD * size) < SURE:
                fallen[name] = -change
        if not (risen and fallen):
            return Value(0.0)
        worst = max(fallen, key=lambda name: fallen[name])
        series = readings[worst]
        told = {"start": _mean([value for _, value in series[:WINDOW]]), "recent": _mean(_values(series, WINDOW))}
        return Value(
            fallen[worst], {**told, "fallen": _part(worst), "risen": _part(max(risen, key=lambda name: risen[name]))}
        )


@dataclass(frozen=True)
class Dominance:
    """The largest part's share in the sum of all parts' absolute medians; 0 where it has not grown by `grown`."""

    together: ClassVar[bool] = True
    least: ClassVar[int] = 2
    gaps: ClassVar[bool] = False
    grown: float = 0.2

    def __call__(self, watched: Watched, readings: Readings) -> Value | None:
        if any(len(readings[name]) < START + WINDOW for name in watched.names):
            return None
        first = {name: abs(_start(readings[name])) for name in watched.names}
        last = {name: abs(median(_values(readings[name], WINDOW))) for name in watched.names}
        largest = max(last, key=lambda name: last[name])
        share = last[largest] / (math.fsum(last.values()) or 1.0)
        start = first[largest] / (math.fsum(first.values()) or 1.0)
        return Value(share if share >= start + self.grown else 0.0, {"risen": _part(largest), "start": start})


@dataclass(frozen=True)
class Parting:
    """The chance that luck made the reward rise and the held-out metric fall: `parting_chance`."""

    together: ClassVar[bool] = True
    least: ClassVar[int] = 2
    gaps: ClassVar[bool] = False

    def __call__(self, watched: Watched, readings: Readings) -> Value | None:
        """The reward is read as its mean over the steps since the evaluation before."""
        proxy, heldout = watched.names
        rewards, seen = readings.get(proxy, []), 0
        means, kept = [], []
        for step, value in readings.get(heldout, []):
            until = bisect(rewards, step, key=lambda reading: reading[0])
            if until > seen:
                means.append(_mean([reward for _, reward in rewards[seen:until]]))
                kept.append(value)
            seen = until
        if not kept:
            return None
        better = kept if watched.rising else [-value for value in kept]
        best = max(better)
        told = {"proxy": proxy, "reward": means[-1], "heldout": heldout, "recent": kept[-1]}
        return Value(parting_chance(means, better), {**told, "start": best if watched.rising else -best})


def _part(name: str) -> str:
    """A part of the reward by its own name."""
    return name.removeprefix("rewards/").removesuffix("/mean")


def _values(series: Sequence[tuple[int, float]], last: int) -> list[float]:
    return [value for _, value in series[-last:]]


def _start(series: Sequence[tuple[int, float]]) -> float:
    return _mean([value for _, value in series[:START]])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
