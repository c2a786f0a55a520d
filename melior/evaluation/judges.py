"""may a judge be a reward: how far it agrees with people, and what it falls for

A judge is tried on rows of which people have said what is good: pairs, or rated outputs. It is accepted where the whole
interval of its agreement lies above the floor, where its verdicts survive an exchange of sides (if it compares), where
it seldom fails, and where it accepts no canary. Rows on which it failed are left out and counted.

Agreement is one measure for all: the chance that the judge prefers the output that people preferred, ties half. On
pairs that is accuracy, on good and bad the area under the curve, on numbers and grades the share of concordant pairs.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from melior.data.splits import input_key
from melior.errors import ConfigError, DataError
from melior.metrics import Floats
from melior.rewards.base import text_of
from melior.rewards.canaries import LIMIT, PROMPTS, Tried, canaries, lowest, passing_line
from melior.rewards.pairs import FIRST, Compared, Pair
from melior.statistics import Interval, bootstrap, mean_interval, percentile_interval, resampled_weights
from melior.types import Preference, Rated, Record, Score

RESAMPLES, SLOW_RESAMPLES = 1000, 200  # the second for concordance, which costs a square of the rows
NEAR = 1e-6  # log-odds between two of Newton's steps, at which he has arrived
NEWTON = 30  # steps; a slope is found in six, and one without an end stops at the ridge
STEEPEST = 20.0  # log-odds for a doubling: length alone decides
RIDGE = 1e-3  # keeps the slope of rows that length alone parts finite
AT_ONCE = 32  # outputs between two reports of progress
PAIRS_AT_ONCE = 8  # the same, of pairs: each is read twice, with both outputs
UNIT = (0.0, 1.0)

Progress = Callable[[str, int, int], None]


class Grades(Protocol):
    """A judge of single outputs, in force."""

    def grade(self, records: Sequence[Record]) -> list[Score]: ...


@runtime_checkable
class Compares(Protocol):
    """A judge of pairs."""

    def compare(self, pairs: Sequence[Pair]) -> list[Compared]: ...


@dataclass(frozen=True, kw_only=True)
class Floor:
    """What a judge must show before anything learns from it."""

    agreement: float = 0.55  # the interval's lower end; .5 is chance
    consistency: float = 0.6  # the interval's lower end, of judges that compare: most verdicts survive an exchange
    failures: float = 0.05  # share of outputs without a verdict: those left may be no fair sample
    canaries: float = LIMIT  # share of prompts on which any one of them may be accepted
    rows: int = 100  # independent ones; with fewer, an interval is wider than most judges are good

    def __post_init__(self) -> None:
        shares = (self.agreement, self.consistency, self.failures, self.canaries)
        if not all(0 <= share <= 1 for share in shares) or self.rows < 2:
            raise ConfigError(f"a floor has shares between 0 and 1 and two rows or more, got {asdict(self)}")


@dataclass(frozen=True, kw_only=True)
class JudgeReport:
    """What a judge is worth, and whether it may be a reward."""

    judge: str
    of: Literal["pairs", "ratings"]
    rows: int  # on which people said something, and the judge was asked
    graded: int  # on which it had a verdict
    clusters: int  # of the graded ones: rows of one group, or one input, stand or fall together
    failures: Mapping[str, int] = field(default_factory=dict)  # kind → rows
    first_error: str = ""
    agreement: Interval | None = None  # None where nothing was graded
    ties: float = 0.0  # share of the judge's verdicts
    consistency: Interval | None = None  # of judges that compare: share of verdicts that survive an exchange of sides
    first_named: Interval | None = None  # of judges that compare: share of answers for the side shown first
    length_slope: Interval | None = None  # of pairs: log-odds that doubling an answer's length adds to being preferred
    people_slope: Interval | None = None  # the same, of the people
    baselines: Mapping[str, float] = field(default_factory=dict)  # agreement of preferring by length alone
    canaries: tuple[Tried, ...] = ()
    line: float | None = None  # from which score on it calls an output good; its own, or the median preferred output's
    tokens: Mapping[str, int] = field(default_factory=dict)  # by model
    seconds: float = 0.0
    floor: Floor = field(default_factory=Floor)
    reasons: tuple[str, ...] = ()  # why it is refused; empty: it is accepted

    @property
    def accepted(self) -> bool:
        """Whether it may be a reward."""
        return not self.reasons

    @property
    def failure_share(self) -> float:
        """Share of rows without a verdict."""
        return 1 - self.graded / self.rows

    @property
    def sentence(self) -> str:
        """The verdict on the judge."""
        if self.reasons:
            return f"Refused: {'; '.join(self.reasons)}."
        return (
            f"Accepted: {self.judge} agrees with people on {self.agreement} of {self.graded} {self.of} "
            f"(floor {self.floor.agreement:g}), and nothing else speaks against it."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and mappings."""
        told = {name: value.to_json() if isinstance(value, Interval) else value for name, value in vars(self).items()}
        tried = [{**vars(each), "rate": each.rate} for each in self.canaries]
        more = {"accepted": self.accepted, "sentence": self.sentence, "reasons": list(self.reasons)}
        return {**told, "canaries": tried, "floor": asdict(self.floor), **more}


