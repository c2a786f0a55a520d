"""melior train: a recipe becomes a version that has met the gate"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from melior.cli.output import JSON, STORE, interval, program, say, say_json, say_table, told
from melior.cli.plans import show_plan
from melior.cli.progress import Progress, clock

if TYPE_CHECKING:
    from melior.cycles.recipe import Recipe
    from melior.cycles.train import Outcome


@told
def train(
    recipe: Path = typer.Argument(..., help="The YAML file that says what to do."),
    folder: Path = typer.Option(None, "--folder", help="Of the run. Default: one per recipe, in MELIOR_HOME/runs."),
    show_mask: bool = typer.Option(False, "--show-mask", help="Print what is learnt, token by token, and stop."),
    rows: int = typer.Option(2, "--rows", min=1, help="How many rows --show-mask prints."),
    dry: bool = typer.Option(False, "--dry-run", help="Print rows, tokens, steps, memory and time, and stop."),
    anyway: bool = typer.Option(False, "--anyway", help="Learn from rewards even where the baseline says hopeless."),
    store: str = STORE,
    as_json: bool = JSON,
) -> None:
    """Train by a recipe, evaluate before and after, ask the gate, register and promote.

    The same command goes on after Ctrl-C or a crash, to the same numbers.

    \b
    melior train run.yaml
    melior train run.yaml --dry-run
    melior train run.yaml --show-mask
    """
    from melior.cycles.plan import dry_run
    from melior.cycles.recipe import load_recipe
    from melior.cycles.train import run_recipe
    from melior.policies.weights import home
    from melior.store import Store

    settings = load_recipe(recipe)
    with Store.open(store) as opened:
        if show_mask:
            return _show_mask(settings, opened, rows)
        if dry:
            with Progress() as progress:
                progress("measuring", 0, 1)
                plan = dry_run(settings, opened)
            return say_json(plan) if as_json else show_plan(plan)
        place = folder or home() / "runs" / f"{recipe.stem}-{settings.digest}"
        with Progress() as progress:
            announce = None if as_json else show_plan
            outcome = run_recipe(settings, place, store=opened, report=progress, anyway=anyway, announce=announce)
        say_json(outcome.to_json()) if as_json else show_outcome(outcome, opened, store)


def show_outcome(outcome: Outcome, store: Any, where: str | None) -> None:
    """What a run came to, for people."""
    version = store.version(outcome.version_id)
    told = outcome.to_json()
    measured = [(name, told[when]) for name, when in (("before", "before"), ("after", "after"))]
    grader = told["after"]["grader"]
    say_table(
        ["", f"held-out {grader}", "greedy", "items"],
        [(name, interval(m["reward"]), interval(m["greedy"]), m["items"]) for name, m in measured],
    )
    say()
    if outcome.baseline:
        say(f"baseline  {outcome.baseline['sentence']}")
    say(f"gain      {interval(told['gate']['interval'], sign=True)}")
    say(f"gate      {outcome.verdict.sentence}")
    aliases = [held.alias for held in store.aliases(name=version.name) if held.version_id == version.id]
    places = ", ".join(f"{version.name}@{alias}" for alias in aliases)
    promoted = f", promoted to {places}" if outcome.promoted and places else ""
    say(f"version   {version.id} of {version.name}{promoted}")
    notes = (outcome.note, outcome.stopped and f"stopped early: {outcome.stopped}", outcome.warning)
    for note in filter(None, notes):
        say(f"note      {note}")
    for alarm in {rung["alarm"]: rung for rung in reversed(outcome.alarms)}.values():  # each when it first rang
        say(f"alarm     {alarm['alarm']} after step {alarm['step'] + 1}: {alarm['sentence']}")
    for what, count in outcome.passed_over.items():
        say(f"note      {count} × {what}")
    for remark in outcome.after.notes:
        say(f"note      {remark}")
    if outcome.dropped:
        say(f"note      {outcome.dropped} rows were longer than the context and taught nothing")
    say(f"training  {outcome.steps} steps, {outcome.tokens:,} decisions, {clock(outcome.seconds)}, {_saved(outcome)}")
    say(f"folder    {outcome.folder}")
    if (outcome.folder / "report.html").is_file():
        say(f"report    {outcome.folder / 'report.html'}")
    shop = f" --store {where}" if where else ""
    tries = f"chat {version.id}" if outcome.kind == "language" else f"decide {version.id} ROWS"
    say(f"try it    {program()} {tries}{shop}")


def _saved(outcome: Outcome) -> str:
    if not outcome.nodes or outcome.layout != "forest":
        return f"layout {outcome.layout}"
    return f"forest: {outcome.nodes:,} tokens computed for {outcome.padded_tokens:,} padded ones"


def _show_mask(recipe: Recipe, store: Any, count: int) -> None:
    """Every token of the first rows, and which of them are decisions to learn."""
    from melior.cycles.lesson import load_trainable
    from melior.cycles.models import find_model
    from melior.cycles.rows import load_rows
    from melior.errors import ConfigError

    if recipe.method != "sft" or recipe.model.kind != "language":
        raise ConfigError("only sft of a language model has a mask to show: rft learns from what the policy samples")
    found = load_rows(recipe)
    rows = found.train[:count]
    policy = load_trainable(recipe, find_model(recipe.model.path, store), found)
    batch = policy.encode(rows)
    tokens = policy.renderer.tokenizer
    for turn, owner in enumerate(batch.columns["examples"].tolist()):
        read, count = len(batch.inputs[turn]), int(batch.mask[turn].sum())
        say(f"{rows[owner].id or f'row {owner + 1}'}: {read} tokens read, {count} decided")
        learnt = (batch.mask[turn] & (batch.weights[turn] != 0)).tolist()
        decided = zip(batch.outputs[turn][0], learnt, strict=False)
        for token, mark in [*((token, False) for token in batch.inputs[turn]), *decided]:
            say(f"  {'learn' if mark else '  ·  '}  {token:>7}  {tokens.decode([token])!r}")
