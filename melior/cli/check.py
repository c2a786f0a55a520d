"""melior check: what is wrong with a file of rows, and the file without it"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from melior.cli.output import JSON, program, say, say_json, say_table, shown, told, warn
from melior.errors import ConfigError

if TYPE_CHECKING:
    from melior.data.cleaning import CheckReport, Finding

EXAMPLES = 3
MOST_DETAILS = 6  # kinds within a finding that are counted on one line
MOST_WORKERS = 4
SMALL_FILE = 20_000_000  # bytes; starting further processes takes longer than reading it
SEVERITY_SIGNS = {"error": "✗", "warning": "!", "note": "·"}


@told
def check(
    source: str = typer.Argument(None, help="JSONL, JSON, CSV, TSV, Parquet, a folder, or hub:owner/name."),
    heldout: str = typer.Option(None, "--heldout", help="Held-out rows: what leaks from them into the file is told."),
    fix: Path = typer.Option(None, "--fix", help="Write the cleaned rows to a .jsonl file; the source stays."),
    report: Path = typer.Option(None, "--report", help="Write everything found, with all lines, as JSON."),
    model: str = typer.Option(None, "--model", help="Count tokens as this model does: a folder or a pulled name."),
    max_length: int = typer.Option(None, "--max-length", min=1, help="Tokens a row may have; needs --model."),
    near: float = typer.Option(0.85, "--near", help="Share of text in common from which rows are near duplicates."),
    labels: bool = typer.Option(False, "--labels", help="Look for labels that are probably wrong."),
    languages: bool = typer.Option(True, "--languages/--no-languages", help="Look for rows in other languages."),
    label: str = typer.Option("", "--label", help="The column that a table's rows are to be decided by."),
    drop: list[str] = typer.Option([], "--drop", help="A column of a table that is not read; may be repeated."),
    group: str = typer.Option("group", "--group", help="The column that names a row's conversation or user."),
    ignore: list[str] = typer.Option([], "--ignore", help="A code neither to tell nor to fix; may be repeated."),
    only: list[str] = typer.Option([], "--only", help="The codes to tell and fix; may be repeated."),
    examples: int = typer.Option(EXAMPLES, "--examples", min=0, max=10, help="Rows shown of each finding."),
    workers: int = typer.Option(0, "--workers", min=0, help="Processes; 0 chooses by the size of the file."),
    strict: bool = typer.Option(False, "--strict", help="Warnings fail too."),
    codes: bool = typer.Option(False, "--codes", help="List what is looked for, and what --fix does about it."),
    as_json: bool = JSON,
) -> None:
    """Tell what is wrong with a file of rows; write it without.

    Exit status: 0 without errors, 1 with errors (with --strict, also with warnings) or where nothing could be checked.

    \b
    melior check train.jsonl
    melior check train.jsonl --heldout test.jsonl --fix clean.jsonl --report report.json
    melior check intents.csv --labels --only label-error
    melior check credit.csv --label creditability --drop ID --heldout credit-test.csv
    melior check photos/
    melior check chats.parquet --model smollm2-135m-instruct --max-length 2048
    """
    from melior.data.cleaning import CheckConfig, check_file
    from melior.data.formats import Reading

    if codes:
        _show_codes(as_json)
        return
    if source is None:
        raise ConfigError("name the file to check: melior check train.jsonl")
    if report is not None:
        _check_report(report, source, heldout, fix)
    config = CheckConfig(
        near=near,
        ignore=_ignored(ignore, only),
        max_length=max_length,
        group=group,
        labels=labels,
        languages=languages,
        workers=workers or _workers(source),
        reading=Reading(label=label, drop=tuple(drop), group="" if group == "group" else group),
    )
    found = check_file(source, config, heldout=heldout, fix=fix, count_tokens=_counter(model), progress=_reading)
    if report is not None:
        found.write(report)
    if as_json:
        say_json(found.to_json())
    else:
        show(found, examples, report)
    failing = found.of("error") or (strict and found.of("warning"))
    if failing:
        raise typer.Exit(1)


def _check_report(report: Path, *others: str | Path | None) -> None:
    """Refuses a report that would overwrite what is read or written."""
    from melior.data.readers import is_part_of

    for other in others:
        if other is not None and is_part_of(report, other):
            raise ConfigError(f"--report {report} is {other}, or stands in its folder; write it to another place")


def _ignored(ignore: list[str], only: list[str]) -> frozenset[str]:
    from melior.data.cleaning import CODES
    from melior.data.cleaning.codes import code_named

    wanted = {code_named(name).name for name in only}
    others = {code.name for code in CODES} - wanted if wanted else set()
    return frozenset(others | {code_named(name).name for name in ignore})


def _counter(model: str | None) -> Any:
    if model is None:
        return None
    from melior.policies.lengths import TokenCounter
    from melior.policies.weights import resolve

    return TokenCounter(str(resolve(model)))


def _workers(source: str) -> int:
    path = Path(source)
    size = path.stat().st_size if path.is_file() else 0
    return 1 if size < SMALL_FILE else max(1, min(MOST_WORKERS, os.cpu_count() or 1))


def _reading(what: str, rows: int) -> None:
    warn(f"{what}: {rows:,} rows")


def _show_codes(as_json: bool) -> None:
    from melior.data.cleaning import CODES

    if as_json:
        say_json(list(CODES))
        return
    say_table(["code", "severity", "--fix", "why it matters"], [(c.name, c.severity, c.action, c.why) for c in CODES])


def show(found: CheckReport, examples: int = EXAMPLES, report: Path | None = None) -> None:
    """Prints a report for people: a table, worst first, some rows of each finding, and what to do next."""
    usable = f"{found.usable:,} of them usable as {found.format}" if found.usable else "none of them usable"
    say(f"{found.source}: {found.rows:,} rows, {usable}")
    _show_tables(found)
    say()
    if not found.findings:
        say("Nothing found.")
    else:
        say_table(
            ["", "code", "rows", "share", "--fix", "what it does"],
            [_row(finding, found.rows) for finding in found.findings],
        )
        for finding in found.findings:
            _show_examples(finding, examples)
    for line in found.not_checked:
        say(f"\nnot checked: {line}")
    say()
    _show_next(found, report)


def _row(finding: Finding, rows: int) -> tuple[str, ...]:
    from melior.data.cleaning.codes import BY_NAME

    whole = not finding.count
    action = {"remove": "removes", "repair": "repairs", "keep": "—"}[finding.action]
    return (
        SEVERITY_SIGNS[finding.severity],
        finding.code,
        "file" if whole else f"{finding.count:,}",
        "" if whole else f"{finding.count / max(1, rows):.1%}",
        action,
        BY_NAME[finding.code].why,
    )


def _show_examples(finding: Finding, examples: int) -> None:
    if not examples or not (finding.examples or finding.detail):
        return
    say(f"\n{SEVERITY_SIGNS[finding.severity]} {finding.code}{': ' * bool(finding.detail)}{finding.detail}")
    for example in finding.examples[:examples]:
        detail = f"{shown(example.detail)}: " if example.detail else ""  # column names may hold anything
        say(f"    {example.line}: {detail}{example.excerpt}")
    if finding.count > examples and finding.examples:
        few = list(finding.details.items()) if len(finding.details) <= MOST_DETAILS else []
        more = shown(", ".join(f"{name} {count:,}" for name, count in few))
        say(f"    … {finding.count - min(examples, len(finding.examples)):,} more{f' ({more})' if more else ''}")


def _show_tables(found: CheckReport) -> None:
    lengths = found.tables.get("lengths", {})
    if lengths:
        columns = list(next(iter(lengths.values())))
        say()
        rows = [[name, *(f"{values[column]:,}" for column in columns)] for name, values in lengths.items()]
        say_table(["length", *columns], rows)
    said = [f"{found.tables['distinct prompts']:,} distinct inputs"] if not lengths else []
    said += [f"{found.tables['distinct prompts']:,} distinct prompts"] if lengths else []
    languages = found.tables.get("languages") or {}
    if languages:
        total = sum(languages.values())
        said.append(", ".join(f"{name} {count / total:.0%}" for name, count in list(languages.items())[:4]))
    classes = found.tables.get("classes") or {}
    if classes:
        (most, least) = (list(classes.items())[place] for place in (0, -1))
        said.append(f"{len(classes)} labels, from {most[0]!r} ({most[1]:,}) to {least[0]!r} ({least[1]:,})")
    say("\n" + "; ".join(said))


def _show_next(found: CheckReport, report: Path | None) -> None:
    counts = {severity: len(found.of(severity)) for severity in ("error", "warning", "note")}
    told_counts = ", ".join(f"{n} kind{'s' * (n != 1)} of {severity}" for severity, n in counts.items() if n)
    if told_counts:
        say(told_counts)
    if found.fixed is not None:
        fixed = found.fixed
        say(f"{fixed.files['cleaned']}: {fixed.kept:,} rows, {fixed.changed_count:,} of them changed")
        say(f"{fixed.files['removed']}: {fixed.removed_count:,} rows that were removed, with line and reason")
        say(f"{fixed.files['changed']}: every changed row as it was and as it is")
    elif not found.usable:
        say("next: rename the columns, or convert the file; melior convert --list shows each format with a row")
    elif any(finding.action != "keep" and finding.count for finding in found.findings):
        held = f" --heldout {shlex.quote(found.heldout)}" if found.heldout else ""
        name = Path(found.source).name.partition(".")[0] or "rows"
        outs = f"--fix {shlex.quote(f'{name}.clean.jsonl')} --report {shlex.quote(f'{name}.report.json')}"
        say(f"next: {program()} check {shlex.quote(found.source)}{held} {outs}")
    if report is not None:
        say(f"{report}: every line of every finding")
