"""what outputs pass: graders with thresholds, and what a run of them came to

An output passes that passes every criterion. One that a criterion could not grade is an error: it neither passed nor
failed, and is in no mean.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from melior.errors import GraderError
from melior.evaluation.evaluate import REWARD, UNIT, Evaluation
from melior.rewards.graders import load_grader
from melior.rewards.similarity import threshold_of
from melior.statistics import Bounds, bootstrap_mean
from melior.types import Sampling

Status = Literal["pass", "fail", "error"]
Values = Mapping[str, float | None]  # by criterion; None where it failed

EITHER = ("string_check", "label_model")  # graders that say 0 or 1
KNOWS = ("text_similarity", "score_model", "python")  # graders whose own setting may have a threshold
HALFWAY = ("score_model", "python", "multi")  # may do without one: the dialect leaves it out


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """A grader, and from which number on an output passes it."""

    name: str
    kind: str
    spec: Mapping[str, Any]  # the grader's setting
    threshold: float
    bounds: Bounds | None  # where its numbers lie, if known

    def passes(self, value: float | None) -> bool:
        """Whether this is enough; what could not be graded is not."""
        return value is not None and value >= self.threshold

    @property
    def metric(self) -> str:
        """What its numbers are called in an evaluation."""
        return f"criteria/{self.name}"


def criteria_of(specs: Sequence[Mapping[str, Any]]) -> list[Criterion]:
    """The criteria of graders' settings, each with a name of its own.

    Raises:
        GraderError: if one makes no grader, or has no threshold and needs one.
    """
    found = [_criterion(spec) for spec in specs]
    times: Counter[str] = Counter()
    for place, one in enumerate(found):
        times[one.name] += 1
        if times[one.name] > 1:
            found[place] = replace(one, name=f"{one.name} ({times[one.name]})")
    return found


def _criterion(spec: Mapping[str, Any]) -> Criterion:
    kind = str(spec.get("type"))
    setting = dict(spec) if kind in KNOWS else {key: value for key, value in spec.items() if key != "pass_threshold"}
    grader = load_grader(setting)
    low, high = spec.get("range") or UNIT
    bounded = kind in (*EITHER, "text_similarity", "score_model")
    return Criterion(
        name=grader.name,
        kind=kind,
        spec=setting,
        threshold=_threshold(spec, kind, (float(low), float(high))),
        bounds=(float(low), float(high)) if bounded else None,
    )


def _threshold(spec: Mapping[str, Any], kind: str, bounds: Bounds) -> float:
    if kind in EITHER:
        return 1.0
    given = threshold_of(spec)
    if given is None and kind not in HALFWAY:
        raise GraderError(f"{kind} says how much and not whether; give pass_threshold, from which on an output passes")
    return (bounds[0] + bounds[1]) / 2 if given is None else given


def status_of(values: Values, criteria: Sequence[Criterion]) -> Status:
    """Whether an output passes them all; an error where one of them could not say."""
    if any(values.get(one.name) is None for one in criteria):
        return "error"
    return "pass" if all(one.passes(values[one.name]) for one in criteria) else "fail"


def counts_of(outputs: Sequence[Values], criteria: Sequence[Criterion]) -> dict[str, int]:
    """How many outputs there are, and how many passed, failed and could not be graded."""
    found = [status_of(values, criteria) for values in outputs]
    return {
        "total": len(found),
        "passed": found.count("pass"),
        "failed": found.count("fail"),
        "errored": found.count("error"),
    }


def counts_by_criterion(outputs: Sequence[Values], criteria: Sequence[Criterion]) -> list[dict[str, Any]]:
    """Passed, failed, errored and the mean number of each criterion."""
    told = []
    for one in criteria:
        values = [output.get(one.name) for output in outputs]
        graded = [value for value in values if value is not None]
        passed = sum(map(one.passes, graded))
        told.append(
            {
                "testing_criteria": one.name,
                "passed": passed,
                "failed": len(graded) - passed,
                "errored": len(values) - len(graded),
                "mean_score": sum(graded) / len(graded) if graded else None,
            }
        )
    return told


def evaluation_of(
    outputs: Sequence[tuple[str, Values]],
    criteria: Sequence[Criterion],
    *,
    grader: str,
    sampling: Sampling | None = None,
) -> Evaluation:
    """An evaluation whose reward is 1 for what passes and 0 for what fails, by item key.

    Raises:
        GraderError: if nothing could be graded.
    """
    keys = [key for key, _ in outputs]
    statuses = {key: status_of(values, criteria) for key, values in outputs}
    reward: dict[str, tuple[float, ...]] = {
        key: (float(status == "pass"),) for key, status in statuses.items() if status != "error"
    }
    if not reward:
        raise GraderError(
            f"{len(keys)} of {len(keys)} outputs could not be graded; see their errors, mend the criteria"
        )
    values: dict[str, dict[str, tuple[float, ...]]] = {REWARD: reward}
    bounds: dict[str, Bounds] = {REWARD: UNIT}
    for one in criteria:
        numbers = [(key, found.get(one.name)) for key, found in outputs]
        by_item: dict[str, tuple[float, ...]] = {key: (x,) for key, x in numbers if x is not None}
        if by_item:
            values[one.metric] = by_item
        if one.bounds is not None:
            bounds[one.metric] = one.bounds
    return Evaluation(
        sampling=sampling or Sampling(),
        grader=grader,
        items=tuple(keys),
        fingerprint=hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest(),  # keys are of the items' contents
        values=values,
        bounds=bounds,
        reward=bootstrap_mean(reward, bounds=UNIT),
        missing=tuple(key for key in keys if key not in reward),
        excluded=len(keys) - len(reward),
        graded=len(reward),
    )
