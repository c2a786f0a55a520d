"""/v1/webhook_endpoints: addresses that are told when jobs end and when aliases move

    client.webhooks.create(name="ops", url="https://ops.example/melior", event_types=["fine_tuning.job.succeeded"])

An administrator's: what is sent goes to any public address, and to others where MELIOR_OUTBOUND_ALLOW permits them.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from melior.errors import ConfigError, NotFound, OutboundError
from melior.outbound.addresses import LONGEST_URL, parse_url
from melior.serving.courier import as_sent
from melior.serving.problems import Problem
from melior.serving.security import needs
from melior.serving.service import Service
from melior.serving.wire import page, seconds
from melior.store.query import new_id
from melior.store.rows import Webhook
from melior.store.webhooks import EVENTS, Event, message

HINT = 4  # characters of a secret that are shown

Url = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_URL)]
Name = Annotated[str, StringConstraints(max_length=200)]
Events = Annotated[list[Event], Field(min_length=1, max_length=len(EVENTS))]

router = APIRouter(prefix="/v1", tags=["webhooks"])
admin = [Depends(needs("admin"))]


class Made(BaseModel):
    """What a client sends for a new one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    url: Url
    event_types: Events
    name: Name = ""


class Changed(BaseModel):
    """What a client sends to change one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    url: Url | None = None
    event_types: Events | None = None
    name: Name | None = None


class Rotated(BaseModel):
    """What a client sends for a new secret."""

    model_config = ConfigDict(extra="forbid", strict=True)

    keep_old_secret_active_for_24_hours: bool = False


class Tested(BaseModel):
    """What a client sends to see whether messages arrive."""

    model_config = ConfigDict(extra="forbid", strict=True)

    event_type: Event


@router.post("/webhook_endpoints", dependencies=admin)
def create(request: Request, made: Made) -> dict[str, Any]:
    """The webhook, with its secret, which is shown this once."""
    service: Service = request.app.state.service
    _check_url(made.url)
    row = service.store.add_webhook(made.url, made.event_types, name=made.name)
    return {**told(row), "signing_secret": row.secret}


@router.get("/webhook_endpoints", dependencies=admin)
def listed(request: Request, after: str | None = None, limit: int = Query(20, ge=1, le=100)) -> dict[str, Any]:
    """Those that are not deleted."""
    service: Service = request.app.state.service
    return page(service.store.webhooks(), told, after=after, limit=limit)


@router.get("/webhook_endpoints/{webhook_id}", dependencies=admin)
def one(request: Request, webhook_id: str) -> dict[str, Any]:
    """One of them."""
    return told(_found(request.app.state.service, webhook_id))


@router.post("/webhook_endpoints/{webhook_id}", dependencies=admin)
def change(request: Request, webhook_id: str, changed: Changed) -> dict[str, Any]:
    """The same with another address, other events or another name."""
    service: Service = request.app.state.service
    if changed.url is not None:
        _check_url(changed.url)
    row = _found(service, webhook_id)
    given = {"url": changed.url, "name": changed.name}
    return told(service.store.change_webhook(row.id, events=changed.event_types, **given))


@router.delete("/webhook_endpoints/{webhook_id}", dependencies=admin)
def delete(request: Request, webhook_id: str) -> dict[str, Any]:
    """It is told nothing more."""
    service: Service = request.app.state.service
    row = service.store.revoke_webhook(_found(service, webhook_id).id)
    return {"id": row.id, "object": "webhook_endpoint.deleted", "deleted": True}


@router.post("/webhook_endpoints/{webhook_id}/rotate_secret", dependencies=admin)
def rotate(request: Request, webhook_id: str, rotated: Rotated | None = None) -> dict[str, Any]:
    """The webhook with a new secret; the former one signs beside it for a day where that is asked for."""
    service: Service = request.app.state.service
    keep = rotated is not None and rotated.keep_old_secret_active_for_24_hours
    row = service.store.rotate_secret(_found(service, webhook_id).id, keep=keep)
    return {**told(row), "signing_secret": row.secret}


@router.post("/webhook_endpoints/{webhook_id}/test", dependencies=admin)
def test(request: Request, webhook_id: str, tested: Tested) -> dict[str, Any]:
    """What the address answers to a message that tells of nothing; sent once, and kept nowhere."""
    service: Service = request.app.state.service
    row = _found(service, webhook_id)
    sample = message(tested.event_type, {"id": "test"})
    try:
        status = service.courier.send(row, new_id("msg"), as_sent(sample))
    except OutboundError as error:
        if not error.status:
            raise Problem(400, str(error), param="url", code="webhook_unreachable") from error
        status = error.status
    told = {"object": "webhook_endpoint.test", "webhook_endpoint_id": row.id, "event_type": tested.event_type}
    return {**told, "success": True, "status_code": status}


@router.get("/webhook_event_types", dependencies=admin)
def event_types(request: Request) -> dict[str, Any]:
    """What there is to be told."""
    return {"object": "list", "data": list(EVENTS)}


def told(row: Webhook) -> dict[str, Any]:
    """A webhook as the dialect has it; nobody can see its secret again."""
    return {
        "id": row.id,
        "object": "webhook_endpoint",
        "created_at": seconds(row.created),
        "name": row.name,
        "url": row.url,
        "event_types": list(row.events),
        "signing_secret_hint": f"whsec_…{row.secret.rstrip('=')[-HINT:]}",
    }


def _found(service: Service, webhook_id: str) -> Webhook:
    """One that is not deleted, by the whole of its id."""
    row = service.store.webhook(webhook_id)
    if row.id != webhook_id or row.revoked is not None:
        raise NotFound(f"there is no webhook {webhook_id!r}")
    return row


def _check_url(url: str) -> None:
    try:
        parse_url(url)
    except ConfigError as error:
        raise Problem(400, str(error), param="url") from error
