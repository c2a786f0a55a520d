"""what a policy decides for rows that nobody has decided yet, as rows that can be logged and learnt from"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from melior.cycles.evaluations import known_reading
from melior.cycles.kinds import Kind, kind_named
from melior.cycles.lesson import noticing
from melior.cycles.models import find_model
from melior.data.formats import read_examples
from melior.data.formats.decisions import input_columns
from melior.data.formats.rows import Reading
from melior.data.readers import Line, read_rows
from melior.data.unlabelled import read_unlabelled
from melior.errors import DataError
from melior.evaluation.evaluate import Progress
from melior.policies.kinds import load_policy
from melior.store import Store
from melior.types import Demonstration, Record, Sampling, Task

AT_ONCE = 256  # rows


@dataclass(frozen=True)
class Decided:
    """One decision, and how probable it was to the policy."""

    record: Record
    probability: float  # of the whole output, at temperature 1

    def row(self) -> dict[str, Any]:
        """The decision as JSON; where chance decided, a row of a log, to which events or a reward can be joined."""
        record = self.record
        output = {"slate": list(record.output)} if isinstance(record.output, list) else {"output": record.output}
        told = {**input_columns(record.inputs), **output, "probability": self.probability, **record.item}
        if record.behavior_log_probs is not None:
            told["log_probs"] = list(record.behavior_log_probs)
        return {**told, "policy_version": record.policy_version} if record.policy_version else told


def decide_rows(
    model: str,
    source: str,
    store: Store,
    *,
    sampling: Sampling | None = None,
    limit: int | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[list[Decided], Mapping[str, int]]:
    """Decisions for the rows of a source, in order, and what was passed over, how often.

    Without `sampling` language models are sampled at temperature 1, all others decide what is best.

    Raises:
        DataError: if the rows cannot be read as the policy's inputs.
        ModelError, StoreError: if there is no such model.
    """
    found = find_model(model, store)
    policy: Any = load_policy(found.path)
    kind = kind_named(policy.kind)
    tasks = _tasks(source, known_reading([found], Reading(), store), kind, policy)[:limit]
    how = sampling or Sampling(temperature=float(policy.kind == "language"))
    _, passed_over = noticing(policy, lambda: kind.check(policy, tasks, how))
    made: list[Decided] = []
    for start in range(0, len(tasks), AT_ONCE):
        part = tasks[start : start + AT_ONCE]
        made += _decided(policy, part, how, found.version.id if found.version else None)
        progress(min(start + AT_ONCE, len(tasks)), len(tasks))
    return made, passed_over


def _decided(policy: Any, tasks: Sequence[Task], how: Sampling, version: str | None) -> list[Decided]:
    records = policy.sample([task.inputs for task in tasks], how)
    owners = [task for task in tasks for _ in range(how.n)]
    plain = [replace(record, sampling=replace(how, temperature=1.0)) for record in records]
    return [
        Decided(replace(record, item=task.item, policy_version=version), math.exp(math.fsum(chances.tolist())))
        for record, task, chances in zip(records, owners, policy.log_probs(plain), strict=True)
    ]


def _tasks(source: str, reading: Reading, kind: Kind, policy: Any) -> list[Task]:
    """The inputs of a source; its rows may have outputs, which nobody looks at."""
    columns = kind.reading(policy, Reading()).columns
    if columns and not _holds_inputs(source):
        return read_unlabelled(source, columns, reading)
    rows = read_examples(source, reading=reading).rows
    if not all(isinstance(row, Task | Demonstration) for row in rows):
        raise DataError(f"{source} holds {type(rows[0]).__name__} rows; decisions need inputs alone")
    return [Task(row.inputs, row.item, id=row.id, group=row.group) for row in rows]


def _holds_inputs(source: str) -> bool:
    """Whether a source's rows keep their inputs in a column of that name, and not as columns of their own."""
    first = next(iter(read_rows(source)), None)
    return isinstance(first, Line) and "inputs" in first.row
