"""output items of an eval's run: one row, what was answered, and what every criterion said of it"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from melior.errors import NotFound
from melior.evaluation.criteria import Criterion, status_of
from melior.jobs.evaluation import answered, row_number
from melior.serving.service import Service
from melior.serving.wire import seconds
from melior.store.rows import Decision, Grade, Job
from melior.types import Record, Score


def told_items(service: Service, job: Job, criteria: Sequence[Criterion], ids: Sequence[str]) -> list[dict[str, Any]]:
    """Output items as the dialect has them, in the order of their ids."""
    said: dict[str, list[Grade]] = {}
    for grade in service.store.scores(ids):
        said.setdefault(grade.decision_id, []).append(grade)
    return [_told(job, criteria, decision, said.get(decision.id, [])) for decision in service.store.decisions(ids)]


def told_item(service: Service, job: Job, criteria: Sequence[Criterion], item_id: str) -> dict[str, Any]:
    """One of them.

    Raises:
        NotFound: if the run has none of this id.
    """
    if not any(output.id == item_id for output in service.store.graded(job.id)):
        raise NotFound(f"there is no output item {item_id!r} of {job.id}")
    (told,) = told_items(service, job, criteria, [item_id])
    return told


def _told(job: Job, criteria: Sequence[Criterion], decision: Decision, said: Sequence[Grade]) -> dict[str, Any]:
    scores = {grade.score.name: grade.score for grade in said}
    values = {name: score.value for name, score in scores.items()}
    return {
        "id": decision.id,
        "object": "eval.run.output_item",
        "created_at": seconds(decision.created),
        "run_id": job.id,
        "eval_id": job.eval_id,
        "status": status_of(values, criteria),
        "datasource_item_id": row_number(decision.id),
        "datasource_item": dict(decision.record.item),
        "results": [_result(job, one, scores[one.name]) for one in criteria if one.name in scores],
        "sample": _sample(job, decision.record, next(iter(scores.values())).error if scores else ""),
    }


def plain(job: Job, message: str) -> str:
    """The message without our folders: clients know models by the names that they gave them."""
    names = {**job.recipe["names"], f"{Path(job.folder).parent}/": ""}
    for ours, theirs in names.items():
        message = message.replace(ours, theirs)
    return message


def _result(job: Job, one: Criterion, score: Score) -> dict[str, Any]:
    """What a criterion said; where it failed there is no score, and `error` says why."""
    told = {name: found for name, found in (("reason", score.reason), ("parts", dict(score.parts))) if found}
    return {
        "name": one.name,
        "type": one.kind,
        "score": score.value,
        "passed": one.passes(score.value),
        "sample": told or None,
        **({"error": plain(job, score.error)} if score.error else {}),
    }


def _sample(job: Job, record: Record, error: str) -> dict[str, Any]:
    """What was asked and answered; an output that is None could not be had."""
    inputs = record.inputs["messages"] if isinstance(record.inputs, Mapping) else record.inputs
    sampling = record.sampling
    missing = record.output is None
    return {
        "input": list(inputs or []),
        "output": [] if missing else [_message(answered(record))],
        "finish_reason": "error" if missing else record.finish,
        "model": job.asked["data_source"].get("model") or record.policy_version,
        "usage": _usage(record),
        "error": {"code": "sample_error", "message": error} if missing else None,
        "temperature": sampling.temperature if sampling else None,
        "top_p": sampling.top_p if sampling else None,
        "max_completion_tokens": sampling.max_tokens if sampling else None,
        "seed": sampling.seed if sampling else None,
    }


def _message(output: Any) -> dict[str, Any]:
    return dict(output) if isinstance(output, Mapping) else {"role": "assistant", "content": output}


def _usage(record: Record) -> dict[str, int] | None:
    if record.context is None or record.decisions is None:  # not sampled here
        return None
    read, decided = len(record.context), len(record.decisions)
    return {
        "prompt_tokens": read,
        "completion_tokens": decided,
        "total_tokens": read + decided,
        "cached_tokens": 0,
    }
