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

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request
from pydantic import ConfigDict, Field, StringConstraints

from melior.data.formats import as_json
from melior.errors import ConfigError
from melior.serving.asking import Texts
from melior.serving.deciders import Decider, Wanted
from melior.serving.feedback import Id
from melior.serving.metrics import asks_for
from melior.serving.models import alias_of, version_of
from melior.serving.pictures import Sent, is_picture, keep, received
from melior.serving.problems import Problem
from melior.serving.security import needs
from melior.serving.service import Service
from melior.store.log import Decided
from melior.store.query import new_id
from melior.store.rows import Version
from melior.types import Record, Sampling

MOST = 64  # decisions of one request

router = APIRouter(prefix="/v1/decisions", tags=["decisions"])


class Asked(Texts):
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
    if asked.temperature == 0 and asked.n > 1:
        raise Problem(400, f"temperature 0 is one decision, and n asks for {asked.n}", param="n")
    held = _held(service, asked.model)
    version, decider = held if held is not None else await run_sync(_found, service, asked.model)
    sent = await run_sync(received, asked.input["image"]) if is_picture(asked.input) else None
    given = asked.input if sent is None else {"image": sent.image}
    seed = secrets.randbits(31) if asked.seed is None else asked.seed & 0x7FFFFFFF
    try:
        how = Sampling(n=asked.n, temperature=asked.temperature, seed=seed)
    except ConfigError as error:
        raise Problem(400, str(error), param="temperature") from error
    records = await decider.batches.do(Wanted(given, asked.candidates, how, seeded=asked.seed is not None))
    logged = as_json(records[0].inputs) if sent is None else await run_sync(_kept, service, sent)
    records = [replace(record, inputs=logged, item=asked.item, policy_version=version.id) for record in records]
    ids = [new_id("dec") for _ in records]
    alias = alias_of(asked.model, version) or None
    await service.writer.log(Decided(ids, records, alias, asked.episode_id, [propensities(each) for each in records]))
    told = [_told(name, record, version) for name, record in zip(ids, records, strict=True)]
    return {**told[0], "decisions": told} if asked.n > 1 else told[0]


def _held(service: Service, model: str) -> tuple[Version, Decider] | None:
    """Who decides where that is known and loaded: nothing is read, and nobody waits."""
    version = service.aliases.held(model)
    decider = None if version is None else service.deciders.held(version)
    if version is None or decider is None:
        return None
    asks_for(version.name, alias_of(model, version))
    return version, decider


def _found(service: Service, model: str) -> tuple[Version, Decider]:
    """Who decides, found and loaded."""
    version = version_of(service, model)
    return version, service.deciders.decider(version)


def _kept(service: Service, sent: Sent) -> dict[str, str]:
    """What the log says of a picture: the file that is kept of it."""
    return {"image": str(keep(service.pictures, sent))}


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
