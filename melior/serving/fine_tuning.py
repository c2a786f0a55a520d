"""/v1/fine_tuning/jobs: training that is asked for over HTTP, by file ids and never by paths

A job is a recipe: what the client asked, in our words. A worker does it; here it is made, listed, asked to stop.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from pydantic import ConfigDict, Field, StringConstraints

from melior.cycles.auto import resolved_in
from melior.cycles.hyperparameters import METHODS, sections_of, settled
from melior.cycles.judges import check_judges
from melior.cycles.recipe import recipe_of
from melior.durable import write_file
from melior.errors import ConfigError, GraderError, NotFound, StoreError
from melior.rewards.results import validate_grader
from melior.serving import files
from melior.serving.asking import Texts
from melior.serving.feedback import Id
from melior.serving.graders import from_client
from melior.serving.models import name_of, reference_of
from melior.serving.problems import Problem
from melior.serving.security import needs
from melior.serving.service import Service
from melior.serving.wire import labels_of, page_of, seconds
from melior.store.query import new_id
from melior.store.rows import Job, JobEvent

KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".ndjson")  # of files that rows are read from
COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")  # of a result file
CHECKPOINTS = 3  # of the ends of epochs, the last of which is mostly the model itself; as many as OpenAI keeps
HELDOUT = 0.1  # of the training file, where no validation file comes with it

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])


class Asked(Texts):
    """What a client sends; keys that mean nothing here are accepted where the dialect has them."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    training_file: Id
    validation_file: Id | None = None
    method: dict[str, Any] | None = None
    hyperparameters: dict[str, Any] | None = None  # deprecated, of supervised
    suffix: Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9._-]*$")] | None = None
    seed: int | None = None
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    integrations: list[Any] | None = None

    @property
    def how(self) -> dict[str, Any]:
        """The method, with the hyperparameters of old clients."""
        if self.method is not None:
            return self.method
        return {"type": "supervised", "supervised": {"hyperparameters": self.hyperparameters or {}}}


@router.post("", dependencies=[Depends(needs("train"))])
def create(request: Request, asked: Asked, idempotency_key: Annotated[Id | None, Header()] = None) -> dict[str, Any]:
    """A job in the queue; the same Idempotency-Key again is the same job."""
    service: Service = request.app.state.service
    if asked.integrations:
        raise Problem(400, "integrations are not served; a recipe's report.to does that", param="integrations")
    name, sent = new_id("ftjob"), asked.model_dump(exclude_none=True)
    if (known := service.store.job_made_by(idempotency_key, sent)) is not None:  # its files may be gone since
        return told(service, known)
    with new_folder(service, name) as folder:
        recipe = _recipe(service, asked, folder)
        job = service.store.add_job(
            recipe["method"],
            recipe,
            str(folder / "run"),
            asked=sent,
            training_file=asked.training_file,
            validation_file=asked.validation_file,
            labels=asked.metadata or {},
            request_key=idempotency_key,
            job_id=name,
        )
    if job.id == name:
        service.store.add_event(job.id, "The job is in the queue")
    return told(service, job)


@router.get("", dependencies=[Depends(needs("read"))])
def listed(request: Request, after: Id | None = None, limit: int = Query(20, ge=1, le=100)) -> dict[str, Any]:
    """Jobs, the newest first; metadata[key]=value asks for those with that label."""
    service: Service = request.app.state.service
    jobs = service.store.job_page(labels=labels_of(request), after=after, limit=limit)
    return page_of(jobs, lambda job: told(service, job))


@router.get("/{job_id}", dependencies=[Depends(needs("read"))])
def one(request: Request, job_id: Id) -> dict[str, Any]:
    """One job."""
    service: Service = request.app.state.service
    return told(service, found(service, job_id))


@router.post("/{job_id}/cancel", dependencies=[Depends(needs("train"))])
def cancel(request: Request, job_id: Id) -> dict[str, Any]:
    """The job, asked to stop for good."""
    service: Service = request.app.state.service
    return told(service, service.store.ask_job(found(service, job_id).id, "cancel"))


