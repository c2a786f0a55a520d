"""/v1/fine_tuning/…/checkpoints: what can be answered with of a job, on its way and at its end

A job keeps its policy at the ends of its last epochs (reinforcement: at its last measurements), each under a name
of its own, `ft:…:ckpt-step-N`; the last checkpoint of a job that succeeded is the model itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Query, Request

from melior.cycles.kept import folder_of, kept_steps
from melior.serving import fine_tuning
from melior.serving.feedback import Id
from melior.serving.models import STEP, name_of
from melior.serving.problems import Problem
from melior.serving.security import needs
from melior.serving.service import Service
from melior.serving.wire import page, seconds
from melior.store.rows import Job

router = APIRouter(prefix="/v1/fine_tuning", tags=["fine-tuning"])


@dataclass(frozen=True)
class Checkpoint:
    """What a job was after so many steps."""

    id: str
    name: str  # that it answers to
    step: int
    created: str
    metrics: Mapping[str, Any]


@router.get("/jobs/{job_id}/checkpoints", dependencies=[Depends(needs("read"))])
def listed(
    request: Request, job_id: Id, after: str | None = None, limit: int = Query(10, ge=1, le=100)
) -> dict[str, Any]:
    """What can be answered with, the newest first."""
    service: Service = request.app.state.service
    job = fine_tuning.found(service, job_id)
    return page(checkpoints_of(service, job), lambda one: told(job, one), after=after, limit=limit)


def checkpoints_of(service: Service, job: Job) -> list[Checkpoint]:
    """A job's checkpoints, the earliest first."""
    events = service.store.job_events(job.id)
    measured = {int(event.data.get("step", 0)): event.data for event in events if event.type == "metrics"}
    found = []
    for step in kept_steps(Path(job.folder)):
        versions = service.store.versions(within=str(folder_of(Path(job.folder), step)))
        if versions:
            name = f"{name_of(job)}{STEP}{step}"
            found.append(Checkpoint(_id(job, step), name, step, versions[-1].created, measured.get(step, {})))
    if job.status == "succeeded":
        last = int(job.result.get("step") or max(measured, default=0))
        found = [one for one in found if one.step != last]
        created = job.finished or job.created
        found.append(Checkpoint(_id(job, last), name_of(job), last, created, measured.get(last, {})))
    return found


def told(job: Job, one: Checkpoint) -> dict[str, Any]:
    """A checkpoint as the dialect has it."""
    return {
        "id": one.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": seconds(one.created),
        "fine_tuned_model_checkpoint": one.name,
        "fine_tuning_job_id": job.id,
        "step_number": one.step,
        "metrics": dict(one.metrics),
    }


def _id(job: Job, step: int) -> str:
    return f"ftckpt_{job.id.partition('_')[2]}_{step}"


# ---------------------------------------------------------------------- projects share checkpoints; there are none here


@router.get("/checkpoints/{checkpoint:path}/permissions", dependencies=[Depends(needs("admin"))])
@router.post("/checkpoints/{checkpoint:path}/permissions", dependencies=[Depends(needs("admin"))])
def permissions(checkpoint: str) -> None:
    """Nothing: who may ask is a matter of keys here."""
    raise Problem(501, "there are no projects to share a checkpoint with; melior keys add says who may ask")


@router.delete("/checkpoints/{checkpoint:path}/permissions/{permission}", dependencies=[Depends(needs("admin"))])
def permission(checkpoint: str, permission: str) -> None:
    """Nothing either."""
    permissions(checkpoint)
