"""graders made of other graders: a weighted sum, or a formula over their scores

A part that fails fails the whole: a sum without one of its parts is another reward. All parts are called, whatever
the first of them say, so that each part's score can be looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from melior.errors import GraderError
from melior.rewards.base import Grader, call_grader, checked, failed
from melior.rewards.formula import Formula
from melior.types import Record, Score


@dataclass(frozen=True)
class Weighted:
    """The weighted sum of other graders; one that fails fails the sum, one that does not apply is left out."""

    name: str
    graders: Mapping[str, Grader]
    weights: Mapping[str, float]  # by the graders' names

    @property
    def spec(self) -> Mapping[str, Any] | None:
        """JSON of all parts, or None if one of them has none."""
        specs = {name: {"grader": part.spec, "weight": self.weights[name]} for name, part in self.graders.items()}
        if any(spec["grader"] is None for spec in specs.values()):
            return None
        return {"type": "weighted", "name": self.name, "graders": specs}

    def load(self) -> None:
        """Load every part."""
        for part in self.graders.values():
            part.load()

    def grade(self, record: Record) -> Score:
        """Σ weight × score, with each part's own score under its name."""
        return self.combine({name: call_grader(part, record) for name, part in self.graders.items()})

    def combine(self, scores: Mapping[str, Score]) -> Score:
        """The sum of scores that the parts gave elsewhere."""
        values, broken = _values(self.name, scores)
        if broken is not None or not values:
            return broken or Score(value=None)
        total = checked(self.name, math.fsum(self.weights[name] * value for name, value in values.items()))
        decisions = self._decisions({name: score for name, score in scores.items() if score.value is not None})
        kind = total.kind or _kind(scores)
        return replace(total, parts=values, usage=_usage(scores), kind=kind, decisions=decisions)

    def _decisions(self, scores: Mapping[str, Score]) -> tuple[float, ...]:
        """What each decision earned, where every part can tell."""
        widths = {len(score.decisions) for score in scores.values()}
        if len(widths) != 1 or 0 in widths:
            return ()
        weighted = [[self.weights[name] * each for each in score.decisions] for name, score in scores.items()]
        return tuple(math.fsum(shares) for shares in zip(*weighted, strict=True))


@dataclass(frozen=True)
class Multi:
    """A formula over the scores of other graders, as the OpenAI dialect has it.

    It does not apply to an output to which a grader that the formula names does not apply.
    """

    name: str
    graders: Mapping[str, Grader]
    formula: Formula

    @property
    def spec(self) -> Mapping[str, Any] | None:
        """JSON of all parts and the formula, or None if one of them has none."""
        specs = {name: part.spec for name, part in self.graders.items()}
        if any(spec is None for spec in specs.values()):
            return None
        return {"type": "multi", "name": self.name, "graders": specs, "calculate_output": self.formula.text}

    def load(self) -> None:
        """Load every part."""
        for part in self.graders.values():
            part.load()

    def grade(self, record: Record) -> Score:
        """What the formula comes to, with each part's own score under its name."""
        return self.combine({name: call_grader(part, record) for name, part in self.graders.items()})

    def combine(self, scores: Mapping[str, Score]) -> Score:
        """The formula over scores that the parts gave elsewhere."""
        values, broken = _values(self.name, scores)
        if broken is not None:
            return broken
        if self.formula.names - values.keys():
            return Score(value=None, parts=values, usage=_usage(scores))
        try:
            total = checked(self.name, self.formula(values))
        except GraderError as error:
            total = failed(self.name, str(error), kind=error.kind)
        return replace(total, parts=values, usage=_usage(scores), kind=total.kind or _kind(scores))


def _values(name: str, scores: Mapping[str, Score]) -> tuple[dict[str, float], Score | None]:
    """The parts' values, and the failure of the whole if one of them failed."""
    values = {part: score.value for part, score in scores.items() if score.value is not None}
    for part, score in scores.items():
        if score.error:
            whole = failed(name, f"part {part}: {score.error}", score.traceback, score.kind)
            return values, replace(whole, parts=values, usage=_usage(scores))
    return values, None


def _kind(scores: Mapping[str, Score]) -> str:
    """What was amiss with the output, if a part says so."""
    return next((score.kind for score in scores.values() if score.kind), "")


def _usage(scores: Mapping[str, Score]) -> dict[str, dict[str, int]]:
    """Tokens of all judges that were asked."""
    total: dict[str, dict[str, int]] = {}
    for score in scores.values():
        for model, counts in score.usage.items():
            known = total.setdefault(model, {})
            for kind, count in counts.items():
                known[kind] = known.get(kind, 0) + count
    return total
