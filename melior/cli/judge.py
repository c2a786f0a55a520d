"""melior judge: may a judge be a reward? how far it agrees with people, and what it falls for"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from melior.cli.evaluate import grader_of
from melior.cli.output import JSON, STORE, first_line, interval, say, say_json, say_table, shown, told, warn
from melior.cli.progress import Progress
from melior.errors import ConfigError

if TYPE_CHECKING:
    from melior.evaluation.judges import JudgeReport


@told
def judge(
    judge: str = typer.Argument(..., help="A judge: a .json or .yaml file, or JSON, as a grader is written."),
    rows: str = typer.Argument(..., help="What people said: pairs (chosen, rejected), or rated outputs."),
    limit: int = typer.Option(500, "--limit", min=2, help="Rows that are read, drawn by their content."),
    floor: float = typer.Option(0.55, "--floor", help="The interval of agreement must lie above it; 0.5 is chance."),
    consistency: float = typer.Option(0.6, "--consistency", help="The same, of verdicts that survive exchanged sides."),
    failures: float = typer.Option(0.05, "--failures", help="Share of rows that may have no verdict."),
    least: int = typer.Option(100, "--least", min=2, help="Independent rows that are needed."),
    prompts: int = typer.Option(20, "--canary-prompts", min=0, help="That each canary is tried on; 0 tries none."),
    record: bool = typer.Option(True, "--record/--no-record", help="Keep the result, so that a run may ask the judge."),
    store: str = STORE,
    as_json: bool = JSON,
) -> None:
    """Try a judge on what people said. A recipe may learn from judges that were accepted; exit status 1 is a refusal.

    \b
    melior judge judge.yaml pairs.jsonl
    melior judge '{"type": "pair_model", "model": "judge@prod", "criterion": "Which is kinder?"}' pairs.jsonl
    melior judge '{"type": "learned", "model": "taste@prod"}' known:hh-rlhf-harmless@sample --limit 1000
    """
    from melior.cycles.judges import judges_in, record_report
    from melior.cycles.measures import open_pool
    from melior.data.formats import fingerprint, read_examples
    from melior.evaluation.judges import Compares, Floor, judge_report
    from melior.store import Store

    spec = grader_of(judge)
    if not isinstance(spec, dict) or not any(inner is spec for _, inner in judges_in(spec)):
        raise ConfigError(
            "a judge is a score_model, a label_model, a pair_model or a learned reward model; for other graders there "
            "is melior grade"
        )
    asked = Floor(agreement=floor, consistency=consistency, failures=failures, rows=least)
    found = read_examples(rows)
    if found.kind not in ("preferences", "rated"):
        raise ConfigError(f"{rows} holds {found.kind}; a judge is tried on preferences or rated outputs")
    drawn = _drawn(found.rows, limit)
    with Store.open(store) as opened, open_pool(spec, store=opened) as pool, Progress() as progress:
        name = str(spec.get("name") or spec["type"])
        given: Any = pool.grader if isinstance(pool.grader, Compares) else pool
        report = judge_report(given, drawn, name=name, spec=spec, floor=asked, prompts=prompts, progress=progress)
        if record:
            read = opened.add_dataset(fingerprint(drawn), kind=found.kind, path=rows, rows=len(drawn))
            kept = record_report(opened, spec, report, dataset_id=read.id)
    if as_json:
        say_json({**report.to_json(), "evaluation": kept.id if record else None})
    else:
        show(report)
        if record:
            say(f"\nkept as {kept.id}; another prompt or model is another judge")
    if not report.accepted:
        raise typer.Exit(1)


def _drawn(rows: Sequence[Any], limit: int) -> list[Any]:
    """So many of the rows, whatever their order in the file."""
    if len(rows) <= limit:
        return list(rows)
    places = sorted(range(len(rows)), key=lambda place: hashlib.sha256(repr(rows[place]).encode()).digest())
    return [rows[place] for place in sorted(places[:limit])]


def show(report: JudgeReport) -> None:
    """The report as text."""
    say(shown(report.sentence))
    say()
    measures: list[tuple[str, Any, str]] = [
        ("agreement with people", report.agreement, "0.5 is chance"),
        ("order consistency", report.consistency, "verdicts that survive an exchange of sides"),
        ("names the first", report.first_named, "0.5 where the side says nothing"),
        ("length slope", report.length_slope, "log-odds for each doubling of length"),
        ("length slope, people", report.people_slope, "the same, of what people preferred"),
    ]
    rows = [(name, interval(value.to_json()), what) for name, value, what in measures if value is not None]
    if rows:
        say_table(["measure", "95 % interval", ""], rows)
    for name, value in report.baselines.items():
        say(f"preferring {name} agrees on {value:.3f}")
    if report.canaries:
        say()
        tried = [(each.name, f"{each.accepted} of {each.prompts}") for each in report.canaries]
        say_table(["canary", "accepted"], tried)
    say()
    counts = f"{report.graded:,} of {report.rows:,} {report.of}, {report.clusters:,} independent"
    say(f"rows       {counts}; {report.ties:.1%} of verdicts are ties")
    for model, tokens in report.tokens.items():
        say(f"tokens     {tokens:,} of {model}")
    say(f"seconds    {report.seconds:.0f}")
    for kind, count in report.failures.items():
        warn(f"warning: {count} rows without a verdict ({kind}), first: {first_line(report.first_error, 120)}")