@router.post("/{job_id}/pause", dependencies=[Depends(needs("train"))])
def pause(request: Request, job_id: Id) -> dict[str, Any]:
    """The job, asked to stop for a while."""
    service: Service = request.app.state.service
    return told(service, service.store.ask_job(found(service, job_id).id, "pause"))


@router.post("/{job_id}/resume", dependencies=[Depends(needs("train"))])
def resume(request: Request, job_id: Id) -> dict[str, Any]:
    """The job, in the queue again."""
    service: Service = request.app.state.service
    return told(service, service.store.resume_job(found(service, job_id).id))


@router.get("/{job_id}/events", dependencies=[Depends(needs("read"))])
def events(
    request: Request, job_id: Id, after: Id | None = None, limit: int = Query(20, ge=1, le=1_000)
) -> dict[str, Any]:
    """What happened to it, the newest first."""
    service: Service = request.app.state.service
    job = found(service, job_id)
    told_of = service.store.job_event_page(job.id, after=after, limit=limit)
    return page_of(told_of, lambda event: told_event(job, event))


def found(service: Service, job_id: str) -> Job:
    """A job by the whole of its id.

    Raises:
        NotFound: if there is none.
    """
    job = service.store.job(job_id)
    if job.id != job_id or job.eval_id is not None:
        raise NotFound(f"there is no job {job_id!r}")
    return job


@contextmanager
def new_folder(service: Service, name: str) -> Iterator[Path]:
    """Where a job will have its files; gone again if the job is not made, or a key had made another before."""
    folder = service.jobs / name
    try:
        yield folder
    finally:
        if not _is_made(service, name):
            shutil.rmtree(folder, ignore_errors=True)


def _is_made(service: Service, name: str) -> bool:
    """Whether there is such a job; assumed where the database is away, since a job without its files would fail."""
    try:
        return service.store.job(name).id == name
    except NotFound:
        return False
    except StoreError:
        return True


def _recipe(service: Service, asked: Asked, folder: Path) -> dict[str, Any]:
    """The recipe of what is asked, its files beside it: what a client deletes later is still learnt from.

    Raises:
        Problem: if something of it cannot be; says which parameter.
    """
    how = asked.how
    try:
        sections = sections_of(how)
    except ConfigError as error:
        raise Problem(400, str(error), param="method") from error
    kind = str(how["type"])
    if (how.get(kind) or {}).get("response_format"):  # sampled from another distribution than the one trained
        told = "outputs are not held to a response_format while they are trained; let the grader ask for JSON instead"
        raise Problem(400, told, param=f"method.{kind}.response_format", code="unsupported_value")
    if asked.suffix in service.bases.folders:
        raise Problem(400, f"{asked.suffix} is the name of a base model; choose another suffix", param="suffix")
    try:
        model = reference_of(service, asked.model)
    except StoreError as error:
        raise Problem(400, str(error), param="model", code="model_not_found") from error
    data: dict[str, Any] = {"train": str(_linked(service, asked.training_file, folder, "training_file"))}
    data["heldout"] = HELDOUT
    if asked.validation_file:
        data["heldout"] = str(_linked(service, asked.validation_file, folder, "validation_file"))
    raw: dict[str, Any] = {
        "method": METHODS[kind],
        "model": {"path": model},
        "data": data,
        "seed": asked.seed or 0,
        **sections,
        "save": {"checkpoints": CHECKPOINTS, **({"name": asked.suffix} if asked.suffix else {})},
    }
    grader = (how.get(kind) or {}).get("grader")
    if grader is not None:
        param = f"method.{kind}.grader"
        raw["grader"] = from_client(service, grader, param)
        try:
            validate_grader(raw["grader"])  # now, and not when the job has waited for its turn
        except GraderError as error:
            raise Problem(400, str(error), param=param, code="invalid_grader") from error
        raw["judge"] = {"require": "not_refused"}  # the dialect has no word for it; who runs melior may try a judge
    try:
        recipe = recipe_of(raw)
        check_judges(recipe, service.store)
        return recipe.to_dict()
    except ConfigError as error:
        raise Problem(400, str(error), param="method") from error


