"""/v1/chat/completions: answers, streamed or whole, and those that clients asked to keep"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from melior.data.calls import names_of
from melior.policies.engine import Sample, Thought
from melior.serving.answering import LEFT, Answering, Prompt, problem_in_stream, told_plainly, while_there
from melior.serving.asking import Asked
from melior.serving.problems import Problem
from melior.serving.said import Teller, finish_reason, logprobs, message, sent, spoken
from melior.serving.security import needs
from melior.serving.service import Service
from melior.serving.threads import ANSWERING
from melior.serving.voices import Piece
from melior.serving.wire import Order, labels_of, page, page_of, seconds
from melior.store.rows import Completion

router = APIRouter(prefix="/v1/chat/completions", tags=["chat"])
CHUNK = "chat.completion.chunk"


class Chat:
    """One chat while it is answered."""

    def __init__(self, service: Service, asked: Asked, loop: asyncio.AbstractEventLoop) -> None:
        """Raises Problem if it cannot be answered. The answer arrives in the loop; this itself may take a while."""
        asked.check()
        self.service, self.asked = service, asked
        self.names = names_of(asked.offered)
        with told_plainly("messages"):
            self.answering = Answering(service, asked.model, prefix="chatcmpl")
            policy = self.answering.voice.policy
            context = policy.renderer.context(asked.inputs)
            constraint = asked.constraint(
                policy.renderer.call_form if asked.offered else None, policy.renderer.tokenizer
            )
            most = asked.max_completion_tokens or asked.max_tokens
            settings = asked.sampling(policy.max_length - len(context), most=most, constraint=constraint)
            prompts = [Prompt(asked.inputs, context)]
            streams = bool(asked.stream)
            self.answering.ask(prompts, settings, loop=loop, streams=streams, likeliest=asked.told)
        self.tellers = [Teller(self.names, f"{self.answering.id}:{number}") for number in range(settings.n)]

    async def whole(self) -> dict[str, Any]:
        """The answer, once it is complete and in the log."""
        await self.answering.whole(self.store)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The whole answer."""
        samples = [sample for _, sample in sorted(self.answering.samples.items())]
        head, usage = self.answering.head("chat.completion"), self.answering.usage()
        return {**head, "choices": [self.choice(sample) for sample in samples], "usage": usage}

    def choice(self, sample: Sample) -> dict[str, Any]:
        """One of several."""
        said = message(sample.text, self.names, f"{self.answering.id}:{sample.number}")
        count = spoken(sample.decisions, len(sample.text), self.answering.renderer) if sample.thoughts else 0
        return {
            "index": sample.number,
            "message": said,
            "logprobs": self.logprobs(sample.thoughts[:count]),
            "finish_reason": finish_reason(sample, said.get("tool_calls")),
        }

    def logprobs(self, thoughts: Sequence[Thought]) -> dict[str, Any] | None:
        """What was thought of tokens, where that was asked for."""
        return None if self.asked.told is None else logprobs(thoughts, self.answering.grammars)

    def store(self) -> None:
        """Keeps the answer, where that was asked for."""
        if self.asked.store:
            request = self.asked.model_dump(exclude_none=True)
            self.service.store.add_completion(self.answering.id, self.asked.model, request, self.answer())

    # ------------------------------------------------------------------ in pieces

    async def stream(self) -> AsyncIterator[bytes]:
        """The answer in pieces, as server-sent events; a client that leaves has its request cancelled."""
        answering = self.answering
        try:
            for number in range(answering.settings.n):
                yield self.event(number, {"role": "assistant", "content": ""})
            async for number, piece in answering.read():
                for event in self.events(number, piece):
                    yield event
            await answering.keep(self.store)
            if self.asked.counted:
                yield sent({**answering.head(CHUNK), "choices": [], "usage": answering.usage()})
            yield b"data: [DONE]\n\n"
        except Exception as error:
            yield sent(problem_in_stream(error).body)
        finally:
            answering.leave()

    def events(self, number: int, piece: Piece) -> list[bytes]:
        """The events that tell a piece."""
        teller = self.tellers[number]
        if piece.sample is None:
            text = teller.more(piece.text)
            return [self.event(number, {"content": text}, piece.thoughts)] if text or piece.thoughts else []
        text, calls = teller.last()
        found = [self.event(number, {"content": text})] if text else []
        for place, call in enumerate(calls):
            found.append(self.event(number, {"tool_calls": [{"index": place, **call}]}))
        return [*found, self.event(number, {}, piece.thoughts, finish=finish_reason(piece.sample, calls))]

    def event(
        self, number: int, delta: Mapping[str, Any], thoughts: Sequence[Thought] = (), finish: str | None = None
    ) -> bytes:
        """One event."""
        told = self.logprobs(thoughts) if thoughts else None
        choice = {"index": number, "delta": dict(delta), "logprobs": told, "finish_reason": finish}
        return sent({**self.answering.head(CHUNK), "choices": [choice]})


@router.post("", dependencies=[Depends(needs("infer"))])
async def create(request: Request, asked: Asked) -> Any:
    """An answer."""
    service: Service = request.app.state.service
    if service.draining.is_set():
        raise Problem(503, "this server is stopping; ask another", retry=True)
    chat = await ANSWERING.run(Chat, service, asked, asyncio.get_running_loop())
    if asked.stream:
        return StreamingResponse(chat.stream(), media_type="text/event-stream")
    return await while_there(request, chat.whole()) or Response(status_code=LEFT)


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
    labels = labels_of(request)
    found = service.store.completion_page(model=model, labels=labels, after=after, limit=limit, order=order)
    return page_of(found, told)


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
        {"name": None, "content_parts": None, **said, "id": f"{row.id}-{place}"} for place, said in enumerate(asked)
    ]
    return page(rows, dict, after=after, limit=limit, order=order, name=lambda said: str(said["id"]))


def told(row: Completion) -> dict[str, Any]:
    """A kept completion as the dialect has it."""
    asked = {name: row.request.get(name) for name in ("temperature", "top_p", "seed", "tools", "response_format")}
    return {**asked, **row.response, "created": seconds(row.created), "metadata": dict(row.labels)}
