"""what one run of `fit` is given: the policy as it starts, its steps, its objective, and what watches it"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from melior.cycles.auto import Resolved
from melior.cycles.kinds import kind_named
from melior.cycles.measures import Measures
from melior.cycles.methods import Method
from melior.cycles.models import Found
from melior.cycles.recipe import Recipe
from melior.cycles.rows import Rows
from melior.errors import ConfigError, DataError
from melior.policies.values import ActorCritic
from melior.trainers.logged import Logged
from melior.trainers.loop import FitConfig
from melior.trainers.overfitting import FittingGap
from melior.trainers.preference import Pairs
from melior.trainers.ratings import advantage_weighted
from melior.trainers.reinforcement import Rollouts
from melior.trainers.supervised import Examples, Supervised
from melior.types import Demonstration

T = TypeVar("T")


@dataclass(frozen=True)
class Lesson:
    """The arguments of `fit`."""

    trainable: Any  # the policy, or what trains it and more
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
    trainable = ActorCritic.make(policy, detach=not recipe.ppo.shared) if recipe.method == "ppo" else policy
    config = replace(recipe.fit.config, folder=folder, evaluate_every=every, rates=freeze(recipe, trainable))
    steps, objective = TAUGHT[recipe.method](recipe, trainable, rows, measures)
    evaluation: Any = measures if every else None
    if recipe.method == "sft" and every:
        evaluation = _Watch(policy, rows, measures, graded=asked.evaluate.every is not None)
    return Lesson(trainable, steps, objective, config, evaluation)


def _demonstrations(recipe: Recipe, policy: Any, rows: Rows, measures: Measures) -> tuple[Any, Any]:
    settings = recipe.sft
    weighted = by_class(rows.train, settings.class_weights)
    shown: dict[str, Any] = {
        "batch_size": int(settings.batch_size),
        "epochs": int(settings.epochs),
        "seed": recipe.seed,
    }
    return Examples(policy, weighted, **shown), settings.objective


def _rewards(recipe: Recipe, policy: Any, rows: Rows, measures: Measures) -> tuple[Any, Any]:
    if measures.reward is None:
        raise ConfigError("rft learns from a grader's rewards, and there is none; write grader:")
    how: dict[str, Any] = {"prompts": recipe.rft.prompts, "resample": recipe.rft.resample, "seed": recipe.seed}
    return Rollouts(policy, rows.train, measures.reward, recipe.rollouts, **how), recipe.rft.objective


def _values(recipe: Recipe, policy: Any, rows: Rows, measures: Measures) -> tuple[Any, Any]:
    if measures.reward is None:
        raise ConfigError("ppo learns from a grader's rewards, and there is none; write grader:")
    how: dict[str, Any] = {"prompts": recipe.ppo.prompts, "seed": recipe.seed}
    return Rollouts(policy, rows.train, measures.reward, recipe.rollouts, **how), recipe.ppo.objective


def _logs(recipe: Recipe, policy: Any, rows: Rows, measures: Measures) -> tuple[Any, Any]:
    settings = recipe.off_policy
    shown: dict[str, Any] = {"batch_size": settings.batch_size, "epochs": settings.epochs, "seed": recipe.seed}
    scores = measures.scores(rows.train)
    return Logged(policy, rows.train, scores, incomplete=settings.incomplete, **shown), settings.objective


def _preferences(recipe: Recipe, policy: Any, rows: Rows, measures: Measures) -> tuple[Any, Any]:
    settings = recipe.section
    shown: dict[str, Any] = {"batch_size": settings.batch_size, "epochs": settings.epochs, "seed": recipe.seed}
    return Pairs(policy, rows.train, **shown), settings.objective


def _ratings(recipe: Recipe, policy: Any, rows: Rows, measures: Measures) -> tuple[Any, Any]:
    settings = recipe.awr
    shown: dict[str, Any] = {"batch_size": settings.batch_size, "epochs": settings.epochs, "seed": recipe.seed}
    return Examples(policy, advantage_weighted(rows.train, settings.weighing), **shown), Supervised()


Teaches = Callable[[Recipe, Any, Rows, Measures], tuple[Any, Any]]  # → steps and objective
TAUGHT: Mapping[Method, Teaches] = {
    "sft": _demonstrations,
    "rft": _rewards,
    "ppo": _values,
    "off_policy": _logs,
    "dpo": _preferences,
    "ipo": _preferences,
    "simpo": _preferences,
    "orpo": _preferences,
    "awr": _ratings,
}


def by_class(rows: Sequence[Demonstration], how: str | Mapping[str, float]) -> Sequence[Demonstration]:
    """The rows, each weighed by its label: as told, or so that every label has the same say in all.

    Raises:
        DataError: if rows have no single label each, or a label has no weight.
    """
    if how == "none":
        return rows
    odd = sum(not isinstance(row.output, str) for row in rows)
    if odd:
        raise DataError(f"{odd} of {len(rows)} rows have no single label, so sft.class_weights cannot weigh them")
    counts = Counter(row.output for row in rows)
    equal = {label: len(rows) / (len(counts) * count) for label, count in counts.items()}
    weights: Mapping[str, float] = equal if isinstance(how, str) else how
    missing = sorted(set(counts) - set(weights))
    if missing:
        raise DataError(f"sft.class_weights has no weight for {missing[0]!r}, which {counts[missing[0]]} rows have")
    return [replace(row, weight=row.weight * weights[row.output]) for row in rows]


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
