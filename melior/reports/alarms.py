"""alarms that rang in a run: what they said, and where they stand on its curves

Reads `alarms.jsonl`, which `melior.trainers.loop` writes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pydantic import FiniteFloat

from melior.reports.files import RunFiles
from melior.reports.schema import read_as
from melior.reports.text import counted, cut

LONGEST = 400  # characters of a sentence


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One alarm that rang."""

    alarm: str
    step: int  # as in metrics: steps done, less one
    metrics: tuple[str, ...] = ()
    value: FiniteFloat
    limit: FiniteFloat
    stops: bool = False
    sentence: str


def rung(run: RunFiles) -> list[Rung]:
    """What rang, in order; lines that say no such thing are left out."""
    found = (read_as(Rung, row) for row in run.alarms)
    return [each for each in found if each is not None]


def alarmed(run: RunFiles) -> set[str]:
    """Metrics that an alarm has spoken of."""
    return {metric for each in rung(run) for metric in each.metrics}


def marks(found: Sequence[Rung], metrics: Collection[str]) -> list[tuple[float, str, bool]]:
    """(steps done, what rang, whether it stopped the run) of the alarms that read these metrics."""
    return [
        (each.step + 1.0, f"{each.alarm} {'stopped' if each.stops else 'warned'}", each.stops)
        for each in found
        if set(each.metrics) & set(metrics)
    ]


def sentences(run: RunFiles) -> list[str]:
    """One sentence per alarm that warned: when it first did, how often more, and what it said first."""
    told = []
    warned = [each for each in rung(run) if not each.stops]
    for name in dict.fromkeys(each.alarm for each in warned):
        first, *more = (each for each in warned if each.alarm == name)
        again = f", and {counted(len(more), 'time')} more" if more else ""
        told.append(f"Alarm {name} after step {first.step + 1}{again}: {cut(first.sentence, LONGEST)[0]}.")
    return told
