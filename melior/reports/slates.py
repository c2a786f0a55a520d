"""what a slate policy learned: which combinations earn, which item after which history, and how soon it was better

Reads `slates.json` of a run's folder. Every part may be missing; what is there is shown. The dataclasses of this module
are the schema, so a writer fills them and calls `write_slates`:

    {"title": "Banner of five", "notes": [sentence],
     "policies": [{"name", "estimate", "low", "high"}], "what": "expected points per slate", "baseline": "logging",
     "pairs": [{"first", "second", "learned", "low", "high", "true"}], "pairs_what": "points more than apart",
     "after": {"what": "probability of the first place", "rows": [history], "columns": [item], "values": [[0.12, …]],
               "true": [[…]]},
     "places": {"what": …, "rows": [place], "columns": [item], "values": [[…]]},
     "curves": [{"title", "across": "impressions", "logarithmic": true, "lines": [{"name", "points": [{"x", "estimate",
                "low", "high"}]}], "levels": [[name, value]], "marks": [[name, x]], "note": sentence}],
     "examples": [{"request": text, "slates": [{"name", "items": [id], "value"}]}]}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import FiniteFloat

from melior.durable import write_file
from melior.reports.files import Row
from melior.reports.plots import band_chart, estimates_chart, figure, svg, table
from melior.reports.schema import Estimate, Line, Named, read_as
from melior.reports.text import cut, escaped, short

NAME = "slates.json"
PAIRS = 24  # combinations shown: half of those that earn most, half of those that cost most
EXAMPLES = 6
WIDTH, LEFT, TOP, TALL = 640, 150, 96, 30  # of a grid of numbers, in pixels


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two items on one slate: what they earn together beyond what they earn apart."""

    first: str
    second: str
    learned: FiniteFloat
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    true: FiniteFloat | None = None  # where a simulator knows


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Numbers by row and column, such as probabilities of items after histories."""

    what: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[FiniteFloat, ...], ...]
    true: tuple[tuple[FiniteFloat, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class CurveShown:
    """Gain against impressions, or anything else over an axis."""

    title: str
    across: str
    lines: tuple[Line, ...]
    logarithmic: bool = False
    levels: tuple[tuple[str, FiniteFloat], ...] = ()
    marks: tuple[tuple[str, FiniteFloat], ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class SlateShown:
    """One policy's slate for a request."""

    name: str
    items: tuple[str, ...]
    value: FiniteFloat | None = None


@dataclass(frozen=True, kw_only=True)
class RequestShown:
    """A request and what was shown for it."""

    request: str
    slates: tuple[SlateShown, ...]


@dataclass(frozen=True, kw_only=True)
class Slates:
    """What the section shows."""

    title: str = ""
    notes: tuple[str, ...] = ()
    what: str = "value per slate"
    baseline: str = ""  # name of the policy that others are held against
    policies: tuple[Named, ...] = ()
    pairs_what: str = "what two items earn together beyond what they earn apart"
    pairs: tuple[Pair, ...] = ()
    after: Grid | None = None
    places: Grid | None = None
    curves: tuple[CurveShown, ...] = ()
    examples: tuple[RequestShown, ...] = ()


def write_slates(folder: str | Path, found: Slates) -> Path:
    """Writes the file into a run's folder, for its page."""
    path = Path(folder) / NAME
    write_file(path, json.dumps(asdict(found), indent=1, ensure_ascii=False))
    return path


def slates_section(found: Row | Slates) -> str:
    """The section, empty where the file is none."""
    told = found if isinstance(found, Slates) else read_as(Slates, found) if found else None
    if told is None:
        return ""
    notes = "".join(f"<li>{escaped(note)}</li>" for note in told.notes)
    charts = _policies(told) + "".join(_curve(each) for each in told.curves)
    return (
        (f'<ul class="notes">{notes}</ul>' if notes else "")
        + (f'<div class="grid even">{charts}</div>' if charts else "")
        + _pairs(told)
        + _grid("Which item after which history", told.after)
        + _grid("Which item in which place", told.places)
        + _examples(told.examples)
    )


def _policies(told: Slates) -> str:
    base = next((one for one in told.policies if one.name == told.baseline), None)
    level = (told.baseline, base.estimate) if base else None
    return estimates_chart(told.what[:1].upper() + told.what[1:], "", told.policies, level=level)


def _curve(one: CurveShown) -> str:
    return band_chart(
        one.title,
        one.note,
        one.lines,
        across=one.across,
        logarithmic=one.logarithmic,
        levels=one.levels,
        marks=one.marks,
    )


