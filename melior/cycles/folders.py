"""a run's folder belongs to one recipe, and to one process at a time"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from melior.durable import write_file
from melior.errors import CheckpointError, TrainingError

if TYPE_CHECKING:
    from melior.cycles.recipe import Recipe


def claim(folder: Path, recipe: Recipe) -> None:
    """Writes the resolved recipe into a new folder, or checks that it is the one there.

    Raises:
        CheckpointError: naming the first setting that differs.
    """
    from melior.cycles.recipe import difference, load_recipe  # brings torch, which not all who need a folder do

    path = folder / "recipe.yaml"
    if path.is_file():
        unlike = difference(load_recipe(path), recipe)
        if unlike:
            raise CheckpointError(
                f"{folder} holds a run of another recipe ({unlike}); choose another folder, or remove it"
            )
    else:
        write_file(path, recipe.to_yaml())


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Inside, no other process runs a recipe in the folder.

    Raises:
        TrainingError: if one does already.
    """
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(
                f"Another process is at work in {folder}; wait for it, or choose another folder"
            ) from None
        yield
