"""/v1/evals/{eval}/runs: a model's outputs, or outputs that are there, graded

A run is a job: its rows are checked and rendered here, a worker has them sampled and graded. Its output items are read
out of the log, so they are there as soon as they are graded, and stay when the run was cancelled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from melior.durable import write_file
from melior.evaluation.criteria import Criterion, criteria_of, status_of
from melior.jobs.evaluation import METHOD, tally, usage_of
from melior.serving.eval_items import plain, told_item, told_items
from melior.serving.eval_recipes import ROWS, Completions, Jsonl, Responses, recipe_of
from melior.serving.eval_rows import FileContent, Metadata, check_finite
from melior.serving.feedback import Id
from melior.serving.fine_tuning import new_folder
from melior.serving.problems import Problem
from melior.serving.security import needs
from melior.serving.service import Service
from melior.serving.wire import page, page_of, seconds
from melior.store.query import Order, new_id
from melior.store.rows import Job, JobStatus

CONTENT = "content.json"  # what the client sent of the rows, in a run's folder
STATUSES: Mapping[str, tuple[JobStatus, ...]] = {
    "queued": ("validating_files", "queued", "paused"),
    "in_progress": ("running",),
    "completed": ("succeeded",),
    "canceled": ("cancelled",),
    "failed": ("failed",),
}

router = APIRouter(prefix="/v1/evals/{eval_id}", tags=["evals"])


class Create(BaseModel):
    """What a client sends."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    data_source: Annotated[Jsonl | Completions | Responses, Field(discriminator="type")]
    metadata: Metadata | None = None


@router.post("/runs", status_code=201, dependencies=[Depends(needs("train"))])
def create(
    request: Request, eval_id: Id, asked: Create, idempotency_key: Annotated[Id | None, Header()] = None
) -> dict[str, Any]:
    """A run in the queue; the same Idempotency-Key again is the same run."""
    service: Service = request.app.state.service
    row = service.store.one_eval(eval_id)
    source = asked.data_source
    if isinstance(source, Responses):
        other = "data sources of type responses are not served; use completions, or jsonl with the outputs"
        raise Problem(400, other, param="data_source.type", code="unsupported_value")
    name = new_id("evalrun")
    sent = asked.model_dump(exclude_none=True)
    check_finite(sent, "data_source")
    content = ""
    if isinstance(source.source, FileContent):  # what is sent is kept beside the job, which is read often
        content = json.dumps(sent["data_source"]["source"].pop("content"))
        sent["data_source"]["source"]["sha256"] = hashlib.sha256(content.encode()).hexdigest()
    if (known := service.store.job_made_by(idempotency_key, sent, row.id)) is not None:  # its rows may be gone since
        return told(request, known)
    with new_folder(service, name) as folder:
        recipe, rows = recipe_of(service, row, source, folder)
        folder.mkdir(parents=True)
        if content:
            write_file(folder / CONTENT, content)
        write_file(folder / ROWS, "".join(json.dumps(each) + "\n" for each in rows))
        job = service.store.add_job(
            METHOD,
            vars(recipe),
            str(folder / "run"),
            asked=sent,
            labels=asked.metadata or {},
            request_key=idempotency_key,
            job_id=name,
            eval_id=row.id,
        )
    return told(request, job)


@router.get("/runs", dependencies=[Depends(needs("read"))])
def listed(
    request: Request,
    eval_id: Id,
    after: Id | None = None,
    limit: int = Query(20, ge=1, le=100),
    order: Order = "asc",
    status: Literal["queued", "in_progress", "completed", "canceled", "failed"] | None = None,
) -> dict[str, Any]:
    """The runs of an eval."""
    service: Service = request.app.state.service
    among = STATUSES[status] if status is not None else ()
    row = service.store.one_eval(eval_id)
    found = service.store.eval_runs(row.id, among=among, after=after, limit=limit, order=order)
    return page_of(found, lambda job: told(request, job))


@router.get("/runs/{run_id}", dependencies=[Depends(needs("read"))])
def one(request: Request, eval_id: Id, run_id: Id) -> dict[str, Any]:
    """One run."""
    return told(request, found(request.app.state.service, eval_id, run_id))


