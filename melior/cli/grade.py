"""melior grade: try a grader on real rows before anything is trained on it"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from melior.cli.evaluate import grader_of
from melior.cli.output import JSON, STORE, first_line, interval, say, say_json, say_table, shown, told, warn
from melior.cli.progress import Progress
from melior.errors import ConfigError

if TYPE_CHECKING:
    from melior.cycles.outputs import Given
    from melior.evaluation.agreement import Agreement
    from melior.evaluation.dry_run import DryRun, Shown

BAR = 32  # characters of the longest bar
WIDTH = 44  # characters of a text in a table


@told
def grade(
    grader: str = typer.Argument(..., help="A .json or .yaml file, JSON, module:function, or file.py:function."),
    rows: str = typer.Argument(..., help="Rows with outputs; or tasks, with --model (reasoning_gym:DATA_SET too)."),
    output_column: str = typer.Option(
        None, "--output-column", help="The column that holds the output, or a list of them."
    ),
    model: str = typer.Option(None, "--model", help="Sample the outputs from this model instead."),
    label_column: str = typer.Option(None, "--label-column", help="What people said: booleans or numbers."),
    limit: int = typer.Option(200, "--limit", min=1, help="The first so many rows."),
    n: int = typer.Option(4, "--n", min=1, help="Samples of each row, with --model."),
    max_tokens: int = typer.Option(128, "--max-tokens", min=1, help="Of a sample, with --model."),
    temperature: float = typer.Option(1.0, "--temperature", min=0.0, help="Of samples, with --model."),
    seed: int = typer.Option(0, "--seed", help="Of samples and of generated rows."),
    processes: int = typer.Option(1, "--processes", min=1, help="Workers that grade."),
    timeout_s: float = typer.Option(10.0, "--timeout", min=0.001, help="Seconds that one call may take."),
    store: str = STORE,
    as_json: bool = JSON,
) -> None:
    """Try a grader on real rows: what it says, how often it fails, how long it takes, whether people agree.

    \b
    melior grade grader.json rated.jsonl
    melior grade reward.py:exact train.jsonl --output-column answer --label-column correct
    melior grade grader.json tasks.jsonl --model smollm2-135m-instruct --n 8 --limit 50
    """
    from melior.cycles.measures import open_pool
    from melior.cycles.outputs import grade_outputs
    from melior.cycles.sections import Grading
    from melior.evaluation.dry_run import dry_run
    from melior.rewards.similarity import threshold_of
    from melior.store import Store

    if model is not None and output_column is not None:
        raise ConfigError("outputs come from --model or from --output-column; give one of the two")
    if model is not None and label_column is not None:
        raise ConfigError("--label-column says what people thought of outputs in the file; leave it out with --model")
    spec = grader_of(grader)
    asked = _Asked(rows, output_column, model, label_column, limit, n, max_tokens, temperature, seed)
    grading = Grading(processes=processes, timeout_s=timeout_s)
    with Store.open(store) as opened, open_pool(spec, grading, opened) as pool, Progress() as progress:
        given = asked.outputs(opened, progress)
        graded = grade_outputs(pool, given, report=lambda done, total: progress("grading", done, total))
        name = pool.grader.name
    threshold = threshold_of(spec) if isinstance(spec, dict) else None
    found = dry_run(name, graded, threshold=threshold)
    if as_json:
        say_json(found.to_json())
    else:
        show(found)
    if found.rows >= limit:
        warn(f"note: --limit {limit} was reached, and no row after the first {limit:,} was looked at")
    if not found.graded:
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Asked:
    """Where the outputs come from."""

    rows: str
    output_column: str | None
    model: str | None
    label_column: str | None
    limit: int
    n: int
    max_tokens: int
    temperature: float
    seed: int

    def outputs(self, store: Any, progress: Progress) -> list[Given]:
        """Those in the file, or those that the model gives."""
        from melior.cycles.outputs import read_outputs, sample_outputs

        if self.model is None:
            if self.rows.startswith("reasoning_gym:"):
                raise ConfigError(f"{self.rows} are tasks without outputs; sample some with --model")
            columns = {"output_column": self.output_column, "label_column": self.label_column}
            return read_outputs(Path(self.rows), **columns, limit=self.limit)
        from melior.cycles.kinds import kind_named
        from melior.cycles.models import find_model
        from melior.cycles.rows import read_tasks
        from melior.policies.language import LanguagePolicy
        from melior.types import Sampling

        tasks = read_tasks(self.rows, items=self.limit, seed=self.seed)
        sampling = Sampling(n=self.n, max_tokens=self.max_tokens, temperature=self.temperature, seed=self.seed)
        progress(f"loading {first_line(self.model, 40)}", 0, 1)
        policy = LanguagePolicy.load(find_model(self.model, store).path)
        kind_named(policy.kind).check(policy, tasks, sampling)
        return sample_outputs(policy, tasks, sampling, report=lambda done, total: progress("sampling", done, total))


def show(run: DryRun) -> None:
    """The report as text: warnings on stderr last, where they are read."""
    say(f"{run.grader}: {run.outputs:,} outputs of {run.rows:,} rows")
    say()
    if run.reward is not None:
        _show_rewards(run)
    _show_calls(run)
    if run.parts:
        say()
        _show_parts(run)
    if run.agreement is not None:
        say()
        _show_agreement(run.agreement)
    _show_examples("lowest", run.lowest)
    _show_examples("highest", run.highest)
    for warning in run.warnings:
        warn(f"warning: {shown(warning)}")


def _show_rewards(run: DryRun) -> None:
    assert run.reward is not None
    most = max(count for _, _, count in run.histogram)
    for low, high, count in run.histogram:
        label = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
        bar = "█" * max(round(BAR * count / most), 1) if count else ""
        say(f"{label:>18}  {bar}{' ' * bool(bar)}{count}")
    say()
    say(f"mean       {interval(run.reward.to_json())}   deviation {run.deviation:.3f}")
    say("quantiles  " + "   ".join(f"{name} {value:.3g}" for name, value in run.quantiles.items()))
    if run.passing is not None:
        say(f"passing    {run.passing:.1%} of outputs, by pass_threshold")
    if run.groups:
        say(f"variance   {run.flat_groups} of {run.groups} rows with several outputs give all of them the same reward")


def _show_calls(run: DryRun) -> None:
    seconds = "   ".join(f"{name} {_duration(value)}" for name, value in run.seconds.items())
    say(f"calls      {seconds}   slowest {', '.join(id for id, _ in run.slowest[:3])}")
    counts = f"{run.graded:,} graded, {run.nulls:,} not applicable, {run.outputs - run.graded - run.nulls:,} failed"
    say(f"results    {counts}; failures {interval(run.failed.to_json())}")
    for model, tokens in run.tokens.items():
        say(f"tokens     {tokens:,} of {model}")
    if run.failures:
        say()
        rows = [(failure.count, failure.kind, failure.id, first_line(failure.error, 90)) for failure in run.failures]
        say_table(["failures", "kind", "first at", "error"], rows)


def _show_parts(run: DryRun) -> None:
    rows = []
    for part in run.parts:
        numbers = (part.mean, part.deviation, part.low, part.high)
        correlation = "—" if part.correlation is None else f"{part.correlation:.2f}"
        rows.append((first_line(part.name, WIDTH), part.count, *(f"{number:.3f}" for number in numbers), correlation))
    say_table(["part", "outputs", "mean", "deviation", "lowest", "highest", "with the whole"], rows)


def _show_agreement(found: Agreement) -> None:
    measures = {
        "AUC": found.auc,
        "Spearman": found.spearman,
        "Kendall": found.kendall,
        "accuracy": found.accuracy,
        "kappa": found.kappa,
    }
    rows = [
        (name, interval(value.to_json()) if math.isfinite(value.estimate) else "— (all rewards are equal)")
        for name, value in measures.items()
        if value is not None
    ]
    say_table([f"agreement with {found.rows:,} labels", "95 % interval"], rows)
    if found.threshold == math.inf:
        say("accuracy and kappa where no output counts as good: no reward tells good from bad better than that")
    elif found.threshold is not None:
        say(f"accuracy and kappa where a reward of {found.threshold:.3g} or more counts as good, chosen on these rows")


def _show_examples(title: str, examples: tuple[Shown, ...]) -> None:
    if not examples:
        return
    labelled = any(example.label is not None for example in examples)
    reasons = any(example.reason for example in examples)
    rows = []
    for example in examples:
        cells = [example.id, f"{example.reward:.3f}", first_line(_text(example.inputs), 32)]
        cells += [first_line(_text(example.output), WIDTH)]
        cells += ["" if example.label is None else f"{example.label:g}"] * labelled
        rows.append(cells + [first_line(example.reason, WIDTH)] * reasons)
    say()
    say_table([title, "reward", "input", "output", *["label"] * labelled, *["reason"] * reasons], rows)


def _text(value: Any) -> str:
    """A text, or the last message of a conversation."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content") or value[-1].get("tool_calls") or ""
    return str(value)


def _duration(seconds: float) -> str:
    number, unit = (seconds, "s") if seconds >= 1 else (1000 * seconds, "ms")
    return f"{number:,.0f} {unit}" if number >= 10 else f"{number:.2g} {unit}"
