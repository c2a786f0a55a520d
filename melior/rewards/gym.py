"""the verifiers of reasoning-gym as graders"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from melior.errors import GraderError
from melior.rewards.base import Grader, checked, text_of
from melior.rewards.sandbox import Isolation, Level
from melior.types import Record, Score


@dataclass(frozen=True)
class ReasoningGym:
    """What the task's own verifier says, from the item alone; white space around the output does not count.

    Some of these verifiers parse the answer with sympy, which evaluates it: call them in a `GraderPool`.
    """

    name: str
    spec: Mapping[str, Any]
    dataset: str
    _made: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def isolation(self) -> Isolation:
        """The best sandbox there is, and none if there is none: what it evaluates is the model's, not a stranger's."""
        return Isolation(minimum=Level.L1, imports=("melior.data.reasoning",))

    def inside(self) -> Grader:
        """The same grader."""
        return self

    def load(self) -> None:
        """Import reasoning_gym; the data set itself is made when its settings are known."""
        from melior.data.reasoning import load_reasoning_gym

        load_reasoning_gym()

    def grade(self, record: Record) -> Score:
        """The verifier's score, mostly between 0 and 1."""
        item = record.item
        if not {"dataset", "config", "answer", "metadata"} <= item.keys():
            raise GraderError(
                f"{self.name} needs dataset, config, answer and metadata in the item, found {sorted(item)}; "
                "draw tasks with reasoning_tasks()"
            )
        if item["dataset"] != self.dataset:
            raise GraderError(f"{self.name} verifies {self.dataset}, but the item is of {item['dataset']!r}")
        entry = {"question": item.get("question", ""), "answer": item["answer"], "metadata": item["metadata"]}
        return checked(self.name, self._dataset(item["config"]).score_answer(text_of(record.output).strip(), entry))

    def _dataset(self, config: Mapping[str, Any]) -> Any:
        from melior.data.reasoning import load_reasoning_gym

        key = json.dumps(config, sort_keys=True)
        if key not in self._made:
            self._made[key] = load_reasoning_gym().create_dataset(self.dataset, **config)
        return self._made[key]


def reasoning_gym(spec: Mapping[str, Any], name: str | None) -> ReasoningGym:
    """The grader of a setting.

    Raises:
        GraderError: if no data set is named.
    """
    dataset = spec["dataset"]
    if not isinstance(dataset, str) or not dataset:
        raise GraderError(f"grader reasoning_gym needs the name of a data set, got {dataset!r}")
    named = name or dataset
    return ReasoningGym(named, {**spec, "name": named}, dataset)
