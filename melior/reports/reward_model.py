"""how far a reward model agrees with people, as a section: whole, by length, by annotator, and how sure it may be

Reads `reward_model.json`, which `melior.evaluation.reward_model` describes and writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import FiniteFloat, PositiveInt

from melior.reports.classification import BinFound, CalibrationFound, interval_text
from melior.reports.files import Row
from melior.reports.plots import estimates_chart, reliability_chart, table
from melior.reports.schema import Estimate, Named, Point, read_as
from melior.reports.text import escaped, short
from melior.statistics import wilson

WORDS = {  # measure → what it is called, in the order of the table
    "accuracy": "pairs ordered as people order them",
    "auc": "area under the ROC curve",
    "accuracy_at_best_threshold": "accuracy at the best threshold",
    "spearman": "rank correlation (Spearman)",
    "kendall": "rank correlation (Kendall)",
    "log_loss": "log loss (nats)",
    "length_correlation": "rank correlation of differences in reward and in length",
}


@dataclass(frozen=True, kw_only=True)
class ShareFound:
    """The measure on a part of the rows."""

    name: str
    rows: PositiveInt
    found: Estimate


@dataclass(frozen=True, kw_only=True)
class RewardFound:
    """What the section shows."""

    head: str
    of: str
    rows: PositiveInt
    left_out: Mapping[str, int] = field(default_factory=dict)
    clusters: int | None = None
    measure: str
    measures: Mapping[str, Estimate]
    baselines: Mapping[str, FiniteFloat] = field(default_factory=dict)
    calibration: CalibrationFound | None = None
    by_length: tuple[ShareFound, ...] = ()
    by_annotator: tuple[ShareFound, ...] = ()
    notes: tuple[str, ...] = ()


def reward_section(found: Row) -> str:
    """The section, empty where the file is none."""
    told = read_as(RewardFound, found)
    if told is None:
        return ""
    notes = "".join(f"<li>{escaped(note)}</li>" for note in told.notes)
    charts = _calibration(told.calibration) + _by_length(told) + _by_annotator(told)
    return (
        (f'<ul class="notes">{notes}</ul>' if notes else "")
        + f'<div class="two"><div>{_measures(told)}</div></div>'
        + (f'<div class="grid even">{charts}</div>' if charts else "")
    )


def _measures(told: RewardFound) -> str:
    rows = [
        (WORDS.get(name, name.replace("_", " ")), short(one.estimate), interval_text(one))
        for name, one in told.measures.items()
    ]
    measure = WORDS.get(told.measure, told.measure)
    rows += [(f"{name}: {measure}", short(value), "on the same rows") for name, value in told.baselines.items()]
    left = "".join(f"; {count:,} {reason} left out" for reason, count in told.left_out.items())
    groups = f" in {told.clusters:,} groups, which stand or fall together" if told.clusters else ""
    lead = f"{told.rows:,} held-out {told.of}{groups}, head {told.head}{left}; intervals of 95 %."
    return f'<p class="note">{escaped(lead)}</p>' + table(("measure", "value", "95 % interval"), rows)


def _calibration(one: CalibrationFound | None) -> str:
    if one is None:
        return ""
    note = f"Dots on the dashed line are probabilities to take at their word. {one.sentence}".strip()
    points = [_bin(each) for each in one.bins]
    return reliability_chart("How sure it may be", note, points, [each.rows for each in one.bins])


def _bin(found: BinFound) -> Point:
    """The share of the bin's rows with Wilson's interval."""
    share = wilson(round(found.happened * found.rows), found.rows)
    return Point(x=found.foretold, estimate=found.happened, low=share.low, high=share.high)


def _by_length(told: RewardFound) -> str:
    what = "how much longer the preferred output is" if told.of == "pairs" else "the output's length"
    note = f"Rows by {what}. A model that has learnt length is right at one end and wrong at the other."
    return estimates_chart("By length", note, _named(told.by_length))


def _by_annotator(told: RewardFound) -> str:
    note = "Who agrees least stands first: this person may judge by something else, or the model may."
    return estimates_chart("By annotator", note, _named(told.by_annotator))


def _named(shares: Sequence[ShareFound]) -> list[Named]:
    return [Named(name=f"{share.name} ({share.rows:,})", **vars(share.found)) for share in shares]
