"""what a run's memory comes to: `plan` prints what a dry run says, `train` what the process really held at its peak"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from melior.cycles.auto import resolve
from melior.cycles.lesson import lesson, load_trainable
from melior.cycles.measures import Measures
from melior.cycles.models import find_model
from melior.cycles.plan import dry_run
from melior.cycles.recipe import load_recipe
from melior.cycles.rows import load_rows
from melior.store import Store
from melior.trainers.loop import fit
from melior.trainers.memory import forget_peak, peak

STEPS = 2  # the second has the optimizer state of the first


def main(what: str, path: Path, database: Path) -> int:
    """Bytes."""
    torch.set_num_threads(1)
    recipe = load_recipe(path)
    with Store.open(database) as store:
        if what == "plan":
            return dry_run(recipe, store).peak_bytes or 0
        rows = load_rows(recipe)
        with Measures(recipe, rows) as measures:
            policy = load_trainable(recipe, find_model(recipe.model.path, store), load_rows(recipe))
            taught = lesson(resolve(recipe, policy, rows, sweep=False), recipe, policy, rows, measures, None)
            forget_peak()  # loading weights is another matter
            fit(policy, taught.steps, taught.objective, replace(taught.config, steps=STEPS))
            return peak()


if __name__ == "__main__":
    print(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
