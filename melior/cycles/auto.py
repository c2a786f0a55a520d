"""what a recipe leaves to us: "auto" becomes a number, once, with its reason

    rows of a step   about `DECISIONS` decisions, at least `UPDATES` steps an epoch, between `FEWEST` and `MOST` rows
    epochs           until the loss of validation rows stops falling, `PASSES` at most; the best weights are restored
    learning rate    sft: a range test on the rows themselves; rft: a fixed rule, as a sweep of rewards would be noise
    steps of rft     every task once, within limits; so of whatever samples

The choices are kept in the run's folder as resolved.json, so a run that goes on has the numbers it began with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from melior.cycles.kinds import Pace, kind_named
from melior.cycles.recipe import Recipe, difference, recipe_of
from melior.cycles.rows import Rows
from melior.durable import write_file
from melior.errors import CheckpointError
from melior.trainers.range_test import TESTS, RangeTest, range_test
from melior.trainers.supervised import Examples, supervised

RESOLVED = "resolved.json"
DECISIONS = 2048  # of a step: the gradient's noise falls with their number, and so does the number of steps
UPDATES = 8  # steps of an epoch at least, where there are rows for it: fewer hardly learn
FEWEST, MOST = 4, 64  # rows of a step
PASSES = 10  # epochs at most
SHOWN = 25_000  # rows shown in all at most, an epoch being the least
FEW_EPOCHS = 3  # what those few rows are shown
LOOKS = 2  # validations per epoch
SPARSE = 100  # steps between two validations at most
PATIENCE = 3  # validations without improvement
SAMPLE = 512  # rows whose decisions are counted
SWEEP_ROWS = 8  # of a step of the range test at most
SAMPLED_STEPS = (20, 200)
AGAIN = "a hybrid ends with its longest part, and the others go on with further epochs until then"
LOGGED = (32, 1024)  # logged rows of a step: the weights of a few say little, and few steps learn little


@dataclass(frozen=True)
class Choice:
    """One setting that was left to us."""

    setting: str
    value: float | int | str
    reason: str

    def __str__(self) -> str:
        value = f"{self.value:g}" if isinstance(self.value, float) else self.value
        return f"{self.setting} = {value}: {self.reason}"


@dataclass(frozen=True)
class Resolved:
    """A recipe in which nothing is automatic any more."""

    recipe: Recipe
    choices: tuple[Choice, ...] = ()
    test: RangeTest | None = None
    watched: bool = False  # whether validation rows say when to stop


def resolve(recipe: Recipe, policy: Any, rows: Rows, folder: Path | None = None, *, sweep: bool = True) -> Resolved:
    """The recipe with every automatic value chosen; what a folder holds of an earlier call is read back.

    Without `sweep` no range test is made, and the rate stands for itself until training starts.

    Raises:
        CheckpointError: if the folder's choices are of another recipe or of other rows.
    """
    path = folder / RESOLVED if folder else None
    if path is not None and path.is_file():
        return _read(path, recipe, rows)
    made = _supervised(recipe, policy, rows, sweep) if recipe.method == "sft" else _rewarded(recipe, policy, rows)
    if path is not None:
        write_file(path, json.dumps(_told(made, recipe, rows), indent=1))
    return made


def resolved_in(folder: Path) -> Mapping[str, Any] | None:
    """The recipe in a run's folder with every automatic value chosen, as JSON; None before that, or unread."""
    try:
        recipe: Mapping[str, Any] = _kept(folder / RESOLVED)["recipe"]
    except (CheckpointError, KeyError):
        return None
    return recipe


def check_rows(folder: Path, rows: Rows) -> None:
    """Nothing, if what a folder holds came of these rows, or if it holds no choices.

    Raises:
        CheckpointError: if it came of others, or nobody can tell.
    """
    path = folder / RESOLVED
    if path.is_file() and _kept(path).get("rows") != rows.fingerprint:
        raise CheckpointError(
            f"{folder} holds what came of other rows than the {len(rows.train)} there are to learn from now; "
            "choose another folder, or remove it"
        )


def is_settled(recipe: Recipe) -> bool:
    """Whether nothing is left to choose."""
    automatic = [recipe.fit.learning_rate]
    automatic += [recipe.sft.batch_size, recipe.sft.epochs] if "sft" in recipe.methods else []
    automatic += [recipe.off_policy.batch_size] if "off_policy" in recipe.methods else []
    return "auto" not in automatic and not (recipe.way.samples and recipe.fit.steps is None)


