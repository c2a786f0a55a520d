"""may the candidate replace the baseline: promote, reject, or not known yet

Promote needs the whole interval of the paired gain above the margin, and every guard's interval above what it allows
to be lost. All must hold at once, so more guards never make a false promotion likelier (an intersection-union test:
Berger 1982, Technometrics 24) and the level needs no correction. Reject needs the whole interval below the margin, or
a guard's below what it allows. Everything else is inconclusive, with the items still needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from melior.errors import ConfigError
from melior.evaluation.compare import Comparison, pooled
from melior.evaluation.evaluate import GREEDY, REWARD, TOKENS, TRUNCATED
from melior.statistics import LEVEL, RESAMPLES, Interval, items_needed

Result = Literal["promote", "reject", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Guard:
    """A metric that may get worse by `margin` at most."""

    metric: str
    margin: float
    better: Literal["higher", "lower"] = "higher"
    relative: bool = False  # margin as a share of the baseline's mean

    def __post_init__(self) -> None:
        if not 0 <= self.margin < math.inf:
            raise ConfigError(f"guard {self.metric!r} needs a margin ≥ 0, got {self.margin}; it is what may be lost")
        if self.better not in ("higher", "lower"):
            raise ConfigError(f"guard {self.metric!r} needs better='higher' or 'lower', got {self.better!r}")


GUARDS = (
    Guard(metric=GREEDY, margin=0.05),  # what most callers see; 200 items tell a fall of .05 from a gain, not from 0
    Guard(metric=TRUNCATED, margin=0.05, better="lower"),
    Guard(metric=TOKENS, margin=1.0, better="lower", relative=True),  # twice as long costs twice as much
)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a candidate must show. At the default level an equal candidate passes in 2.5 % of trials."""

    margin: float = 0.0  # the gain in sampled reward must be above this
    level: float = LEVEL  # of the two-sided interval
    guards: tuple[Guard, ...] = GUARDS
    minimum_items: int = 30  # from here on the interval's coverage is tested
    maximum_missing: float = 0.05  # share of items without a graded sample: they may not be missing by chance
    effect: float = 0.02  # the smallest gain over the margin worth asking for more items
    power: float = 0.8
    repeated: bool = False  # True where more items are added until the gate decides; wider intervals pay for it
    resamples: int = RESAMPLES

    def __post_init__(self) -> None:
        if not (0 < self.level < 1 and 0 < self.power < 1 and self.effect > 0 and math.isfinite(self.margin)):
            raise ConfigError(
                "a gate needs 0 < level < 1, 0 < power < 1, effect > 0 and a finite margin, got "
                f"level={self.level}, power={self.power}, effect={self.effect}, margin={self.margin}"
            )
        if self.minimum_items < 2 or not 0 <= self.maximum_missing <= 1 or self.resamples < 100:
            raise ConfigError(
                "a gate needs minimum_items ≥ 2, 0 ≤ maximum_missing ≤ 1 and resamples ≥ 100, got "
                f"{self.minimum_items}, {self.maximum_missing} and {self.resamples}"
            )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate says, and why, in words."""

    result: Result
    sentence: str
    reasons: tuple[str, ...]
    interval: Interval  # of the paired gain in sampled reward
    guards: Mapping[str, Interval] = field(default_factory=dict)  # the change in each guarded metric
    items: int = 0  # compared
    items_needed: int | None = None  # more of them, about; None where decided, or where no number can be named

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and strings; `from_json` reads them back."""
        return {
            "result": self.result,
            "sentence": self.sentence,
            "reasons": list(self.reasons),
            "interval": self.interval.to_json(),
            "guards": {name: interval.to_json() for name, interval in self.guards.items()},
            "items": self.items,
            "items_needed": self.items_needed,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Verdict:
        """The verdict that `to_json` wrote."""
        guards = {name: Interval.from_json(interval) for name, interval in fields["guards"].items()}
        interval = Interval.from_json(fields["interval"])
        return cls(**{**fields, "reasons": tuple(fields["reasons"]), "interval": interval, "guards": guards})


def decide(comparisons: Comparison | Sequence[Comparison], gate: Gate | None = None) -> Verdict:
    """The gate's verdict on one comparison, or on several runs pooled over the items they share.

    Raises:
        DataError: if a guarded metric was not evaluated, or repeated looks are asked of a metric without bounds.
    """
    gate = gate or Gate()
    comparison = comparisons if isinstance(comparisons, Comparison) else pooled(comparisons)
    checks = [_check(comparison, REWARD, -gate.margin, "higher", gate)]
    for guard in gate.guards:
        allowed = guard.margin * (abs(comparison.mean(guard.metric)) if guard.relative else 1.0)
        checks.append(_check(comparison, guard.metric, allowed, guard.better, gate))
    result, reasons, needed = _weigh(checks, comparison, gate)
    items = len(comparison.of(REWARD))
    return Verdict(
        result=result,
        sentence=_sentence(result, reasons, needed, checks, items),
        reasons=tuple(reasons),
        interval=checks[0].interval,
        guards={check.metric: check.interval for check in checks[1:]},
        items=items,
        items_needed=needed,
    )


@dataclass(frozen=True)
class _Check:
    """One metric's change (candidate − baseline) against what it must reach."""

    metric: str
    interval: Interval
    allowed: float  # what may be lost: the negated margin for the reward itself
    better: str

    @property
    def gain(self) -> Interval:
        """The change, turned so that higher is better."""
        return self.interval if self.better == "higher" else -self.interval

    @property
    def passed(self) -> bool:
        low = self.gain.low
        return low > -self.allowed if self.metric == REWARD else low >= -self.allowed  # no gain is not a gain

    @property
    def failed(self) -> bool:
        return self.gain.high < -self.allowed

    def __str__(self) -> str:
        if self.metric == REWARD:
            asked = f"more than {-self.allowed + 0.0:.3g} is asked"
        elif self.better == "higher":
            asked = f"a fall of {self.allowed:.3g} is allowed"
        else:
            asked = f"a rise of {self.allowed:.3g} is allowed"
        return f"{self.metric} changed by {self.interval} where {asked}"


def _check(comparison: Comparison, metric: str, allowed: float, better: str, gate: Gate) -> _Check:
    if gate.repeated:
        interval = comparison.anytime_interval(metric, level=gate.level)
    else:
        interval = comparison.interval(metric, level=gate.level, resamples=gate.resamples)
    return _Check(metric, interval, allowed, better)


def _weigh(checks: Sequence[_Check], comparison: Comparison, gate: Gate) -> tuple[Result, list[str], int | None]:
    """The result, its reasons (the deciding ones only), and how many more items are needed."""
    items = len(comparison.of(REWARD))
    units = len(comparison.units(REWARD)[0])
    if comparison.missing > gate.maximum_missing * comparison.items:
        return "inconclusive", [f"{comparison.missing} of {comparison.items} items could not be graded"], None
    if units < gate.minimum_items:
        what = "items" if units == items else "independent groups of items"
        return (
            "inconclusive",
            [f"{units} {what} are fewer than the {gate.minimum_items} needed"],
            max(math.ceil((gate.minimum_items - units) * items / units), 1),
        )
    if comparison.effective is not None and comparison.effective < gate.minimum_items:
        share = max(comparison.effective, 1.0) / items
        return (
            "inconclusive",
            [
                f"what the log says of this policy rests on {comparison.effective:.0f} rows, fewer than the "
                f"{gate.minimum_items} needed: the interval is too narrow to believe"
            ],
            max(math.ceil((gate.minimum_items - comparison.effective) / share), 1),
        )
    if failed := [check for check in checks if check.failed]:
        return "reject", [str(check) for check in failed], None
    if open_ := [check for check in checks if not check.passed]:
        counts = [_more_items(check, comparison, gate) for check in open_]
        known = [count for count in counts if count is not None]
        return (
            "inconclusive",
            [str(check) for check in open_],
            (max(known) if len(known) == len(counts) else None),
        )
    return "promote", [str(check) for check in checks], None


def _more_items(check: _Check, comparison: Comparison, gate: Gate) -> int | None:
    """About how many more items decide an open check, if the truth is what was seen; 0 where that is hopeless.

    A distance to the line smaller than is worth looking for counts as that: otherwise an equal candidate would be
    promised a verdict after millions of items.
    """
    units, size = comparison.units(check.metric)
    bounds = comparison.bounds.get(check.metric)
    if bounds is None and not math.isfinite(check.gain.low):
        return None
    worth = gate.effect if check.metric == REWARD else check.allowed / 2 or gate.effect
    distance = max(abs(check.gain.estimate + check.allowed), worth)
    below = check.gain.estimate + max(map(abs, bounds)) if bounds else 1.0  # down to the worst there can be
    needed = items_needed(units, distance, power=gate.power, alpha=1 - gate.level, spread=max(below, distance))
    return math.ceil(max(needed - len(units), 0) * size)


def _sentence(result: Result, reasons: Sequence[str], needed: int | None, checks: Sequence[_Check], items: int) -> str:
    if result == "promote":
        held = f", and {len(checks) - 1} guards held" if checks[1:] else ""
        return f"Promote: {checks[0]} on {items} items{held}."
    text = f"{result.capitalize()}: on {items} items, {'; '.join(reasons)}"
    if result == "reject":
        return f"{text}."
    if needed is None:
        return f"{text}; how many more items would decide cannot be said."
    if needed == 0:
        return f"{text}; a difference worth having would probably have shown, so more items are unlikely to decide."
    return f"{text}; about {needed} more items needed."
