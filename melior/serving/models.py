"""/v1/models: what can answer here: versions by id, and names with the alias that serves

A model that a client deletes is no longer listed nor answered with; its version stays in the registry, since what it
decided is in the log.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request

from melior.errors import NotFound, StoreError
from melior.policies.weights import KNOWN
from melior.registry import Registry
from melior.serving.security import needs
from melior.serving.service import Service
from melior.serving.wire import seconds
from melior.store.rows import Version

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", dependencies=[Depends(needs("read"))])
def listed(request: Request) -> dict[str, Any]:
    """Every version, and every alias that points to one."""
    service: Service = request.app.state.service
    versions = {version.id: version for version in service.store.versions()}
    shown = [told(version.id, version) for version in versions.values()]
    for alias in service.store.aliases():
        shown.append(told(f"{alias.name}@{alias.alias}", versions[alias.version_id]))
    return {"object": "list", "data": shown}


@router.get("/{model:path}", dependencies=[Depends(needs("read"))])
def one(request: Request, model: str) -> dict[str, Any]:
    """One model, by whatever name it answers to."""
    return told(model, version_of(request.app.state.service, model))


def version_of(service: Service, model: str) -> Version:
    """The version that a client's name for a model means.

    Raises:
        NotFound: if there is none.
    """
    name = model
    if model.startswith("ft:"):  # what a job made
        made = service.store.job(model.rpartition(":")[2]).result.get("version_id")
        name = str(made) if made else model
    try:
        return Registry(service.store).get(name)
    except StoreError as error:
        raise NotFound(f"there is no model {model!r} here: {error}") from error


def reference_of(service: Service, model: str) -> str:
    """What a client's name for a model is to a recipe: a version, or the name of one that `melior pull` knows.

    Clients name models and never folders: a path would be read with our rights.

    Raises:
        NotFound: if there is none.
    """
    return model if model in KNOWN else version_of(service, model).id


def told(name: str, version: Version) -> dict[str, Any]:
    """A model as the dialect has it."""
    return {"id": name, "object": "model", "created": seconds(version.created), "owned_by": version.name}
