"""melior models: which versions there are, and which one is in force"""

from __future__ import annotations

from typing import Any

import typer

from melior.cli.output import JSON, STORE, first_line, interval, say, say_json, say_table, told
from melior.cli.trace import show_steps

app = typer.Typer(no_args_is_help=True, help="Versions, aliases, promotions, lineage.", rich_markup_mode=None)
REFERENCE = typer.Argument(..., help="name@alias, a name (its @prod), or ver_…")
ALIAS = typer.Option("prod", "--alias", help="Which alias of the name.")
REASON = typer.Option("", "--reason", help="Goes into the log.")


@app.command("list")
@told
def list_models(
    name: str = typer.Argument(None, help="Only versions of this name."), store: str = STORE, as_json: bool = JSON
) -> None:
    """Every version, the newest last.

    \b
    melior models list
    melior models list sums --store demo/melior.db
    """
    from melior.registry import Registry
    from melior.store import Store

    with Store.open(store) as opened:
        versions = Registry(opened).list(name)
        held = {version.id: [f"@{a.alias}" for a in opened.aliases(version_id=version.id)] for version in versions}
    if as_json:
        return say_json([{**vars(version), "aliases": held[version.id]} for version in versions])
    if not versions:
        return say("there are no versions yet; melior train makes one")
    rows = []
    for one in versions:
        reward, when = interval(one.metrics.get("reward")), one.created[:16].replace("T", " ")
        rows.append((one.id, one.name, " ".join(held[one.id]), one.method, reward, when))
    say_table(["version", "name", "alias", "method", "held-out reward", "created (UTC)"], rows)


@app.command()
@told
def show(reference: str = REFERENCE, store: str = STORE, as_json: bool = JSON) -> None:
    """One version: where it is, what it was trained from, how it fared.

    \b
    melior models show sums@prod --store demo/melior.db
    """
    from melior.registry import Registry
    from melior.store import Store

    with Store.open(store) as opened:
        link = Registry(opened).lineage(reference).chain[0]
    if as_json:
        return say_json(link)
    version = link.version
    for label, value in (
        ("version", version.id),
        ("name", version.name),
        ("aliases", " ".join(link.aliases) or "none"),
        ("folder", version.folder),
        ("method", version.method),
        ("base model", version.base_model),
        ("parent", version.parent_id or "the base model"),
        ("run", version.run_id or "none"),
        ("data", f"{link.dataset.rows} rows of {link.dataset.path}" if link.dataset else "none"),
        ("created", version.created),
        *([("deleted", version.deleted)] if version.deleted else []),
    ):
        say(f"{label:<11} {value}")
    for evaluation in link.evaluations:
        say(f"evaluation  {evaluation.grader}: {interval(evaluation.summary.get('reward'))}")
    for gate in link.gates:
        say(f"gate        {gate.details.get('sentence', gate.verdict)}")


@app.command()
@told
def promote(
    reference: str = REFERENCE,
    alias: str = ALIAS,
    gate: str = typer.Option(None, "--gate", help="Which gate it passed. Default: its newest."),
    force: bool = typer.Option(False, "--force", help="Past the gate; needs --reason, and is logged so."),
    reason: str = REASON,
    store: str = STORE,
    as_json: bool = JSON,
) -> None:
    """Point name@alias to a version that passed its gate.

    \b
    melior models promote ver_3f2a
    melior models promote ver_3f2a --force --reason "hotfix, measured by hand"
    """
    from melior.registry import Registry
    from melior.store import Store

    with Store.open(store) as opened:
        event = Registry(opened).promote(reference, alias, gate_id=gate, force=force, reason=reason)
    if as_json:
        return say_json(event)
    before = f", before it {event.previous_id}" if event.previous_id else ""
    say(f"{event.name}@{event.alias} is now {event.version_id}{before}")


@app.command()
@told
def rollback(
    name: str = typer.Argument(..., help="The model's name."),
    alias: str = ALIAS,
    reason: str = REASON,
    store: str = STORE,
    as_json: bool = JSON,
) -> None:
    """Put the version before the current one in force again.

    \b
    melior models rollback sums --reason "answers got longer"
    """
    from melior.registry import Registry
    from melior.store import Store

    with Store.open(store) as opened:
        version = Registry(opened).rollback(name, alias, reason=reason)
    say_json(version) if as_json else say(f"{name}@{alias} is {version.id} again")


@app.command()
@told
def delete(
    reference: str = REFERENCE,
    store: str = STORE,
    as_json: bool = JSON,
) -> None:
    """Take a version out of use for good: not listed, answered with, promoted or rolled back to.

    What it decided stays in the log, and its files stay where they are, since others may have been trained from them.

    \b
    melior models delete ver_3f2a
    """
    from melior.registry import Registry
    from melior.store import Store

    with Store.open(store) as opened:
        version = Registry(opened).delete(reference)
    say_json(version) if as_json else say(
        f"{version.id} ({version.name}) is deleted; its files are in {version.folder}"
    )


@app.command()
@told
def lineage(reference: str = REFERENCE, store: str = STORE, as_json: bool = JSON) -> None:
    """Where a version comes from, down to its base model, and what has been learnt from what it decided.

    \b
    melior models lineage sums@prod --store demo/melior.db
    """
    from melior.registry import Registry
    from melior.store import Store
    from melior.store.lineage import trace

    with Store.open(store) as opened:
        line = Registry(opened).lineage(reference)
        traced = trace(opened, line.chain[0].version.id)
    if as_json:
        return say_json({**vars(line), "became": traced.became})
    show_lineage(line)
    say(f"decided {traced.facts['decisions']:,} outputs, on which {traced.facts['feedback']:,} opinions were heard")
    show_steps([step for step in traced.became if step.kind == "dataset"])


def show_lineage(line: Any) -> None:
    """The line of a version, its base model first."""
    say(line.base_model)
    for depth, link in enumerate(reversed(line.chain)):
        version, indent = link.version, "   " * depth
        data = f" on {link.dataset.rows} rows of {first_line(link.dataset.path, 40)}" if link.dataset else ""
        said = (link.dataset.details or {}).get("sources") if link.dataset else None
        data += (
            f", said by {', '.join(f'{first_line(name, 30)} {count}' for name, count in said.items())}" if said else ""
        )
        aliases = "".join(f"  ◀ {alias}" for alias in link.aliases)
        reward = f", held-out {interval(version.metrics['reward'])}" if "reward" in version.metrics else ""
        gone = f"  (deleted {version.deleted[:10]})" if version.deleted else ""
        say(f"{indent}└─ {version.id}  {version.method}{data}{reward}{aliases}{gone}")
        for gate in link.gates:
            say(f"{indent}      gate: {gate.verdict} against {gate.baseline_id or line.base_model}")
    if line.descendants:
        say(f"descendants: {', '.join(version.id for version in line.descendants)}")
