"""what one run of `fit` is given: the policy as it starts, its steps, its objective, and what watches it"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from melior.cycles.auto import Resolved
from melior.cycles.kinds import kind_named
from melior.cycles.measures import Measures
from melior.cycles.models import Found
from melior.cycles.recipe import Recipe
from melior.cycles.rows import Rows
from melior.errors import ConfigError
from melior.trainers.loop import FitConfig
from melior.trainers.overfitting import FittingGap
from melior.trainers.reinforcement import Rollouts
from melior.trainers.supervised import Examples, supervised


@dataclass(frozen=True)
class Lesson:
    """The arguments of `fit`."""

    steps: Any
    objective: Any
    config: FitConfig
    evaluation: Any  # None where nothing is measured on the way


def lesson(
    resolved: Resolved, asked: Recipe, policy: Any, rows: Rows, measures: Measures, folder: Path | None
) -> Lesson:
    """What the resolved recipe trains on, and how.

    Raises:
        ConfigError: if rft has no grader, or what trains is not there.
    """
    recipe = resolved.recipe
    every = recipe.evaluate.every
    config = replace(recipe.fit.config, folder=folder, evaluate_every=every, rates=freeze(recipe, policy))
    if recipe.method == "sft":
        size, epochs = int(recipe.sft.batch_size), int(recipe.sft.epochs)
        steps: Any = Examples(policy, rows.train, batch_size=size, epochs=epochs, seed=recipe.seed)
        evaluation = _Watch(policy, rows, measures, graded=asked.evaluate.every is not None) if every else None
        return Lesson(steps, supervised(), config, evaluation)
    if measures.reward is None:
        raise ConfigError("rft learns from a grader's rewards, and there is none; write grader:")
    steps = Rollouts(
        policy,
        rows.train,
        measures.reward,
        recipe.rollouts,
        prompts=recipe.rft.prompts,
        resample=recipe.rft.resample,
        seed=recipe.seed,
    )
    return Lesson(steps, recipe.rft.objective, config, measures if every else None)


class _Watch:
    """Loss and fitting gap while demonstrations are learnt, and rewards where they were asked for."""

    def __init__(self, policy: Any, rows: Rows, measures: Measures, *, graded: bool) -> None:
        self.gap = FittingGap(policy, rows.train, rows.validation or rows.heldout)
        self.measures = measures if graded else None

    def __call__(self, trainable: Any) -> Mapping[str, float]:
        found = dict(self.gap(trainable))
        return found | self.measures.graded(trainable) if self.measures else found


def freeze(recipe: Recipe, policy: Any) -> dict[str, float]:
    """Takes out of training what the recipe freezes; returns the factors of the rates of what is left.

    Raises:
        ConfigError: if a pattern matches nothing, or nothing is left.
    """
    return dict(policy.freeze(recipe.factors([name for name, _ in policy.candidates()])))


def load_trainable(recipe: Recipe, found: Found, rows: Rows) -> Any:
    """The recipe's policy before its first step: what is frozen is frozen.

    Raises:
        ConfigError, ModelError: if it cannot be loaded, or made for these rows, as the recipe says.
    """
    policy = kind_named(recipe.model.kind).load(recipe, found, rows)
    freeze(recipe, policy)
    return policy


def check_tasks(recipe: Recipe, policy: Any, rows: Rows, measures: Measures) -> None:
    """Nothing, if every task the run will ask of the policy can be answered; before hours are spent on the others.

    Raises:
        DataError: naming the first that cannot.
    """
    if measures.heldout is not None:
        measures.kind.check(policy, rows.tasks, recipe.evaluation)
    if recipe.method == "rft":
        measures.kind.check(policy, rows.train, recipe.rollouts)
