"""melior trace: what a row came from, and what came of it"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import typer

from melior.cli.output import JSON, STORE, first_line, interval, say, say_json, told

WIDTH = 60  # characters of inputs, outputs and comments


@told
def trace(
    reference: str = typer.Argument(..., help="Any id (chatcmpl_, dec_, fb_, ds_, run_, ver_ …) or name@alias."),
    most: int = typer.Option(5, "--shown", min=1, help="Rows of one kind that are shown behind one row."),
    store: str = STORE,
    as_json: bool = JSON,
) -> None:
    """Follow a row both ways: to the request and the version behind it, and to what has been learnt from it.

    \b
    melior trace fb_3f2a
    melior trace support@prod --json
    """
    from melior.store import Store
    from melior.store.lineage import trace as traced

    with Store.open(store) as opened:
        found = traced(opened, reference, shown=most)
    say_json(found) if as_json else show_trace(found)


def show_trace(found: Any) -> None:
    """A row with two trees."""
    say(describe(found.kind, found.id, found.facts))
    for title, steps in (("came from", found.came_from), ("became", found.became)):
        shown = [step for step in steps if not step.told]
        say(f"{title}{'' if shown else ': nothing known' if title == 'came from' else ': nothing yet'}")
        show_steps(shown)


def show_steps(steps: Sequence[Any], indent: str = "") -> None:
    """A tree of steps; what stands in it already is not told again."""
    shown = [step for step in steps if not step.told]
    for place, step in enumerate(shown):
        last = place == len(shown) - 1 and not step.more
        say(f"{indent}{'└─' if last else '├─'} {step.relation}: {describe(step.kind, step.id, step.facts)}")
        show_steps(step.steps, indent + ("   " if last else "│  "))
        if step.more:
            say(f"{indent}{'└─' if place == len(shown) - 1 else '├─'} and {step.more:,} more like this ({step.kind})")


def describe(kind: str, id: str, facts: Mapping[str, Any]) -> str:
    """One line about a row."""
    return f"{kind} {id}  {SAYS[kind](facts)}".rstrip()


def _decision(facts: Mapping[str, Any]) -> str:
    asked = facts["inputs"]
    asked = asked.get("messages", asked) if isinstance(asked, Mapping) else asked
    last = asked[-1].get("content") if isinstance(asked, list) and asked and isinstance(asked[-1], Mapping) else asked
    return f"{_text(last)} → {_text(facts['output'])}"


def _feedback(facts: Mapping[str, Any]) -> str:
    value = "" if facts["value"] == facts["comment"] else f" = {_text(facts['value'])}"
    comment = f" “{first_line(facts['comment'], WIDTH)}”" if facts["comment"] else ""
    by = f" by {first_line(facts['source'], 40)}" if facts["source"] else ""
    return f"{facts['metric']}{value}{comment}{by}{'' if facts['in_force'] else ', replaced since'}"


def _dataset(facts: Mapping[str, Any]) -> str:
    sources = sorted(facts["sources"].items(), key=lambda pair: (-pair[1], pair[0]))
    said = ", ".join(f"{first_line(name or 'nobody named', 30)} {count:,}" for name, count in sources[:5])
    return f"{facts['rows']:,} rows of {facts['kind']}{f', said by {said}' if said else ''}"


def _version(facts: Mapping[str, Any]) -> str:
    reward = f", held-out {interval(facts['reward'])}" if isinstance(facts["reward"], Mapping) else ""
    decided = f", decided {facts['decisions']:,} with {facts['feedback']:,} feedback" if facts["decisions"] else ""
    gone = ", deleted" if facts["deleted"] else ""
    return f"{facts['name']} by {facts['method']} over {first_line(facts['base_model'], 40)}{reward}{decided}{gone}"


def _promotion(facts: Mapping[str, Any]) -> str:
    verb = "rolled back to" if facts["action"] == "rollback" else "promoted to"
    before = f" from {facts['before']}" if facts["before"] else ""
    return f"{facts['alias']} {verb} {facts['version']}{before}{', forced' if facts['forced'] else ''}"


def _grade(facts: Mapping[str, Any]) -> str:
    return f"{facts['grader']}: {facts['error'] or facts['value']}"


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"“{first_line(text, WIDTH)}”" if isinstance(value, str) else first_line(text, WIDTH)


SAYS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "decision": _decision,
    "feedback": _feedback,
    "score": _grade,
    "dataset": _dataset,
    "file": lambda facts: f"{first_line(facts['filename'], 40)}{', deleted' if facts['deleted'] else ''}",
    "job": lambda facts: f"{facts['method']}, {facts['status']}",
    "run": lambda facts: f"{facts['method']}, {facts['status']}",
    "version": _version,
    "evaluation": lambda facts: f"{facts['grader']}: {interval(facts['reward'])} on {facts['items']:,} items",
    "gate": lambda facts: first_line(facts["sentence"] or facts["verdict"], 100),
    "promotion": _promotion,
}
