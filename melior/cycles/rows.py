"""the rows of a recipe: read, split, checked before anything is computed"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from melior.cycles.recipe import Recipe
from melior.cycles.sections import Generated, Simulated
from melior.data.conversations import conversation, learnt
from melior.data.formats import Kind, fingerprint, read_examples
from melior.data.formats.rows import Reading
from melior.data.reasoning import demonstrations_of, reasoning_split
from melior.data.splits import check_disjoint, input_key, split
from melior.errors import DataError
from melior.rollouts.banner import Banner
from melior.types import Demonstration, Record, Task

LEAST_ASIDE, MOST_ASIDE = 10, 500  # rows set aside: fewer say nothing, more cost more than they tell
DRAWN = 4  # requests drawn for each that is held out


@dataclass(frozen=True)
class Rows:
    """What trains and what measures; nothing is in both."""

    train: list[Any]  # demonstrations for sft, tasks for rft, …
    heldout: list[Any]
    tasks: list[Task]  # the held-out rows as inputs to answer; none where all that is known is a log
    source: str
    kind: Kind
    heldout_kind: Kind
    validation: list[Any] = field(default_factory=list)  # set aside to say when to stop; neither trained nor reported
    world: Banner | None = None  # what answers slates, where rows are simulated
    parts: Mapping[str, Rows] = field(default_factory=dict)  # of a hybrid: what each part learns from
    origin: str = ""  # the fingerprint of all rows of the source, as they were read, before any were held out

    @property
    def fingerprint(self) -> str:
        """Of all sides."""
        aside = [{"validation": len(self.validation)}, *self.validation] if self.validation else []
        parts = [{name: part.fingerprint} for name, part in self.parts.items()]
        return fingerprint([*self.train, *aside, {"heldout": len(self.heldout)}, *self.heldout, *parts])

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
    rows = _found(recipe.leading)
    if not rows.heldout:
        raise DataError("0 rows are held out, so nobody could tell whether training helped; raise data.heldout")
    check_disjoint(rows.train, rows.heldout)
    parts = {name: _beside(rows, recipe, recipe.part(name)) for name in recipe.hybrid.parts}
    items = recipe.evaluate.items
    rows = replace(rows, heldout=rows.heldout[:items], tasks=rows.tasks[:items], parts=parts)
    return rows.set_aside(recipe.data.validation, recipe.data.seed) if recipe.watched and aside else rows


def _found(recipe: Recipe) -> Rows:
    train = recipe.data.train
    if isinstance(train, Generated):
        return _generated(recipe, train)
    return _simulated(recipe, train) if isinstance(train, Simulated) else _read(recipe, train)


def _beside(rows: Rows, hybrid: Recipe, part: Recipe) -> Rows:
    """What a part of a hybrid learns from: the same rows, the same read otherwise, or rows of its own."""
    same = part.data.train == hybrid.data.train
    if same and rows.kind in part.way.learns:
        return rows
    if same and isinstance(part.data.train, Generated) and "demonstrations" in part.way.learns:
        return replace(rows, train=demonstrations_of(rows.train), kind="demonstrations")
    if not isinstance(part.data.train, str):
        wanted = " or ".join(part.way.learns)
        raise DataError(f"{part.method} learns from {wanted}, and these rows are made as {rows.kind}; give it data")
    train, kind, _ = _examples(part, part.data.train)
    if same:  # what is held out of one reading is held out of all
        held = set(map(input_key, rows.heldout))
        train = [row for row in train if input_key(row) not in held]
    check_disjoint(train, rows.heldout)
    return replace(rows, train=train, source=part.data.train, kind=kind)


def _generated(recipe: Recipe, made: Generated) -> Rows:
    (kind, *_), data, source = recipe.way.learns, recipe.data, made.reasoning_gym
    if kind not in ("demonstrations", "tasks"):
        raise DataError(f"generated tasks have answers and nothing else, and {recipe.method} learns from {kind}")
    train: list[Any]
    train, tasks = reasoning_split(source, made.size, int(data.heldout), data.seed, **made.config)
    heldout: list[Any] = tasks  # as rft has them, so that runs of both methods can be compared
    if kind == "demonstrations":
        train, heldout = demonstrations_of(train), demonstrations_of(tasks)
    return Rows(train, heldout, tasks, source, kind, kind)


def _simulated(recipe: Recipe, made: Simulated) -> Rows:
    """Requests of a simulated shop; those held out are of other visitors."""
    points: dict[str, Any] = {} if made.points is None else {"points": made.points}
    world = Banner(made.banner, seed=made.seed, **points)
    train = world.tasks(made.size, made.seed)
    seen = set(map(input_key, train))
    wanted = int(recipe.data.heldout)
    drawn = world.tasks(
        DRAWN * wanted, made.seed + 1
    )  # a request may come twice, and once it is learnt it judges no more
    heldout = [task for task in drawn if input_key(task) not in seen][:wanted]
    return Rows(train, heldout, heldout, f"banner of five ({made.banner})", "tasks", "tasks", world=world)


def _read(recipe: Recipe, source: str) -> Rows:
    data, labelled = recipe.data, _labelled(recipe)
    train, kind, reading = _examples(recipe, source, as_tasks=False)
    origin = fingerprint(train)
    heldout_kind: Kind = "demonstrations" if labelled else kind
    if isinstance(data.heldout, str):
        same = kind in ("demonstrations", "tasks")
        told = read_examples(data.heldout, heldout_kind if same else None, reading=replace(reading, least_rows=1))
        heldout, heldout_kind = told.rows, told.kind
    else:
        train, heldout = split(train, data.heldout, data.seed)
    tasks = [] if heldout_kind == "logged" else [task_of(row) for row in heldout]
    if labelled:
        train, heldout, heldout_kind = [task_of(row) for row in train], list(tasks), "tasks"
    return Rows(train, heldout, tasks, source, kind, heldout_kind, origin=origin)


def _examples(recipe: Recipe, source: str, *, as_tasks: bool = True) -> tuple[list[Any], Kind, Reading]:
    """Rows that the recipe's method can learn from, their kind, and how they were read.

    Raises:
        DataError: if they are of another kind.
    """
    learns, labelled = recipe.way.learns, _labelled(recipe)
    wanted: Kind | None = learns[0] if len(learns) == 1 else None
    found = read_examples(source, "demonstrations" if labelled else wanted, reading=recipe.data.reading)
    kind = wanted or found.kind
    if kind not in learns:
        raise DataError(f"{source} holds {kind}, and {recipe.method} learns from {' or '.join(learns)}")
    rows = [task_of(row) for row in found.rows] if labelled and as_tasks else found.rows
    return rows, kind, found.reading


def _labelled(recipe: Recipe) -> bool:
    """Whether tasks are read as demonstrations: a label is what a classifier's grader needs to know."""
    return recipe.model.kind == "classifier" and recipe.way.learns[0] == "tasks"


