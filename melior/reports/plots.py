"""curves with bands, estimates with intervals, reliability diagrams and heat maps as SVG, drawn by hand

Every picture is a figure with a title, what to look for, and its numbers as a table; nothing is told by colour alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from melior.reports.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, mark, round_ticks
from melior.reports.schema import Estimate, Line, Named, Point
from melior.reports.text import compact, cut, escaped, short

ROW = 40  # pixels of one estimate: its name, and its interval below it
NAME = 44  # characters of a name in a picture
LOG_STEPS = (1, 2, 5)  # ticks of a logarithmic axis, times powers of ten
MOST_TICKS = 7
NUMBER = re.compile(r"[-−+.,%∞\[\]\d ]{1,32}")
PLAIN = (0.02, 100.0)  # axes that span so much have numbers with three decimals
Level = tuple[str, float]  # a name, and where its line lies


def band_chart(
    title: str,
    note: str,
    lines: Sequence[Line],
    *,
    across: str,  # what the horizontal axis counts
    logarithmic: bool = False,
    levels: Sequence[Level] = (),  # horizontal lines
    marks: Sequence[Level] = (),  # vertical lines
) -> str:
    """Curves with their bands over any axis; empty where there is no point."""
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    points = [point for line in lines for point in line.points]
    frame = _Frame(points, [value for _, value in levels], [value for _, value in marks], logarithmic)
    drawn = frame.axes(across)
    for place, (name, value) in enumerate(levels):
        y = frame.y(value)
        drawn += (
            f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tag" x="{WIDTH - RIGHT}" y="{y - 4 + 15 * (place % 2):.1f}" text-anchor="end">'
            f"{escaped(cut(name, NAME)[0])}</text>"
        )
    drawn += "".join(
        f'<line class="level" x1="{frame.x(x):.1f}" x2="{frame.x(x):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        for _, x in marks
    )
    for place, (name, value) in enumerate(marks):
        x = frame.x(value)
        anchor, shift = ("start", 4) if x < WIDTH / 2 else ("end", -4)
        drawn += (
            f'<text class="tag" x="{x + shift:.1f}" y="{TOP + 9 + 14 * place}" text-anchor="{anchor}">'
            f"{escaped(cut(name, NAME)[0])}</text>"
        )
    drawn += "".join(_band(index, line, frame) for index, line in enumerate(lines))
    legend = "".join(
        f'<li><svg class="key" viewBox="0 0 26 10" aria-hidden="true">'
        f'<line class="line s{index % 6}" x1="1" x2="25" y1="5" y2="5"/>{mark(index, 13, 5)}</svg>'
        f"{escaped(line.name)} <b>{short(line.points[-1].estimate)}</b></li>"
        for index, line in enumerate(lines)
    )
    head = (across, *(line.name for line in lines))
    told = "; ".join(
        f"{line.name} from {short(line.points[0].estimate)} to {short(line.points[-1].estimate)}" for line in lines
    )
    return figure(title, note, svg(title, told, drawn), _by_place(head, lines), legend=legend)


def estimates_chart(title: str, note: str, rows: Sequence[Named], *, level: Level | None = None) -> str:
    """Estimates with their intervals, one below the other under its name, on one axis."""
    if not rows:
        return ""
    ends = [end for row in rows for end in (row.estimate, row.low, row.high) if end is not None]
    low, high, ticks = round_ticks(min(ends + _at(level)), max(ends + _at(level)))
    height = 8 + ROW * len(rows) + BOTTOM

    def x(value: float) -> float:
        return 12 + (value - low) / (high - low) * (WIDTH - 24)

    drawn = "".join(
        f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="4" y2="{height - BOTTOM}"/>'
        f'<text x="{x(t):.1f}" y="{height - 9}" text-anchor="middle">{compact(t)}</text>'
        for t in ticks
    )
    if level is not None:
        drawn += f'<line class="level" x1="{x(level[1]):.1f}" x2="{x(level[1]):.1f}" y1="4" y2="{height - BOTTOM}"/>'
    for index, row in enumerate(rows):
        y = 8 + ROW * index
        left, right = (end if end is not None else edge for end, edge in ((row.low, low), (row.high, high)))
        drawn += (
            f'<text class="name" x="2" y="{y + 13}">{escaped(cut(row.name, NAME)[0])}</text>'
            f'<text class="figure" x="{WIDTH - 2}" y="{y + 13}" text-anchor="end">'
            f"{_plain(row.estimate, high - low)}</text>"
            f'<line class="whisker s0" x1="{x(left):.1f}" x2="{x(right):.1f}" y1="{y + 25}" y2="{y + 25}"/>'
            f'<circle class="dot s0" cx="{x(row.estimate):.1f}" cy="{y + 25}" r="4.5"/>'
        )
    told = "; ".join(f"{row.name} {short(row.estimate)}" for row in rows)
    note = f"{note} The dashed line is {level[0]}, {short(level[1])}.".strip() if level else note
    head = ("", "estimate", "95 % interval")
    return figure(title, note, svg(title, told, drawn, height), (head, [(r.name, *_cells(r)) for r in rows]))


def reliability_chart(title: str, note: str, bins: Sequence[Point], counts: Sequence[int]) -> str:
    """What happened against what was foretold, with the diagonal where both agree and the rows of each bin below."""
    if not bins:
        return ""
    side, strip, left = 250, 34, 44
    centre = 8 + side / 2
    height = side + strip + 40

    def x(value: float) -> float:
        return left + value * side

    def y(value: float) -> float:
        return 8 + (1 - min(max(value, 0.0), 1.0)) * side

    drawn = "".join(
        f'<line class="grid" x1="{left}" x2="{left + side}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="8" y2="{8 + side}"/>'
        f'<text x="{left - 6}" y="{y(t) + 4:.1f}" text-anchor="end">{compact(t)}</text>'
        f'<text x="{x(t):.1f}" y="{height - 18}" text-anchor="middle">{compact(t)}</text>'
        for t in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    drawn += f'<line class="level" x1="{x(0)}" x2="{x(1)}" y1="{y(0)}" y2="{y(1)}"/>'
    most = max(counts)
    for point, rows in zip(bins, counts, strict=True):
        low, high = (end if end is not None else point.estimate for end in (point.low, point.high))
        tall = max(2.0, (strip - 6) * rows / most)
        told = f"{rows} rows foretold {short(point.x)}: {short(point.estimate)} came true"
        at = f"{x(point.x):.1f}"
        drawn += (
            f'<line class="whisker s0" x1="{at}" x2="{at}" y1="{y(low):.1f}" y2="{y(high):.1f}"/>'
            f'<circle class="dot s0" cx="{at}" cy="{y(point.estimate):.1f}" r="4.5">'
            f"<title>{escaped(told)}</title></circle>"
            f'<rect class="bin" x="{x(point.x) - 3:.1f}" y="{8 + side + strip - tall:.1f}" width="6" '
            f'height="{tall:.1f}"><title>{rows} rows</title></rect>'
        )
    drawn += (
        f'<text x="{left + side / 2}" y="{height - 3}" text-anchor="middle">foretold</text>'
        f'<text x="12" y="{centre}" text-anchor="middle" transform="rotate(-90 12 {centre})">happened</text>'
    )
    rows_told = [
        (short(point.x), short(point.estimate), *_cells(point)[1:], f"{rows:,}")
        for point, rows in zip(bins, counts, strict=True)
    ]
    told = f"{len(bins)} bins, from {short(bins[0].x)} foretold to {short(bins[-1].x)}"
    head = ("foretold", "happened", "95 % interval", "rows")
    return figure(title, note, svg(title, told, drawn, height, left + side + 14), (head, rows_told))


def figure(
    title: str, note: str, picture: str, numbers: tuple[Sequence[str], Sequence[Sequence[str]]], *, legend: str = ""
) -> str:
    """A picture with its title above it, and what to look for and its numbers below."""
    told = f'<p class="note">{escaped(note)}</p>' if note else ""
    listed = f'<ul class="legend">{legend}</ul>' if legend else ""
    return (
        f'<figure class="chart"><figcaption><h3>{escaped(title)}</h3>{listed}</figcaption>{picture}{told}'
        f"<details><summary>Numbers</summary>{table(*numbers)}</details></figure>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows under a head, the first cell of each its name; it scrolls where it is too wide."""
    top = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in head)
    titled = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    body = "".join(f'<tr><th scope="row">{escaped(row[0])}</th>{"".join(map(_td, row[1:]))}</tr>' for row in rows)
    return f'<div class="wide"><table>{titled}<tbody>{body}</tbody></table></div>'


