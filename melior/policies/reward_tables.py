"""a table's row and what was decided for it become one row of features"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from melior.errors import DataError
from melior.policies.tables import Table, TableInputs

OUTPUT = "output"  # the column, or the prefix of the columns, of what was decided


class TableReader(nn.Module):
    """Reads inputs and output as one row: columns of the inputs, and columns "output" or "output.…"."""

    kind = "table"

    def __init__(self, inputs: TableInputs) -> None:
        super().__init__()
        self.inputs = inputs
        self.noticed: Counter[str] = inputs.noticed

    @classmethod
    def of(cls, examples: Sequence[Any], config: Table | None = None) -> TableReader:
        """Reads examples like these, with new weights; see `Columns.of` for what it raises."""
        return cls(TableInputs.of([joined(example.inputs, example.output) for example in examples], config))

    @property
    def width(self) -> int:
        return self.inputs.width

    @property
    def random(self) -> bool:
        return self.inputs.random

    @property
    def budget(self) -> int:
        return self.inputs.budget

    def cost(self, row: Any) -> int:
        """Rows cost the same."""
        return 1

    def read(self, examples: Sequence[Any]) -> Sequence[Any]:
        """Numbers and codes of each row."""
        return self.inputs.encode([joined(example.inputs, example.output) for example in examples])

    def forward(self, rows: Sequence[Any], seeds: Tensor | None = None) -> Tensor:  # [B, D]
        found: Tensor = self.inputs(rows, seeds)
        return found

    def learning(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.named_parameters()

    def to_json(self) -> dict[str, Any]:
        return self.inputs.to_json()

    def write_files(self, folder: Path) -> None:
        """Nothing: everything stands in JSON and weights."""

    @classmethod
    def from_json(cls, told: Mapping[str, Any], folder: Path) -> TableReader:
        """The same reader, its weights still to be loaded."""
        return cls(TableInputs.from_json(told))


def joined(inputs: Any, output: Any) -> dict[str, Any]:
    """One row of cells: the inputs' columns, then the output's.

    A mapping becomes "output.column" for each column, several labels "output: label" for each, anything else "output".

    Raises:
        DataError: if inputs are no mapping of columns, a column of theirs is called like an output's, or a cell is a
            list.
    """
    if not isinstance(inputs, Mapping | None):
        raise DataError(f"A reward model of tables reads columns, got inputs of type {type(inputs).__name__}")
    told: dict[str, Any]
    if isinstance(output, Mapping):
        told = {f"{OUTPUT}.{name}": value for name, value in output.items()}
    elif isinstance(output, tuple | list | frozenset | set):
        told = {f"{OUTPUT}: {label}": True for label in output}
    else:
        told = {OUTPUT: output}
    if twice := sorted(told.keys() & (inputs or {}).keys()):
        raise DataError(f"The inputs have a column {twice[0]!r}, which is what an output's column is called; rename it")
    return {**(inputs or {}), **told}
