"""what a run's numbers say that its reader should not miss"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from melior.evaluation.overfitting import overfitting
from melior.reports.alarms import alarmed, sentences
from melior.reports.curves import Curve, curve_of
from melior.reports.files import RunFiles, number
from melior.reports.text import counted, short

FEW = 8  # steps that are named one by one
GAP = 1e-3  # nats by which sampler and scorer may differ: ten times what rounding costs
MOST_CUT = 0.3  # of completions cut at max_tokens: their rewards are those of unfinished work
NO_CONTRAST = 0.8  # of groups: then most of what is sampled teaches nothing
TAIL = 5  # last steps that a present state is read from


def findings(run: RunFiles, *, alarms: bool = True) -> list[str]:
    """Sentences, the gravest first; none where all is well. A page lists alarms by themselves."""
    rang = sentences(run) if alarms else []
    return [*_ended(run), *rang, *_skipped(run), *_unfinite(run), *_trends(run), *_lost(run)]


def _ended(run: RunFiles) -> Iterator[str]:
    total, error = run.total, str(run.status.get("error") or "")
    of = f"after {run.steps} of {counted(total, 'step')}" if total else f"after {counted(run.steps, 'step')}"
    if run.state == "failed":
        yield f"The run failed {of}: {error.splitlines()[0] if error else 'no message'}"
    elif run.state == "interrupted":
        yield f"The run was interrupted {of}; the same command goes on from there."
    elif run.state == "running":
        yield f"The run is under way, or was stopped without a word, {of}; this page shows what was written until then."
    stopped = run.result.get("stopped") or run.status.get("stopped")
    if stopped:
        yield f"Training ended early {of}: {stopped}."
    if run.result.get("note"):
        yield str(run.result["note"])


def _skipped(run: RunFiles) -> Iterator[str]:
    steps = [int(row["step"]) + 1 for row in run.metrics if (number(row.get("skipped")) or 0) > 0]
    if steps:
        named = ", ".join(map(str, steps[:FEW])) + (" …" if len(steps) > FEW else "")
        had = f"{counted(len(steps), 'step')} had a loss or gradient that was not finite"
        yield f"{had} and left the weights alone: {named}."


def _unfinite(run: RunFiles) -> Iterator[str]:
    for name in ("loss", "reward", "heldout_loss", "heldout_reward"):
        count = sum(name in row and number(row[name]) is None for row in run.metrics)
        if count:
            of, gap = counted(len(run.metrics), "step"), "that is a gap" if count == 1 else "those are gaps"
            yield f"{name} was not a number at {count} of {of}; {gap} in the curves."


def _trends(run: RunFiles) -> Iterator[str]:
    seen = [{name: value for name, value in row.items() if number(value) is not None} for row in run.metrics]
    told = overfitting(seen, restored=run.status.get("best_step") is not None)
    if told:
        yield f"{told[0].upper()}{told[1:]}."
    told_by_alarms = alarmed(run)
    for name, limit, sentence in (
        ("policy/sampler_gap", GAP, "Sampler and scorer differ by {} nats; log-probs of samples cannot be trusted."),
        ("completions/clipped_ratio", MOST_CUT, "{} of completions are cut at max_tokens; raise sampling.max_tokens."),
        ("frac_reward_zero_std", NO_CONTRAST, "{} of groups have equal rewards and teach nothing; vary the tasks."),
    ):
        if "gap" in name and run.run.get("config", {}).get("minibatches", 1) > 1:
            continue  # later updates of a step have moved away from the sampler, as they should
        if name in told_by_alarms:
            continue
        curve = curve_of(run, name)
        latest = _latest(curve) if curve else 0.0
        if latest > limit:
            yield sentence.format(short(latest) if "gap" in name else f"{latest:.0%}")


def _lost(run: RunFiles) -> Iterator[str]:
    advice = (run.result.get("baseline") or {}).get("sentence")
    if advice:
        yield str(advice)
    failed = sum(number(row.get("grader_errors")) or 0 for row in run.metrics)
    if failed:
        first = next((str(row["error"]) for row in run.samples if row.get("error")), "")
        were = "was" if failed == 1 else "were"
        such = f", such as: {first}" if first else ""
        yield f"{counted(failed, 'grading')} failed in training and {were} left out{such}."
    for when, found in (("before", run.before), ("after", run.after)):
        if found.get("excluded"):
            gradings = counted(found["excluded"], "grading")
            yield f"{gradings} failed in the evaluation {when}, first with: {found.get('error')}"
        if found.get("missing"):
            lost = len(found["missing"])
            have = "has" if lost == 1 else "have"
            yield f"{counted(lost, 'held-out item')} {have} no graded sample in the evaluation {when}."
    if run.result.get("dropped"):
        dropped = run.result["dropped"]
        were = "was" if dropped == 1 else "were"
        yield f"{counted(dropped, 'training row')} {were} longer than the context and taught nothing."


def _latest(curve: Curve) -> float:
    values: Sequence[float] = [value for _, value in curve.points[-TAIL:]]
    return sum(values) / len(values)
