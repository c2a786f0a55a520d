"""tasks of reasoning-gym: generated questions whose answers are verified by program

A task's item is plain JSON and all its verifier needs: grade with {"type": "reasoning_gym", "dataset": name}.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import count, islice
from types import ModuleType
from typing import Any

from melior.errors import DataError
from melior.types import Demonstration, Task

CHUNK = 64  # tasks; a few data sets generate all they hold at once
DRAWS_PER_TASK = 50  # before a data set counts as exhausted of new questions


def load_reasoning_gym() -> ModuleType:
    """The package, which is an extra.

    Raises:
        DataError: if it is not installed.
    """
    try:
        import reasoning_gym
    except ImportError as error:
        raise DataError(f"reasoning-gym cannot be imported ({error}); pip install 'melior[reasoning]'") from error
    return reasoning_gym


def reasoning_tasks(dataset: str, size: int, seed: int = 0, **config: Any) -> list[Task]:
    """`size` tasks of a data set, the same for the same seed; a larger size begins with the same tasks.

    Questions may repeat; `reasoning_split` draws distinct ones. `config` are the data set's own settings.

    Raises:
        DataError: if the data set or a setting is unknown, or its verifier cannot work from JSON.
    """
    return list(islice(_drawn(dataset, seed, config), size))


def reasoning_demonstrations(dataset: str, size: int, seed: int = 0, **config: Any) -> list[Demonstration]:
    """The same draws as `reasoning_tasks`, with the reference answer as output."""
    return demonstrations_of(reasoning_tasks(dataset, size, seed, **config))


def demonstrations_of(tasks: Sequence[Task]) -> list[Demonstration]:
    """The tasks with their reference answers as outputs.

    Raises:
        DataError: if a task has none: a few data sets only verify.
    """
    for task in tasks:
        if not isinstance(task.item["answer"], str):
            raise DataError(f"task {task.id} has no reference answer to imitate; choose another data set")
    return [
        Demonstration(task.inputs, task.item["answer"], id=task.id, group=task.group, item=task.item) for task in tasks
    ]


def reasoning_split(
    dataset: str, train: int, heldout: int, seed: int = 0, **config: Any
) -> tuple[list[Task], list[Task]]:
    """Training and held-out tasks, all with different questions.

    The held-out tasks are drawn first: they stay the same whatever the number of training tasks.

    Raises:
        DataError: if the data set does not have so many different questions.
    """
    wanted = train + heldout
    distinct: dict[str, Task] = {}
    for task in islice(_drawn(dataset, seed, config), wanted * DRAWS_PER_TASK):
        distinct.setdefault(task.inputs, task)
        if len(distinct) == wanted:
            break
    tasks = list(distinct.values())
    if len(tasks) < wanted:
        raise DataError(
            f"{dataset} gave only {len(tasks)} different questions in {wanted * DRAWS_PER_TASK} draws, {wanted} are "
            "wanted; ask for fewer, or widen its settings"
        )
    return tasks[heldout:], tasks[:heldout]


def _drawn(dataset: str, seed: int, config: dict[str, Any]) -> Iterator[Task]:
    """Tasks without end."""
    gym = load_reasoning_gym()
    known = gym.factory.DATASETS
    if dataset not in known:
        near = difflib.get_close_matches(dataset, known, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise DataError(f"reasoning-gym has no data set {dataset!r}{hint} (it has {len(known)})")
    # item i of a gym data set is drawn with seed + i, so neighbouring seeds would share nearly all their items
    start = int.from_bytes(hashlib.sha256(f"{dataset}:{seed}".encode()).digest()[:4]) // 2
    for first in count(0, CHUNK):
        try:
            chunk = gym.create_dataset(dataset, seed=start + first, size=CHUNK, **config)
        except (AssertionError, TypeError, ValueError) as error:
            raise DataError(f"reasoning-gym refuses the settings {config} for {dataset}: {error}") from error
        for index in range(CHUNK):
            entry = chunk[index]
            item = _item(dataset, config, entry)
            if first == index == 0:
                _check_verifier(chunk, entry, item)
            yield Task(inputs=entry["question"], item=item, id=f"{dataset}:{seed}:{first + index}")


def _item(dataset: str, config: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    item = {
        "question": entry["question"],
        "answer": entry["answer"],
        "metadata": entry["metadata"],
        "dataset": dataset,
        "config": config,
    }
    try:
        return dict(json.loads(json.dumps(item, allow_nan=False)))  # as it comes back from a file or a worker
    except (TypeError, ValueError) as error:
        raise DataError(f"tasks of {dataset} cannot be written as JSON ({error}); choose another data set") from error


def _check_verifier(generator: Any, entry: dict[str, Any], item: dict[str, Any]) -> None:
    """Some verifiers compare tuples, which JSON turns into lists."""
    direct, from_json = (generator.score_answer(entry["answer"], source) for source in (entry, item))
    if direct != from_json:
        raise DataError(
            f"the verifier of {entry['metadata'].get('source_dataset', 'this data set')} gives its own answer {direct} "
            f"in memory but {from_json} after JSON; choose another data set"
        )
