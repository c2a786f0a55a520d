"""melior runs: what was trained, and how it ended"""

from __future__ import annotations

from pathlib import Path

import typer

from melior.cli.output import JSON, STORE, interval, say, say_json, say_table, told
from melior.cli.progress import Progress
from melior.cli.train import show_outcome

app = typer.Typer(no_args_is_help=True, help="Runs: list, show, resume.", rich_markup_mode=None)
RUN = typer.Argument(..., help="run_…, or the beginning of it.")


@app.command("list")
@told
def list_runs(store: str = STORE, as_json: bool = JSON) -> None:
    """Every run, the newest last.

    \b
    melior runs list
    """
    from melior.store import Store

    with Store.open(store) as opened:
        runs = opened.runs()
    if as_json:
        return say_json(runs)
    if not runs:
        return say("there are no runs yet; melior train makes one")
    rows = [(run.id, run.method, run.status, run.created[:16].replace("T", " "), run.folder) for run in runs]
    say_table(["run", "method", "status", "started (UTC)", "folder"], rows)


@app.command()
@told
def show(run: str = RUN, store: str = STORE, as_json: bool = JSON) -> None:
    """One run: its settings are in its folder's recipe.yaml.

    \b
    melior runs show run_3f2a
    """
    from melior.store import Store

    with Store.open(store) as opened:
        found = opened.run(run)
    if as_json:
        return say_json(found)
    for label, value in (
        ("run", found.id),
        ("method", found.method),
        ("status", found.status),
        ("from", found.base_version or found.base_model),
        ("folder", found.folder),
        ("started", found.created),
        ("finished", found.finished or "not yet"),
    ):
        say(f"{label:<10} {value}")
    for when in ("before", "after"):
        if when in found.metrics:
            say(f"{when:<10} {interval(found.metrics[when]['reward'])}")
    if "gate" in found.metrics:
        say(f"{'gate':<10} {found.metrics['gate']['sentence']}")
    if found.error:
        say(f"{'error':<10} {found.error.splitlines()[0]}")
    if found.status != "succeeded":
        say(f"{'go on':<10} melior runs resume {found.id}")


@app.command()
@told
def resume(run: str = RUN, store: str = STORE, as_json: bool = JSON) -> None:
    """Go on with a run that was stopped, to the numbers it would have had.

    \b
    melior runs resume run_3f2a
    """
    from melior.cycles import train
    from melior.store import Store

    with Store.open(store) as opened:
        folder = Path(opened.run(run).folder)
        with Progress() as progress:
            outcome = train.resume(folder, store=opened, report=progress)
        say_json(outcome.to_json()) if as_json else show_outcome(outcome, opened, store)
