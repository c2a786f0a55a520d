"""melior decide: what a policy decides for rows that nobody has decided yet"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from melior.cli.output import JSON, STORE, first_line, say, say_json, say_table, told
from melior.cli.progress import Progress

SHOWN = 10  # decisions printed where no file takes them


@told
def decide(
    model: str = typer.Argument(..., help="A folder, a pulled name, name@alias or ver_…"),
    rows: str = typer.Argument(..., help="Rows to decide for: a file, or known:SET."),
    output: Path = typer.Option(None, "--output", help="A JSONL file for all decisions."),
    temperature: float = typer.Option(
        None, "--temperature", min=0.0, help="0 is the best. Language models: 1, else 0."
    ),
    n: int = typer.Option(1, "--n", min=1, help="Decisions of each row, where chance decides."),
    max_tokens: int = typer.Option(128, "--max-tokens", min=1, help="Of an answer."),
    seed: int = typer.Option(0, "--seed", help="Of chance."),
    limit: int = typer.Option(None, "--limit", min=1, help="The first so many rows."),
    store: str = STORE,
    as_json: bool = JSON,
) -> None:
    """Decide for every row, and say how probable each decision was.

    With a temperature chance decides, and the file is a log with log-probs: join what came of each decision, and learn
    from it with method: off_policy.

    \b
    melior decide credit@prod applicants.csv --output decided.jsonl
    melior decide banner@prod requests.jsonl --temperature 1 --output log.jsonl
    """
    from melior.cycles.decisions import decide_rows
    from melior.durable import write_file
    from melior.errors import ConfigError
    from melior.store import Store
    from melior.types import Sampling

    if n > 1 and not temperature:
        raise ConfigError(f"--n {n} needs chance: give --temperature 1")
    how = None if temperature is None else Sampling(n=n, temperature=temperature, max_tokens=max_tokens, seed=seed)
    with Store.open(store) as opened, Progress() as progress:
        progress(f"loading {first_line(model, 40)}", 0, 1)
        made, passed_over = decide_rows(
            model,
            rows,
            opened,
            sampling=how,
            limit=limit,
            progress=lambda done, total: progress("deciding", done, total),
        )
    lines = [one.row() for one in made]
    if output is not None:
        write_file(output, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    if as_json:
        return say_json(lines)
    shown = made if output is None else made[:SHOWN]
    say_table(
        ["inputs", "decision", "probability"],
        [(_inputs(one.row()), first_line(one.record.output, 40), f"{one.probability:.3f}") for one in shown],
    )
    for what, count in passed_over.items():
        say(f"note  {count} × {what}")
    if output is not None:
        say(f"{len(made):,} decisions in {output}")


def _inputs(row: dict[str, Any]) -> str:
    return first_line(row.get("inputs", row.get("request")), 60)
