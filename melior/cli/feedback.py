"""melior feedback: what was said of decisions: found, corrected, and turned into what can be learnt from"""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Any

import typer

from melior.cli.output import JSON, STORE, first_line, say, say_json, say_table, shown, told, warn
from melior.cli.trace import trace
from melior.errors import ConfigError, MeliorError

app = typer.Typer(no_args_is_help=True, help="Feedback: find, show, turn, correct, trace.", rich_markup_mode=None)
metrics = typer.Typer(no_args_is_help=True, help="What each metric measures.", rich_markup_mode=None)
app.add_typer(metrics, name="metrics")
app.command("trace")(trace)

REFERENCE = typer.Argument(..., help="fb_…, or the beginning of it.")
BY = typer.Option(None, "--by", help="Who says so. Default: your name on this machine.")


@app.command("list")
@told
def list_feedback(
    metric: str = typer.Option(None, "--metric", help="Only of this name."),
    search: str = typer.Option("", "--search", help="Only with this text in the value or the comment, in any case."),
    decision: str = typer.Option(None, "--decision", help="Only of this decision: chatcmpl_… or dec_…"),
    episode: str = typer.Option(None, "--episode", help="Only of this whole episode."),
    source: str = typer.Option(None, "--source", help="Only of this source."),
    history: bool = typer.Option(False, "--history", help="Also what was corrected or taken back since."),
    limit: int = typer.Option(20, "--limit", min=1, help="So many, the newest first."),
    after: str = typer.Option(None, "--after", help="Go on behind this one."),
    store: str = STORE,
    as_json: bool = JSON,
) -> None:
    """What was said, the newest first.

    \b
    melior feedback list --metric comment --search "too slow"
    melior feedback list --decision chatcmpl_3f2a --history
    """
    from melior.store import Store

    with Store.open(store) as opened:
        page = opened.feedback_page(
            metric=metric,
            decision_id=decision,
            episode_id=episode,
            source=source,
            in_force=not history,
            search=search,
            after=after,
            limit=limit,
        )
        replaced = opened.replacements([row.id for row in page.rows])
    if as_json:
        return say_json([{**vars(row), "replaced_by": replaced.get(row.id)} for row in page.rows])
    if not page.rows:
        narrowed = any((metric, search, decision, episode, source, after))
        return say("nothing was said that fits" if narrowed else "nothing was said yet; clients send /v1/feedback")
    rows = [
        (
            row.id,
            row.created[:16].replace("T", " "),
            first_line(row.metric, 20),
            first_line(_said(row), 48),
            row.decision_id or row.episode_id,
            first_line(row.source, 20),
            "replaced" if row.id in replaced else "",
        )
        for row in page.rows
    ]
    if not history:
        rows = [row[:-1] for row in rows]  # type: ignore[misc]
    say_table(["feedback", "said (UTC)", "metric", "value", "of", "source", ""][: len(rows[0])], rows)
    if page.more:
        warn(f"there are more; --after {page.rows[-1].id} goes on, --limit shows more at once")


@app.command()
@told
def show(reference: str = REFERENCE, store: str = STORE, as_json: bool = JSON) -> None:
    """One piece of feedback, and the decision it is of.

    \b
    melior feedback show fb_3f2a
    """
    from melior.store import Store

    with Store.open(store) as opened:
        row = opened.one_feedback(reference)
        replaced = opened.replacements([row.id]).get(row.id)
        decision = opened.decisions([row.decision_id])[0] if row.decision_id else None
        made = opened.feedback_page(made_from=row.id, limit=100, order="asc").rows
    if as_json:
        return say_json({**vars(row), "replaced_by": replaced, "made": [one.id for one in made], "decision": decision})
    for label, value in (
        ("feedback", row.id),
        ("said", row.created),
        ("by", row.source + (f" (with the key {row.given_by})" if row.given_by not in ("", row.source) else "")),
        ("metric", row.metric),
        ("value", _said(row)),
        ("comment", row.comment),
        ("tags", ", ".join(f"{name}={value}" for name, value in row.tags.items())),
        ("episode", row.episode_id),
        ("replaces", row.replaces_id),
        ("replaced by", replaced),
        ("made from", row.made_from_id),
        ("turned into", ", ".join(f"{one.id} ({one.metric})" for one in made)),
    ):
        if value:
            say(f"{label:<11} {shown(str(value))}")
    if decision is not None:
        say(f"{'decision':<11} {decision.id}")
        say(f"{'input':<11} {first_line(_text(decision.record.inputs), 300)}")
        say(f"{'output':<11} {first_line(_text(decision.record.output), 300)}")