def _td(cell: object) -> str:
    """A cell; a number or an interval is never broken over lines."""
    number = ' class="n"' if NUMBER.fullmatch(str(cell)) else ""
    return f"<td{number}>{escaped(cell)}</td>"


def svg(title: str, told: str, drawn: str, height: float = HEIGHT, width: float = WIDTH) -> str:
    """An SVG that says in words what it shows."""
    broad = " broad" if width > WIDTH else ""
    return (
        f'<svg class="still{broad}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escaped(title)}: '
        f'{escaped(told)}"><title>{escaped(title)}</title><desc>{escaped(told)}</desc>{drawn}</svg>'
    )


class _Frame:
    """Where a place and a value lie in a chart, and its axes."""

    def __init__(
        self, points: Sequence[Point], levels: Sequence[float], marks: Sequence[float], logarithmic: bool
    ) -> None:
        ends = [end for p in points for end in (p.estimate, p.low, p.high) if end is not None]
        self.low, self.high, self.ticks = round_ticks(min([*ends, *levels]), max([*ends, *levels]))
        places = [*(point.x for point in points), *marks]
        self.scale: Callable[[float], float] = math.log if logarithmic and min(places) > 0 else float
        self.first, self.last = min(places), max(places)
        if self.first == self.last:
            self.first, self.last = self.first * 0.9 - (self.first == 0), self.last * 1.1 + (self.last == 0)

    def x(self, place: float) -> float:
        start, end = self.scale(self.first), self.scale(self.last)
        return LEFT + 4 + (self.scale(place) - start) / (end - start) * (WIDTH - LEFT - RIGHT - 8)

    def y(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        return TOP + (self.high - value) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)

    def axes(self, across: str) -> str:
        lines = "".join(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{self.y(t):.1f}" y2="{self.y(t):.1f}"/>'
            f'<text x="{LEFT - 6}" y="{self.y(t) + 4:.1f}" text-anchor="end">{compact(t)}</text>'
            for t in self.ticks
        )
        labels = "".join(
            f'<text x="{self.x(t):.1f}" y="{HEIGHT - 9}" text-anchor="middle">{compact(t)}</text>'
            for t in self._places()
        )
        told = f'<text x="{WIDTH - RIGHT}" y="{HEIGHT + 6}" text-anchor="end">{escaped(across)}</text>'
        return (
            f'{lines}<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" '
            f'y2="{HEIGHT - BOTTOM}"/>{labels}{told}'
        )

    def _places(self) -> list[float]:
        if self.scale is float:
            _, _, ticks = round_ticks(self.first, self.last)
        else:
            powers = range(math.floor(math.log10(self.first)), math.ceil(math.log10(self.last)) + 1)
            ticks = [step * 10.0**power for power in powers for step in LOG_STEPS]
        inside = [t for t in ticks if self.first <= t * (1 + 1e-9) and t * (1 - 1e-9) <= self.last]
        return inside if len(inside) <= MOST_TICKS else inside[:: math.ceil(len(inside) / MOST_TICKS)]


