"""outputs for a grader to try: those in a file, or those a model gives to its rows"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from melior.cycles.rows import task_of
from melior.data.conversations import conversation, learnt
from melior.data.formats import ExampleStream
from melior.data.readers import Line, Problem, read_rows
from melior.errors import DataError
from melior.evaluation.agreement import label_value
from melior.evaluation.dry_run import Graded
from melior.rewards.workers import GraderPool
from melior.types import Demonstration, Preference, Rated, Record, Sampling, Score, Task

INPUTS = ("messages", "prompt")  # columns that are the input, and no part of the item
COMPLETION = "completion"  # the column that holds the output where nobody says which
AT_ONCE = 32  # outputs graded between two reports of progress


@dataclass(frozen=True)
class Given:
    """An output to grade, which row it belongs to, and its label, if it has one."""

    id: str
    record: Record
    label: float | None = None


def read_outputs(
    path: Path, *, output_column: str | None = None, label_column: str | None = None, limit: int | None = None
) -> list[Given]:
    """The outputs of a file's rows, in order.

    With `output_column` any rows will do: the column holds an output, or a list of several (then the label column holds
    one label for all, or a list of one for each), and every column but messages and prompt is the item. Without it the
    rows must be in a format that has outputs: demonstrations, rated outputs (the rating is the label), preferences (the
    output that more people chose is labelled 1, the other 0, neither where they tie), logged decisions, or tasks with a
    column "completion".

    Raises:
        DataError: if the rows have no outputs, or a column is missing.
    """
    if output_column is not None:
        return list(_from_columns(path, output_column, label_column, limit))
    rows, kind = _first_examples(path, limit)
    if kind == "tasks":
        if not any(COMPLETION in row.item for row in rows):
            columns = ", ".join(sorted({key for row in rows for key in row.item})) or "none but the input"
            raise DataError(
                f"{path} holds tasks without outputs; name the column that has them with --output-column "
                f"(columns: {columns}), or sample some with --model"
            )
        return list(_from_columns(path, COMPLETION, label_column, limit))
    if kind == "logged":
        names = [f"{path.name}:{number}" for number in range(1, len(rows) + 1)]
        return [
            Given(name, replace(row, group=row.group or name), _label(row.item, label_column, name))
            for name, row in zip(names, rows, strict=True)
        ]
    return [given for row in rows for given in _given(row, label_column)]


def _first_examples(path: Path, limit: int | None) -> tuple[list[Any], str]:
    """The first examples of a file and their kind; what comes after them is not read."""
    stream = ExampleStream(path)
    rows: list[Any] = []
    for found in islice(stream, limit):
        if isinstance(found, Problem):
            raise DataError(f"{path}, {found}; correct it, or look at the file with melior check")
        rows.append(found)
    if stream.format is None:
        raise DataError(f"{path} has no rows; give some with outputs")
    return rows, stream.format.kind


def _given(row: Demonstration | Rated | Preference, label_column: str | None) -> Iterator[Given]:
    """The outputs of one row."""
    label = _label(row.item, label_column, row.id)
    if isinstance(row, Preference):
        better = None if row.probability == 0.5 else float(row.probability > 0.5)  # a tie prefers neither
        for output, own in ((row.chosen, better), (row.rejected, None if better is None else 1 - better)):
            yield Given(row.id, _record(row.inputs, output, row.item, row.id), own if label is None else label)
    elif isinstance(row, Rated):
        own = row.rating if label is None else label
        yield Given(row.id, _record(row.inputs, row.output, row.item, row.id), own)
    else:
        task = task_of(row)
        yield Given(row.id, _record(task.inputs, _last_output(row), task.item, row.id), label)


def _last_output(row: Demonstration) -> Any:
    """The assistant's last message to learn from; the text alone where it calls no tools."""
    if row.output is not None:
        return row.output
    last = next(message for message in reversed(conversation(row.inputs).messages) if learnt(message))
    return last if last.get("tool_calls") or last.get("function_call") else last["content"]


def _from_columns(path: Path, column: str, label_column: str | None, limit: int | None) -> Iterator[Given]:
    """Outputs of rows of any shape."""
    for number, line in enumerate(read_rows(path)):
        if number == limit:
            return
        if isinstance(line, Problem):
            raise DataError(f"{path}, {line}; correct it, or look at the file with melior check")
        row, id = line.row, _name(path, line)
        if column not in row:
            raise DataError(f"{id} has no column {column!r}; its columns are {', '.join(sorted(row))}")
        inputs = next((row[name] for name in INPUTS if name in row), "")
        item = {key: value for key, value in row.items() if key not in INPUTS}
        if row[column] is None:
            raise DataError(f"{id} has nothing in column {column!r}, so no output to grade; leave such rows out")
        outputs = _several(row[column])
        for output, label in zip(outputs, _labels(row, label_column, id, len(outputs)), strict=True):
            yield Given(id, _record(inputs, output, item, id), label)


def _name(path: Path, line: Line) -> str:
    return f"{line.file or path.name}:{line.number}"


def _several(value: Any) -> list[Any]:
    """The outputs in a cell: a list of texts is several outputs, a list of messages is one."""
    texts = isinstance(value, list) and value and all(isinstance(text, str) for text in value)
    return list(value) if texts else [value]


def _record(inputs: Any, output: Any, item: Mapping[str, Any], group: str) -> Record:
    return Record(inputs=inputs, output=output, item=item, group=group)


def _label(columns: Mapping[str, Any], column: str | None, id: str) -> float | None:
    return _labels(columns, column, id, 1)[0]


def _labels(columns: Mapping[str, Any], column: str | None, id: str, outputs: int) -> list[float | None]:
    """A label for each output of a row: a list has one for each, a single one is that of all."""
    if column is None:
        return [None] * outputs
    if column not in columns:
        raise DataError(f"{id} has no column {column!r} for a label; its columns are {', '.join(sorted(columns))}")
    labels = columns[column] if isinstance(columns[column], list) else [columns[column]] * outputs
    if len(labels) != outputs:
        raise DataError(f"{id} has {len(labels)} labels in {column!r} for {outputs} outputs; give each output its own")
    try:
        return [label_value(label) for label in labels]
    except DataError as error:
        raise DataError(f"{id}: {error}") from None


def sample_outputs(
    policy: Any,
    tasks: Sequence[Task],
    sampling: Sampling,
    *,
    report: Callable[[int, int], None],
) -> list[Given]:
    """What a policy answers to the tasks, `sampling.n` times each."""
    found: list[Given] = []
    for start in range(0, len(tasks), AT_ONCE):
        part = tasks[start : start + AT_ONCE]
        records = policy.sample([task.inputs for task in part], sampling)
        for index, record in enumerate(records):
            task = part[index // sampling.n]
            found.append(Given(task.id, replace(record, item=task.item, group=task.id)))
        report(start + len(part), len(tasks))
    return found


def grade_outputs(pool: GraderPool, given: Sequence[Given], *, report: Callable[[int, int], None]) -> list[Graded]:
    """The outputs with their scores."""
    scores: list[Score] = []
    for start in range(0, len(given), AT_ONCE):
        scores += pool.grade([one.record for one in given[start : start + AT_ONCE]])
        report(len(scores), len(given))
    return [Graded(one.id, one.record, score, one.label) for one, score in zip(given, scores, strict=True)]
