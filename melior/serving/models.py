"""/v1/models: what can answer here: base models, versions by id, aliases, and what jobs made

A model that a client deletes is no longer listed nor answered with; its version stays in the registry, since what it
decided is in the log.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Request

from melior.cycles.kept import folder_of
from melior.errors import DatabaseAway, ModelError, NotFound, StoreError, UnknownModel
from melior.policies.weights import KNOWN
from melior.registry import BASE, PROD, Registry
from melior.serving.metrics import UNKNOWN, asks_for
from melior.serving.problems import Problem
from melior.serving.security import needs
from melior.serving.service import Service
from melior.serving.wire import seconds
from melior.store.rows import Job, Version

MADE, STEP = "ft:", ":ckpt-step-"  # names of what jobs make, and of what they keep on the way
OWNER = "melior"  # of base models
LONGEST_STEP = 10  # digits

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", dependencies=[Depends(needs("read"))])
def listed(request: Request) -> dict[str, Any]:
    """Every base model, every version, every alias that points to one, and every name that a job gave."""
    service: Service = request.app.state.service
    shown = [told(version.name, version) for version in service.bases.all()]
    versions = {version.id: version for version in service.store.versions() if version.method != BASE}
    shown += [told(version.id, version) for version in versions.values()]
    for alias in service.store.aliases():
        if alias.version_id in versions:  # it may have been promoted since
            shown.append(told(f"{alias.name}@{alias.alias}", versions[alias.version_id]))
    for job in service.store.jobs(status="succeeded"):
        made = versions.get(str(job.result.get("version_id")))
        if made is not None:
            shown.append(told(name_of(job), made))
    return {"object": "list", "data": shown}


@router.get("/{model:path}", dependencies=[Depends(needs("read"))])
def one(request: Request, model: str) -> dict[str, Any]:
    """One model, by whatever name it answers to."""
    return told(model, version_of(request.app.state.service, model))


@router.delete("/{model:path}", dependencies=[Depends(needs("train"))])
def delete(request: Request, model: str) -> dict[str, Any]:
    """The model, which answers no more; refused while an alias points to it."""
    service: Service = request.app.state.service
    version = version_of(service, model)
    if version.method == BASE:
        raise Problem(403, f"{model} is a base model, and only what was trained here can be deleted", param="model")
    Registry(service.store).delete(version.id)
    service.aliases.forget(version)
    return {"id": model, "object": "model", "deleted": True}


def version_of(service: Service, model: str) -> Version:
    """The version that a client's name for a model means.

    Raises:
        UnknownModel: if there is none.
    """
    asks_for(UNKNOWN)
    version = _version_of(service, model)
    asks_for(version.name, alias_of(model, version))
    return version


def _version_of(service: Service, model: str) -> Version:
    try:
        base = service.bases.of(model)
        if base is not None:
            return base
        if model.startswith(MADE):
            return _made(service, model)
        return _by_id(service, model) if model.startswith("ver_") else service.aliases.of(model)
    except DatabaseAway:  # whether there is one cannot be said
        raise
    except (StoreError, ModelError) as error:
        raise UnknownModel(f"there is no model {model!r} here: {error}") from error


def alias_of(model: str, version: Version) -> str:
    """The alias by which a client asked for a version: a name alone means its `prod`; "" for ids and base models."""
    name, _, alias = model.partition("@")
    return alias or (PROD if name == version.name and version.method != BASE else "")


def reference_of(service: Service, model: str) -> str:
    """What a client's name for a model is to a recipe: a version, or the name of one that `melior pull` knows.

    Clients name models and never folders: a path would be read with our rights.

    Raises:
        UnknownModel: if there is none.
    """
    return model if model in KNOWN and model not in service.bases.named else version_of(service, model).id


def name_of(job: Job) -> str:
    """What clients call the model that a job made; a line of jobs is named after the model that it began with."""
    begun = str(job.asked["model"])
    if begun.startswith(MADE):
        begun = begun.removeprefix(MADE).partition(":")[0]
    return f"{MADE}{begun}:{job.asked.get('suffix') or ''}:{job.id}"


def told(name: str, version: Version) -> dict[str, Any]:
    """A model as the dialect has it."""
    owner = OWNER if version.method == BASE else version.name
    return {"id": name, "object": "model", "created": seconds(version.created), "owned_by": owner}


def _by_id(service: Service, model: str) -> Version:
    """The version with the whole of this id: people may shorten ids, programs never mean to.

    Raises:
        NotFound: if there is none, or it was deleted.
    """
    version = Registry(service.store).get(model)
    if version.id != model:
        raise NotFound("no version has this id; list the models to see those there are")
    return version


def _made(service: Service, model: str) -> Version:
    """What a job made, or kept at one of its steps.

    Raises:
        NotFound: if no job made it, or it was deleted or not kept.
    """
    name, _, step = model.partition(STEP)
    job = service.store.job(name.rpartition(":")[2])
    if job.eval_id is not None:
        raise NotFound(f"{job.id} evaluates, and makes no model")
    if name != name_of(job):
        raise NotFound(f"the model of {job.id} is {name_of(job)}")
    if not step or step == str(job.result.get("step")):
        made = job.result.get("version_id")
        if not made:
            raise NotFound(f"{job.id} is {job.status} and has made none")
        return Registry(service.store).get(str(made))
    place = folder_of(Path(job.folder), int(step)) if step.isdecimal() and len(step) < LONGEST_STEP else None
    kept = [] if place is None else service.store.versions(within=str(place))
    if not kept:
        raise NotFound(f"{job.id} keeps no model of step {step}; list its checkpoints to see those it keeps")
    return kept[-1]