def _band(index: int, line: Line, frame: _Frame) -> str:
    style, name = f"s{index % 6}", escaped(line.name)
    known = [(p.x, p.low, p.high) for p in line.points if p.low is not None and p.high is not None]
    upper = [f"{frame.x(x):.1f},{frame.y(high):.1f}" for x, _, high in known]
    lower = [f"{frame.x(x):.1f},{frame.y(low):.1f}" for x, low, _ in reversed(known)]
    band = f'<polygon class="band {style}" points="{" ".join(upper + lower)}"/>' if len(known) > 1 else ""
    told = " ".join(f"{frame.x(p.x):.1f},{frame.y(p.estimate):.1f}" for p in line.points)
    dots = "".join(mark(index, frame.x(p.x), frame.y(p.estimate)) for p in line.points) if len(line.points) < 40 else ""
    return f'{band}<polyline class="line {style}" points="{told}" data-name="{name}"/>{dots}'


def _by_place(head: Sequence[str], lines: Sequence[Line]) -> tuple[Sequence[str], list[Sequence[str]]]:
    places = sorted({point.x for line in lines for point in line.points})
    if len(places) > 24:
        places = [places[round(i * (len(places) - 1) / 23)] for i in range(24)]
    found = [{point.x: _told(point) for point in line.points} for line in lines]
    return head, [(short(place), *(each.get(place, "—") for each in found)) for place in places]


def _told(found: Estimate) -> str:
    value, limits = _cells(found)
    return f"{value} {limits}" if limits != "—" else value


def _cells(found: Estimate) -> tuple[str, str]:
    """The estimate, and its interval."""
    if found.low is None and found.high is None:
        return short(found.estimate), "—"
    low, high = (edge if end is None else short(end) for end, edge in ((found.low, "−∞"), (found.high, "∞")))
    return short(found.estimate), f"[{low}, {high}]"


def _plain(value: float, span: float) -> str:
    """A number with as many decimals as its neighbours on an axis that spans so much."""
    return f"{value:.3f}".replace("-", "−") if PLAIN[0] <= span < PLAIN[1] else short(value)


def _at(level: Level | None) -> list[float]:
    return [level[1]] if level is not None else []