@app.command()
@told
def turn(
    reference: str = REFERENCE,
    demonstration: str = typer.Option(None, "--demonstration", help="A better output; @file reads it from a file."),
    preference: str = typer.Option(None, "--preference", help="What is better than what was decided; @file too."),
    rejected: str = typer.Option(None, "--rejected", help="What it is better than. Default: what was decided."),
    by: str = BY,
    store: str = STORE,
    as_json: bool = JSON,
) -> None:
    """Make a demonstration or a preference of what somebody said; both keep what they were made from.

    \b
    melior feedback turn fb_3f2a --demonstration "Parcels arrive within two days."
    melior feedback turn fb_3f2a --preference @better.txt
    """
    from melior.store import Store

    if (demonstration is None) == (preference is None):
        raise ConfigError("a comment is turned into one thing; give --demonstration or --preference")
    if rejected is not None and preference is None:
        raise ConfigError("--rejected goes with --preference; leave it out")
    with Store.open(store) as opened:
        words = opened.one_feedback(reference)
        if words.decision_id is None:
            raise ConfigError(f"{words.id} is of a whole episode, and a better output is of one decision")
        output = opened.decisions([words.decision_id])[0].record.output
        value: Any = _output(demonstration, output) if demonstration is not None else None
        if preference is not None:
            worse = output if rejected is None else _output(rejected, output)
            value = {"chosen": _output(preference, output), "rejected": worse}
        metric = "preference" if demonstration is None else "demonstration"
        row = _say(opened, metric=metric, value=value, made_from=words.id, by=by)
    say_json(row) if as_json else say(f"{row.id}  {metric} made from {words.id} by {row.source}")


@app.command()
@told
def correct(
    reference: str = REFERENCE,
    value: str = typer.Argument(None, help="What is right: true, a number, a text, as it was said before."),
    take_back: bool = typer.Option(False, "--take-back", help="It was said by mistake, and nothing in its place."),
    by: str = BY,
    store: str = STORE,
    as_json: bool = JSON,
) -> None:
    """Say something in place of what was said; what was said before stays in the log.

    \b
    melior feedback correct fb_3f2a 4
    melior feedback correct fb_3f2a --take-back
    """
    from melior.store import Store

    if (value is None) != take_back:
        raise ConfigError("a correction has a value, or --take-back; give one of them")
    with Store.open(store) as opened:
        before = opened.one_feedback(reference)
        right = None if value is None else _output(value, before.value)
        row = _say(opened, value=right, replaces=before.id, by=by)
    if as_json:
        return say_json(row)
    say(f"{row.id}  {row.metric} is {_text(row.value)}" if not take_back else f"{row.id}  takes back {before.id}")


@metrics.command("add")
@told
def add_metric(
    name: str = typer.Argument(..., help="Of the metric."),
    type: str = typer.Option(
        ..., "--type", help="boolean, number, rating, comment, demonstration, preference or event."
    ),
    low: float = typer.Option(None, "--low", help="Of a number or a rating."),
    high: float = typer.Option(None, "--high", help="Of a number or a rating."),
    description: str = typer.Option("", "--description", help="For whoever gives feedback."),
    store: str = STORE,
    as_json: bool = JSON,
) -> None:
    """Declare what a metric measures; feedback that is none of it is refused from then on.

    \b
    melior feedback metrics add clarity --type rating --low 1 --high 5 --description "how clear the answer is"
    """
    from melior.store import Store

    with Store.open(store) as opened:
        measure = opened.declare_measure(name, type, low=low, high=high, description=description)  # type: ignore[arg-type]
    say_json(measure) if as_json else say(f"{measure.name}  {_measured(measure)}")


@metrics.command("list")
@told
def list_metrics(store: str = STORE, as_json: bool = JSON) -> None:
    """Every metric that says what it takes.

    \b
    melior feedback metrics list
    """
    from melior.store import Store
    from melior.store.measures import BUILT_IN, built_in

    with Store.open(store) as opened:
        found = [*filter(None, map(built_in, BUILT_IN)), *opened.measures()]
    if as_json:
        return say_json(found)
    say_table(["metric", "takes", "what it is"], [(one.name, _measured(one), one.description) for one in found])
    say("any other name takes true, false, a number or a text")


def _say(opened: Any, *, by: str | None, **said: Any) -> Any:
    """What somebody at this machine says."""
    from melior.store.feedback import Said

    (row,) = opened.add_feedbacks([Said(source=by or getpass.getuser(), any_source=True, checked=True, **said)])
    if isinstance(row, MeliorError):
        raise row
    return row


def _output(given: str, like: Any) -> Any:
    """What somebody wrote, as the value it stands for: a text where a text was said before, else JSON."""
    if given.startswith("@"):
        try:
            given = Path(given[1:]).read_text(encoding="utf-8").rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{given[1:]} cannot be read as text: {error}") from error
    if isinstance(like, str):
        return given
    try:
        return json.loads(given)
    except ValueError:
        raise ConfigError(
            f"{first_line(given, 40)!r} is not JSON; write it as it was before: {first_line(_text(like), 60)}"
        ) from None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _said(row: Any) -> str:
    """The value of a row, in words where it only takes something back."""
    return "taken back" if row.value is None and row.replaces_id else _text(row.value)


def _measured(measure: Any) -> str:
    """`rating from 1 to 5`."""
    bounds = [
        f" {word} {bound:g}" for word, bound in (("from", measure.low), ("to", measure.high)) if bound is not None
    ]
    return measure.type + "".join(bounds)
