"""what rewards of held-out rows say: measures, paired differences, best-of-n of what was logged, and limits"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import reward_floors as floors
from reward_fields import Field
from reward_floors import Floats, Rows

from melior.data.formats import canonical
from melior.data.splits import input_key
from melior.evaluation.reward_model import RewardReport
from melior.metrics import auc
from melior.policies.reward_heads import DEFAULT
from melior.policies.reward_model import sides
from melior.statistics import Interval, bootstrap, mean_interval, wilson
from melior.types import Preference, Rated

TINY = 1e-12  # differences of areas under curves are equal but for rounding


@dataclass(frozen=True)
class Told:
    """Rewards by the content of an output, under the protocol of reward models."""

    found: Mapping[str, float]
    names: tuple[str, ...] = (DEFAULT,)

    @classmethod
    def of(cls, rows: Rows, rewards: Floats) -> Told:
        keys = [canonical([each.inputs, each.output]) for each in sides(rows)]
        return cls(dict(zip(keys, rewards.tolist(), strict=True)))

    def rewards(self, examples: Sequence[Any]) -> Floats:  # [N, 1]
        return np.array([[self.found[canonical([each.inputs, each.output])]] for each in examples])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the recipe measured, and whether the floor was reached."""

    field: Field
    rows: int
    measures: Mapping[str, Interval]
    gains: Mapping[str, Interval]  # of melior's over the linear model, paired by row
    rules: Mapping[str, Interval]
    report: RewardReport
    chosen: Mapping[str, Mapping[str, int]]  # method → setting → folds that chose it
    heldout: Mapping[str, Interval]
    picks: Mapping[str, Interval]  # of the outputs that were rated for one input: how often the one picked is good
    limits: Sequence[str]
    seconds: float

    @property
    def best(self) -> str:
        """What the claim is about."""
        return self.field.claimed

    @property
    def met(self) -> bool:
        return self.measures[self.best].estimate >= self.field.floor

    @property
    def sentence(self) -> str:
        gain = self.gains[self.best]
        proven = "more" if gain.low > 0 else "less" if gain.high < 0 else "which proves no difference"
        return (
            f"{'Met' if self.met else 'Not met'}: {self.best} has {self.field.measure} {self.measures[self.best]} on "
            f"{self.rows:,} rows, where the linear model was known to reach {self.field.floor}; on the same folds "
            f"{self.field.linear_name} has {self.measures[self.field.linear_name]}, paired difference {gain}: {proven}."
        )

    def to_json(self) -> dict[str, Any]:
        """The figures of `summary.json`."""
        groups = {"measures": self.measures, "gains": self.gains, "rules": self.rules, "heldout": self.heldout}
        groups["picks"] = self.picks
        return {
            "set": self.field.name,
            "met": self.met,
            "sentence": self.sentence,
            "floor": self.field.floor,
            "rows": self.rows,
            **{name: {key: each.to_json() for key, each in found.items()} for name, found in groups.items()},
            "chosen": self.chosen,
            "limits": list(self.limits),
            "seconds": round(self.seconds),
            "report": self.report.to_json(),
        }


@dataclass(frozen=True)
class Judged:
    """Rows that have a winner or a rating, and what rewards say of them."""

    rows: Rows

    @classmethod
    def of(cls, rows: Rows) -> Judged:
        return cls(floors.compared(rows) if isinstance(rows[0], Preference) else rows)

    @property
    def clusters(self) -> list[str]:
        """Rows that share one stand or fall together."""
        return [row.group or row.id for row in self.rows]

    def kept(self, rows: Rows, rewards: Floats) -> Floats:
        """Of rewards of all rows, those of the judged ones."""
        mine = {row.id for row in self.rows}
        width = 2 if isinstance(rows[0], Preference) else 1
        return rewards.reshape(len(rows), width)[[row.id in mine for row in rows]]

    def measure(self, rewards: Floats) -> Interval:
        """Accuracy, ties half, or the area under the curve."""
        if isinstance(self.rows[0], Preference):
            return mean_interval(right(rewards), clusters=self.clusters, bounds=(0, 1))
        good = np.array([row.rating > 0 for row in self.rows])
        area = lambda drawn: float(auc(rewards[drawn, 0], good[drawn]))  # noqa: E731
        return bootstrap(area, len(good), clusters=self.clusters, bounds=(0, 1))

    def gain(self, ours: Floats, theirs: Floats) -> Interval:
        """How much better ours are, paired by row."""
        if isinstance(self.rows[0], Preference):
            return mean_interval(right(ours) - right(theirs), clusters=self.clusters, bounds=(-1, 1))
        good = np.array([row.rating > 0 for row in self.rows])

        def gap(drawn: Any) -> float:
            return float(auc(ours[drawn, 0], good[drawn])) - float(auc(theirs[drawn, 0], good[drawn]))

        return bootstrap(gap, len(good), clusters=self.clusters, bounds=(-1, 1))


def right(rewards: Floats) -> Floats:  # [P, 2] -> [P]
    gaps = rewards[:, 0] - rewards[:, 1]
    return (np.sign(np.where(np.abs(gaps) < TINY, 0, gaps)) + 1) / 2


def picks(rows: Sequence[Rated], rewards: Floats) -> dict[str, Interval]:
    """Best-of-n on what was logged: among the outputs of one input, good and bad ones, the one of most reward."""
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(input_key(row), []).append(place)
    mixed = [found for found in places.values() if len({rows[place].rating for place in found}) > 1]
    picked = np.array([rows[max(found, key=lambda place: rewards[place, 0])].rating for found in mixed])
    drawn = np.array([np.mean([rows[place].rating for place in found]) for found in mixed])
    clusters = [rows[found[0]].group for found in mixed]
    name = f"of {len(mixed)} inputs with good and bad outputs"
    told = {"picked by reward": picked, "drawn at random": drawn, "gain": picked - drawn}
    return {f"{what}, {name}": mean_interval(each, clusters=clusters, bounds=(-1, 1)) for what, each in told.items()}


def base_rates(rows: Rows) -> dict[str, Interval]:
    """What needs no model at all."""
    if isinstance(rows[0], Rated):
        good = sum(row.rating > 0 for row in rows)
        return {"accuracy of calling all good": wilson(good, len(rows))}
    listed = [row.item["preferred"] == "first" for row in rows if "preferred" in row.item]
    return {"the first listed": wilson(sum(listed), len(listed))} if listed else {}


def limits(judged: Judged, ours: Floats, theirs: Floats, rows: int) -> list[str]:
    """What so many rows can show, and what not."""
    told = []
    whole, gain = judged.measure(ours), judged.gain(ours, theirs)
    count = len(judged.rows)
    if rows > count:
        told.append(f"{rows - count} of {rows} pairs are ties: they teach as .5, and no order can be right about them.")
    told.append(
        f"{count:,} rows give an interval of ± {(whole.high - whole.low) / 2:.3f} around a measure and of "
        f"± {(gain.high - gain.low) / 2:.3f} around a paired difference; a smaller one cannot be seen here."
    )
    if isinstance(judged.rows[0], Preference) and "preferred" not in judged.rows[0].item:
        told.append("The pairs are published with the chosen answer first, so the rate of the first listed is unknown.")
    if not any("annotator" in row.item for row in judged.rows):
        told.append("Who labelled which row was not published: agreement by annotator cannot be told.")
    return told