def judge_report(
    judge: Grades | Compares,
    rows: Sequence[Preference] | Sequence[Rated],
    *,
    name: str = "",
    spec: Any = None,
    floor: Floor | None = None,
    prompts: int = PROMPTS,
    progress: Progress | None = None,
) -> JudgeReport:
    """How far a judge agrees with people, and what it falls for; `prompts`: how many each canary is tried on.

    Raises:
        DataError: if there is nothing that people preferred, or pairs are asked for and rows are rated.
    """
    started, floor, report = time.monotonic(), floor or Floor(), progress or (lambda what, done, total: None)
    if not rows:
        raise DataError("0 rows to judge a judge by; give pairs, or rated outputs, that people judged")
    if isinstance(rows[0], Preference):
        pairs = [turned(row) for row in rows if isinstance(row, Preference) and row.probability != 0.5]
        if not pairs:
            raise DataError(f"people tied on all {len(rows)} pairs, so nothing can agree with them")
        trial: _Trial = (
            _Comparing(judge, pairs, report) if isinstance(judge, Compares) else _Scoring(judge, pairs, report)
        )
    elif isinstance(judge, Compares):
        raise DataError("this judge compares two outputs, and these rows rate one each; give pairs")
    else:
        trial = _Rating(judge, [row for row in rows if isinstance(row, Rated)], report)
    found = trial.measured()
    line = passing_line(spec) if passing_line(spec) is not None else trial.line
    tried = trial.canaries(prompts, passing_line(spec), lowest(spec)) if prompts else ()
    told: dict[str, Any] = {"judge": name, "floor": floor, "canaries": tried, "line": line, **trial.counted, **found}
    made = JudgeReport(**told, seconds=time.monotonic() - started)
    return JudgeReport(**{**vars(made), "reasons": tuple(_reasons(made))})


def turned(row: Preference) -> Preference:
    """The same pair, with what more people preferred as the chosen output."""
    if row.probability >= 0.5:
        return row
    chosen, rejected = row.rejected, row.chosen
    return Preference(row.inputs, chosen, rejected, 1 - row.probability, id=row.id, group=row.group, item=row.item)


def _reasons(made: JudgeReport) -> list[str]:
    """What speaks against a judge, the gravest first."""
    floor, reasons = made.floor, []
    if made.agreement is None:
        return [f"it failed on all {made.rows} rows, first with: {made.first_error:.160}"]
    if made.agreement.low < floor.agreement:
        reasons.append(f"it agrees with people on {made.agreement} of {made.of}, and the floor is {floor.agreement:g}")
    if made.consistency is not None and made.consistency.low < floor.consistency:
        told = (
            f"{made.consistency} of its verdicts survive an exchange of sides, and the floor is {floor.consistency:g}"
        )
        reasons.append(told)
    if made.failure_share > floor.failures:
        reasons.append(f"it failed on {made.failure_share:.1%} of rows (limit {floor.failures:.0%})")
    if worst := sorted((each for each in made.canaries if each.rate > floor.canaries), key=lambda each: -each.rate):
        reasons.append(f"it accepts the canary {', '.join(map(str, worst))} (limit {floor.canaries:.0%})")
    if made.clusters < floor.rows:
        reasons.append(f"{made.clusters} independent rows are fewer than the {floor.rows} needed")
    return reasons


