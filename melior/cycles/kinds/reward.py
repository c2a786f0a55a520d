"""reward models in a cycle: held-out preferences and ratings judge what learnt from others"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from melior.cycles.kinds.base import Counts, Pace
from melior.cycles.likelihood import agrees, row_key
from melior.cycles.models import Found
from melior.cycles.recipe import Recipe
from melior.cycles.rows import Rows
from melior.data.formats import fingerprint
from melior.data.formats.rows import Reading
from melior.errors import ConfigError, DataError
from melior.evaluation.evaluate import REWARD, Evaluation
from melior.evaluation.reward_model import KEY, reward_report
from melior.policies.kinds import kind_of
from melior.policies.reward_model import RewardModel
from melior.policies.reward_trunks import PolicyTrunk
from melior.statistics import Bounds, bootstrap_mean
from melior.trainers.reward_model import OnRatings, ScaleName, rating_losses
from melior.types import Demonstration, Preference, Rated, Sampling, Task

TOLD_APART = "pairs told apart"  # what evaluations call it, in the place of a grader's name
FORETOLD = "foretold ratings"
# Heads on features that a network from random weights makes, or none: Adam's usual rate, arXiv:1412.6980.
FRESH = Pace(what="reward models on features", sft=1e-3, limits=(1e-4, 1e-2), rft=1e-3, dpo=1e-3)


class RewardModels:
    """What a cycle must know of reward models."""

    judges: Mapping[str, str] = {"preferences": TOLD_APART, "rated": FORETOLD}

    def load(self, recipe: Recipe, found: Found, rows: Rows) -> RewardModel:
        """The reward model of a folder; or new heads on a policy's states, or on features of rows like these.

        Raises:
            ConfigError: if the folder holds an ensemble, or a policy whose states do not know the output.
        """
        settings = recipe.reward_model
        held = kind_of(found.path) if found.path else ""
        if held == RewardModel.kind:
            return RewardModel.load(found.path)
        if held == "reward_ensemble":
            raise ConfigError(f"{found.path} holds an ensemble, whose members train one by one; give a member's folder")
        if held:
            from melior.cycles.kinds import kind_named

            policy = kind_named(held).load(recipe, found, rows)
            model = RewardModel.on(policy, settings.heads, levels=settings.levels, seed=recipe.seed)
        else:
            model = RewardModel.make(settings.made, rows.train, seed=recipe.seed)
        if rows.kind == "rated" and scale_asked(recipe, rows.train) == "number":
            model.standardise(rows.train)
        return model

    def pace(self, policy: RewardModel) -> Pace:
        """As the policy under the heads learns; heads on features learn faster."""
        from melior.cycles.kinds import kind_named

        if not isinstance(policy.trunk, PolicyTrunk):
            return FRESH
        own = policy.trunk.policy
        return replace(kind_named(own.kind).pace(own), what="reward models on " + kind_named(own.kind).pace(own).what)

    def check(self, policy: RewardModel, tasks: Sequence[Task], sampling: Sampling) -> None:
        """Nothing: it answers no tasks."""

    def reading(self, policy: RewardModel, reading: Reading) -> Reading:
        """The same: rows say of themselves what they are."""
        return reading

    def counts(self, policy: RewardModel, rows: Rows, recipe: Recipe, steps: Any) -> Counts:
        """One reward per output."""
        return Counts(dropped_rows=steps.dropped, decisions=len(rows.train) * (1 + (rows.kind == "preferences")))

    def lengths(self, policy: RewardModel, rows: Rows, steps: Any) -> Mapping[str, Sequence[float]]:
        """None: what an output is made of differs."""
        return {}

    def head_bytes(self, policy: RewardModel) -> int:
        """Nothing worth counting."""
        return 0

    def measure(self, policy: RewardModel, rows: Sequence[Any], of: str = "preferences") -> Evaluation:
        """Whether the preferred output has the higher reward (½ where equal); of ratings, minus the loss of each.

        Raises:
            DataError: if no row can be read.
        """
        started = time.monotonic()
        found = told_apart(policy, rows) if of == "preferences" else foretold(policy, rows)
        bounds: Bounds = (0.0, 1.0) if of == "preferences" else (-torch.inf, 0.0)
        values = {key: (value,) for key, value in found.items()}
        if not values:
            raise DataError(f"None of {len(rows)} held-out rows has an output that can be read; shorten them")
        clusters = {row_key(row): row.group for row in rows if row.group}
        return Evaluation(
            sampling=Sampling(temperature=0.0, max_tokens=1),
            grader=self.judges[of],
            items=tuple(map(row_key, rows)),
            fingerprint=fingerprint(rows),
            values={REWARD: values},
            bounds={REWARD: bounds},
            clusters=clusters,
            reward=bootstrap_mean(values, bounds=bounds, clusters=clusters),
            missing=tuple(key for key in map(row_key, rows) if key not in values),
            graded=len(values),
            seconds=time.monotonic() - started,
        )

    def tell(self, policy: RewardModel, rows: Rows, recipe: Recipe, folder: Path) -> None:
        """How far it agrees with people on held-out rows, as reward_model.json: of its first head that has some."""
        told = {row.item.get(KEY, policy.names[0]) for row in rows.heldout}
        head = next(name for name in policy.names if name in told)
        reward_report(policy, rows.heldout, head=head).write(folder)


def told_apart(model: RewardModel, rows: Sequence[Preference]) -> dict[str, float]:
    """Row → 1 where the preferred output has the higher reward, 0 where the other has; rows that can be read."""
    chosen = model.rewards([Demonstration(row.inputs, row.chosen, item=row.item) for row in rows])
    rejected = model.rewards([Demonstration(row.inputs, row.rejected, item=row.item) for row in rows])
    gaps = (chosen - rejected)[torch.arange(len(rows)), model.heads.of(rows)].tolist()
    return {row_key(row): agrees(gap, row.probability) for row, gap in zip(rows, gaps, strict=True) if gap == gap}


def foretold(model: RewardModel, rows: Sequence[Rated]) -> dict[str, float]:
    """Row → minus the loss of its rating, in nats or squared units of the head; rows that can be read."""
    losses = rating_losses(model, rows, OnRatings(scale=scale_of(model, rows)))
    return {row_key(row): -loss for row, loss in zip(rows, losses, strict=True) if loss == loss}


def scale_asked(recipe: Recipe, rows: Sequence[Rated]) -> ScaleName:
    """What ratings are: as the recipe says; grades where it gives levels; yes and no where all are 1 or 0."""
    settings = recipe.reward_model
    if settings.scale != "auto":
        return settings.scale
    if settings.levels:
        return "grades"
    return "yes_no" if {row.rating for row in rows} <= {0, 1} else "number"


def scale_of(model: RewardModel, rows: Sequence[Rated]) -> ScaleName:
    """What ratings are to a model: grades where a head has levels, numbers where it has taken their units."""
    heads = set(model.heads.of(rows).tolist())
    if any(model.heads.names[head] in model.heads.levels for head in heads):
        return "grades"
    plain = all(float(model.heads.location[h]) == 0 and float(model.heads.spread[h]) == 1 for h in heads)
    return "yes_no" if plain else "number"