@router.post("/runs/{run_id}", dependencies=[Depends(needs("train"))])
@router.post("/runs/{run_id}/cancel", dependencies=[Depends(needs("train"))])
def cancel(request: Request, eval_id: Id, run_id: Id) -> dict[str, Any]:
    """The run, asked to stop; what it has graded stays."""
    service: Service = request.app.state.service
    return told(request, service.store.ask_job(found(service, eval_id, run_id).id, "cancel"))


@router.delete("/runs/{run_id}", dependencies=[Depends(needs("train"))])
def delete(request: Request, eval_id: Id, run_id: Id) -> dict[str, Any]:
    """The run, no longer found; what was sampled and graded stays in the log."""
    service: Service = request.app.state.service
    job = service.store.delete_eval_run(service.store.one_eval(eval_id).id, run_id)
    return {"object": "eval.run.deleted", "deleted": True, "run_id": job.id}


@router.get("/runs/{run_id}/output_items", dependencies=[Depends(needs("read"))])
def items(
    request: Request,
    eval_id: Id,
    run_id: Id,
    after: Id | None = None,
    limit: int = Query(20, ge=1, le=100),
    order: Order = "asc",
    status: Literal["pass", "fail", "error"] | None = None,
) -> dict[str, Any]:
    """What a run has graded so far, row by row."""
    service: Service = request.app.state.service
    job = found(service, eval_id, run_id)
    criteria = criteria_in(job)
    outputs = service.store.graded(job.id)
    wanted = [each for each in outputs if status is None or status_of(each.values, criteria) == status]
    shown = page(wanted, lambda each: {"id": each.id}, after=after, limit=limit, order=order)
    return {**shown, "data": told_items(service, job, criteria, [each["id"] for each in shown["data"]])}


@router.get("/runs/{run_id}/output_items/{item_id}", dependencies=[Depends(needs("read"))])
def item(request: Request, eval_id: Id, run_id: Id, item_id: Id) -> dict[str, Any]:
    """One of them."""
    service: Service = request.app.state.service
    job = found(service, eval_id, run_id)
    return told_item(service, job, criteria_in(job), item_id)


def found(service: Service, eval_id: str, run_id: str) -> Job:
    """A run of an eval that is there.

    Raises:
        NotFound: if there is none.
    """
    return service.store.eval_run(service.store.one_eval(eval_id).id, run_id)


def criteria_in(job: Job) -> list[Criterion]:
    """What the outputs of a run must pass."""
    return criteria_of(job.recipe["criteria"])


def told(request: Request, job: Job) -> dict[str, Any]:
    """A run as the dialect has it; what it came to so far, where it goes on."""
    service: Service = request.app.state.service
    status = next(name for name, ours in STATUSES.items() if job.status in ours)
    result = job.result or _so_far(service, job)
    url = f"{str(request.base_url).rstrip('/')}/v1/evals/{job.eval_id}/runs/{job.id}"
    return {
        "id": job.id,
        "object": "eval.run",
        "eval_id": job.eval_id,
        "report_url": url,  # there is no page of it: this is the run itself
        "status": status,
        "model": job.asked["data_source"].get("model"),
        "name": job.asked.get("name", job.id),
        "created_at": seconds(job.created),
        "result_counts": result["counts"],
        "per_model_usage": result["usage"],
        "per_testing_criteria_results": result["criteria"],
        "data_source": _source(service, job),
        "error": _error(job),
        "metadata": dict(job.labels),
    }


def _so_far(service: Service, job: Job) -> dict[str, Any]:
    outputs = service.store.graded(job.id)
    usage = usage_of(service.store, job, outputs) if job.finished else []  # reads all that was decided
    return {**tally(outputs, criteria_in(job)), "usage": usage}


def _source(service: Service, job: Job) -> dict[str, Any]:
    """The data source as it was sent."""
    source = dict(job.asked["data_source"])
    if source["source"]["type"] == "file_content":
        try:
            content = json.loads((service.jobs / job.id / CONTENT).read_text(encoding="utf-8"))
        except OSError:  # another machine's folder
            content = []
        source["source"] = {"type": "file_content", "content": content}
    return source


def _error(job: Job) -> dict[str, Any] | None:
    """What went wrong, without our folders."""
    if not job.error:
        return None
    return {"code": str(job.error.get("code", "internal_error")), "message": plain(job, str(job.error.get("message")))}
