"""/v1/feedback: what people and systems said of an answer, kept before it is acknowledged

    {"metric_name": "helpful", "value": true, "inference_id": "chatcmpl_…"}     → {"feedback_id": "fb_…"}
    {"replaces": "fb_…", "value": false}                                         a correction; null takes back
    {"made_from": "fb_…", "metric_name": "demonstration", "value": "…"}          of a comment, by a person

What a metric takes is declared under /v1/feedback/metrics (`melior.store.measures`).
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from melior.errors import NotFound
from melior.serving.problems import Problem
from melior.serving.security import needs
from melior.serving.service import Service
from melior.serving.wire import Order, page_of, seconds
from melior.store.feedback import Said
from melior.store.measures import BUILT_IN, built_in
from melior.store.rows import Feedback, Key, Measure, MeasureType

Id = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9._:@-]+$")]
Short = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]

router = APIRouter(prefix="/v1/feedback", tags=["feedback"])


class Given(BaseModel):
    """What a client sends."""

    model_config = ConfigDict(extra="forbid")

    metric_name: Name | None = None  # may be left out where `replaces` says it
    value: Any
    inference_id: Id | None = None  # a chat completion's id is the inference's
    decision_id: Id | None = None
    episode_id: Id | None = None
    feedback_id: Id | None = None
    source: Annotated[str, StringConstraints(max_length=200)] = ""
    comment: Annotated[str, StringConstraints(max_length=20_000)] = ""
    tags: dict[Short, Annotated[str, StringConstraints(max_length=500)]] = Field(default_factory=dict, max_length=32)
    replaces: Id | None = None  # what the same source said before; with value null it is taken back
    made_from: Id | None = None  # the comment that a person turned into this

    def check(self, idempotency_key: str | None) -> None:
        """Nothing, if it says what it is about, and that in one way.

        Raises:
            Problem: if it does not.
        """
        if self.inference_id and self.decision_id and self.inference_id != self.decision_id:
            raise Problem(400, "inference_id and decision_id name two different answers; send one", param="decision_id")
        if self.feedback_id and idempotency_key and self.feedback_id != idempotency_key:
            raise Problem(400, "feedback_id and the Idempotency-Key header differ; send one", param="feedback_id")
        if self.metric_name is None and self.replaces is None:
            raise Problem(400, "metric_name is missing; say what was measured", param="metric_name")
        about = self.inference_id or self.decision_id or self.episode_id or self.replaces or self.made_from
        if not about:
            told = "feedback named neither a decision nor an episode; send inference_id, decision_id or episode_id"
            raise Problem(400, told)


@router.post("")
async def give(
    request: Request,
    given: Given,
    key: Key = Depends(needs("feedback")),  # noqa: B008  so FastAPI has it
    idempotency_key: Annotated[Id | None, Header()] = None,
) -> dict[str, Any]:
    """The id under which it is kept. The same key with the same body is kept once; with another body it is refused."""
    service: Service = request.app.state.service
    given.check(idempotency_key)
    said = Said(
        metric=given.metric_name or "",
        value=given.value,
        decision_id=given.decision_id or given.inference_id,
        episode_id=given.episode_id,
        source=given.source or key.name,
        comment=given.comment,
        tags=given.tags,
        feedback_id=given.feedback_id or idempotency_key,
        replaces=given.replaces,
        made_from=given.made_from,
        given_by=key.name,
        any_source="admin" in key.scopes,
        checked=True,
    )
    row = await service.writer.write(said)
    service.metrics.told(row.metric, key.name)
    return {"feedback_id": row.id}


@router.get("", dependencies=[Depends(needs("read"))])
def listed(
    request: Request,
    metric_name: Name | None = None,
    decision_id: Id | None = None,
    inference_id: Id | None = None,
    episode_id: Id | None = None,
    source: Name | None = None,
    made_from: Id | None = None,
    in_force: bool = False,
    search: Annotated[str, StringConstraints(max_length=500)] = "",
    after: Id | None = None,
    limit: int = Query(20, ge=1, le=1_000),
    order: Order = "desc",
) -> dict[str, Any]:
    """What was said, the newest first; `in_force` leaves out what was corrected since, `search` asks for a text."""
    store = request.app.state.service.store
    found = store.feedback_page(
        metric=metric_name,
        decision_id=decision_id or inference_id,
        episode_id=episode_id,
        source=source,
        made_from=made_from,
        in_force=in_force,
        search=search,
        after=after,
        limit=limit,
        order=order,
    )
    replaced = store.replacements([row.id for row in found.rows])
    return page_of(found, lambda row: told(row, replaced.get(row.id)))


# ---------------------------------------------------------------------- metrics


class Declared(BaseModel):
    """What a metric measures from now on."""

    model_config = ConfigDict(extra="forbid")

    type: MeasureType
    low: float | None = None
    high: float | None = None
    description: Annotated[str, StringConstraints(max_length=2_000)] = ""


@router.get("/metrics", dependencies=[Depends(needs("read"))])
def metrics(request: Request) -> dict[str, Any]:
    """Every metric that says what it takes: those built in, then those declared, by name."""
    known = [built_in(name) for name in BUILT_IN]
    declared = request.app.state.service.store.measures()
    data = [told_measure(measure) for measure in [*known, *declared] if measure is not None]
    return {"object": "list", "data": data, "has_more": False}


@router.put("/metrics/{name}", dependencies=[Depends(needs("train"))])
def declare(request: Request, name: Annotated[Name, Path()], declared: Declared) -> dict[str, Any]:
    """The metric as it is in force now; what no longer would be one of its values keeps it from changing."""
    store = request.app.state.service.store
    return told_measure(store.declare_measure(name, **declared.model_dump()))


# ---------------------------------------------------------------------- one


@router.get("/{feedback_id}", dependencies=[Depends(needs("read"))])
def one(request: Request, feedback_id: Id) -> dict[str, Any]:
    """One piece of feedback, what it replaces, and what replaced it since."""
    store = request.app.state.service.store
    row = store.one_feedback(feedback_id)
    if row.id != feedback_id:  # people may shorten ids, programs never mean to
        raise NotFound(f"there is no feedback {feedback_id!r} here")
    return told(row, store.replacements([row.id]).get(row.id))


def told(row: Feedback, replaced_by: str | None = None) -> dict[str, Any]:
    """Feedback as it is listed."""
    return {
        "id": row.id,
        "object": "feedback",
        "created_at": seconds(row.created),
        "metric_name": row.metric,
        "value": row.value,
        "decision_id": row.decision_id,
        "episode_id": row.episode_id,
        "source": row.source,
        "given_by": row.given_by,
        "comment": row.comment,
        "tags": dict(row.tags),
        "replaces": row.replaces_id,
        "replaced_by": replaced_by,
        "made_from": row.made_from_id,
        "in_force": replaced_by is None and not (row.replaces_id is not None and row.value is None),
    }


def told_measure(row: Measure) -> dict[str, Any]:
    """A metric as it is listed."""
    return {
        "name": row.name,
        "object": "feedback.metric",
        "type": row.type,
        "low": row.low,
        "high": row.high,
        "description": row.description,
        "created_at": seconds(row.created) if row.created else None,
    }
