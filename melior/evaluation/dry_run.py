"""a grader on real rows before anything is trained on it: what it says, how often it fails, how long it takes"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from melior.errors import DataError
from melior.evaluation.agreement import Agreement, agreement, spearman
from melior.statistics import Interval, bootstrap_mean, wilson
from melior.types import Record, Score

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BINS = 10
SHOWN = 3  # examples from each end
SLOWEST = 5
FEW_POSITIVE = 0.05  # under this share of positive rewards, most groups teach nothing
TOO_EASY = 0.95  # mean from which there is little left to learn

_VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|[-+]?\d[\d.]*")  # what differs between two errors of one kind


@dataclass(frozen=True)
class Graded:
    """One output with its score, and what people said of it, if anything."""

    id: str  # of the row
    record: Record
    score: Score
    label: float | None = None


@dataclass(frozen=True)
class Failure:
    """Errors of one kind, told by the first."""

    kind: str
    count: int
    id: str
    error: str
    traceback: str


@dataclass(frozen=True)
class Part:
    """One grader of a combined one."""

    name: str
    count: int
    mean: float
    deviation: float
    low: float
    high: float
    correlation: float | None  # Spearman's, with the whole; None where one of them is constant


@dataclass(frozen=True)
class Shown:
    """An output for people to read."""

    id: str
    inputs: Any
    output: Any
    reward: float
    reason: str
    label: float | None


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a grader did on rows."""

    grader: str
    rows: int
    outputs: int
    graded: int
    nulls: int  # outputs that the grader says it does not apply to
    failed: Interval  # share of outputs
    failures: tuple[Failure, ...]
    reward: Interval | None  # mean over rows
    deviation: float | None
    quantiles: Mapping[str, float]
    histogram: tuple[tuple[float, float, int], ...]  # from, to, how many
    positive: float | None  # share of rewards above 0
    passing: float | None  # share from `pass_threshold` on, where the grader has one
    groups: int  # rows with two graded outputs or more
    flat_groups: int  # of them, those whose rewards are all equal: they teach nothing
    seconds: Mapping[str, float]  # of a call: p50, p95, max
    slowest: tuple[tuple[str, float], ...]  # row and seconds
    parts: tuple[Part, ...]
    agreement: Agreement | None
    tokens: Mapping[str, int]  # of each judge model
    lowest: tuple[Shown, ...]
    highest: tuple[Shown, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and mappings."""
        return {
            **asdict(self),
            "failed": self.failed.to_json(),
            "reward": self.reward.to_json() if self.reward else None,
            "agreement": self.agreement.to_json() if self.agreement else None,
        }


def dry_run(grader: str, graded: Sequence[Graded], *, threshold: float | None = None) -> DryRun:
    """The report on a grader's scores; outputs of one row are those that share an id.

    Raises:
        DataError: if there is no output.
    """
    if not graded:
        raise DataError("0 outputs to grade; give rows with outputs, or a model to sample some from")
    valued = [(one, value) for one in graded if (value := one.score.value) is not None]
    values = [value for _, value in valued]
    errors = [one for one in graded if one.score.error]
    by_row: dict[str, list[float]] = {}
    for one, value in valued:
        by_row.setdefault(one.id, []).append(value)
    several = [found for found in by_row.values() if len(found) > 1]
    seconds = np.array([one.score.seconds for one in graded])
    ordered = sorted(valued, key=lambda pair: pair[1])
    agreed, obstacle = _agreement(valued)
    found = DryRun(
        grader=grader,
        rows=len({one.id for one in graded}),
        outputs=len(graded),
        graded=len(valued),
        nulls=len(graded) - len(valued) - len(errors),
        failed=wilson(len(errors), len(graded)),
        failures=_failures(errors),
        reward=bootstrap_mean(by_row, bounds=_bounds(values)) if by_row else None,
        deviation=float(np.std(values)) if values else None,
        quantiles={f"p{share:.0%}"[:-1]: float(np.quantile(values, share)) for share in QUANTILES} if values else {},
        histogram=_histogram(values),
        positive=sum(value > 0 for value in values) / len(values) if values else None,
        passing=sum(v >= threshold for v in values) / len(values) if values and threshold is not None else None,
        groups=len(several),
        flat_groups=sum(max(rewards) == min(rewards) for rewards in several),
        seconds={
            "p50": float(np.quantile(seconds, 0.5)),
            "p95": float(np.quantile(seconds, 0.95)),
            "max": float(seconds.max()),
        },
        slowest=tuple(
            (one.id, one.score.seconds) for one in sorted(graded, key=lambda one: -one.score.seconds)[:SLOWEST]
        ),
        parts=_parts(valued),
        agreement=agreed,
        tokens=_tokens(graded),
        lowest=tuple(_shown(one, value) for one, value in ordered[:SHOWN]),
        highest=tuple(_shown(one, value) for one, value in reversed(ordered[-SHOWN:]) if value > ordered[0][1]),
        warnings=(),
    )
    return replace(found, warnings=(*_warnings(found), *obstacle))


def _bounds(values: Sequence[float]) -> tuple[float, float] | None:
    """Rewards that were all seen within [0, 1] are taken to stay there."""
    return (0.0, 1.0) if all(0 <= value <= 1 for value in values) else None


def _failures(errors: Sequence[Graded]) -> tuple[Failure, ...]:
    """Errors that differ in numbers and quoted words alone are one kind; the most frequent first."""
    first: dict[str, Graded] = {}
    counts: Counter[str] = Counter()
    for one in errors:
        kind = f"{one.score.kind}: {_VARIABLE.sub('…', one.score.error)}"
        first.setdefault(kind, one)
        counts[kind] += 1
    return tuple(
        Failure(first[k].score.kind, count, first[k].id, first[k].score.error, first[k].score.traceback)
        for k, count in counts.most_common()
    )


def _histogram(values: Sequence[float]) -> tuple[tuple[float, float, int], ...]:
    """A bar for each value where there are few, else for each of ten equal ranges."""
    distinct = sorted(set(values))
    if len(distinct) <= BINS:
        return tuple((value, value, values.count(value)) for value in distinct)
    counts, edges = np.histogram(values, bins=BINS)
    return tuple((float(edges[i]), float(edges[i + 1]), int(count)) for i, count in enumerate(counts))


def _parts(valued: Sequence[tuple[Graded, float]]) -> tuple[Part, ...]:
    names = dict.fromkeys(name for one, _ in valued for name in one.score.parts)
    found = []
    for name in names:
        pairs = [(one.score.parts[name], value) for one, value in valued if name in one.score.parts]
        own, whole = np.array([own for own, _ in pairs]), np.array([value for _, value in pairs])
        rank = spearman(own, whole)
        correlation = None if math.isnan(rank) else rank
        told = (float(own.mean()), float(own.std()), float(own.min()), float(own.max()))
        found.append(Part(name, len(pairs), *told, correlation))
    return tuple(found)


def _agreement(valued: Sequence[tuple[Graded, float]]) -> tuple[Agreement | None, list[str]]:
    """How far rewards agree with labels, or a warning that says why nobody can tell."""
    labelled = [(one.id, value, one.label) for one, value in valued if one.label is not None]
    if not labelled:
        return None, []
    ids, scores, labels = zip(*labelled, strict=True)
    try:
        return agreement(scores, labels, clusters=ids), []
    except DataError as error:  # what the grader did is worth telling all the same
        return None, [f"no agreement with labels: {error}"]


def _tokens(graded: Sequence[Graded]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in graded:
        for model, counts in one.score.usage.items():
            total[model] += sum(counts.values())
    return dict(total)


def _shown(one: Graded, value: float) -> Shown:
    return Shown(one.id, one.record.inputs, one.record.output, value, one.score.reason, one.label)


def _warnings(run: DryRun) -> list[str]:
    """What should be looked at before training, the gravest first."""
    told = []
    if not run.graded:
        return [f"the grader gave no reward for any of {run.outputs} outputs; nothing could be learnt from it"]
    low, high = run.quantiles["p0"], run.quantiles["p100"]
    if low == high:
        what = "it may read the wrong column or format" if low == 0 else "fine for reference answers alone"
        told.append(f"every one of {run.graded} rewards is {low:g}: {what}, but equal rewards teach nothing")
    elif run.positive is not None and run.positive < FEW_POSITIVE and low >= 0:
        told.append(f"only {run.positive:.1%} of rewards are above 0: too sparse to learn from by sampling alone")
    elif run.reward is not None and run.reward.estimate > TOO_EASY and low >= 0 and high <= 1:
        told.append(f"the mean reward is {run.reward.estimate:.2f} already; there is little left to learn")
    if run.failures:
        first = run.failures[0]
        told.append(f"{run.failed.estimate:.1%} of calls fail, first at row {first.id}; failed outputs are left out")
    if run.nulls:
        told.append(f"the grader does not apply to {run.nulls} of {run.outputs} outputs; they are left out")
    if run.groups and run.flat_groups > run.groups / 2 and low != high:
        told.append(
            f"in {run.flat_groups} of {run.groups} rows all outputs get the same reward, and teach nothing; "
            "a smoother grader or harder rows would help"
        )
    if any(math.isfinite(part.deviation) and part.deviation == 0 for part in run.parts) and low != high:
        names = ", ".join(part.name for part in run.parts if part.deviation == 0)
        told.append(f"part {names} says the same of every output")
    if run.agreement is not None:
        told += _disagreement(run.agreement)
    return told


def _disagreement(found: Agreement) -> list[str]:
    """What to say of rewards that follow the labels no better than chance, or the other way."""
    name, measure, chance = ("AUC", found.auc, 0.5) if found.auc is not None else ("Spearman", found.spearman, 0.0)
    if measure is None or measure.low >= chance:
        return []
    if measure.high < chance:
        return [f"the rewards go against the labels ({name} {measure}): good outputs get less than bad ones"]
    return [f"the rewards may agree with the labels no better than chance ({name}'s interval holds {chance:g})"]
