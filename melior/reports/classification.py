"""what a classifier got right, at what cost, for whom, and whether its probabilities can be trusted, as a section

Reads `classification.json`, which `melior.evaluation.classification` describes and writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field, FiniteFloat, PositiveInt

from melior.reports.files import Row
from melior.reports.matrix import READABLE, confusion_chart, confusion_table
from melior.reports.plots import band_chart, estimates_chart, reliability_chart, table
from melior.reports.schema import Estimate, Line, Named, Point, read_as
from melior.reports.text import escaped, short
from melior.statistics import wilson

Share = Annotated[float, Field(ge=0, le=1)]

MOST_LABELS = 30  # of the table by label: the worst ones where there are more
WORDS = {  # measure → what it is called, in the order of the table
    "accuracy": "accuracy",
    "label_accuracy": "accuracy per label",
    "balanced_accuracy": "balanced accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "macro_f1": "F1, mean over labels",
    "weighted_f1": "F1, by the labels’ rows",
    "macro_precision": "precision, mean over labels",
    "macro_recall": "recall, mean over labels",
    "micro_f1": "F1, all labels pooled",
    "micro_precision": "precision, all labels pooled",
    "micro_recall": "recall, all labels pooled",
    "auc": "area under the ROC curve",
    "macro_auc": "area under the ROC curve, mean over labels",
    "average_precision": "average precision",
    "log_loss": "log loss (nats)",
    "brier": "Brier score",
    "cost": "mean cost",
    "cost_by_probability": "mean cost, deciding by expected cost",
}


@dataclass(frozen=True, kw_only=True)
class LabelFound:
    """One label's line of the table."""

    label: str
    true: FiniteFloat
    decided: FiniteFloat
    precision: Estimate | None = None
    recall: Estimate | None = None
    f1: Estimate | None = None
    auc: Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class BinFound:
    """Rows of like probability."""

    rows: PositiveInt
    foretold: FiniteFloat
    happened: Share


@dataclass(frozen=True, kw_only=True)
class CalibrationFound:
    """What was foretold beside what happened."""

    of: str
    bins: tuple[BinFound, ...]
    error: FiniteFloat
    sentence: str = ""


@dataclass(frozen=True, kw_only=True)
class CurveFound:
    """Cost against threshold."""

    thresholds: tuple[FiniteFloat, ...]
    costs: tuple[FiniteFloat, ...]
    best: FiniteFloat | None = None
    fair: FiniteFloat | None = None
    decided: FiniteFloat


