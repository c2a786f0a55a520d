"""a policy that is a table of chances, and the grader that reads its outputs"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from melior.types import Record, Sampling, Score, Task


@dataclass(frozen=True)
class TablePolicy:
    """Answers each input rightly with its own chance; greedy answers what is likelier.

    It honours the settings as every policy must: the temperature sharpens its odds, and a seed fixes its samples.
    """

    chances: Mapping[str, float]
    length: int = 3  # decisions of an output
    calls: list[int] = field(default_factory=list)  # inputs of each call

    def sample(self, inputs: Sequence[Any], settings: Sequence[Sampling]) -> list[Record]:
        self.calls.append(len(set(inputs)))
        return [
            self._answer(text, each, index)
            for text, each in zip(inputs, settings, strict=True)
            for index in range(each.n)
        ]

    def _answer(self, text: str, settings: Sampling, index: int) -> Record:
        chance = self.chances[text]
        if settings.temperature == 0:
            right = chance >= 0.5
        else:
            odds = (chance / (1 - chance)) ** (1 / settings.temperature) if chance < 1 else math.inf
            key = hashlib.sha256(f"{settings.seed} {text} {index}".encode()).digest()
            right = np.random.default_rng(list(key)).random() < (odds / (1 + odds) if odds < math.inf else 1.0)
        length = min(self.length, settings.max_tokens)
        return Record(
            inputs=text,
            output="right" if right else "wrong",
            decisions=tuple(range(length)),
            sampling=settings,
            finish="length" if self.length > settings.max_tokens else "stop",
        )


@dataclass(frozen=True)
class Answers:
    """Compares each output with its item's answer; fails on the items named."""

    failing: frozenset[str] = frozenset()
    name: str = "answers"

    def grade(self, records: Sequence[Record]) -> list[Score]:
        return [
            Score(value=None, name=self.name, error=f"no answer for {record.inputs}")
            if record.inputs in self.failing
            else Score(value=float(record.output == record.item["answer"]), name=self.name)
            for record in records
        ]


def tasks_of(chances: Mapping[str, float]) -> list[Task]:
    return [Task(inputs=text, item={"answer": "right"}, id=f"id-{text}") for text in chances]
