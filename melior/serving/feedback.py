"""/v1/feedback: what people and systems said of an answer, kept before it is acknowledged"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from melior.serving.problems import Problem
from melior.serving.security import needs
from melior.serving.service import Service
from melior.serving.wire import page, seconds
from melior.store.log import Said
from melior.store.rows import Feedback, Key

Id = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9._:@-]+$")]
Short = Annotated[str, StringConstraints(min_length=1, max_length=200)]

router = APIRouter(prefix="/v1/feedback", tags=["feedback"])


class Given(BaseModel):
    """What a client sends."""

    model_config = ConfigDict(extra="forbid")

    metric_name: Short
    value: Any
    inference_id: Id | None = None  # a chat completion's id is the inference's
    decision_id: Id | None = None
    episode_id: Id | None = None
    feedback_id: Id | None = None
    source: Annotated[str, StringConstraints(max_length=200)] = ""
    comment: Annotated[str, StringConstraints(max_length=20_000)] = ""
    tags: dict[Short, Annotated[str, StringConstraints(max_length=500)]] = Field(default_factory=dict, max_length=32)


@router.post("")
async def give(
    request: Request,
    given: Given,
    key: Key = Depends(needs("feedback")),  # noqa: B008  so FastAPI has it
    idempotency_key: Annotated[Id | None, Header()] = None,
) -> dict[str, Any]:
    """The id under which it is kept. The same key with the same body is kept once; with another body it is refused."""
    service: Service = request.app.state.service
    if given.inference_id and given.decision_id and given.inference_id != given.decision_id:
        raise Problem(400, "inference_id and decision_id name two different answers; send one", param="decision_id")
    if not (given.inference_id or given.decision_id or given.episode_id):
        raise Problem(
            400, "feedback named neither a decision nor an episode; send inference_id, decision_id or episode_id"
        )
    if given.feedback_id and idempotency_key and given.feedback_id != idempotency_key:
        raise Problem(400, "feedback_id and the Idempotency-Key header differ; send one", param="feedback_id")
    said = Said(
        metric=given.metric_name,
        value=given.value,
        decision_id=given.decision_id or given.inference_id,
        episode_id=given.episode_id,
        source=given.source or key.name,
        comment=given.comment,
        tags=given.tags,
        feedback_id=given.feedback_id or idempotency_key,
    )
    row = await service.writer.write(said)
    service.metrics.feedback.labels(given.metric_name).inc()
    return {"feedback_id": row.id}


@router.get("", dependencies=[Depends(needs("read"))])
def listed(
    request: Request,
    metric_name: str | None = None,
    decision_id: str | None = None,
    inference_id: str | None = None,
    episode_id: str | None = None,
    after: str | None = None,
    limit: int = Query(20, ge=1, le=1_000),
) -> dict[str, Any]:
    """What was said, the newest first."""
    store = request.app.state.service.store
    about = decision_id or inference_id
    rows = store.feedback(metric=metric_name, decision_id=about, episode_id=episode_id)
    return page(rows, told, after=after, limit=limit)


def told(row: Feedback) -> dict[str, Any]:
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
        "comment": row.comment,
        "tags": dict(row.tags),
    }