class _Trial:
    """One judge on rows that people judged."""

    of: Literal["pairs", "ratings"] = "pairs"
    line: float | None = None

    def __init__(self, judge: Any, rows: Sequence[Any], report: Progress) -> None:
        self.judge, self.rows, self.report = judge, rows, report
        self.failures: Counter[str] = Counter()
        self.first_error = ""
        self.tokens: Counter[str] = Counter()
        self.clusters: list[Hashable] = [row.group or input_key(row) for row in rows]
        self.places = np.zeros(0, dtype=np.int64)  # of the rows with a verdict
        self.liked: Any = None  # of them, those with an output that people preferred; None: all

    def measured(self) -> dict[str, Any]:
        """The measures that make a report."""
        raise NotImplementedError

    def accepted(self, asked: Sequence[tuple[int, str]], line: float | None, least: float | None) -> list[bool | None]:
        """For places of rows and canaries, whether each was accepted; None where there was no verdict."""
        raise NotImplementedError

    def canaries(self, prompts: int, line: float | None, least: float | None) -> tuple[Tried, ...]:
        """Each canary on some of the graded rows, drawn by their content, against what people liked there."""
        liked = self.places if self.liked is None else self.liked
        first = {self.clusters[place]: int(place) for place in reversed(liked.tolist())}
        drawn = sorted(first.items(), key=lambda found: hashlib.sha256(repr(found[0]).encode()).digest())[:prompts]
        found = []
        texts = [(place, canaries(self.rows[place].inputs)) for _, place in drawn]
        for number, name in enumerate(texts[0][1] if texts else ()):
            self.report("canaries", number, len(texts[0][1]))
            said = self.accepted([(place, made[name]) for place, made in texts], line, least)
            known = [each for each in said if each is not None]
            found.append(Tried(name=name, prompts=len(known), accepted=sum(known)))
        return tuple(found)

    @property
    def counted(self) -> dict[str, Any]:
        """How many rows there are, and what became of them."""
        kept = {self.clusters[place] for place in self.places.tolist()}
        told: dict[str, Any] = {"of": self.of, "rows": len(self.rows), "graded": len(self.places)}
        told |= {"failures": dict(self.failures), "first_error": self.first_error, "tokens": dict(self.tokens)}
        return {**told, "clusters": len(kept)}

    def spend(self, usage: Mapping[str, Mapping[str, int]]) -> None:
        """Counts what a verdict cost."""
        for model, counts in usage.items():
            self.tokens[model] += sum(counts.values())

    def fail(self, kind: str, error: str) -> None:
        """Counts a row without a verdict."""
        self.failures[kind or "not applicable"] += 1
        self.first_error = self.first_error or error

    def grade(self, records: Sequence[Record], what: str) -> list[Score]:
        """Scores in portions."""
        scores: list[Score] = []
        for start in range(0, len(records), AT_ONCE):
            self.report(what, start, len(records))
            scores += self.judge.grade(records[start : start + AT_ONCE])
        for score in scores:
            self.spend(score.usage)
        return scores

    def of_pairs(self, preferred: Floats) -> dict[str, Any]:  # [P], 1 where the judge prefers what people did
        """Agreement and length slopes of pairs with a verdict."""
        rows = [self.rows[place] for place in self.places.tolist()]
        names = [self.clusters[place] for place in self.places.tolist()]
        lengths = np.array(
            [[1 + len(text_of(row.chosen)), 1 + len(text_of(row.rejected))] for row in rows], dtype=float
        )
        ratio = np.log2(lengths[:, 0] / lengths[:, 1])
        longer = float((np.sign(ratio) / 2 + 0.5).mean())
        return {
            "agreement": mean_interval(preferred, clusters=names, bounds=UNIT),
            "ties": float((preferred == 0.5).mean()),
            "length_slope": length_slope(preferred, ratio, names),
            "people_slope": length_slope(np.array([row.probability for row in rows]), ratio, names),
            "baselines": {"the longer one": longer, "the shorter one": 1 - longer},
        }


class _Scoring(_Trial):
    """A judge of single outputs on pairs: it prefers what it scores higher."""

    def measured(self) -> dict[str, Any]:
        flat = [
            Record(inputs=row.inputs, output=output, item=row.item)
            for row in self.rows
            for output in (row.chosen, row.rejected)
        ]
        scores = self.grade(flat, "judging")
        values = np.array([math.nan if s.value is None else s.value for s in scores]).reshape(-1, 2)
        for place in np.isnan(values).any(1).nonzero()[0]:
            broken = next(score for score in scores[2 * place : 2 * place + 2] if score.value is None)
            self.fail(broken.kind, broken.error)
        self.places = (~np.isnan(values).any(1)).nonzero()[0]
        self.chosen = values[:, 0]
        if not len(self.places):
            return {}
        kept = values[self.places]
        self.line = float(np.median(kept[:, 0]))
        return self.of_pairs(np.sign(kept[:, 0] - kept[:, 1]) / 2 + 0.5)

    def accepted(self, asked: Sequence[tuple[int, str]], line: float | None, least: float | None) -> list[bool | None]:
        flat = [Record(inputs=self.rows[at].inputs, output=text, item=self.rows[at].item) for at, text in asked]
        scores = self.judge.grade(flat)
        return [
            None if score.value is None else _good(score.value, float(self.chosen[at]) if line is None else line, least)
            for (at, _), score in zip(asked, scores, strict=True)
        ]


