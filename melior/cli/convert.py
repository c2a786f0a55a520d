"""melior convert: rows of any known format and file, in another"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from melior.cli.output import JSON, first_line, say, say_json, say_table, shown, told, warn
from melior.errors import ConfigError

SHOWN_PROBLEMS = 5


@told
def convert(
    source: str = typer.Argument(None, help="A file, a folder, or hub:owner/name/config@split."),
    to: str = typer.Option(None, "--to", help="The format to write (see --list); the source's own if left out."),
    out: Path = typer.Option(None, "--out", help="The file to write: .jsonl, .json, .csv, .tsv or .parquet."),
    source_format: str = typer.Option(None, "--from", help="The format of the source, where its columns do not tell."),
    rename: list[str] = typer.Option([], "--rename", help="OLD=NEW, for columns of the source; may be repeated."),
    skip: bool = typer.Option(False, "--skip", help="Leave rows out that cannot be read or written, and say which."),
    columns: bool = typer.Option(True, "--columns/--no-columns", help="Keep columns that the format has no place for."),
    spreadsheet: bool = typer.Option(False, "--spreadsheet", help="Make CSV safe to open: no cell runs as a formula."),
    alpaca: str = typer.Option(
        "joined", "--alpaca", help="Prompts of Alpaca rows: joined, or in the published wording."
    ),
    label: str = typer.Option("", "--label", help="Of a table: the column to decide."),
    question: str = typer.Option("", "--question", help="Of a label export: the question whose answers count."),
    prompt_field: str = typer.Option("", "--prompt-field", help="Of a label export: the field that is the prompt."),
    listed: bool = typer.Option(False, "--list", help="Show all formats, each with a row."),
    as_json: bool = JSON,
) -> None:
    """Write rows in another format or kind of file; what the target cannot hold is counted.

    \b
    melior convert --list
    melior convert chats.jsonl --to sharegpt --out chats.json
    melior convert labels.json --to dpo --out pairs.parquet
    melior convert faq.csv --rename question=prompt --rename answer=completion --out faq.jsonl
    melior convert hub:owner/name@train --out rows.jsonl
    melior convert credit.csv --label creditability --out credit.parquet
    """
    if listed:
        _list(as_json)
        return
    if source is None or out is None:
        missing = "the source" if source is None else "--out"
        raise ConfigError(f"{missing} is missing; melior convert SOURCE --to FORMAT --out FILE")
    if alpaca not in ("joined", "published"):
        raise ConfigError(f"--alpaca is joined or published, not {alpaca!r}")
    from melior.data.conversion import convert as converted
    from melior.data.formats import Reading

    renamed = [pair.partition("=") for pair in rename]
    if not all(old and new for old, _, new in renamed):
        raise ConfigError(f"--rename is OLD=NEW, got {' '.join(rename)}")
    reading = Reading(
        rename={old: new for old, _, new in renamed},
        alpaca="published" if alpaca == "published" else "joined",
        label=label,
        question=question,
        prompt_field=prompt_field,
    )
    done = converted(
        source,
        out,
        to,
        source_format=source_format,
        reading=reading,
        skip=skip,
        columns=columns,
        spreadsheet=spreadsheet,
    )
    if as_json:
        say_json(done.to_json())
        return
    say(f"{out}: {done.written.rows:,} rows in {done.written.format}, from {done.read:,} rows in {done.source_format}")
    for what, count in done.written.lost.most_common():
        warn(f"  not kept: {shown(what)} ({count:,})")
    left = [*done.unread, *done.written.problems]
    for problem in left[:SHOWN_PROBLEMS]:
        warn(f"  left out: {shown(str(problem))}")
    if len(left) > SHOWN_PROBLEMS:
        warn(f"  and {len(left) - SHOWN_PROBLEMS:,} more rows left out; --json lists all")


def _list(as_json: bool) -> None:
    """All formats, the kind each holds, and one row."""
    from melior.data.formats import ALIASES, FORMATS

    names = {format.name: [alias for alias, name in ALIASES.items() if name == format.name] for format in FORMATS}
    if as_json:
        rows: list[dict[str, Any]] = [
            {"name": format.name, "aliases": names[format.name], "kind": format.kind, "row": format.sample}
            for format in FORMATS
        ]
        say_json(rows)
        return
    kinds = list(dict.fromkeys(format.kind for format in FORMATS))
    ordered = sorted(FORMATS, key=lambda format: kinds.index(format.kind))
    say_table(
        ["kind", "format", "also called", "a row"],
        [
            (
                format.kind,
                format.name,
                ", ".join(names[format.name]),
                first_line(json.dumps(format.sample, ensure_ascii=False), 90),
            )
            for format in ordered
        ],
    )
