"""several reward models from the same rows: they differ in first weights, in the order of rows and in the rows drawn"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from melior.errors import DataError
from melior.policies.reward_ensemble import RewardEnsemble
from melior.policies.reward_model import RewardModel, sides
from melior.trainers.loop import FitConfig, fit
from melior.trainers.reward_model import BradleyTerry, Comparisons, OnRatings, Ratings
from melior.trainers.steps import Evaluates
from melior.types import Preference, Rated

Row = TypeVar("Row", Preference, Rated)


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Ensemble:
    """How members differ. Coste et al. 2023 use five."""

    members: int = Field(default=5, ge=1)
    bootstrap: bool = True  # each member learns from rows drawn with replacement; else all from all rows
    batch_size: int = Field(default=16, ge=1)
    epochs: int = Field(default=1, ge=1)
    seed: int = 0


def fit_ensemble(
    make: Callable[[int], RewardModel],
    rows: Sequence[Row],
    objective: BradleyTerry | OnRatings,
    config: FitConfig | None = None,
    *,
    ensemble: Ensemble | None = None,
    evaluation: Evaluates | None = None,
) -> RewardEnsemble:
    """Trains the members one after the other; with a folder each goes on where it was stopped.

    `make` gives the untrained member of a seed. Members that learnt from preferences are centred on the rows' outputs,
    so that they can be compared.

    Raises:
        DataError: if there are no rows.
    """
    config, ensemble = config or FitConfig(), ensemble or Ensemble()
    members = []
    for number in range(ensemble.members):
        seed = ensemble.seed + number
        model = make(seed)
        drawn = resampled(rows, seed) if ensemble.bootstrap else list(rows)
        kind: Any = Comparisons if isinstance(objective, BradleyTerry) else Ratings
        steps = kind(model, drawn, batch_size=ensemble.batch_size, epochs=ensemble.epochs, seed=seed)
        folder = config.folder and config.folder / f"member-{number}"
        fit(model, steps, objective, replace(config, folder=folder), evaluation=evaluation)
        members.append(model)
    found = RewardEnsemble(members)
    if isinstance(objective, BradleyTerry):  # ratings have a unit of their own
        found.centre(sides(rows))
    return found


def resampled(rows: Sequence[Row], seed: int) -> list[Row]:
    """As many groups of rows as there are, drawn with replacement; a row without a group is one of its own.

    Raises:
        DataError: if there are no rows.

    Source: Efron 1979, doi:10.1214/aos/1176344552 (the bootstrap).
    """
    if not rows:
        raise DataError("There are 0 rows to learn from; add rows")
    groups: dict[str | int, list[Row]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(row.group or place, []).append(row)
    members = list(groups.values())
    drawn = np.random.default_rng(seed).integers(len(members), size=len(members))
    return [row for group in drawn for row in members[group]]