# ---------------------------------------------------------------------- demonstrations


def _supervised(recipe: Recipe, policy: Any, rows: Rows, sweep: bool) -> Resolved:
    choices: list[Choice] = []
    if recipe.sft.batch_size == "auto":
        choices.append(_batch_size(policy, rows))
        recipe = _with(recipe, "sft", batch_size=choices[-1].value)
    watched = recipe.sft.epochs == "auto"
    if watched:
        choice = _epochs(rows)
        watched = bool(rows.validation)
        choices.append(choice)
        recipe = _with(recipe, "sft", epochs=choice.value)
        recipe = _stopping(recipe, rows) if watched else recipe
    test = None
    if recipe.fit.learning_rate == "auto" and not sweep:
        why = f"a range test of {TESTS} small steps chooses it when training starts"
        choices.append(Choice("fit.learning_rate", "auto", why))
        recipe = _with(recipe, "fit", learning_rate=_pace(recipe, policy).sft)
    elif recipe.fit.learning_rate == "auto":
        test = _sweep(recipe, policy, rows)
        choices.append(_rate(recipe, policy, test))
        recipe = _with(recipe, "fit", learning_rate=choices[-1].value)
    return Resolved(recipe, tuple(choices), test, watched)


def _batch_size(policy: Any, rows: Rows) -> Choice:
    counted = rows.train[:SAMPLE]
    decisions = max(1.0, float(policy.encode(counted).mask.sum()) / len(counted))
    by_decisions = DECISIONS / decisions
    by_updates = len(rows.train) / UPDATES
    size = int(max(FEWEST, min(MOST, by_decisions, by_updates)))
    size = min(size, len(rows.train))
    why = f"rows have {decisions:.0f} decisions each, and a step should have about {DECISIONS:,}"
    if by_updates < min(by_decisions, MOST):
        why = f"{len(rows.train)} rows should give at least {UPDATES} steps an epoch"
    elif by_decisions > MOST:
        why += f", but no more than {MOST} rows"
    elif by_decisions < FEWEST:
        why += f", but no fewer than {FEWEST} rows"
    return Choice("sft.batch_size", size, why)