def _pairs(told: Slates) -> str:
    if not told.pairs:
        return ""
    ranked = sorted(told.pairs, key=lambda pair: -pair.learned)
    shown = ranked if len(ranked) <= PAIRS else ranked[: PAIRS // 2] + ranked[-PAIRS // 2 :]
    known = any(pair.true is not None for pair in shown)
    rows = [
        (
            f"{pair.first} + {pair.second}",
            f"{pair.learned:+.4g}".replace("-", "−"),
            _limits(pair),
            *([short(pair.true)] if known else []),
        )
        for pair in shown
    ]
    head = ("together", "learned", "95 % interval", *(["in truth"] if known else []))
    left = f" The {PAIRS // 2} best and the {PAIRS // 2} worst of {len(ranked)}." if len(ranked) > PAIRS else ""
    lead = f'<p class="note">{escaped(told.pairs_what)}.{left}</p>'
    return f"<h3>Which combinations earn</h3>{lead}{table(head, rows)}"


def _limits(pair: Pair) -> str:
    if pair.low is None or pair.high is None:
        return "—"
    return f"[{short(pair.low)}, {short(pair.high)}]"


def _grid(title: str, grid: Grid | None) -> str:
    """A table of numbers with darker cells where they are larger, and what is true in brackets."""
    if grid is None or not grid.rows or not grid.columns or not _fits(grid, grid.values):
        return ""
    side = (WIDTH - LEFT - 4) / len(grid.columns)
    flat = [value for row in grid.values for value in row]
    low, high = min(0.0, *flat), max(flat)
    drawn = "".join(_column(name, LEFT + side * (index + 0.5)) for index, name in enumerate(grid.columns))
    for row, (name, values) in enumerate(zip(grid.rows, grid.values, strict=True)):
        y = TOP + TALL * row
        drawn += f'<text x="{LEFT - 6}" y="{y + TALL / 2 + 4:.1f}" text-anchor="end">{_cut(name, 22)}</text>'
        drawn += "".join(
            _cell(
                LEFT + side * column,
                y,
                side,
                value,
                (value - low) / (high - low or 1.0),
                f"{name}, {grid.columns[column]}",
            )
            for column, value in enumerate(values)
        )
    told = f"{grid.what}; {len(grid.rows)} rows, {len(grid.columns)} columns, from {short(low)} to {short(high)}"
    picture = svg(title, told, drawn, TOP + TALL * len(grid.rows) + 4, WIDTH)
    rows: list[Sequence[str]] = [
        (name, *map(short, values)) for name, values in zip(grid.rows, grid.values, strict=True)
    ]
    if _fits(grid, grid.true):
        rows += [(f"{name}, in truth", *map(short, values)) for name, values in zip(grid.rows, grid.true, strict=True)]
    return figure(title, f"{grid.what[:1].upper()}{grid.what[1:]}.", picture, (("", *grid.columns), rows))


def _fits(grid: Grid, values: Sequence[Sequence[float]]) -> bool:
    return len(values) == len(grid.rows) and all(len(row) == len(grid.columns) for row in values)


def _column(name: str, x: float) -> str:
    return f'<text x="{x:.1f}" y="{TOP - 8}" transform="rotate(-40 {x:.1f} {TOP - 8})">{_cut(name, 18)}</text>'


def _cell(x: float, y: float, side: float, value: float, strength: float, told: str) -> str:
    ink = " on" if strength > 0.55 else ""
    number = f"{value:.2f}".replace("0.", ".", 1).replace("-", "−") if side > 26 else ""
    return (
        f'<rect class="cell right" x="{x + 1:.1f}" y="{y + 1}" width="{side - 2:.1f}" height="{TALL - 2}" '
        f'fill-opacity="{0.05 + 0.85 * strength:.2f}"><title>{escaped(told)}: {short(value)}</title></rect>'
        f'<text class="inside{ink}" x="{x + side / 2:.1f}" y="{y + TALL / 2 + 4}" text-anchor="middle">{number}</text>'
    )


def _examples(examples: Sequence[RequestShown]) -> str:
    cards = ""
    for one in examples[:EXAMPLES]:
        cells = "".join(
            f'<div class="cell"><div class="when">{escaped(slate.name)}'
            f"{f' <span class=chip>{short(slate.value)}</span>' if slate.value is not None else ''}</div>"
            f"<ol>{''.join(f'<li>{escaped(cut(item, 60)[0])}</li>' for item in slate.items)}</ol></div>"
            for slate in one.slates
        )
        prompt = f'<div class="prompt" dir="auto">{escaped(cut(one.request, 600)[0])}</div>'
        cards += f'<article class="card">{prompt}<div class="row">{cells}</div></article>'
    return f"<h3>What was shown</h3>{cards}" if cards else ""


def _cut(name: str, longest: int) -> str:
    shown, left = cut(name, longest)
    return escaped(f"{shown}…" if left else shown)


def named(estimates: Mapping[str, Estimate]) -> tuple[Named, ...]:
    """Estimates by name, as the section takes them."""
    return tuple(Named(name=name, **vars(one)) for name, one in estimates.items())
