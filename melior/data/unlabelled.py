"""rows of a table that nobody has decided yet, read as the rows that a policy learnt from"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from melior.data.formats.rows import ColumnKind, Reading, Row, RowError
from melior.data.formats.tables import cell
from melior.data.readers import Problem, read_rows
from melior.errors import DataError
from melior.types import Task


def read_unlabelled(source: str, columns: Mapping[str, ColumnKind], reading: Reading) -> list[Task]:
    """A source's rows as tasks: these columns are the inputs, all others stay in the item.

    Raises:
        DataError: naming the first row that lacks a column or cannot be read.
    """
    tasks: list[Task] = []
    for line in read_rows(source, names=reading.names):
        if isinstance(line, Problem):
            raise DataError(str(line))
        try:
            inputs = _inputs(line.row, columns, reading)
        except RowError as error:
            raise DataError(f"{line.file or source}:{line.number}: {error}") from error
        item = {name: str(value) for name, value in line.row.items() if name not in columns}
        tasks.append(Task(inputs, item, id=f"{line.file or source}:{line.number}"))
    return tasks


def _inputs(row: Row, columns: Mapping[str, ColumnKind], reading: Reading) -> dict[str, Any]:
    absent = [name for name in columns if name not in row]
    if absent:
        raise RowError(f"has no column {absent[0]!r}, which the policy reads")
    inputs = {name: cell(row[name], name, kind, reading.missing) for name, kind in columns.items()}
    if all(value is None for value in inputs.values()):
        raise RowError("every cell that the policy reads is empty")
    return inputs