class _Rating(_Scoring):
    """A judge of single outputs on outputs that people rated."""

    of: Literal["pairs", "ratings"] = "ratings"

    def measured(self) -> dict[str, Any]:
        scores = self.grade([Record(inputs=r.inputs, output=r.output, item=r.item) for r in self.rows], "judging")
        values = np.array([math.nan if score.value is None else score.value for score in scores])
        for score in scores:
            if score.value is None:
                self.fail(score.kind, score.error)
        self.chosen, ratings = values, np.array([row.rating for row in self.rows])
        self.places = (~np.isnan(values)).nonzero()[0]
        if len(self.places) < 2 or np.ptp(ratings[self.places]) == 0:
            self.places = self.places[:0]
            self.first_error = self.first_error or "all outputs with a verdict are rated the same"
            return {}
        names = [self.clusters[place] for place in self.places.tolist()]
        x, y = values[self.places], ratings[self.places]
        best = self.places[y == y.max()]
        self.line = float(np.median(values[best]))
        lengths = np.array([len(text_of(self.rows[place].output)) for place in self.places.tolist()], dtype=float)
        longer = concordance(lengths, y)
        found = {
            "agreement": bootstrap(
                lambda at: concordance(x[at], y[at]), len(x), clusters=names, bounds=UNIT, resamples=SLOW_RESAMPLES
            ),
            "ties": _tied(x),
            "baselines": {"the longer one": longer, "the shorter one": 1 - longer},
        }
        self.liked = best
        return found


class _Comparing(_Trial):
    """A judge of pairs, asked in both orders."""

    def measured(self) -> dict[str, Any]:
        found: list[Compared] = []
        for start in range(0, len(self.rows), PAIRS_AT_ONCE):
            self.report("judging", start, len(self.rows))
            part = self.rows[start : start + PAIRS_AT_ONCE]
            found += self.judge.compare([Pair(inputs=r.inputs, first=r.chosen, second=r.rejected) for r in part])
        for each in found:
            self.spend(each.usage)
            if each.value is None:
                self.fail(each.kind, each.error)
        self.places = np.array([place for place, each in enumerate(found) if each.value is not None], dtype=np.int64)
        kept = [each for each in found if each.value is not None]
        if not kept:
            return {}
        names = [self.clusters[place] for place in self.places.tolist()]
        stable = np.array([float(each.consistent) for each in kept])
        sides = np.array([sum(said == FIRST for said in each.said) / 2 for each in kept])
        return {
            **self.of_pairs(np.array([each.value for each in kept], dtype=float)),
            "consistency": mean_interval(stable, clusters=names, bounds=UNIT),
            "first_named": mean_interval(sides, clusters=names, bounds=UNIT),
        }

    def accepted(self, asked: Sequence[tuple[int, str]], line: float | None, least: float | None) -> list[bool | None]:
        rows = [(self.rows[at], text) for at, text in asked]
        found = self.judge.compare([Pair(inputs=row.inputs, first=text, second=row.chosen) for row, text in rows])
        return [None if each.value is None else each.value >= 0.5 for each in found]


def _good(value: float, line: float, least: float | None) -> bool:
    """Whether a score says that an output is good; the lowest there is never does."""
    return value >= line and (least is None or value > least)


def concordance(scores: Floats, ratings: Floats) -> float:
    """The chance that of two outputs rated differently the better one scores higher, ties half; NaN without such two.

    For ratings of two kinds it is the area under the curve.
    """
    better = np.sign(ratings[:, None] - ratings[None, :]) > 0
    told = np.sign(scores[:, None] - scores[None, :])[better]
    return float((told / 2 + 0.5).mean()) if len(told) else math.nan


def length_slope(preferred: Floats, ratio: Floats, clusters: Sequence[Hashable]) -> Interval:  # [P], [P] in doublings
    """What a doubling of length adds to the log-odds of being preferred; 0 where length says nothing.

    A logistic regression through the origin, so that it is the same whichever side is called the first.
    """

    def slope(weights: Floats) -> Floats:  # [R, P] → [R]
        beta = np.zeros(len(weights))
        for _ in range(NEWTON):
            chance = 1 / (1 + np.exp(-np.clip(beta[:, None] * ratio, -30, 30)))
            gradient = (weights * ratio * (preferred - chance)).sum(1) - RIDGE * beta
            moved = beta + gradient / ((weights * ratio**2 * chance * (1 - chance)).sum(1) + RIDGE)
            moved = np.clip(moved, -STEEPEST, STEEPEST)
            near, beta = np.abs(moved - beta).max() < NEAR, moved
            if near:
                break
        return beta

    estimate = float(slope(np.ones((1, len(ratio))))[0])
    drawn = resampled_weights(len(ratio), clusters=clusters, resamples=RESAMPLES)
    draws = np.concatenate([slope(part) for part in drawn])
    return percentile_interval(estimate, draws, len(set(clusters)), RESAMPLES, bounds=(-STEEPEST, STEEPEST))


def _tied(values: Floats) -> float:
    """Share of pairs of outputs with equal scores."""
    counts = np.array(list(Counter(values.tolist()).values()), dtype=float)
    n = len(values)
    return float((counts * (counts - 1)).sum() / (n * (n - 1)))
