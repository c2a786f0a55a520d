"""the rows of a recipe: read, split, checked before anything is computed"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from melior.cycles.recipe import Generated, Recipe
from melior.data.conversations import conversation, learnt
from melior.data.formats import Kind, fingerprint, read_examples
from melior.data.reasoning import demonstrations_of, reasoning_split
from melior.data.splits import check_disjoint, split
from melior.errors import DataError
from melior.types import Demonstration, Task

LEAST_ASIDE, MOST_ASIDE = 10, 500  # rows set aside: fewer say nothing, more cost more than they tell


@dataclass(frozen=True)
class Rows:
    """What trains and what measures; nothing is in both."""

    train: list[Any]  # demonstrations for sft, tasks for rft
    heldout: list[Any]
    tasks: list[Task]  # the held-out rows as inputs to answer
    source: str
    kind: str
    validation: list[Any] = field(default_factory=list)  # set aside to say when to stop; neither trained nor reported

    @property
    def fingerprint(self) -> str:
        """Of all sides."""
        aside = [{"validation": len(self.validation)}, *self.validation] if self.validation else []
        return fingerprint([*self.train, *aside, {"heldout": len(self.heldout)}, *self.heldout])

    def set_aside(self, share: int | float, seed: int) -> Rows:
        """The same rows with some of the training side set aside; as they are where they are too few to share."""
        wanted = share if isinstance(share, int) else min(MOST_ASIDE, max(LEAST_ASIDE, round(share * len(self.train))))
        if not wanted or len(self.train) < 2 * LEAST_ASIDE or wanted > len(self.train) // 2:
            return self
        try:
            train, validation = split(self.train, wanted, seed)
        except DataError:  # all of them belong together
            return self
        return replace(self, train=train, validation=validation)


def load_rows(recipe: Recipe, *, aside: bool = True) -> Rows:
    """The recipe's rows; some of the training side are set aside where the recipe is watched and `aside` allows it.

    Raises:
        DataError: if a file or row cannot be used, or a row stands on both sides.
    """
    kind: Kind = "demonstrations" if recipe.method == "sft" else "tasks"
    data, items = recipe.data, recipe.evaluate.items
    train: list[Any]
    heldout: list[Any]
    if isinstance(data.train, Generated):
        source = data.train.reasoning_gym
        train, heldout = reasoning_split(source, data.train.size, int(data.heldout), data.seed, **data.train.config)
        tasks = heldout  # as rft has them, so that runs of both methods can be compared
        if kind == "demonstrations":
            train, heldout = demonstrations_of(train), demonstrations_of(heldout)
    else:
        source = data.train
        train = read_examples(source, kind).rows
        if isinstance(data.heldout, str):
            heldout = read_examples(data.heldout, kind).rows
        else:
            train, heldout = split(train, data.heldout, data.seed)
        tasks = [task_of(row) for row in heldout]
    if not heldout:
        raise DataError("0 rows are held out, so nobody could tell whether training helped; raise data.heldout")
    check_disjoint(train, heldout)
    rows = Rows(train, heldout[:items], tasks[:items], source, kind)
    return rows.set_aside(data.validation, data.seed) if recipe.watched and aside else rows


def task_of(row: Demonstration | Task) -> Task:
    """A demonstration's last turn as a task; its answer goes into the item, as "completion", for graders."""
    if isinstance(row, Task):
        return row
    inputs, output = row.inputs, row.output
    if output is None:
        told = conversation(inputs)
        last = max(index for index, message in enumerate(told.messages) if learnt(message))
        answer = told.messages[last]
        output = answer if answer.get("tool_calls") else answer["content"]
        inputs = replace(told, messages=tuple(map(_plain, told.messages[:last]))).inputs()
    item = row.item if "completion" in row.item else {**row.item, "completion": output}
    return Task(inputs, item, id=row.id, group=row.group)


def read_tasks(data: str, *, items: int | None, seed: int, config: Mapping[str, Any] | None = None) -> list[Task]:
    """Tasks to evaluate on: a JSONL file of tasks or demonstrations, or `reasoning_gym:data_set`.

    Raises:
        DataError: if they cannot be read.
    """
    if data.startswith("reasoning_gym:") and not Path(data).exists():
        name = data.partition(":")[2]
        return reasoning_split(name, 0, items or 200, seed, **(config or {}))[1]
    found = read_examples(data)
    if found.kind not in ("tasks", "demonstrations"):
        raise DataError(f"{data} holds {found.kind}; evaluation needs tasks (prompt + other columns) or demonstrations")
    rows = found.rows[:items]
    return [task_of(row) for row in rows]


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != "weight"}
