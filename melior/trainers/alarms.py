"""alarms: what a run's own numbers say that should be told at once, or should stop it

    rows of metrics ──▶ series by name ──▶ one rule per alarm ──▶ a value ──▶ held against two limits ──▶ Breach

Alarms read the metrics that a run keeps and nothing else, so a resumed run repeats them exactly. A value is taken over
a window of steps and must lie beyond its limit several steps running: noise rings nothing. What rang rings again only
once it has been calm, or graver.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated

from melior.errors import ConfigError
from melior.reports.curves import NO_TEXTS
from melior.rewards.base import nearest
from melior.trainers.alarm_rules import Readings, Watched
from melior.trainers.alarm_table import ALARMS, Alarm

CALM = 10  # readings running within the limit, after which an alarm may ring again
NAMES = tuple(alarm.name for alarm in ALARMS)

Answer = Literal["off", "warn", "stop"] | bool  # YAML reads a bare off as False


@dataclass(frozen=True, kw_only=True)
class Breach:
    """An alarm that rang."""

    alarm: str
    step: int  # as in metrics: steps done, less one
    metrics: tuple[str, ...]  # that it read
    value: float
    limit: float
    stops: bool
    sentence: str

    @property
    def why(self) -> str:
        """Why a run stopped, where this stopped it."""
        return f"alarm {self.alarm}: {self.sentence}"

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return {**asdict(self), "metrics": list(self.metrics)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Breach:
        """The breach that `to_json` wrote."""
        return cls(**{**fields, "metrics": tuple(fields["metrics"])})


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Limits:
    """Limits in place of the table's; None keeps the table's."""

    warn: float | None = None
    stop: float | None = None


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Alarms:
    """What `fit` watches, and what it does when something rings.

    `change` differs from the table by alarm: "off", "warn" (never stop), "stop" (at its stopping limit, else at its
    warning limit), or limits of your own, such as {"warn": 3.0, "stop": 5.0}.
    """

    enabled: bool = True
    stops: bool = True  # False: what would stop a run only warns
    proxy: str = "reward"  # the metric that is learnt from
    heldout: str = ""  # a metric of the evaluation that is not the reward; empty: the two are not compared
    heldout_is: Literal["max", "min"] = "max"  # which way it is better
    change: Mapping[str, Answer | Limits] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.change:
            if name not in NAMES:
                near = nearest(name, NAMES) or f"; there are {', '.join(NAMES)}"
                raise ConfigError(f"alarms.change has {name!r}, which is no alarm{near}")
        if self.heldout and self.heldout == self.proxy:
            raise ConfigError(
                f"alarms.heldout is {self.heldout!r}, the reward itself; name a metric of the evaluation that is not it"
            )

    def limits(self, alarm: Alarm) -> tuple[float | None, float | None]:
        """Where an alarm warns and where it stops; None is never."""
        change = self.change.get(alarm.name, True)
        if not self.enabled or change in (False, "off"):
            return None, None
        warn, stop = alarm.warn, alarm.stop
        if isinstance(change, Limits):
            warn = warn if change.warn is None else change.warn
            stop = stop if change.stop is None else change.stop
        elif change == "stop":
            stop = warn if stop is None else stop
        elif change == "warn":
            stop = None
        return (warn, stop) if self.stops else (warn, None)


class Watch:
    """The alarms of one run: fed with each step's metrics, it says what rings."""

    def __init__(self, alarms: Alarms, *, updates: int = 1, kind: str = "") -> None:
        """`updates`: how many a step makes. `kind`: of the policy; what is said of texts is not asked of the others."""
        self.settings = alarms
        self.watched = [
            (alarm, *limits)
            for alarm in ALARMS
            for limits in [alarms.limits(alarm)]
            if limits != (None, None) and (updates == 1 or not alarm.one_update)
            if not (alarm.texts and kind in NO_TEXTS)
            if alarm.name != "heldout" or alarms.heldout
        ]
        self.readings: Readings = {}
        self.states: dict[tuple[str, tuple[str, ...]], _State] = {}

    def stops(self, breach: Breach) -> bool:
        """Whether what rang would stop the run by the limits as they are now."""
        return any(alarm.name == breach.alarm and alarm.beyond(breach.value, stop) for alarm, _, stop in self.watched)

    def check(self, measured: Mapping[str, float]) -> None:
        """Passes where an evaluation measures what the alarms wait for.

        Raises:
            ConfigError: naming the metric that is missing.
        """
        name = self.settings.heldout
        if self.settings.enabled and name and name not in measured:
            near = nearest(name, measured) or f"; it measures {', '.join(sorted(measured)) or 'nothing'}"
            raise ConfigError(f"alarms.heldout is {name!r}, which the evaluation does not measure{near}")

    def see(self, row: Mapping[str, float]) -> list[Breach]:
        """What rings after a step, given its metrics; steps come in order."""
        step = int(row["step"])
        for name, value in row.items():
            if name != "step" and math.isfinite(value):
                self.readings.setdefault(name, []).append((step, value))
        return [breach for alarm, warn, stop in self.watched for breach in self._rung(alarm, warn, stop, row, step)]

    def _rung(
        self, alarm: Alarm, warn: float | None, stop: float | None, row: Mapping[str, float], step: int
    ) -> Iterator[Breach]:
        for watched in self._series(alarm):
            new = [name in row for name in watched.names]
            if not any(new) or not (alarm.rule.gaps or all(new)):
                continue
            found = alarm.rule(watched, self.readings)
            if found is None:
                continue
            state = self.states.setdefault((alarm.name, watched.names), _State(alarm.patience))
            grave = state.add(alarm.beyond(found.value, warn), alarm.beyond(found.value, stop))
            if grave:
                limit = stop if grave == 2 else warn
                assert limit is not None
                told = alarm.told.format(value=_Number(found.value), limit=_Number(limit), **_shown(found.more))
                yield Breach(
                    alarm=alarm.name,
                    step=step,
                    metrics=watched.names,
                    value=found.value,
                    limit=limit,
                    stops=grave == 2,
                    sentence=f"{told}; {alarm.remedy}",
                )

    def _series(self, alarm: Alarm) -> Iterator[Watched]:
        """What an alarm looks at: each metric by itself, or those that its rule wants together."""
        if alarm.name == "heldout":
            yield Watched((self.settings.proxy, self.settings.heldout), self.settings.heldout_is == "max")
            return
        names = [name for name in self.readings if any(_matches(name, wanted) for wanted in alarm.reads)]
        if not alarm.rule.together:
            yield from (Watched((name,)) for name in names)
        elif len(names) >= alarm.rule.least:
            yield Watched(tuple(sorted(names)))


