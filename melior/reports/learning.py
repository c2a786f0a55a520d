"""how many labels it takes, as a section: contestants with bands, and where nothing tells them apart any more

Reads `learning_curve.json`, as `LearningCurve.to_json` writes it:

    {"metric": "accuracy", "heldout": 524, "seeds": [0, 1, 2],
     "lines": [{"name", "points": [{"x": labels, "estimate", "low", "high"}]}],
     "comparisons": [{"first", "second", "points": [{"x", "estimate", "low", "high"}], "sentence"}]}
"""

from __future__ import annotations

from dataclasses import dataclass

from melior.reports.files import Row
from melior.reports.plots import band_chart
from melior.reports.schema import Line, Point, read_as
from melior.reports.text import escaped


@dataclass(frozen=True, kw_only=True)
class ComparisonFound:
    """Two contestants, size by size."""

    first: str
    second: str
    points: tuple[Point, ...]
    sentence: str = ""


@dataclass(frozen=True, kw_only=True)
class CurveFound:
    """What the section shows."""

    metric: str
    heldout: int
    seeds: tuple[int, ...]
    lines: tuple[Line, ...]
    comparisons: tuple[ComparisonFound, ...] = ()


def learning_section(found: Row, *, title: str = "") -> str:
    """The section, empty where the file is none. `title` names one of several curves on a page."""
    told = read_as(CurveFound, found)
    if told is None or not told.lines:
        return ""
    of = f"{title}: " if title else ""
    note = (
        f"{told.heldout:,} held-out items, {len(told.seeds)} seeds; bands are 95 % intervals for new items, new draws "
        "of the labels and new starts, each size for itself."
    )
    name = told.metric[:1].upper() + told.metric[1:] if not title else told.metric
    charts = band_chart(f"{of}{name} by number of labels", note, told.lines, across="labels", logarithmic=True)
    differences = [Line(name=f"{one.first} − {one.second}", points=one.points) for one in told.comparisons]
    charts += band_chart(
        f"{of}{'difference' if title else 'Difference'} by number of labels",
        "A band that leaves out 0 is a difference beyond chance.",
        differences,
        across="labels",
        logarithmic=True,
        levels=[("no difference", 0.0)],
    )
    sentences = "".join(f'<p class="lead">{escaped(one.sentence)}</p>' for one in told.comparisons if one.sentence)
    return f'{sentences}<div class="grid even">{charts}</div>'
