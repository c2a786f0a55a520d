"""curves in a terminal: braille dots where the terminal knows them, plain letters elsewhere"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from melior.reports.charts import round_ticks
from melior.reports.curves import Curve, Point, thinned
from melior.reports.text import compact, short, visible

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille cell: four rows of two
LETTERS = "*o+x#@"
COLOURS = (36, 33, 32, 35, 34, 31)  # of ANSI: cyan, yellow, green, magenta, blue, red
LABEL = 9  # columns of a value beside the axis
NARROWEST = 16  # columns of a picture; a narrower terminal breaks lines
DRAWN = 4000  # points of a curve at most: more than any terminal has dots


def plot(
    curves: Sequence[Curve], *, width: int, height: int = 12, colour: bool = False, ascii_only: bool = False
) -> list[str]:
    """Lines of text that show curves over steps on one axis, a legend below them.

    Several curves are told apart by colour; without it, by letters instead of dots.
    """
    columns = max(NARROWEST, width - LABEL - 2)
    points = [point for curve in curves for point in curve.smooth or curve.points]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    low, high, _ = round_ticks(min(y for _, y in points), max(y for _, y in points))
    frame = _Frame(first, max(last, first + 1), low, high, columns, height)
    lettered = ascii_only or (len(curves) > 1 and not colour)
    cells = _letters(curves, frame) if lettered else _braille(curves, frame, colour)
    side, corner, flat = ("|", "+", "-") if ascii_only else ("│", "└", "─")
    lines = []
    for row, cell in enumerate(cells):
        at = high - (high - low) * row / max(1, height - 1)
        value = compact(round_to(at, (high - low) / height)) if row % 3 == 0 or row == height - 1 else ""
        lines.append(f"{_plain(value, ascii_only):>{LABEL}} {side}{''.join(cell).rstrip()}")
    lines.append(f"{'':>{LABEL}} {corner}{flat * columns}")
    left, right = compact(first), compact(last)
    lines.append(f"{'step':>{LABEL}}  {left}{right:>{columns - len(left)}}")
    keys = [LETTERS[index % len(LETTERS)] if lettered else _painted("●", index, colour) for index in range(len(curves))]
    legend = [_told(key, curve) for key, curve in zip(keys, curves, strict=True)]
    return lines + [f"{'':>{LABEL}}  {_plain(line, ascii_only)}" for line in legend]


def round_to(value: float, step: float) -> float:
    """The value with as many digits as a step between rows can tell apart."""
    return round(value, max(0, 1 - math.floor(math.log10(step)))) if step > 0 else value


class _Frame:
    """Which cell, or dot of a cell, a point falls into."""

    def __init__(self, first: float, last: float, low: float, high: float, columns: int, rows: int) -> None:
        self.first, self.last, self.low, self.high = first, last, low, high
        self.columns, self.rows = columns, rows

    def dots(self, points: Sequence[Point], across: int, down: int) -> Iterator[tuple[int, int]]:
        """(x, y) of every dot on the way from point to point, y downwards."""
        wide, tall = self.columns * across - 1, self.rows * down - 1
        scaled = [
            (
                round((x - self.first) / (self.last - self.first) * wide),
                round((self.high - y) / (self.high - self.low) * tall),
            )
            for x, y in thinned(points, DRAWN)
        ]
        yield from scaled[:1]
        for (x0, y0), (x1, y1) in pairwise(scaled):
            reach = max(abs(x1 - x0), abs(y1 - y0), 1)
            for part in range(reach + 1):
                yield round(x0 + (x1 - x0) * part / reach), round(y0 + (y1 - y0) * part / reach)


def _braille(curves: Sequence[Curve], frame: _Frame, colour: bool) -> list[list[str]]:
    masks = [[0] * frame.columns for _ in range(frame.rows)]
    owners = [[0] * frame.columns for _ in range(frame.rows)]
    for index, curve in enumerate(curves):
        for x, y in frame.dots(curve.smooth or curve.points, 2, 4):
            masks[y // 4][x // 2] |= DOTS[y % 4][x % 2]
            owners[y // 4][x // 2] = index
    return [
        [_painted(chr(0x2800 + mask), own, colour) if mask else " " for mask, own in zip(row, owner, strict=True)]
        for row, owner in zip(masks, owners, strict=True)
    ]


def _letters(curves: Sequence[Curve], frame: _Frame) -> list[list[str]]:
    cells = [[" "] * frame.columns for _ in range(frame.rows)]
    for index, curve in enumerate(curves):
        for x, y in frame.dots(curve.smooth or curve.points, 1, 1):
            cells[y][x] = LETTERS[index % len(LETTERS)]
    return cells


def _told(key: str, curve: Curve) -> str:
    smooth = " (drawn smoothed)" if curve.smooth else ""
    return f"{key} {visible(curve.label)}  {short(curve.points[0][1])} → {short(curve.last)}{smooth}"


def _painted(text: str, index: int, colour: bool) -> str:
    return f"\x1b[{COLOURS[index % len(COLOURS)]}m{text}\x1b[0m" if colour else text


def _plain(text: str, ascii_only: bool) -> str:
    if not ascii_only:
        return text
    return text.replace("−", "-").replace("∞", "inf").replace("→", "->").encode("ascii", "replace").decode()