def _epochs(rows: Rows) -> Choice:
    count = len(rows.train)
    if not rows.validation:
        why = f"{count} rows are too few to set some aside that would say when to stop"
        return Choice("sft.epochs", FEW_EPOCHS, why)
    most = max(1, min(PASSES, SHOWN // max(1, count)))
    why = (
        f"at most; {len(rows.validation)} rows set aside say when to stop, after {PATIENCE} looks without improvement, "
        "and the best weights are kept"
    )
    return Choice("sft.epochs", most, why)


def _stopping(recipe: Recipe, rows: Rows) -> Recipe:
    """The recipe with the looks that automatic epochs need; what a person wrote of them stays."""
    size = recipe.sft.batch_size
    assert isinstance(size, int)
    per_epoch = math.ceil(len(rows.train) / size)
    every = recipe.evaluate.every or max(1, min(math.ceil(per_epoch / LOOKS), SPARSE))
    recipe = _with(recipe, "evaluate", every=every)
    if recipe.fit.best_metric is not None:
        return recipe
    patience = recipe.fit.patience or PATIENCE
    return _with(recipe, "fit", best_metric="heldout_loss", best_is="min", patience=patience)


def _sweep(recipe: Recipe, policy: Any, rows: Rows) -> RangeTest | None:
    """A range test on small steps; None where there are too few rows for one."""
    size = recipe.sft.batch_size
    assert isinstance(size, int)
    per_step = max(1, min(size, SWEEP_ROWS, len(rows.train) // TESTS))
    needed = rows.train[: TESTS * per_step * 4]
    if len(rows.train) < FEWEST * 2:
        return None
    passes = math.ceil(TESTS * per_step / len(needed))
    steps = Examples(policy, needed, batch_size=per_step, epochs=passes, seed=recipe.seed)
    objective: Any = supervised()
    config = _with(recipe, "fit", learning_rate=1.0).fit.config
    rates = policy.freeze(recipe.factors([name for name, _ in policy.candidates()]))
    return range_test(policy, steps, objective, replace(config, rates=rates))


def _rate(recipe: Recipe, policy: Any, test: RangeTest | None) -> Choice:
    pace = _pace(recipe, policy)
    (low, high), what = pace.limits, pace.what
    if test is None or test.rate is None:
        why = test.reason if test else "there are too few rows for a range test"
        rate, why = pace.sft, f"{why}; {what} usually learn at {pace.sft:g}"
    elif not low <= test.rate <= high:
        rate = min(max(test.rate, low), high)
        why = f"{test.reason} is {test.rate:g}, and {what} are kept between {low:g} and {high:g}"
    else:
        rate, why = test.rate, test.reason
    return _multiplied(recipe, rate, why)


def _pace(recipe: Recipe, policy: Any) -> Pace:
    return kind_named(recipe.kind).pace(policy)


def _multiplied(recipe: Recipe, rate: float, why: str) -> Choice:
    multiplier = recipe.fit.rate_multiplier
    if multiplier != 1.0:
        rate, why = rate * multiplier, f"{why}; times fit.rate_multiplier {multiplier:g}"
    return Choice("fit.learning_rate", float(rate), why)


# ---------------------------------------------------------------------- everything else


def _rewarded(recipe: Recipe, policy: Any, rows: Rows) -> Resolved:
    choices: list[Choice] = []
    if recipe.way.samples and recipe.fit.steps is None:
        least, most = SAMPLED_STEPS
        prompts = min(recipe.section.prompts, len(rows.train))
        once = math.ceil(len(rows.train) / prompts)
        steps = max(least, min(most, once))
        why = f"{len(rows.train)} tasks, {prompts} a step, are all seen once in {once}; between {least} and {most}"
        choices.append(Choice("fit.steps", steps, why))
        recipe = _with(recipe, "fit", steps=steps)
    shown = {recipe.hybrid.parts[name].method: part for name, part in rows.parts.items()} or {recipe.lead: rows}
    if "sft" in shown:  # beside other methods
        settled = {"batch_size": _batch_size(policy, shown["sft"]), "epochs": Choice("sft.epochs", 1, AGAIN)}
        chosen = {name: made for name, made in settled.items() if getattr(recipe.sft, name) == "auto"}
        choices += chosen.values()
        recipe = _with(recipe, "sft", **{name: made.value for name, made in chosen.items()})
    if "off_policy" in shown and recipe.off_policy.batch_size == "auto":
        fewest, most = LOGGED
        logged = len(shown["off_policy"].train)
        size = max(fewest, min(most, logged // UPDATES))
        why = f"{logged:,} logged rows in {UPDATES} steps an epoch, of {fewest} to {most} rows"
        choices.append(Choice("off_policy.batch_size", size, why))
        recipe = _with(recipe, "off_policy", batch_size=size)
    if recipe.fit.learning_rate == "auto":
        pace = _pace(recipe, policy)
        rate = {"sft": pace.sft, "dpo": pace.dpo, "rft": pace.rft}[recipe.way.pace]
        why = f"{pace.what} learn from {recipe.way.source} at {rate:g}; a sweep would see noise"
        choices.append(_multiplied(recipe, rate, why))
        recipe = _with(recipe, "fit", learning_rate=choices[-1].value)
    return Resolved(recipe, tuple(choices))


# ---------------------------------------------------------------------- keeping


def _with(recipe: Recipe, section: str, **values: Any) -> Recipe:
    told = recipe.to_dict()
    told[section] = {**told[section], **values}
    return recipe_of(told)


def _told(made: Resolved, asked: Recipe, rows: Rows) -> dict[str, Any]:
    return {
        "choices": [asdict(choice) for choice in made.choices],
        "recipe": made.recipe.to_dict(),
        "range_test": asdict(made.test) if made.test else None,
        "watched": made.watched,
        "asked": asked.to_dict(),
        "rows": rows.fingerprint,
    }


def _read(path: Path, recipe: Recipe, rows: Rows) -> Resolved:
    kept = _kept(path)
    try:
        unlike = difference(recipe_of(kept["asked"]), recipe)
        if unlike or kept["rows"] != rows.fingerprint:
            raise CheckpointError(
                f"{path} holds choices for {f'another recipe ({unlike})' if unlike else 'other rows'}; "
                "choose another folder, or remove it"
            )
        test = kept["range_test"]
        read = RangeTest(**{**test, "rates": tuple(test["rates"]), "changes": tuple(test["changes"])}) if test else None
        choices = tuple(Choice(**choice) for choice in kept["choices"])
        return Resolved(recipe_of(kept["recipe"]), choices, read, kept["watched"])
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error


def _kept(path: Path) -> Mapping[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read ({error}); remove it, and the choices are made anew")
