"""/v1/decisions: one endpoint for classifiers and slates, and a log that can be learnt from

    {"model": "banner@prod", "input": {"context": {…}, "history": […]}, "candidates": ["a", "b", …]}
    → {"decision_id", "output", "log_prob", "propensities", "policy_version"}

By default chance decides, so that what is logged says how probable it was; with `"temperature": 0` the best is served,
and nobody can learn from it what the others would have earned. A classifier of pictures is sent
`{"image": "data:image/png;base64,…"}`; the log names the file that is kept of it.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import replace
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from melior.data.formats import as_json
from melior.serving.feedback import Id
from melior.serving.models import alias_of, version_of
from melior.serving.pictures import is_picture, keep, received
from melior.serving.problems import Problem
from melior.serving.security import needs
from melior.serving.service import Service
from melior.store.log import Decided
from melior.store.query import new_id
from melior.store.rows import Version
from melior.types import Record, Sampling

MOST = 64  # decisions of one request

router = APIRouter(prefix="/v1/decisions", tags=["decisions"])


class Asked(BaseModel):
    """What a client sends."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    input: Any
    candidates: list[Any] | None = None  # of a slate: ids of items in the catalogue, or items with their features
    n: int = Field(default=1, ge=1, le=MOST)
    temperature: float = Field(default=1.0, ge=0)
    seed: int | None = None
    episode_id: Id | None = None
    item: dict[str, Any] = Field(default_factory=dict)  # kept beside the decision, for graders


@router.post("", dependencies=[Depends(needs("infer"))])
async def decide(request: Request, asked: Asked) -> dict[str, Any]:
    """What the policy decides, once it is in the log; with n, so many draws, of which the first stands at the top."""
    service: Service = request.app.state.service
    version, decided = await anyio.to_thread.run_sync(_decided, service, asked)
    await service.writer.log(decided)
    told = [_told(name, record, version) for name, record in zip(decided.ids, decided.records, strict=True)]
    return {**told[0], "decisions": told} if asked.n > 1 else told[0]


def _decided(service: Service, asked: Asked) -> tuple[Version, Decided]:
    """What is decided, not yet in the log, and by which version."""
    if asked.temperature == 0 and asked.n > 1:
        raise Problem(400, f"temperature 0 is one decision, and n asks for {asked.n}", param="n")
    version = version_of(service, asked.model)
    decider = service.deciders.of(version)
    sent = received(asked.input["image"]) if is_picture(asked.input) else None
    inputs = decider.read(asked.input if sent is None else {"image": sent.image}, asked.candidates)
    seed = secrets.randbits(31) if asked.seed is None else asked.seed & 0x7FFFFFFF
    how = Sampling(n=asked.n, temperature=asked.temperature, seed=seed)
    with decider.lock:
        records = decider.policy.sample([inputs], how)
    logged = as_json(inputs) if sent is None else {"image": str(keep(service.pictures, sent))}
    records = [replace(record, inputs=logged, item=asked.item, policy_version=version.id) for record in records]
    ids = [new_id("dec") for _ in records]
    alias = alias_of(asked.model, version) or None
    chances = [propensities(record) for record in records]
    return version, Decided(ids, records, alias, asked.episode_id, chances)


def propensities(record: Record) -> list[float] | None:
    """The chance of each decision; None where chance did not decide."""
    log_probs = record.behavior_log_probs
    return None if log_probs is None else [math.exp(log_prob) for log_prob in log_probs]


def _told(name: str, record: Record, version: Version) -> dict[str, Any]:
    log_probs = record.behavior_log_probs
    return {
        "decision_id": name,
        "object": "decision",
        "output": list(record.output) if isinstance(record.output, tuple) else record.output,
        "log_prob": None if log_probs is None else math.fsum(log_probs),
        "propensities": propensities(record),
        "policy_version": version.id,
    }
