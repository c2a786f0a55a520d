"""the sets of people's judgements, what is asked of a reward model on each, and the settings it chooses from"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import reward_floors as floors
from reward_floors import Floats

MELIOR, STACK = "melior", "melior, stacked on the linear model"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One way to train a reward model; the inner folds choose between a few."""

    name: str
    hidden: tuple[int, ...] = ()  # units of hidden layers; (): linear
    words: int = 0  # columns that a text's words are hashed to, beside what MiniLM makes of it
    epochs: int
    batch_size: int
    learning_rate: float = 1e-3
    weight_decay: float = 0.01


TEXTS = (
    Trial(name="linear, 3 epochs", epochs=3, batch_size=256, learning_rate=4e-3),
    Trial(name="linear, 12 epochs", epochs=12, batch_size=256, learning_rate=4e-3),
    Trial(name="64 units, 6 epochs", hidden=(64,), epochs=6, batch_size=256, learning_rate=3e-3),
)
TURNS = (  # 512 single outputs, as many as 256 pairs have
    Trial(name="linear, 12 epochs", epochs=12, batch_size=512, learning_rate=4e-3),
    Trial(name="linear with words, 12 epochs", words=4096, epochs=12, batch_size=512, learning_rate=4e-3),
    Trial(name="linear with words, 30 epochs", words=4096, epochs=30, batch_size=512, learning_rate=4e-3),
)
SEGMENTS = (
    Trial(name="linear, 10 epochs", epochs=10, batch_size=100, learning_rate=2e-2),
    Trial(name="linear, 60 epochs", epochs=60, batch_size=100, learning_rate=2e-2),
    Trial(name="32 units, 15 epochs", hidden=(32,), epochs=15, batch_size=100, learning_rate=5e-3),
    Trial(name="32 units, 40 epochs", hidden=(32,), epochs=40, batch_size=100, learning_rate=5e-3),
)


@dataclass(frozen=True, kw_only=True)
class Field:
    """One data set, what is asked of a reward model on it, and what it is measured against."""

    name: str
    title: str
    source: str
    floor: float  # of the linear model, as known before
    measure: str  # accuracy of pairs, or the area under the curve of ratings
    linear: floors.Learner
    linear_name: str
    trials: tuple[Trial, ...]
    texts: bool = True  # whether MiniLM reads the outputs
    messages: int | None = None  # before an output, that MiniLM reads; None: all
    folds: int = 10
    heldout: str = ""  # pairs that no fold holds
    scripted: str = ""  # the same pairs, labelled by the return that was earned
    rules: Mapping[str, Callable[[Sequence[Any]], Floats]] = field(default_factory=dict)

    @property
    def claimed(self) -> str:
        """What the claim is about, fixed before any run: for texts, where words tell, the stack; else melior alone."""
        return STACK if self.texts else MELIOR


def _robot(name: str, title: str, floor: float, speed: int | None) -> Field:
    return Field(
        name=name,
        title=f"Which segment of {title} people prefer",
        source=f"known:{name}-preferences@human-train",
        heldout=f"known:{name}-preferences@human-eval",
        scripted=f"known:{name}-preferences@script-train" if speed is not None else "",
        floor=floor,
        measure="accuracy",
        linear=floors.linear_segments,
        linear_name="linear Bradley–Terry",
        trials=SEGMENTS,
        texts=False,
        rules={"the faster one": floors.column_rule(speed)} if speed is not None else {},
    )


FIELDS = {
    "hh": Field(
        name="hh",
        title="Which answer is less harmful",
        source="known:hh-rlhf-harmless@sample",
        floor=0.630,
        measure="accuracy",
        linear=floors.tfidf_pairs,
        linear_name="TF-IDF Bradley–Terry",
        trials=TEXTS,
        folds=5,
        rules={"the longer one": floors.longest, "the shorter one": lambda examples: -floors.longest(examples)},
    ),
    "taskmaster": Field(
        name="taskmaster",
        title="Which turns of a service agent are good",
        source="known:taskmaster-reward",
        floor=0.687,
        measure="auc",
        linear=floors.tfidf_ratings,
        linear_name="TF-IDF, logistic regression",
        trials=TURNS,
        folds=5,
        messages=1,  # as the linear model does: a turn answers what was just said
        rules={"a longer turn": floors.longest, "a call, no words": floors.is_call},
    ),
    "hopper": _robot("hopper", "a hopping robot", 0.743, 5),
    "walker2d": _robot("walker2d", "a walking robot", 0.825, 8),
    "can": _robot("can", "an arm that moves a can", 0.638, None),
    "lift": _robot("lift", "an arm that lifts a cube", 0.484, None),
}