def task_of(row: Any) -> Task:
    """A row's inputs as a task; a demonstration's answer goes into the item, as "completion", for graders."""
    if isinstance(row, Task):
        return row
    if isinstance(row, Record):
        return Task(row.inputs, row.item, group=row.group)
    if not isinstance(row, Demonstration):
        return Task(row.inputs, row.item, id=row.id, group=row.group)
    inputs, output = row.inputs, row.output
    if output is None:
        told = conversation(inputs)
        last = max(index for index, message in enumerate(told.messages) if learnt(message))
        answer = told.messages[last]
        output = answer if answer.get("tool_calls") else answer["content"]
        inputs = replace(told, messages=tuple(map(_plain, told.messages[:last]))).inputs()
    item = row.item if "completion" in row.item else {**row.item, "completion": output}
    return Task(inputs, item, id=row.id, group=row.group)


def read_tasks(
    data: str,
    *,
    items: int | None,
    seed: int,
    config: Mapping[str, Any] | None = None,
    reading: Reading = Reading(),  # noqa: B008  frozen
) -> list[Task]:
    """Tasks to evaluate on: a file of tasks or demonstrations, or `reasoning_gym:data_set`.

    Raises:
        DataError: if they cannot be read.
    """
    if data.startswith("reasoning_gym:") and not Path(data).exists():
        name = data.partition(":")[2]
        return reasoning_split(name, 0, items or 200, seed, **(config or {}))[1]
    found = read_examples(data, reading=reading)
    if found.kind not in ("tasks", "demonstrations"):
        raise DataError(f"{data} holds {found.kind}; evaluation needs tasks (prompt + other columns) or demonstrations")
    rows = found.rows[:items]
    return [task_of(row) for row in rows]


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != "weight"}