@dataclass(frozen=True, kw_only=True)
class GroupFound:
    """One group's measures."""

    name: str
    rows: int
    measures: Mapping[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class AttributeFound:
    """An attribute's groups, and what to make of them."""

    attribute: str
    groups: tuple[GroupFound, ...]
    sentence: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ClassificationFound:
    """What the section shows."""

    labels: tuple[str, ...]
    positive: str = ""
    rows: int
    measures: Mapping[str, Estimate]
    baselines: Mapping[str, FiniteFloat] = field(default_factory=dict)
    by_label: tuple[LabelFound, ...] = ()
    confusion: tuple[tuple[FiniteFloat, ...], ...] | None = None
    calibration: CalibrationFound | None = None
    curve: CurveFound | None = None
    groups: tuple[AttributeFound, ...] = ()
    notes: tuple[str, ...] = ()


def classification_section(found: Row) -> str:
    """The section, empty where the file is none."""
    told = read_as(ClassificationFound, found)
    if told is None:
        return ""
    notes = "".join(f"<li>{escaped(note)}</li>" for note in told.notes)
    charts = _confusion(told) + _calibration(told) + _curve(told)
    groups = "".join(_groups(each) for each in told.groups)
    return (
        (f'<ul class="notes">{notes}</ul>' if notes else "")
        + f'<div class="two"><div>{_measures(told)}</div></div>'
        + (f'<div class="grid even">{charts}</div>' if charts else "")
        + _worst(told)
        + _by_label(told)
        + groups
    )


def _measures(told: ClassificationFound) -> str:
    rows = [
        (WORDS.get(name, name.replace("_", " ")), short(one.estimate), interval_text(one))
        for name, one in told.measures.items()
    ]
    rows += [(name, short(value), "the same for every row") for name, value in told.baselines.items()]
    of = f", of {told.positive}" if told.positive else ""
    lead = f'<p class="note">{told.rows:,} held-out rows{escaped(of)}; intervals of 95 %.</p>'
    return lead + table(("measure", "value", "95 % interval"), rows)


def _confusion(told: ClassificationFound) -> str:
    matrix = told.confusion
    if matrix is None or {len(matrix), *map(len, matrix)} != {len(told.labels)}:
        return ""
    return confusion_chart(told.labels, matrix)


def _worst(told: ClassificationFound) -> str:
    if told.confusion is None or len(told.labels) <= READABLE or not _confusion(told):
        return ""
    return f"<h3>What was taken for what</h3>{confusion_table(told.labels, told.confusion)}"


def _calibration(told: ClassificationFound) -> str:
    one = told.calibration
    if one is None:
        return ""
    points = [_bin(each) for each in one.bins]
    note = f"Dots on the dashed line are probabilities to take at their word. {one.sentence}".strip()
    return reliability_chart("Calibration", note, points, [each.rows for each in one.bins])


def _bin(found: BinFound) -> Point:
    """The share of the bin's rows with Wilson's interval."""
    share = wilson(round(found.happened * found.rows), found.rows)
    return Point(x=found.foretold, estimate=found.happened, low=share.low, high=share.high)


def _curve(told: ClassificationFound) -> str:
    one = told.curve
    if one is None or len(one.thresholds) != len(one.costs):
        return ""
    points = tuple(Point(x=x, estimate=y) for x, y in zip(one.thresholds, one.costs, strict=True))
    marks = [
        (name, value)
        for name, value in (("by costs alone", one.fair), ("cheapest here", one.best))
        if value is not None
    ]
    note = (
        f"Calling a row {told.positive or 'positive'} from a probability on. The cheapest threshold on these very rows "
        "flatters; choose it on others."
    )
    line = Line(name="mean cost", points=points)
    levels = [("as decided", one.decided)]
    return band_chart("Cost by threshold", note, [line], across="threshold", marks=marks, levels=levels)


def _by_label(told: ClassificationFound) -> str:
    if len(told.by_label) < 3 and told.positive:
        labels: Sequence[LabelFound] = told.by_label
    else:
        labels = sorted(told.by_label, key=lambda one: one.f1.estimate if one.f1 else 2.0)
    rows = [
        (one.label, f"{one.true:,.4g}", f"{one.decided:,.4g}", *(interval_text(x, True) for x in _shares(one)))
        for one in labels[:MOST_LABELS]
    ]
    left = len(labels) - len(rows)
    more = (
        f'<p class="note">The {len(rows)} labels of lowest F1; {left} more in classification.json.</p>' if left else ""
    )
    head = ["label", "true", "decided", "precision", "recall", "F1", "area under ROC"]
    if all(one.auc is None for one in labels):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return f"<h3>By label</h3>{table(head, rows)}{more}" if rows else ""


def _shares(one: LabelFound) -> tuple[Estimate | None, ...]:
    return one.precision, one.recall, one.f1, one.auc


def _groups(told: AttributeFound) -> str:
    names = list(dict.fromkeys(name for group in told.groups for name in group.measures))
    charts = "".join(
        estimates_chart(
            name[0].upper() + name[1:],
            "",
            [
                Named(name=f"{group.name} ({group.rows:,})", **vars(group.measures[name]))
                for group in told.groups
                if name in group.measures
            ],
        )
        for name in names
    )
    warned = "".join(f'<p class="note">{escaped(warning)}</p>' for warning in told.warnings)
    lead = f'<p class="lead">{escaped(told.sentence)}</p>' if told.sentence else ""
    return f'<h3>By {escaped(told.attribute)}</h3>{lead}<div class="grid even">{charts}</div>{warned}'


def interval_text(found: Estimate | None, whole: bool = False) -> str:
    """`[0.350, 0.474]`, with the estimate before it where `whole`; a dash where there is none."""
    if found is None:
        return "—"
    low, high = (edge if end is None else f"{end:.3f}" for end, edge in ((found.low, "−∞"), (found.high, "∞")))
    told = f"[{low}, {high}]" if found.low is not None or found.high is not None else ""
    return (f"{found.estimate:.3f} {told}" if whole else told).replace("-", "−").strip()