@dataclass
class _State:
    """How often running a value lay beyond its limits, and what has rung."""

    patience: int
    warned: int = 0
    stopped: int = 0
    calm: int = 0
    rung: int = 0  # 0 nothing, 1 a warning, 2 a stop

    def add(self, beyond_warn: bool, beyond_stop: bool) -> int:
        """Takes one reading in; 1 where a warning rings now, 2 where a stop does, else 0."""
        self.stopped = self.stopped + 1 if beyond_stop else 0
        self.warned = self.warned + 1 if beyond_warn or beyond_stop else 0
        self.calm = 0 if self.warned else self.calm + 1
        if self.calm >= CALM:
            self.rung = 0
        grave = 2 if self.stopped >= self.patience else 1 if beyond_warn and self.warned >= self.patience else 0
        rings = grave if grave > self.rung else 0
        self.rung = max(self.rung, grave)
        return rings


class _Number(float):
    """A number that a sentence shows in four digits, unless it says how."""

    def __format__(self, how: str) -> str:
        return super().__format__(how or ".4g")


def _shown(more: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _Number(value) if isinstance(value, float) else value for name, value in more.items()}


@lru_cache(maxsize=4096)
def _matches(name: str, wanted: str) -> bool:
    """Whether a metric is the one wanted, by its whole name or by what follows a "/" or a "." in it."""
    pattern = "[^/]+".join(map(re.escape, wanted.split("*")))
    return re.fullmatch(f"(?:.*[/.])?{pattern}", name) is not None
