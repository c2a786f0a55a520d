"""curves and histograms as SVG, drawn by hand: no script, no font and no picture from elsewhere"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from melior.reports.curves import Chart, Curve, Point, thinned
from melior.reports.files import Row, number
from melior.reports.text import compact, counted, escaped, short

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 26  # margins
TICKS = 4  # about so many on an axis
COLUMNS = 48  # of a histogram over time
TABLE_ROWS = 12  # of the table that stands in for a chart
TAGS = 4  # names of alarms below each other, before they begin at the top again
FAR = 6.0  # times the spread of the middle: values beyond would flatten the rest, so the axis leaves them out


def line_chart(chart: Chart, steps: int) -> str:
    """A chart as a figure: title, legend, SVG and a table of its numbers."""
    points = [point for curve in chart.curves for point in curve.points]
    low, high = _range(chart.curves)
    start = min(0.0, min(x for x, _ in points)) if any(c.heldout for c in chart.curves) else min(x for x, _ in points)
    scale = _Scale(start, max(float(steps), max(x for x, _ in points)), low, high)
    drawn = "".join(_drawn(index, curve, scale) for index, curve in enumerate(chart.curves))
    told = "; ".join(f"{curve.label} from {short(curve.points[0][1])} to {short(curve.last)}" for curve in chart.curves)
    legend = "".join(
        f'<li><svg class="key" viewBox="0 0 26 10" aria-hidden="true">{_key(index, curve)}</svg>'
        f"{escaped(curve.label)} <b>{short(curve.last)}</b></li>"
        for index, curve in enumerate(chart.curves)
    )
    note = f'<p class="note">{escaped(chart.note)}</p>' if chart.note else ""
    told += f", over {counted(steps, 'step')}"
    told += "".join(f"; alarm {name} after step {step:.0f}" for step, name, _ in chart.marks)
    return (
        f'<figure class="chart"><figcaption><h3>{escaped(chart.title)}</h3>'
        f'<ul class="legend">{legend}</ul></figcaption>'
        f"{_svg(chart.title, told, _axes(scale) + _marked(chart, scale) + drawn, scale)}{note}{_table(chart)}</figure>"
    )


def histogram_chart(title: str, note: str, name: str, rows: Sequence[Row]) -> str:
    """How a quantity was distributed at each step: steps to the right, values upwards, darker where more fell."""
    found = [(int(row["step"]), row[name]) for row in rows if _is_histogram(row.get(name))]
    if not found:
        return ""
    edges = found[-1][1]["edges"]
    alike = [(step, each) for step, each in found if each["edges"] == edges]
    if len(alike) < len(found):
        other = len(found) - len(alike)
        note += f" {other} of {counted(len(found), 'step')} had other bins than the last and are not drawn."
    columns = list(_columns(alike))
    first, last = columns[0][0], columns[-1][1]
    scale = _Scale(first, last, 0.0, float(len(edges) - 1))
    cells, most = [], max(share for _, _, shares in columns for share in shares) or 1.0
    for left, right, shares in columns:
        for index, share in enumerate(shares):
            if share > 0:
                x, wide = scale.x(left), max(1.0, scale.x(right) - scale.x(left) - 0.5)
                y, tall = scale.y(index + 1), scale.y(index) - scale.y(index + 1) - 0.5
                strength = 0.08 + 0.92 * math.sqrt(share / most)
                cells.append(
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}" '
                    f'fill-opacity="{strength:.2f}"><title>steps {left:.0f}–{right - 1:.0f}, '
                    f"{compact(edges[index])} to {compact(edges[index + 1])}: {share:.0%}</title></rect>"
                )
    every = max(1, (len(edges) - 1) // 6)
    labels = "".join(
        f'<text x="{LEFT - 6}" y="{scale.y(index) + 4:.1f}" text-anchor="end">{compact(edges[index])}</text>'
        for index in range(0, len(edges), every)
    )
    final = columns[-1][2]
    top = max(range(len(final)), key=lambda index: final[index])
    told = f"at the end {final[top]:.0%} lie between {compact(edges[top])} and {compact(edges[top + 1])}"
    body = f'<g class="cells">{"".join(cells)}</g>{labels}{_x_axis(scale)}'
    shown = "".join(
        f"<tr><th>{compact(edges[i])} – {compact(edges[i + 1])}</th>"
        f"<td>{columns[0][2][i]:.0%}</td><td>{final[i]:.0%}</td></tr>"
        for i in range(len(edges) - 1)
    )
    table = f"<table><thead><tr><th>bin</th><th>first</th><th>last</th></tr></thead><tbody>{shown}</tbody></table>"
    return (
        f'<figure class="chart"><figcaption><h3>{escaped(title)}</h3></figcaption>{_svg(title, told, body, None)}'
        f'<p class="note">{escaped(note)}</p><details><summary>Numbers</summary>'
        f'<div class="wide">{table}</div></details></figure>'
    )


def interval_chart(rows: Sequence[tuple[str, Row]]) -> str:
    """Estimates with their intervals on one axis, one below the other."""
    known = [(label, {key: number(found.get(key)) for key in ("estimate", "low", "high")}) for label, found in rows]
    values = [value for _, found in known for value in found.values() if value is not None]
    if not values:
        return ""
    low, high = min(values), max(values)
    if low >= 0 and high <= 1:
        low = 0.0
    low, high, ticks = round_ticks(low, high)
    height = 34 + 30 * len(known)

    def x(value: float) -> float:
        return 90 + (value - low) / (high - low) * (WIDTH - 90 - 16)

    parts = [
        f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="4" y2="{height - 24}"/>'
        f'<text x="{x(t):.1f}" y="{height - 8}" text-anchor="middle">{compact(t)}</text>'
        for t in ticks
    ]
    for index, (label, found) in enumerate(known):
        y, estimate = 20 + 30 * index, found["estimate"]
        left, right = (found[k] if found[k] is not None else end for k, end in (("low", low), ("high", high)))
        parts.append(f'<text x="82" y="{y + 4}" text-anchor="end" class="name">{escaped(label)}</text>')
        if estimate is not None and left is not None and right is not None:
            parts.append(f'<line class="whisker s{index}" x1="{x(left):.1f}" x2="{x(right):.1f}" y1="{y}" y2="{y}"/>')
            parts.append(f'<circle class="dot s{index}" cx="{x(estimate):.1f}" cy="{y}" r="5"/>')
    told = "; ".join(f"{label} {short(found['estimate'])}" for label, found in known)
    return (
        f'<svg class="intervals" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="Before and after: {escaped(told)}">'
        f"<title>Before and after, with 95 % intervals</title><desc>{escaped(told)}</desc>{''.join(parts)}</svg>"
    )


class _Scale:
    """Where a step and a value lie in the picture."""

    def __init__(self, first: float, last: float, low: float, high: float) -> None:
        self.first, self.last = first, last if last > first else first + 1
        self.low, self.high = low, high if high > low else low + 1

    def x(self, step: float) -> float:
        return LEFT + (step - self.first) / (self.last - self.first) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        return TOP + (self.high - value) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)


def _svg(title: str, told: str, body: str, scale: _Scale | None) -> str:
    read = ""
    if scale is not None:  # for the script that tells values under the pointer
        read = f' data-x="{scale.first:.8g} {scale.last:.8g}" data-y="{scale.low:.8g} {scale.high:.8g}" tabindex="0"'
    frame = f' data-frame="{LEFT} {WIDTH - RIGHT} {TOP} {HEIGHT - BOTTOM}"' if scale is not None else ""
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escaped(title)}: {escaped(told)}"'
        f"{read}{frame}><title>{escaped(title)}</title><desc>{escaped(told)}</desc>{body}</svg>"
    )


def _axes(scale: _Scale) -> str:
    _, _, ticks = round_ticks(scale.low, scale.high)
    lines = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{scale.y(t):.1f}" y2="{scale.y(t):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{scale.y(t) + 4:.1f}" text-anchor="end">{compact(t)}</text>'
        for t in ticks
        if scale.low <= t <= scale.high  # the range is rounded already, perhaps to other steps
    )
    return lines + _x_axis(scale)


def _x_axis(scale: _Scale) -> str:
    _, _, ticks = round_ticks(scale.first, scale.last)
    whole = [t for t in ticks if scale.first <= t <= scale.last and float(t).is_integer()]
    labels = "".join(
        f'<text x="{scale.x(t):.1f}" y="{HEIGHT - 9}" text-anchor="middle">{compact(t)}</text>' for t in whole
    )
    return (
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>{labels}'
    )


def _marked(chart: Chart, scale: _Scale) -> str:
    """A line where an alarm rang, with its name; red where it stopped the run."""
    drawn = ""
    for place, (step, name, stops) in enumerate(chart.marks):
        x, style = scale.x(step), "alarm stops" if stops else "alarm"
        anchor, shift = ("start", 4) if x < WIDTH / 2 else ("end", -4)
        drawn += (
            f'<g class="{style}"><line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            f'<path d="M{x:.1f} {TOP + 1}l-4 -7h8z"/>'
            f'<text x="{x + shift:.1f}" y="{TOP + 8 + 12 * (place % TAGS)}" text-anchor="{anchor}">'
            f"{escaped(name)}</text><title>{escaped(name)} after step {step:.0f}</title></g>"
        )
    return drawn


def _drawn(index: int, curve: Curve, scale: _Scale) -> str:
    style, name = f"s{index % 6}", escaped(curve.label)
    bars = "".join(
        f'<line class="bar {style}" x1="{scale.x(s):.1f}" x2="{scale.x(s):.1f}" '
        f'y1="{scale.y(a):.1f}" y2="{scale.y(b):.1f}"/>'
        for s, a, b in curve.bars
    )
    marked = curve.heldout or len(curve.points) == 1
    dots = "".join(mark(index, scale.x(x), scale.y(y)) for x, y in thinned(curve.points, 60)) if marked else ""
    raw = _line(curve.points, scale, f"raw {style}" if curve.smooth else f"line {style}", "" if curve.smooth else name)
    smooth = _line(curve.smooth, scale, f"line {style}", name) if curve.smooth else ""
    return bars + raw + smooth + dots


def _line(points: Sequence[Point], scale: _Scale, style: str, name: str) -> str:
    told = " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in thinned(points))
    named = f' data-name="{name}"' if name else ""
    return f'<polyline class="{style}" points="{told}"{named}/>'


def mark(index: int, x: float, y: float) -> str:
    """Dots, squares and diamonds, so that curves differ without colour."""
    style = f"mark s{index % 6}"
    if index % 3 == 0:
        return f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>'
    if index % 3 == 1:
        return f'<rect class="{style}" x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"/>'
    return f'<path class="{style}" d="M{x:.1f} {y - 4:.1f}l4 4l-4 4l-4 -4z"/>'


def _key(index: int, curve: Curve) -> str:
    line = f'<line class="line s{index % 6}" x1="1" x2="25" y1="5" y2="5"/>'
    return line + (mark(index, 13, 5) if curve.heldout or len(curve.points) == 1 else "")


def _range(curves: Sequence[Curve]) -> tuple[float, float]:
    """The values to show: all of them, unless a few lie so far away that the rest would be a flat line."""
    values = sorted(value for curve in curves for _, value in curve.points)
    values += [end for curve in curves for _, low, high in curve.bars for end in (low, high)]
    values.sort()
    low, high = values[0], values[-1]
    if len(values) >= 40:
        inner_low, inner_high = values[len(values) // 50], values[-1 - len(values) // 50]
        spread = inner_high - inner_low
        if spread > 0:
            low, high = max(low, inner_low - FAR * spread), min(high, inner_high + FAR * spread)
    low, high, _ = round_ticks(low, high)
    return low, high


def round_ticks(low: float, high: float) -> tuple[float, float, list[float]]:
    """Round numbers over a range, and the range widened to the outer two."""
    if not high > low:
        pad = abs(low) * 0.1 or 0.5
        low, high = low - pad, high + pad
    rough = (high - low) / TICKS
    base = 10.0 ** math.floor(math.log10(rough))
    step = next(base * factor for factor in (1, 2, 2.5, 5, 10) if base * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [round(index * step, 12) for index in range(first, last + 1)]
    return ticks[0], ticks[-1], ticks


def _table(chart: Chart) -> str:
    by_step: dict[float, dict[str, float]] = {}
    for curve in chart.curves:
        for step, value in curve.points:
            by_step.setdefault(step, {})[curve.label] = value
    steps = sorted(by_step)
    if len(steps) > TABLE_ROWS:
        steps = [steps[round(i * (len(steps) - 1) / (TABLE_ROWS - 1))] for i in range(TABLE_ROWS)]
    labels = [curve.label for curve in chart.curves]
    head = "".join(f"<th>{escaped(label)}</th>" for label in labels)
    body = "".join(
        f"<tr><th>{step:.0f}</th>{''.join(f'<td>{short(by_step[step].get(label))}</td>' for label in labels)}</tr>"
        for step in steps
    )
    table = f"<table><thead><tr><th>steps done</th>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<details><summary>Numbers</summary><div class="wide">{table}</div></details>'


def _columns(found: Sequence[tuple[int, Row]]) -> Iterator[tuple[float, float, list[float]]]:
    """(first step, one past the last, share in each bin) for stretches of histograms by step that share their bins."""
    parts = min(COLUMNS, len(found))
    for index in range(parts):
        part = found[index * len(found) // parts : (index + 1) * len(found) // parts]
        counts = [sum(column) for column in zip(*(each["counts"] for _, each in part), strict=True)]
        total = sum(counts) or 1
        yield part[0][0] + 1.0, part[-1][0] + 2.0, [count / total for count in counts]


def _is_histogram(found: object) -> bool:
    return isinstance(found, Mapping) and len(found.get("edges", ())) == len(found.get("counts", ())) + 1 > 1
