"""melior demo: base → SFT → RFT → gate → promotion, in minutes"""

from __future__ import annotations

import json
import secrets
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from melior.cli.models import show_lineage
from melior.cli.output import JSON, first_line, interval, last_part, program, say, say_json, say_table, told
from melior.cli.progress import Progress, clock

if TYPE_CHECKING:
    from melior.cycles.demo import Demo

MODEL = typer.Option("smollm2-135m-instruct", "--model", help="The model to start from.")


@told
def demo(
    folder: Path = typer.Option(Path("demo"), "--folder", help="Everything is kept here."),
    seed: int = typer.Option(0, "--seed", help="Of training."),
    model: str = MODEL,
    as_json: bool = JSON,
) -> None:
    """Teach a small model sums by demonstration, then by a verifier's rewards, and prove each step.

    Killed and started again, it goes on to the same numbers.

    \b
    melior demo
    """
    from melior.cycles.demo import DemoSettings, run_demo
    from melior.policies import weights

    with Progress() as progress:
        if model in weights.KNOWN:
            progress("fetching the model", 0, 1)
            progress("fetching the model", 1, 1, str(weights.pull(model)))
        done = run_demo(DemoSettings(model=model), folder, seed=seed, report=progress)
    say_json(done.summary) if as_json else show_demo(done, folder)


def show_demo(done: Demo, folder: Path) -> None:
    """The table, the verdicts, the lineage and five answers before and after."""
    from melior.registry import Registry
    from melior.store import Store

    say(f"{done.summary['heldout_items']} held-out items; intervals of 95 %, over items")
    say()
    say_table(
        ["stage", "reward, sampled", "greedy", "gain over the stage before", "tokens", "time", "computed / padded"],
        [_row(stage) for stage in done.summary["stages"]],
    )
    say()
    for verdict in done.summary["gate"]["verdicts"]:
        say(f"gate: {verdict['candidate']} against {verdict['baseline']}: {verdict['sentence']}")
    say()
    _show_answers(done)
    promoted = done.summary["promoted"]
    where = folder / "melior.db"
    if promoted is None:
        return say("\nnothing was promoted: no candidate passed its gates")
    with Store.open(where) as store:
        say(f"\npromoted: {promoted['model']} is what {promoted['stage']} made")
        show_lineage(Registry(store).lineage(promoted["model"]))
    question = next(iter(done.evaluations.values())).examples[0].inputs
    say("\ntalk to it:")
    say(f'  {program()} chat {promoted["model"]} --store {where} --message "{first_line(question, 120)}"')
    say("\nserve it, and ask it from another terminal:")
    for line in serving_lines(promoted["model"], question, where):
        say(f"  {line}")


def serving_lines(model: str, question: Any, store: Path) -> tuple[str, str]:
    """The command that serves a model and a request that it answers, ready to be pasted, with a token of their own."""
    token = secrets.token_urlsafe(12)
    asked = question if isinstance(question, Sequence) and not isinstance(question, str) else [_said(question)]
    body = json.dumps({"model": model, "messages": list(asked), "max_tokens": 12})
    request = ["curl", "http://127.0.0.1:8000/v1/chat/completions", "-H", f"Authorization: Bearer {token}"]
    request += ["-H", "Content-Type: application/json", "-d", body]
    return f"MELIOR_TOKEN={token} {program()} serve --data {store.parent} --database {store}", shlex.join(request)


def _said(question: Any) -> dict[str, str]:
    return {"role": "user", "content": str(question)}


def _row(stage: dict[str, Any]) -> tuple[Any, ...]:
    reward = {"estimate": stage["reward"], "low": stage["ci_low"], "high": stage["ci_high"]}
    gain = {"estimate": stage["gain"], "low": stage["gain_ci_low"], "high": stage["gain_ci_high"]}
    computed = f"{stage['nodes']:,} / {stage['padded_tokens']:,}" if stage["padded_tokens"] else "—"
    greedy = "—" if stage["greedy"] is None else f"{stage['greedy']:.3f}"
    took = clock(stage["seconds"])
    return stage["name"], interval(reward), greedy, interval(gain, sign=True), f"{stage['tokens']:,}", took, computed


def _show_answers(done: Demo) -> None:
    """The same held-out questions, answered greedily by every stage."""
    stages = done.evaluations
    rows = []
    for index, example in enumerate(stages["base"].examples):
        answers = [one.examples[index] for one in stages.values()]
        shown = [f"{first_line(a.greedy, 24)} {'✓' if a.greedy_value == 1 else '✗'}" for a in answers]
        rows.append((last_part(example.inputs, 40), *shown))
    say_table(["question", *stages], rows)