def _linked(service: Service, file_id: str, folder: Path, param: str) -> Path:
    """The file under a name that says how its rows are read, in the job's own folder."""
    try:
        row = files.found(service, file_id)
    except NotFound as error:
        raise Problem(400, str(error), param=param, code="file_not_found") from error
    if row.purpose != "fine-tune":
        told = f"{file_id} was uploaded for {row.purpose}; upload it with purpose fine-tune"
        raise Problem(400, told, param=param, code="invalid_purpose")
    kind = Path(row.filename).suffix.lower()
    place = folder / f"{param}{kind if kind in KINDS else KINDS[0]}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        os.link(files.place(service, row), place)
    except FileNotFoundError as error:  # deleted since it was looked up
        raise Problem(400, f"there is no file {file_id!r}", param=param, code="file_not_found") from error
    return place


# ---------------------------------------------------------------------- as the dialect has it


def told(service: Service, job: Job) -> dict[str, Any]:
    """A job as the dialect has it."""
    asked = Asked(**job.asked)
    recipe = resolved_in(Path(job.folder))
    method = asked.how if recipe is None else settled(asked.how, recipe)
    hyperparameters = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    hyperparameters |= (method.get(method["type"]) or {}).get("hyperparameters") or {}
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": seconds(job.created),
        "error": {**job.error, "message": _plain(job, job.error["message"])} if job.error else None,
        "fine_tuned_model": name_of(job) if job.status == "succeeded" else None,
        "finished_at": seconds(job.finished) if job.finished else None,
        "hyperparameters": hyperparameters,
        "model": asked.model,
        "organization_id": "melior",
        "result_files": [_results(service, job)] if job.status == "succeeded" else [],
        "seed": asked.seed or 0,
        "status": job.status,
        "trained_tokens": job.result.get("tokens"),
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "estimated_finish": None,
        "integrations": [],
        "metadata": dict(job.labels),
        "method": method,
        "user_provided_suffix": asked.suffix,
    }


def told_event(job: Job, event: JobEvent) -> dict[str, Any]:
    """An event as the dialect has it."""
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": seconds(event.created),
        "level": event.level,
        "message": _plain(job, event.message),
        "type": event.type,
        "data": dict(event.data),
    }


def _plain(job: Job, message: str) -> str:
    """The message without our folders: what a client sent is known to it by the names of parameters."""
    return message.replace(f"{Path(job.folder).parent}/", "")


def _metrics(service: Service, job: Job) -> Sequence[Mapping[str, Any]]:
    return [event.data for event in service.store.job_events(job.id) if event.type == "metrics"]


def _results(service: Service, job: Job) -> str:
    """The id of a CSV file of what was measured step by step; made when it is first asked for."""
    name = f"file_{hashlib.sha256(job.id.encode()).hexdigest()[:24]}"
    try:
        return service.store.file(name, deleted=True).id
    except NotFound:
        pass
    target = io.StringIO()
    writer = csv.writer(target)
    writer.writerow(COLUMNS)
    for row in _metrics(service, job):
        measured = {**row, "train_accuracy": row.get("train_mean_token_accuracy", "")}
        writer.writerow([measured.get(column, "") for column in COLUMNS])
    content = target.getvalue().encode()
    service.files.mkdir(parents=True, exist_ok=True)
    write_file(service.files / name, content)
    digest = hashlib.sha256(content).hexdigest()
    try:
        service.store.add_file("step_metrics.csv", "fine-tune-results", size=len(content), sha256=digest, file_id=name)
    except StoreError:  # another request made it meanwhile
        service.store.file(name, deleted=True)
    return name
