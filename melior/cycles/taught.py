"""each method's steps and objective, as a recipe sets them"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from melior.cycles.kinds import kind_named
from melior.cycles.kinds.reward import scale_asked
from melior.cycles.measures import Measures
from melior.cycles.methods import Single
from melior.cycles.models import find_model
from melior.cycles.recipe import Recipe
from melior.cycles.rows import Rows
from melior.errors import ConfigError, DataError
from melior.policies.adapters import is_adapter
from melior.trainers.best_of import BestOf
from melior.trainers.logged import Logged
from melior.trainers.mixture import Part, mixture
from melior.trainers.online import OnlinePairs
from melior.trainers.preference import Pairs
from melior.trainers.prospect import Judged
from melior.trainers.ratings import advantage_weighted
from melior.trainers.references import References
from melior.trainers.reinforcement import Rollouts
from melior.trainers.reward_model import Comparisons, OnRatings, Ratings, bradley_terry
from melior.trainers.supervised import Examples, Supervised
from melior.trainers.teachers import TeacherExamples, TeacherRollouts
from melior.types import Demonstration

Taught = tuple[Any, Any]  # steps and objective


def taught(recipe: Recipe, policy: Any, rows: Rows, measures: Measures, folder: Path | None = None) -> Taught:
    """What the recipe's method trains on, and by which objective; what a teacher says is kept in the folder.

    Raises:
        ConfigError: if it has no grader or teacher where it needs one.
        DataError: if the rows teach it nothing.
    """
    if recipe.method != "hybrid":
        return WITH[recipe.method](recipe, policy, rows, measures, folder)
    parts = []
    for name, share in recipe.hybrid.parts.items():
        steps, objective = taught(recipe.part(name), policy, rows.parts[name], measures, folder)
        parts.append(Part(name, steps, objective, share.weight, share.every, share.offset))
    return mixture(*parts)


def _demonstrations(recipe: Recipe, policy: Any, rows: Rows, measures: Measures, folder: Path | None) -> Taught:
    weighted = by_class(rows.train, recipe.sft.class_weights)
    return Examples(policy, weighted, **_shown(recipe)), recipe.sft.objective


def _rewards(recipe: Recipe, policy: Any, rows: Rows, measures: Measures, folder: Path | None) -> Taught:
    return _rollouts(recipe, policy, rows, measures, resample=recipe.rft.resample), recipe.rft.objective


def _values(recipe: Recipe, policy: Any, rows: Rows, measures: Measures, folder: Path | None) -> Taught:
    return _rollouts(recipe, policy, rows, measures), recipe.ppo.objective


def _best(recipe: Recipe, policy: Any, rows: Rows, measures: Measures, folder: Path | None) -> Taught:
    settings = recipe.best_of
    how: dict[str, Any] = {name: getattr(settings, name) for name in ("keep", "at_least", "weighted", "contrast")}
    return BestOf(_rollouts(recipe, policy, rows, measures), **how), Supervised()


def _fresh_pairs(recipe: Recipe, policy: Any, rows: Rows, measures: Measures, folder: Path | None) -> Taught:
    settings, grader = recipe.online_dpo, _grader(recipe, measures)
    how: dict[str, Any] = {"prompts": settings.prompts, "pairing": settings.pairing, "scale": settings.scale}
    pairs = OnlinePairs(policy, rows.train, grader, recipe.rollouts, seed=recipe.seed, **how)
    return pairs, settings.objective


def _logs(recipe: Recipe, policy: Any, rows: Rows, measures: Measures, folder: Path | None) -> Taught:
    settings, scores = recipe.off_policy, measures.scores(rows.train)
    logged = Logged(policy, rows.train, scores, incomplete=settings.incomplete, **_shown(recipe))
    return logged, settings.objective


def _preferences(recipe: Recipe, policy: Any, rows: Rows, measures: Measures, folder: Path | None) -> Taught:
    references = References(policy, folder=_within(folder, "references"))
    return Pairs(policy, rows.train, references=references, **_shown(recipe)), recipe.section.objective


def _judged(recipe: Recipe, policy: Any, rows: Rows, measures: Measures, folder: Path | None) -> Taught:
    settings = recipe.kto
    how: dict[str, Any] = {"threshold": settings.threshold, "balance": settings.balance}
    how |= {"references": References(policy, folder=_within(folder, "references"))}
    return Judged(policy, rows.train, **how, **_shown(recipe)), settings.objective


def _ratings(recipe: Recipe, policy: Any, rows: Rows, measures: Measures, folder: Path | None) -> Taught:
    weighted = advantage_weighted(rows.train, recipe.awr.weighing)
    return Examples(policy, weighted, **_shown(recipe)), Supervised()


def _taught_on_rows(recipe: Recipe, policy: Any, rows: Rows, measures: Measures, folder: Path | None) -> Taught:
    settings, teacher = recipe.distill, _teacher(recipe, rows, measures)
    steps = TeacherExamples(
        policy, teacher, rows.train, k=settings.k, folder=_within(folder, "teacher"), **_shown(recipe)
    )
    return steps, settings.objective


def _taught_on_its_own(recipe: Recipe, policy: Any, rows: Rows, measures: Measures, folder: Path | None) -> Taught:
    settings, teacher = recipe.on_policy_distill, _teacher(recipe, rows, measures)
    grader = _grader(recipe, measures) if settings.reward else None
    how: dict[str, Any] = {"prompts": settings.prompts, "seed": recipe.seed, "grader": grader}
    return TeacherRollouts(policy, teacher, rows.train, recipe.rollouts, **how), settings.objective


def _rewards_of(recipe: Recipe, model: Any, rows: Rows, measures: Measures, folder: Path | None) -> Taught:
    settings = recipe.reward_model
    if rows.kind == "preferences":
        return Comparisons(model, rows.train, **_shown(recipe)), bradley_terry(centring=settings.centring)
    scale = scale_asked(recipe, rows.train)
    return Ratings(model, rows.train, **_shown(recipe)), OnRatings(scale=scale)


WITH: Mapping[Single, Callable[[Recipe, Any, Rows, Measures, Path | None], Taught]] = {
    "sft": _demonstrations,
    "rft": _rewards,
    "off_policy": _logs,
    "dpo": _preferences,
    "ipo": _preferences,
    "simpo": _preferences,
    "orpo": _preferences,
    "kto": _judged,
    "online_dpo": _fresh_pairs,
    "awr": _ratings,
    "best_of": _best,
    "ppo": _values,
    "distill": _taught_on_rows,
    "on_policy_distill": _taught_on_its_own,
    "reward_model": _rewards_of,
}


def _shown(recipe: Recipe) -> dict[str, Any]:
    """How rows are gone over."""
    size, epochs = recipe.shown
    return {"batch_size": size, "epochs": epochs, "seed": recipe.seed}


def _within(folder: Path | None, name: str) -> Path | None:
    """Where in the run's folder something is kept that a run which goes on need not compute again."""
    return folder / name if folder is not None else None


def _rollouts(recipe: Recipe, policy: Any, rows: Rows, measures: Measures, **how: Any) -> Rollouts:
    grader, prompts = _grader(recipe, measures), recipe.section.prompts
    return Rollouts(policy, rows.train, grader, recipe.rollouts, prompts=prompts, seed=recipe.seed, **how)


def _grader(recipe: Recipe, measures: Measures) -> Any:
    if measures.reward is None:
        raise ConfigError(f"{recipe.method} learns from what a grader says, and there is none; write grader:")
    return measures.reward


def _teacher(recipe: Recipe, rows: Rows, measures: Measures) -> Any:
    """The policy that teaches, read as the student is."""
    if not recipe.section.teacher:
        raise ConfigError(f"{recipe.method} learns from a teacher, and there is none; write {recipe.method}.teacher:")
    if measures.store is None:
        raise ConfigError("a teacher is found through the store, and there is none")
    found = find_model(recipe.section.teacher, measures.store)
    adapter: Literal["auto"] | None = "auto" if is_adapter(Path(found.path)) else None
    model = replace(recipe.model, path=found.path, lora=adapter, train="all")
    return kind_named(recipe.model.kind).load(replace(recipe, model=model), found, rows)


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
