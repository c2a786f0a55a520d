"""/v1/chat/completions: answers, streamed or whole, and the log of all of them

Every answer is a decision in the log before its client has it: what was read, what was decided, with which
log-probs, by which version. A completion's id is the id of its first choice's decision; choice i has `ID:i`.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from melior.errors import ConfigError, DataError, MeliorError
from melior.policies.engine import Sample
from melior.serving.loaded import Speaker
from melior.serving.models import version_of
from melior.serving.problems import Problem, problem_of
from melior.serving.security import needs
from melior.serving.service import Service
from melior.serving.voices import Ticket
from melior.serving.wire import Order, page, seconds
from melior.store.rows import Completion, Version
from melior.types import Record, Sampling

LONGEST = 1_024  # tokens of an answer, where nobody says how long it may be
MOST_CHOICES = 128

router = APIRouter(prefix="/v1/chat/completions", tags=["chat"])


class Asked(BaseModel):
    """What a client sends. Settings of the dialect that nothing here could follow are refused, not ignored."""

    model_config = ConfigDict(extra="ignore")  # clients send names and ids for their own bookkeeping

    model: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    messages: list[dict[str, Any]] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    store: bool | None = None
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    response_format: dict[str, Any] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    tool_choice: Any = None

    def check(self) -> None:
        """Nothing, if all of it can be honoured.

        Raises:
            Problem: naming what cannot.
        """
        kind = (self.response_format or {}).get("type", "text")
        if kind != "text":
            told = f"response_format {kind!r} is not served yet; ask for text, and say in the prompt what it should be"
            raise Problem(400, told, param="response_format", code="unsupported_value")
        for name in ("frequency_penalty", "presence_penalty", "logit_bias"):
            if getattr(self, name):
                raise Problem(400, f"{name} is not served; leave it out", param=name, code="unsupported_value")
        if self.tool_choice not in (None, "auto", "none"):
            told = "tool_choice can be auto or none: what a model calls is its own choice here"
            raise Problem(400, told, param="tool_choice", code="unsupported_value")
        if self.top_logprobs:
            raise Problem(400, "top_logprobs is not served yet; logprobs: true tells those of what was said",
                          param="top_logprobs", code="unsupported_value")  # fmt: skip

    @property
    def inputs(self) -> Any:
        """What the policy reads."""
        tools = self.tools if self.tool_choice != "none" else None
        return {"messages": self.messages, "tools": tools} if tools else self.messages

    def sampling(self, room: int) -> Sampling:
        """How the answer is sampled; `room` is what the context leaves.

        Raises:
            Problem: if it cannot be sampled so.
        """
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        asked = self.max_completion_tokens or self.max_tokens
        try:
            return Sampling(
                n=self.n or 1,
                max_tokens=asked or max(1, min(LONGEST, room)),
                temperature=1.0 if self.temperature is None else self.temperature,
                top_p=1.0 if self.top_p is None else self.top_p,
                stop=tuple(text for text in stop if text),
                seed=secrets.randbits(31) if self.seed is None else self.seed & 0x7FFFFFFF,
            )
        except ConfigError as error:
            raise Problem(400, str(error)) from error


class Answering:
    """One request while it is answered."""

    def __init__(self, service: Service, asked: Asked, loop: asyncio.AbstractEventLoop) -> None:
        """Raises Problem if it cannot be answered. The answer arrives in the loop; this itself may take a while."""
        asked.check()
        self.service, self.asked = service, asked
        self.id, self.created = f"chatcmpl_{secrets.token_hex(12)}", int(time.time())
        self.version: Version = version_of(service, asked.model)
        self.alias = asked.model.partition("@")[2] or None
        try:
            self.voice: Speaker = service.voices.of(self.version)
            room = self.voice.policy.max_length - len(self.voice.policy.renderer.context(asked.inputs))
            self.settings = asked.sampling(room)
            self.ticket: Ticket = self.voice.ask(asked.inputs, self.settings, streams=bool(asked.stream), loop=loop)
        except DataError as error:
            code = "context_length_exceeded" if "exceed the context" in str(error) else None
            raise Problem(400, str(error), param="messages", code=code) from error
        self.samples: list[Sample] = []

    async def whole(self) -> dict[str, Any]:
        """The answer, once it is complete and in the log."""
        try:
            self.samples = [piece.sample async for piece in self.ticket.read() if piece.sample is not None]
        finally:
            if self.ticket.left:
                self.voice.cancel(self.ticket)
        return await anyio.to_thread.run_sync(self.kept)

    def kept(self) -> dict[str, Any]:
        """The answer as the dialect has it; written to the log first."""
        self.samples.sort(key=lambda sample: sample.number)
        inputs, renderer = self.asked.inputs, self.voice.policy.renderer
        records = [
            Record(
                inputs=inputs,
                output=sample.text,
                group=self.id,
                context=self.ticket.context,
                decisions=sample.decisions,
                behavior_log_probs=sample.log_probs,
                sampling=self.settings,
                policy_version=self.version.id,
                fingerprint=renderer.fingerprint,
                finish=sample.finish,
            )
            for sample in self.samples
        ]
        ids = [self.id if place == 0 else f"{self.id}:{place}" for place in range(len(records))]
        self.service.store.add_records(records, ids=ids, alias=self.alias)
        answer = self.answer()
        if self.asked.store:
            request = self.asked.model_dump(exclude_none=True)
            self.service.store.add_completion(self.id, self.asked.model, request, answer)
        decided = sum(len(sample.decisions) for sample in self.samples)
        self.service.metrics.tokens.labels(self.version.name, "input").inc(len(self.ticket.context))
        self.service.metrics.tokens.labels(self.version.name, "output").inc(decided)
        return answer

    def answer(self) -> dict[str, Any]:
        """The whole answer."""
        return {
            **self.head("chat.completion"),
            "choices": [
                {
                    "index": sample.number,
                    "message": {"role": "assistant", "content": sample.text, "refusal": None},
                    "logprobs": self.logprobs(sample),
                    "finish_reason": sample.finish,
                }
                for sample in self.samples
            ],
            "usage": self.usage(),
        }

    def head(self, kind: str) -> dict[str, Any]:
        """What all answers and parts of answers begin with."""
        told = {"id": self.id, "object": kind, "created": self.created, "model": self.asked.model}
        return {**told, "system_fingerprint": self.version.fingerprint[:16]}

    def usage(self) -> dict[str, int]:
        """Tokens that were read and decided."""
        read, decided = len(self.ticket.context), sum(len(sample.decisions) for sample in self.samples)
        return {"prompt_tokens": read, "completion_tokens": decided, "total_tokens": read + decided}

    def logprobs(self, sample: Sample) -> dict[str, Any] | None:
        """The log-prob of each token that was said, as it was sampled; greedy answers have none to tell."""
        if not self.asked.logprobs or sample.log_probs is None:
            return None
        text = self.voice.policy.renderer.tokenizer.decode
        content = []
        for token, log_prob in zip(sample.decisions, sample.log_probs, strict=True):
            word = text([token])
            told = {"token": word, "bytes": list(word.encode()), "logprob": log_prob, "top_logprobs": []}
            content.append(told)
        return {"content": content, "refusal": None}

    async def stream(self) -> AsyncIterator[bytes]:
        """The answer in pieces, as server-sent events; a client that leaves has its request cancelled."""
        done = False
        try:
            for number in range(self.settings.n):
                yield self.event(number, {"role": "assistant", "content": ""})
            async for piece in self.ticket.read():
                if piece.sample is not None:
                    self.samples.append(piece.sample)
                    yield self.event(piece.number, {}, sample=piece.sample)
                else:
                    yield self.event(piece.number, {"content": piece.text})
            done = True
            await anyio.to_thread.run_sync(self.kept)
            if (self.asked.stream_options or {}).get("include_usage"):
                yield _sent({**self.head("chat.completion.chunk"), "choices": [], "usage": self.usage()})
            yield b"data: [DONE]\n\n"
        except MeliorError as error:
            yield _sent(problem_of(error).body)
        except Problem as problem:
            yield _sent(problem.body)
        finally:
            if not done:
                self.voice.cancel(self.ticket)

    def event(self, number: int, delta: Mapping[str, Any], sample: Sample | None = None) -> bytes:
        """One piece."""
        logprobs = self.logprobs(sample) if sample is not None else None
        finish = sample.finish if sample is not None else None
        choice = {"index": number, "delta": dict(delta), "logprobs": logprobs, "finish_reason": finish}
        return _sent({**self.head("chat.completion.chunk"), "choices": [choice]})


@router.post("", dependencies=[Depends(needs("infer"))])
async def create(request: Request, asked: Asked) -> Any:
    """An answer."""
    service: Service = request.app.state.service
    if service.draining.is_set():
        raise Problem(503, "this server is stopping; ask another", retry=True)
    answering = await anyio.to_thread.run_sync(Answering, service, asked, asyncio.get_running_loop())
    if asked.stream:
        return StreamingResponse(answering.stream(), media_type="text/event-stream")
    return await answering.whole()


@router.get("", dependencies=[Depends(needs("read"))])
def listed(
    request: Request,
    model: str | None = None,
    after: str | None = None,
    limit: int = Query(20, ge=1, le=100),
    order: Order = "asc",
) -> dict[str, Any]:
    """Completions that were asked for with store: true; metadata[key]=value asks for those with that label."""
    service: Service = request.app.state.service
    wanted = {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    rows = [row for row in service.store.completions(model=model) if wanted.items() <= row.labels.items()]
    return page(rows, told, after=after, limit=limit, order=order)


@router.get("/{completion_id}", dependencies=[Depends(needs("read"))])
def one(request: Request, completion_id: str) -> dict[str, Any]:
    """One that was kept."""
    service: Service = request.app.state.service
    return told(service.store.completion(completion_id))


class Labels(BaseModel):
    """The only thing that can be changed of it."""

    metadata: dict[str, str] = Field(max_length=16)


@router.post("/{completion_id}", dependencies=[Depends(needs("infer"))])
def label(request: Request, completion_id: str, labels: Labels) -> dict[str, Any]:
    """The same with other labels."""
    service: Service = request.app.state.service
    return told(service.store.label_completion(completion_id, labels.metadata))


@router.delete("/{completion_id}", dependencies=[Depends(needs("infer"))])
def delete(request: Request, completion_id: str) -> dict[str, Any]:
    """It is no longer found here; that it was answered stays in the log."""
    service: Service = request.app.state.service
    row = service.store.delete_completion(completion_id)
    return {"id": row.id, "object": "chat.completion.deleted", "deleted": True}


@router.get("/{completion_id}/messages", dependencies=[Depends(needs("read"))])
def messages(
    request: Request,
    completion_id: str,
    after: str | None = None,
    limit: int = Query(20, ge=1, le=100),
    order: Order = "asc",
) -> dict[str, Any]:
    """What was said to it."""
    service: Service = request.app.state.service
    row = service.store.completion(completion_id)
    asked: Sequence[Mapping[str, Any]] = row.request["messages"]
    rows = [
        {"id": f"{row.id}-{place}", "name": None, "content_parts": None, **said} for place, said in enumerate(asked)
    ]
    return page(rows, dict, after=after, limit=limit, order=order, name=lambda said: str(said["id"]))


def told(row: Completion) -> dict[str, Any]:
    """A kept completion as the dialect has it."""
    asked = {name: row.request.get(name) for name in ("temperature", "top_p", "seed", "tools", "response_format")}
    return {**asked, **row.response, "created": seconds(row.created), "metadata": dict(row.labels)}


def _sent(body: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(body)}\n\n".encode()
