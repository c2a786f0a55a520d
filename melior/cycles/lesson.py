"""what one run of `fit` is given: the policy as it starts, its steps, its objective, and what watches it"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from melior.cycles.auto import Resolved
from melior.cycles.kinds import kind_named
from melior.cycles.measures import Measures
from melior.cycles.models import Found
from melior.cycles.recipe import Recipe
from melior.cycles.rows import Rows
from melior.cycles.taught import taught
from melior.policies.values import ActorCritic
from melior.trainers.loop import FitConfig
from melior.trainers.overfitting import FittingGap

T = TypeVar("T")


@dataclass(frozen=True)
class Lesson:
    """The arguments of `fit`."""

    trainable: Any  # the policy, or what trains it and more
    steps: Any
    objective: Any
    config: FitConfig
    evaluation: Any  # None where nothing is measured on the way
    leading: Any  # steps over data.train: of a hybrid, those of its leading part


def lesson(
    resolved: Resolved, asked: Recipe, policy: Any, rows: Rows, measures: Measures, folder: Path | None
) -> Lesson:
    """What the resolved recipe trains on, and how.

    Raises:
        ConfigError: if rft has no grader, or what trains is not there.
    """
    recipe = resolved.recipe
    every = recipe.evaluate.every
    trainable = ActorCritic.make(policy, detach=not recipe.ppo.shared) if "ppo" in recipe.methods else policy
    config = replace(recipe.fit.config, folder=folder, evaluate_every=every, rates=freeze(recipe, trainable))
    steps, objective = taught(recipe, trainable, rows, measures, folder)
    parts = {part.name: part.steps for part in steps.parts} if recipe.method == "hybrid" else {}
    leading = next((parts[name] for name, share in recipe.hybrid.parts.items() if share.method == recipe.lead), steps)
    evaluation: Any = measures if every else None
    if recipe.method == "sft" and every:
        evaluation = _Watch(policy, rows, measures, graded=asked.evaluate.every is not None)
    return Lesson(trainable, steps, objective, config, evaluation, leading)


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
    policy = kind_named(recipe.kind).load(recipe, found, rows)
    freeze(recipe, policy)
    return policy


def noticing(policy: Any, call: Callable[[], T]) -> tuple[T, Counter[str]]:
    """What a call returns, and what the policy passed over of the rows it read meanwhile."""
    before = Counter(policy.noticed)
    made = call()
    return made, Counter(policy.noticed) - before


def check_tasks(recipe: Recipe, policy: Any, rows: Rows, measures: Measures) -> None:
    """Nothing, if every task the run will ask of the policy can be answered; before hours are spent on the others.

    Raises:
        DataError: naming the first that cannot.
    """
    if measures.heldout is not None and rows.tasks:
        measures.kind.check(policy, rows.tasks, recipe.evaluation)
    if recipe.way.samples:
        measures.kind.check(policy, rows.train, recipe.rollouts)
