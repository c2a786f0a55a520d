"""melior runs: what was trained, and how it ended"""

from __future__ import annotations

import csv
import difflib
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from melior.cli.output import JSON, STORE, interval, program, say, say_json, say_table, shown, told, warn
from melior.cli.progress import Progress
from melior.cli.train import show_outcome

if TYPE_CHECKING:
    from melior.reports.curves import Curve

app = typer.Typer(no_args_is_help=True, help="Runs: list, show, compare, report, resume.", rich_markup_mode=None)
RUN = typer.Argument(..., help="run_…, or the beginning of it.")
EITHER = typer.Argument(..., help="run_…, the beginning of it, or a run's folder.")
METRIC = typer.Option(None, "--metric", help="Draw these instead, such as reward,policy/kl_old.")
WIDTH = typer.Option(None, "--width", min=30, help="Columns to draw in. Default: those of the terminal.")
FIRST = ("Reward", "Loss")  # what is drawn where nobody says which
EVALUATION = "evaluation"  # the method of an eval's run: a worker's, without curves
UNWATCHED = 80  # columns where there is no terminal


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
def show(
    run: str = EITHER,
    metric: str = METRIC,
    as_csv: bool = typer.Option(False, "--csv", help="Print every metric of every step as CSV."),
    width: int = WIDTH,
    store: str = STORE,
    as_json: bool = JSON,
) -> None:
    """One run and its curves: reward or loss, held-out beside it, or any metric.

    \b
    melior runs show run_3f2a
    melior runs show run_3f2a --metric reward,completions/mean_length
    melior runs show runs/sums --csv > metrics.csv
    """
    from melior.errors import DataError
    from melior.reports.files import read_run

    folder, found = _located(run, store)
    if as_csv:
        return _say_csv(read_run(folder).metrics)
    if metric:
        curves = _chosen(folder, metric)
        if as_json:
            return say_json({curve.name: curve.points for curve in curves})
        return _draw([(curve.label, [curve]) for curve in curves], width)
    if as_json:
        return say_json(found if found is not None else read_run(folder).result)
    _say_facts(found) if found is not None else _say_folder(folder)
    if found is not None and found.method == EVALUATION:
        return
    try:
        _draw(_first_charts(folder), width)
    except DataError as error:  # the registry outlives folders
        say(f"{'curves':<10} {error}")


@app.command("compare")
@told
def compare_runs(
    first: str = EITHER,
    second: str = EITHER,
    metric: str = METRIC,
    width: int = WIDTH,
    store: str = STORE,
    as_json: bool = JSON,
) -> None:
    """Two runs' curves on one axis. Whether one is better than the other is what `melior compare` tells.

    \b
    melior runs compare run_3f2a run_91bc --metric reward
    """
    from dataclasses import replace

    from melior.errors import ConfigError
    from melior.reports.curves import curve_of, names_of
    from melior.reports.files import read_run

    runs = {name: read_run(_located(name, store)[0]) for name in (first, second)}
    shared = [name for name in names_of(runs[first]) if name in names_of(runs[second])]
    default = [name for name in ("reward", "loss", "heldout_reward", "heldout_loss") if name in shared]
    names = _names(metric) if metric else default
    missing = [name for name in names if name not in shared]
    if missing or not names:
        wanted = missing[0] if missing else "a loss or reward"
        raise ConfigError(f"the two runs do not both have {wanted!r}; both have {', '.join(shared) or 'nothing'}")
    found = {name: {told: curve_of(run, name) for told, run in runs.items()} for name in names}
    if as_json:
        return say_json({name: {told: c.points for told, c in by.items() if c} for name, by in found.items()})
    _draw([(name, [replace(c, label=told) for told, c in by.items() if c]) for name, by in found.items()], width)


@app.command()
@told
def report(
    run: str = EITHER,
    show_it: bool = typer.Option(False, "--open", help="Open it in the browser."),
    store: str = STORE,
    as_json: bool = JSON,
) -> None:
    """Make a run's report.html again from the files of its folder.

    \b
    melior runs report run_3f2a --open
    """
    from melior.reports.write import write_report

    path = write_report(_located(run, store)[0]).absolute()
    say_json({"report": path}) if as_json else say(str(path))
    if show_it and typer.launch(path.as_uri()) != 0:
        warn("no browser could be opened; open the file yourself")


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


def _located(run: str, store: str | None) -> tuple[Path, Any]:
    """The run's folder, and its row in the registry unless the folder itself was named."""
    from melior.store import Store

    if Path(run).is_dir():
        return Path(run), None
    with Store.open(store) as opened:
        found = opened.run(run)
    return Path(found.folder), found


def _say_facts(found: Any) -> None:
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
    for criterion in found.metrics.get("criteria", ()):  # of a run of an eval
        graded = criterion["passed"] + criterion["failed"]
        errors = f", {criterion['errored']} could not be graded" if criterion["errored"] else ""
        say(f"{'passed':<10} {criterion['testing_criteria']}: {criterion['passed']} of {graded}{errors}")
    if found.status != "succeeded" and found.method != EVALUATION:
        say(f"{'go on':<10} {program()} runs resume {found.id}")
    page = Path(found.folder) / "report.html"
    if page.is_file():
        say(f"{'report':<10} {page}")


def _say_folder(folder: Path) -> None:
    from melior.reports.files import read_run
    from melior.reports.findings import findings

    run = read_run(folder)
    for label, value in (
        ("method", run.method or "unknown"),
        ("state", run.state),
        ("steps", f"{run.steps:,}" + (f" of {run.total:,}" if run.total else "")),
        ("folder", folder),
    ):
        say(f"{label:<10} {value}")
    for sentence in findings(run):
        say(f"{'note':<10} {shown(sentence)}")


def _names(metric: str) -> list[str]:
    """Names separated by commas."""
    return [name for name in map(str.strip, metric.split(",")) if name]


def _chosen(folder: Path, metric: str) -> list[Curve]:
    """The curves by these names, separated by commas."""
    from melior.errors import ConfigError
    from melior.reports.curves import curve_of, names_of
    from melior.reports.files import read_run

    run = read_run(folder)
    curves = []
    for name in _names(metric):
        found = curve_of(run, name)
        if found is None:
            names = names_of(run)
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names) or 'none yet'}"
            raise ConfigError(f"{folder.name} has no metric {name!r}; {hint}")
        curves.append(found)
    return curves


def _first_charts(folder: Path) -> list[tuple[str, Sequence[Curve]]]:
    from melior.reports.curves import charts_of
    from melior.reports.files import read_run

    run = read_run(folder)
    return [(chart.title, chart.curves) for chart in charts_of(run) if chart.title in FIRST and run.steps]


def _draw(charts: Sequence[tuple[str, Sequence[Curve]]], width: int | None) -> None:
    """Each chart below its title, as wide as the terminal, in what the terminal can show."""
    from melior.reports.terminal import plot

    watched = sys.stdout.isatty()
    columns = width or (shutil.get_terminal_size().columns if watched else UNWATCHED)
    colour = watched and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    plain = "utf" not in (sys.stdout.encoding or "").lower()
    for title, curves in charts:
        say()
        say(shown(title))
        for line in plot(curves, width=columns, colour=colour, ascii_only=plain):
            say(line)


def _say_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    """One line per step, one column per metric; empty where a step did not measure it."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(sys.stdout, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
