"""melior tune: better settings for a recipe, and no claim that noise could make"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from melior.cli.output import JSON, STORE, interval, program, say, say_json, say_table, told
from melior.cli.progress import Progress

if TYPE_CHECKING:
    from melior.cycles.tune import Trial, Tuning


@told
def tune(
    recipe: Path = typer.Argument(..., help="The YAML file of a run; its tune: section says how to search."),
    folder: Path = typer.Option(None, "--folder", help="Of the search. Default: one per recipe, in MELIOR_HOME/tune."),
    trials: int = typer.Option(None, "--trials", min=2, help="How many settings to try, the recipe's own included."),
    store: str = STORE,
    as_json: bool = JSON,
) -> None:
    """Search for better settings, and say whether any is better than the recipe as it stands, beyond noise.

    Trials are measured on rows set aside from training; what is reported comes from held-out rows and fresh seeds. The
    same command goes on after Ctrl-C or a crash. Needs pip install 'melior[tune]'.

    \b
    melior tune run.yaml
    melior tune run.yaml --trials 30
    """
    from melior.cycles.recipe import load_recipe, recipe_of
    from melior.cycles.tune import tune as search
    from melior.policies.weights import home
    from melior.store import Store

    settings = load_recipe(recipe)
    if trials is not None:
        raw = settings.to_dict()
        settings = recipe_of({**raw, "tune": {**raw["tune"], "trials": trials}})
    place = folder or home() / "tune" / f"{recipe.stem}-{settings.digest}"
    with Store.open(store) as opened, Progress() as progress:
        found = search(settings, place, store=opened, report=progress)
    say_json(found.to_json()) if as_json else show_tuning(found)


def show_tuning(found: Tuning) -> None:
    """The trials, best first, and what may be claimed of them."""
    keys = list(dict.fromkeys(key for trial in found.trials for key in trial.settings))
    ranked = sorted(found.trials, key=lambda trial: -(trial.reward.estimate if trial.reward else float("-inf")))
    say_table(
        ["trial", *keys, found.measure, "difference, corrected", ""],
        [_row(trial, keys, found) for trial in ranked],
    )
    say()
    say(found.sentence)
    say(f"measured  {found.search_rows} rows for the search, {found.confirm_rows} others to confirm")
    say(f"recipe    {found.recipe}")
    say(f"train it  {program()} train {found.recipe}")


def _row(trial: Trial, keys: list[str], found: Tuning) -> list[Any]:
    reward = interval(trial.reward.to_json()) if trial.reward else "—"
    difference = interval(trial.difference.to_json(), sign=True) if trial.difference else "—"
    note = {"finished": "", "pruned": "given up", "failed": "failed: not finite"}[trial.state]
    if trial.number == 0:
        note = "as it stands"
    elif trial.number == found.best:
        note = "better"
    values = [_short(trial.settings.get(key)) for key in keys]
    return [trial.number, *values, reward, difference, note]


def _short(value: Any) -> str:
    if value is None:
        return "·"
    return f"{value:.2e}" if isinstance(value, float) else str(value)
