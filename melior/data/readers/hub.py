"""rows of data sets in the format of the `datasets` library: saved folders, and hub ids"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from melior.data.readers.choices import chosen_split
from melior.data.readers.rows import Line, Problem, typed_row
from melior.errors import DataError

HUB = "hub:"


def load_datasets() -> Any:
    """The package, which is an extra.

    Raises:
        DataError: if it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"this source needs datasets, which cannot be imported; pip install 'melior[data]' ({error})"
        ) from error
    return datasets


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def read_saved(folder: Path, split: str = "") -> Iterator[Line | Problem]:
    """The rows of a folder that `save_to_disk` wrote, counted from 1; they stay on disk until they are asked for.

    Raises:
        DataError: if it cannot be read, or has several splits and none is chosen.
    """
    datasets = load_datasets()
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises what its own libraries raise
        raise DataError(f"{folder} cannot be read as a saved data set: {_first(error)}; save it again") from error
    if isinstance(found, datasets.DatasetDict):
        found = found[chosen_split(list(found), split, str(folder))]
    elif split:
        raise DataError(f"{folder} has no splits, so not {split!r}; leave @{split} out")
    return _rows(found, str(folder))


def read_hub(source: str) -> Iterator[Line | Problem]:
    """The rows of `hub:owner/name`, `hub:owner/name/config`, each with `@split`, streamed and counted from 1.

    Raises:
        DataError: if it cannot be had (offline, unknown name), or has several splits and none is chosen.
    """
    name, _, split = source.removeprefix(HUB).partition("@")
    parts = name.split("/")
    if not 1 <= len(parts) <= 3 or not all(parts):
        raise DataError(f"{source} is no data set of the hub; write hub:owner/name, hub:owner/name/config@split")
    datasets = load_datasets()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it would tell each of its attempts
    try:
        found = datasets.load_dataset("/".join(parts[:2]), *parts[2:], split=split or None, streaming=True)
    except Exception as error:  # the library raises what its own libraries raise
        raise DataError(
            f"{source} cannot be loaded ({_first(error)}); check the name and the connection, or give a local folder"
        ) from error
    if isinstance(found, datasets.IterableDatasetDict):
        found = found[chosen_split(list(found), split, source)]
    return _rows(found, source)


def _rows(rows: Any, source: str) -> Iterator[Line | Problem]:
    number = 0
    iterator = iter(rows)
    while True:
        try:
            row = next(iterator)
        except StopIteration:
            break
        except Exception as error:  # a shard that cannot be fetched or parsed
            raise DataError(f"{source} cannot be read behind row {number}: {_first(error)}") from error
        number += 1
        yield typed_row(row, number)
    if number == 0:
        raise DataError(f"{source} has no rows; write at least one")


def _first(error: Exception) -> str:
    """The library's own words, one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]:.200}"
