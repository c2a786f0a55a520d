"""melior evaluate, melior compare: how good, and is it better"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from melior.cli.output import JSON, STORE, first_line, interval, say, say_json, say_table, told
from melior.cli.progress import Progress
from melior.errors import ConfigError

if TYPE_CHECKING:
    from melior.cycles.evaluations import Asked, Measured
    from melior.evaluation.evaluate import Evaluation

DATA = typer.Option(None, "--data", help="Held-out rows: a file, known:SET, or reasoning_gym:DATA_SET.")
GRADER = typer.Option(None, "--grader", help="module:function, file.py:function, JSON, or a .json or .yaml file.")
ITEMS = typer.Option(None, "--items", min=1, help="The first so many rows.")
N = typer.Option(None, "--n", min=1, help="Samples of each row. Language models: 2, beside a greedy one; else 1.")
MAX_TOKENS = typer.Option(128, "--max-tokens", min=1, help="Of an answer.")
TEMPERATURE = typer.Option(None, "--temperature", min=0.0, help="As served. Language models: 1; else 0, the best.")
SEED = typer.Option(0, "--seed", help="Of the samples, and of generated rows.")
LABEL = typer.Option("", "--label", help="The column to decide, of a table. Default: as the version was trained.")
AUDIT = typer.Option([], "--audit", help="A column by whose values measures are told apart; may be given again.")
CONFIG = typer.Option("{}", "--config", help="Settings of a reasoning-gym data set, as JSON.")


@told
def evaluate(
    model: str = typer.Argument(..., help="A folder, a pulled name, a hub id, name@alias or ver_…"),
    data: str = DATA,
    grader: str = GRADER,
    items: int = ITEMS,
    n: int = N,
    max_tokens: int = MAX_TOKENS,
    temperature: float = TEMPERATURE,
    label: str = LABEL,
    audit: list[str] = AUDIT,
    seed: int = SEED,
    config: str = CONFIG,
    output: Path = typer.Option(None, "--output", help="Keep the evaluation in a file, for compare."),
    store: str = STORE,
    as_json: bool = JSON,
) -> None:
    """Grade a model's answers to held-out rows, or compare a classifier's with their labels.

    \b
    melior evaluate credit@prod --data heldout.csv --audit sex
    melior evaluate smollm2-135m-instruct --data heldout.jsonl --grader graders.py:exact --output base.json
    melior evaluate sums@prod --store demo/melior.db --data reasoning_gym:chain_sum --max-tokens 12
    """
    from melior.durable import write_file

    asked = _asked(data, grader, items, n, max_tokens, temperature, label, audit, seed, config)
    measured = _evaluated([model], asked, store)[0]
    found = measured.evaluation
    if output is not None:
        write_file(output, json.dumps(found.to_json(), indent=1, ensure_ascii=False))
    if as_json:
        made = measured.classification
        say_json({**found.to_json(), **({"classification": made.to_json()} if made else {})})
        return
    show_evaluations({model: found})
    say()
    if measured.classification is not None:
        from melior.cli.classification import show_classification

        show_classification(measured.classification)
    for what, count in measured.passed_over.items():
        say(f"note  {count} × {what}")
    for remark in found.notes:
        say(f"note  {remark}")
    for example in found.examples[:3]:
        say(f"{first_line(example.inputs)}  →  {first_line(example.output)}  ({example.value})")


@told
def compare(
    baseline: str = typer.Argument(..., help="What there was: an evaluation file, or a model."),
    candidate: str = typer.Argument(..., help="What may replace it."),
    data: str = DATA,
    grader: str = GRADER,
    items: int = ITEMS,
    n: int = N,
    max_tokens: int = MAX_TOKENS,
    temperature: float = TEMPERATURE,
    label: str = LABEL,
    audit: list[str] = AUDIT,
    seed: int = SEED,
    config: str = CONFIG,
    store: str = STORE,
    as_json: bool = JSON,
) -> None:
    """Say whether the second is better than the first, item by item, and what the gate makes of it.

    \b
    melior compare base.json tuned.json
    melior compare smollm2-135m-instruct runs/a/model --data heldout.jsonl --grader graders.py:exact
    """
    from melior.cycles.measures import read_evaluation
    from melior.evaluation.compare import compare as compared
    from melior.evaluation.gates import GUARDS, Gate, decide

    names = [baseline, candidate]
    files = [Path(name).is_file() for name in names]
    if any(files) and not all(files):
        raise ConfigError(f"{names[files.index(True)]} is an evaluation file and the other is none; give two of a kind")
    if all(files):
        before, after = (read_evaluation(Path(name)) for name in names)
    else:
        asked = _asked(data, grader, items, n, max_tokens, temperature, label, audit, seed, config)
        before, after = (measured.evaluation for measured in _evaluated(names, asked, store))
    comparison = compared(after, before)
    guards = tuple(guard for guard in GUARDS if guard.metric in comparison.differences)
    verdict = decide(comparison, Gate(guards=guards))
    if as_json:
        say_json({"gain": comparison.gain.to_json(), "items": comparison.items, "gate": verdict.to_json()})
        return
    show_evaluations({baseline: before, candidate: after})
    say()
    say(f"gain  {interval(comparison.gain.to_json(), sign=True)}")
    say(f"gate  {verdict.sentence}")


def show_evaluations(found: dict[str, Evaluation]) -> None:
    """Evaluations side by side."""
    rows = []
    for name, one in found.items():
        told = one.to_json()
        passed = "  ".join(f"@{k} {share:.3f}" for k, share in one.pass_at.items())
        counts = (len(one.items), one.excluded, one.tokens)
        rows.append((first_line(name, 40), interval(told["reward"]), interval(told["greedy"]), passed or None, *counts))
    say_table(["model", "reward", "greedy", "pass", "items", "excluded", "tokens"], rows)


def _asked(
    data: str | None,
    grader: str | None,
    items: int | None,
    n: int | None,
    max_tokens: int,
    temperature: float | None,
    label: str,
    audit: list[str],
    seed: int,
    config: str,
) -> Asked:
    """What both commands take to evaluate models."""
    from melior.cycles.evaluations import Asked
    from melior.data.formats.rows import Reading

    if data is None:
        raise ConfigError("there is nothing to evaluate on; give --data FILE or --data reasoning_gym:DATA_SET")
    return Asked(
        data=data,
        grader=None if grader is None else grader_of(grader),
        items=items,
        n=n,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        config=object_of(config, "--config"),
        reading=Reading(label=label, audit=tuple(audit)),
    )


def _evaluated(models: list[str], asked: Asked, where: str | None) -> list[Measured]:
    """One per model, on the same rows with the same grader."""
    from melior.cycles.evaluations import evaluate_models
    from melior.store import Store

    with Store.open(where) as store, Progress() as progress:
        return evaluate_models(
            models, asked, store, lambda what, done, total: progress(first_line(what, 50), done, total)
        )


def grader_of(text: str) -> Any:
    """A grader's setting from what was typed."""
    from melior.cycles.recipe import absolute_grader

    path = Path(text)
    if path.suffix in (".json", ".yaml", ".yml"):
        import yaml

        try:
            return absolute_grader(yaml.safe_load(path.read_text(encoding="utf-8")), path.parent.absolute())
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"the grader file {path} cannot be read: {error}") from error
    return object_of(text, "--grader") if text.lstrip().startswith("{") else absolute_grader(text, Path.cwd())


def object_of(text: str, option: str) -> dict[str, Any]:
    """The JSON object that was typed after an option."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{option} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{option} must be a JSON object, got {text!r:.40}")
    return found
