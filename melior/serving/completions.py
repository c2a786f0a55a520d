"""/v1/completions: texts that go on, without any chat template

The dialect's older half, which evaluation harnesses speak: several prompts in one request, `echo` with the log-probs of
the prompt itself, prompts as token ids. Answers are decisions in the log, as those of chats are.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from melior.data.chat import Renderer
from melior.errors import DataError
from melior.policies.engine import Sample, Thought
from melior.serving.answering import LEFT, Answering, Prompt, problem_in_stream, told_plainly, while_there
from melior.serving.asking import Drawn, unserved
from melior.serving.problems import Problem
from melior.serving.said import sent, spoken, token
from melior.serving.security import needs
from melior.serving.service import Service
from melior.serving.threads import ANSWERING
from melior.serving.voices import Piece

router = APIRouter(prefix="/v1/completions", tags=["completions"])
KIND = "text_completion"
USUAL = 16  # tokens, where nobody says how many: as OpenAI has it
MOST_PROMPTS = 128


class Begun(Drawn):
    """What a client sends to have it go on."""

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=5)
    suffix: str | None = None
    best_of: int | None = None

    def check(self) -> None:
        """Nothing, if all of it can be honoured.

        Raises:
            Problem: naming what cannot.
        """
        self.refuse("suffix")
        if self.best_of not in (None, 1, self.n):
            raise unserved("best_of is not served; ask for n and choose", "best_of")
        if self.max_tokens == 0 and not self.echo:
            raise Problem(400, "max_tokens is 0 and nothing is echoed; ask for at least 1 token", param="max_tokens")
        if not 1 <= len(self.begun) <= MOST_PROMPTS:
            raise Problem(400, f"prompt has {len(self.begun)} texts; send 1 to {MOST_PROMPTS}", param="prompt")
        if self.echo and self.stream:
            raise unserved("echo is not served in a stream", "echo")

    @property
    def begun(self) -> Sequence[str | list[int]]:
        """The prompts, one by one."""
        single = isinstance(self.prompt, str) or (bool(self.prompt) and isinstance(self.prompt[0], int))
        return [self.prompt] if single else self.prompt  # type: ignore[list-item, return-value]

    def read(self, renderer: Renderer) -> list[Prompt]:
        """The prompts as this model reads them.

        Raises:
            DataError: if one is empty, or holds a token that there is not.
        """
        plain = Renderer(renderer.tokenizer, "plain", tuple(renderer.stop_ids))
        known = len(renderer.tokenizer)
        found = []
        for begun in self.begun:
            if not isinstance(begun, str) and not all(0 <= number < known for number in begun):
                raise DataError(f"a prompt holds a token beyond the {known} that this model has")
            text = begun if isinstance(begun, str) else renderer.tokenizer.decode(begun)
            found.append(Prompt(text, plain.context(begun) if isinstance(begun, str) else tuple(begun)))
        return found


class Completing:
    """One request while it is answered."""

    def __init__(self, service: Service, asked: Begun, loop: asyncio.AbstractEventLoop) -> None:
        """Raises Problem if it cannot be answered."""
        asked.check()
        self.asked = asked
        self.offsets: dict[int, int] = {}  # choice → where in its text the next token begins
        with told_plainly("prompt"):
            self.answering = Answering(service, asked.model, prefix="cmpl", reads_only=asked.max_tokens == 0)
            policy = self.answering.voice.policy
            prompts = asked.read(policy.renderer)
            room = policy.max_length - max(len(prompt.context) for prompt in prompts)
            most = USUAL if asked.max_tokens is None else max(1, asked.max_tokens)
            settings = asked.sampling(room, most=most)
            streams = bool(asked.stream)
            self.answering.ask(
                prompts, settings, loop=loop, streams=streams, likeliest=asked.logprobs, echoes=bool(asked.echo)
            )

    async def whole(self) -> dict[str, Any]:
        """The answer, once it is complete and in the log."""
        answering = self.answering
        await answering.whole()
        count = len(answering.prompts) * answering.settings.n
        choices = [self.choice(number, answering.samples.get(number)) for number in range(count)]
        usage = self.answering.usage()
        return {**self.answering.head(KIND), "choices": choices, "usage": usage}

    def choice(self, number: int, sample: Sample | None) -> dict[str, Any]:
        """One of several: what was echoed, and what goes on, if anything."""
        place = number // self.answering.settings.n
        prompt, ticket = self.answering.prompts[place], self.answering.tickets[place]
        echoed = str(prompt.inputs) if self.asked.echo else ""
        told: list[Thought | None] = [None, *(ticket.read_thoughts or ())] if self.asked.echo else []
        if sample is not None:
            told += sample.thoughts[: spoken(sample.decisions, len(sample.text), self.answering.renderer)]
        return {
            "index": number,
            "text": echoed + (sample.text if sample is not None else ""),
            "logprobs": None if self.asked.logprobs is None else self.logprobs(number, told, prompt.context),
            "finish_reason": sample.finish if sample is not None else "length",
        }

    def logprobs(self, choice: int, thoughts: Sequence[Thought | None], context: Sequence[int] = ()) -> dict[str, Any]:
        """What was thought of more of its tokens, in four lists; the context's first, None, has no log-prob."""
        offset = self.offsets.get(choice, 0)
        grammars = self.answering.grammars
        told: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for thought in thoughts:
            number = context[0] if thought is None else thought.token
            log_prob = None if thought is None else thought.log_prob
            text = token(number, 0.0, grammars)["token"]
            told["tokens"].append(text)
            told["token_logprobs"].append(log_prob)
            likeliest = () if thought is None else thought.likeliest
            tops = {token(other, 0.0, grammars)["token"]: chance for other, chance in likeliest}
            told["top_logprobs"].append(tops if thought is not None else None)
            told["text_offset"].append(offset)
            offset += len(text)
        self.offsets[choice] = offset
        return told

    async def stream(self) -> AsyncIterator[bytes]:
        """The answer in pieces, as server-sent events; a client that leaves has its request cancelled."""
        answering = self.answering
        try:
            async for number, piece in answering.read():
                yield self.event(number, piece)
            await answering.keep()
            if self.asked.counted:
                yield sent({**answering.head(KIND), "choices": [], "usage": answering.usage()})
            yield b"data: [DONE]\n\n"
        except Exception as error:
            yield sent(problem_in_stream(error).body)
        finally:
            answering.leave()

    def event(self, number: int, piece: Piece) -> bytes:
        """One piece."""
        logprobs = self.logprobs(number, piece.thoughts) if piece.thoughts else None
        finish = piece.sample.finish if piece.sample is not None else None
        choice = {"index": number, "text": piece.text, "logprobs": logprobs, "finish_reason": finish}
        return sent({**self.answering.head(KIND), "choices": [choice]})


@router.post("", dependencies=[Depends(needs("infer"))])
async def create(request: Request, asked: Begun) -> Any:
    """What goes on from one or more texts."""
    service: Service = request.app.state.service
    if service.draining.is_set():
        raise Problem(503, "this server is stopping; ask another", retry=True)
    completing = await ANSWERING.run(Completing, service, asked, asyncio.get_running_loop())
    if asked.stream:
        return StreamingResponse(completing.stream(), media_type="text/event-stream")
    return await while_there(request, completing.whole()) or Response(status_code=LEFT)
