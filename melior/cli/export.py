"""melior export: training rows out of the log"""

from __future__ import annotations

from pathlib import Path

import typer

from melior.cli.output import JSON, STORE, first_line, say, say_json, shown, told, warn

SHOWN_SOURCES = 8


@told
def export(
    kind: str = typer.Argument(..., help="demonstrations, preferences, ratings, tasks or decisions."),
    to: Path = typer.Option(..., "--to", help="The file to write: .jsonl, .json, .csv, .tsv or .parquet."),
    format: str = typer.Option(
        None, "--format", help="openai-sft, openai-dpo, dpo, kto … (melior convert --list). Default: what fits the log."
    ),
    metric: str = typer.Option(None, "--metric", help="The feedback that rows are made of; of decisions, the reward."),
    at_least: float = typer.Option(1.0, "--at-least", help="Mean rating from which an output is worth imitating."),
    silent: float = typer.Option(None, "--silent", help="Reward of decisions of which the metric says nothing."),
    event: list[str] = typer.Option([], "--event", help="A metric that is an event; default: those declared as such."),
    name: str = typer.Option(None, "--name", help="Only what versions of this model decided."),
    alias: str = typer.Option(None, "--alias", help="Only what was asked of this alias, e.g. prod."),
    version: str = typer.Option(None, "--version", help="Only what this version decided: ver_…"),
    episode: str = typer.Option(None, "--episode", help="Only decisions of this episode."),
    since: str = typer.Option(None, "--since", help="From this time on: 2026-11-21, 2026-11-21T09:30+01:00."),
    until: str = typer.Option(None, "--until", help="Before this time."),
    source: list[str] = typer.Option([], "--source", help="Only what this source said; may be repeated."),
    without_source: list[str] = typer.Option([], "--without-source", help="Nothing that this source said."),
    most_per_source: float = typer.Option(
        None, "--most-per-source", help="The share of all rows that any one source may have, e.g. 0.2."
    ),
    origin: bool = typer.Option(
        True, "--origin/--no-origin", help="Columns that say what a row was made of and belongs to."
    ),
    store: str = STORE,
    as_json: bool = JSON,
) -> None:
    """Write training rows out of the log; what is left out is counted, and its first named.

    \b
    melior export demonstrations --to better.jsonl
    melior export preferences --to pairs.jsonl --format openai-dpo --most-per-source 0.2
    melior export ratings --metric helpful --to liked.csv --format kto
    melior export tasks --name support --since 2026-11-01 --to tasks.jsonl
    melior export decisions --metric purchase --alias prod --to log.parquet
    """
    from melior.store import Store
    from melior.store.datasets import export as exported
    from melior.store.exports import Wanted

    wanted = Wanted(
        kind=kind,  # type: ignore[arg-type]  # which says what kinds there are
        metric=metric,
        name=name,
        alias=alias,
        version=version,
        episode=episode,
        since=since,
        until=until,
        sources=tuple(source),
        without_sources=tuple(without_source),
        most_per_source=most_per_source,
        at_least=at_least,
        events=tuple(event),
        silent=silent,
    )
    with Store.open(store) as opened:
        done = exported(opened, wanted, to, format=format, origin=origin)
    if as_json:
        return say_json(done.to_json())
    say(f"{to}: {done.rows:,} rows of {kind} in {done.format}, data set {done.dataset.id}")
    ordered = sorted(done.sources.items(), key=lambda pair: (-pair[1], pair[0]))
    named = [f"{first_line(source or 'nobody named', 40)} {count:,}" for source, count in ordered[:SHOWN_SOURCES]]
    more = f" and {len(ordered) - SHOWN_SOURCES:,} more" if len(ordered) > SHOWN_SOURCES else ""
    if named:
        say(f"  said by: {', '.join(named)}{more}")
    for reason, left in done.left_out.items():
        warn(f"  left out: {left['count']:,} {shown(reason)} (first: {first_line(left['first'], 160)})")
    for what, count in sorted(done.lost.items(), key=lambda pair: -pair[1]):
        warn(f"  not kept: {shown(what)} ({count:,})")
