"""rows of Parquet files"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from melior.data.readers.rows import Line, Problem, typed_row
from melior.errors import DataError

ROWS = 256  # read at a time: conversations are large
JSON_TEXT = b"melior.json"  # marks a column whose cells are JSON text because no one type holds them


def load_pyarrow() -> Any:
    """The package with its Parquet part, which is an extra.

    Raises:
        DataError: if it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"Parquet needs pyarrow, which cannot be imported; pip install 'melior[data]' ({error})"
        ) from error
    return pyarrow


def read_parquet(path: str | Path) -> Iterator[Line | Problem]:
    """The rows of a Parquet file, counted from 1, read as they are asked for; None and NaN are absent.

    Raises:
        DataError: if the file cannot be read or has no rows, or pyarrow is not installed.
    """
    path = Path(path)
    arrow = load_pyarrow()
    number = 0
    try:
        with arrow.parquet.ParquetFile(path) as file:
            marked = {field.name for field in file.schema_arrow if JSON_TEXT in (field.metadata or {})}
            for batch in file.iter_batches(batch_size=ROWS):
                for row in batch.to_pylist(maps_as_pydicts="strict"):
                    number += 1
                    yield typed_row(_decoded(row, marked), number)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}; check the file") from error
    if number == 0:
        raise DataError(f"{path} has no rows; write at least one")


def _decoded(row: dict[str, Any], marked: set[str]) -> dict[str, Any]:
    return {key: json.loads(cell) if key in marked and cell is not None else cell for key, cell in row.items()}
