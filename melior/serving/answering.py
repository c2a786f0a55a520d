"""prompts while they are answered, and the log of all answers

Every answer is a decision in the log before its client has the end of it: what was read, what was decided, with which
log-probs, by which version. The id of the answer is that of its first choice's decision; choice i has `ID:i`. Where a
client leaves, the engine stops within a step, and what it had decided is in the log with finish "cancelled", which
nothing is trained on.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio.to_thread
from fastapi import Request

from melior.errors import ConfigError, DataError, MeliorError
from melior.policies.constraints import Grammars, check_biases
from melior.policies.engine import Sample
from melior.serving.loaded import Speaker
from melior.serving.models import alias_of, version_of
from melior.serving.problems import Problem, problem_of
from melior.serving.service import Service
from melior.serving.voices import Piece, Ticket
from melior.store.rows import Version
from melior.types import Record, Sampling

log = logging.getLogger(__name__)
T = TypeVar("T")

LEFT = 499  # what proxies note where the client closed the connection; nobody reads it
_leaving: set[asyncio.Task[None]] = set()  # a loop holds its tasks weakly


@dataclass(frozen=True)
class Prompt:
    """What is read: as the log keeps it, and as tokens."""

    inputs: Any
    context: tuple[int, ...]


class Answering:
    """One request while it is answered."""

    def __init__(self, service: Service, model: str, *, prefix: str) -> None:
        """Raises NotFound or Problem if nothing answers by that name."""
        self.service, self.model = service, model
        self.id, self.created = f"{prefix}_{secrets.token_hex(12)}", int(time.time())
        self.version: Version = version_of(service, model)
        self.alias = alias_of(model, self.version) or None
        self.voice: Speaker = service.voices.speaker(self.version)
        self.prompts: list[Prompt] = []
        self.tickets: list[Ticket] = []
        self.samples: dict[int, Sample] = {}  # by the number of their choice

    @property
    def renderer(self) -> Any:
        """The tokenizer and template of what answers."""
        return self.voice.policy.renderer

    @property
    def grammars(self) -> Grammars:
        """The bytes of its tokens."""
        return Grammars.of(self.renderer, len(self.voice.policy.backbone.head.weight))

    def ask(
        self,
        prompts: Sequence[Prompt],
        settings: Sampling,
        *,
        loop: asyncio.AbstractEventLoop,
        streams: bool = False,
        likeliest: int | None = None,
        echoes: bool = False,
    ) -> None:
        """Has them answered; pieces arrive in the loop.

        Raises:
            DataError: if a prompt leaves no room for the answer.
            ConfigError: if the settings cannot be followed.
            Problem: if too many are being answered already.
        """
        self.settings = settings
        check_biases(settings, len(self.voice.policy.backbone.head.weight))
        if settings.constraint:
            self.grammars.follow(settings.constraint)
        try:
            for prompt in prompts:
                self.tickets.append(
                    self.voice.ask(
                        prompt.context, settings, streams=streams, loop=loop, likeliest=likeliest, echoes=echoes
                    )
                )
                self.prompts.append(prompt)
        except (MeliorError, Problem):
            for ticket in self.tickets:
                self.voice.cancel(ticket)
            raise

    async def read(self) -> AsyncIterator[tuple[int, Piece]]:
        """Pieces, each with the number of its choice.

        Raises:
            Problem: if it cannot be answered to the end.
        """
        waiting = any(ticket.streams for ticket in self.tickets)
        for place, ticket in enumerate(self.tickets):
            async for piece in ticket.read():
                if waiting:
                    waiting = False
                    self.service.metrics.first_token()
                number = place * self.settings.n + piece.number
                if piece.sample is not None:
                    self.samples[number] = piece.sample
                yield number, piece

    async def whole(self) -> list[Sample]:
        """Every sample, once all are complete and in the log.

        Raises:
            Problem: if it cannot be answered to the end.
        """
        try:
            async for _ in self.read():
                pass
        finally:
            self.leave()
        await anyio.to_thread.run_sync(self.keep)
        return [self.samples[number] for number in sorted(self.samples)]

    def keep(self) -> None:
        """Writes what was decided to the log.

        Raises:
            Problem: if an answer was given up.
        """
        decided = {number: self.samples[number] for number in sorted(self.samples) if self.samples[number].decisions}
        if decided:
            self.service.store.add_records(
                [self._record(number, sample) for number, sample in decided.items()],
                ids=[f"{self.id}:{number}" if number else self.id for number in decided],
                alias=self.alias,
            )
        tokens = self.service.metrics.tokens
        tokens.labels(self.version.name, "input").inc(sum(len(ticket.context) for ticket in self.tickets))
        tokens.labels(self.version.name, "output").inc(sum(len(sample.decisions) for sample in decided.values()))
        if any(sample.finish == "cancelled" for sample in self.samples.values()):
            raise Problem(400, "the answer was given up: its schema became too complex to follow; simplify it")

    def _record(self, number: int, sample: Sample) -> Record:
        prompt = self.prompts[number // self.settings.n]
        return Record(
            inputs=prompt.inputs,
            output=sample.text,
            group=self.id if len(self.prompts) == 1 else f"{self.id}:{number // self.settings.n}",
            context=prompt.context,
            decisions=sample.decisions,
            behavior_log_probs=sample.log_probs,
            sampling=self.settings,
            policy_version=self.version.id,
            fingerprint=self.renderer.fingerprint,
            finish=sample.finish,
        )

    def leave(self) -> None:
        """Ends what nobody waits for any more, if anything; what it had decided is kept as broken off."""
        left = [ticket for ticket in self.tickets if ticket.left]
        for ticket in left:
            self.voice.cancel(ticket)
        if left:
            task = asyncio.get_running_loop().create_task(self._broken_off())
            _leaving.add(task)
            task.add_done_callback(_leaving.discard)

    async def _broken_off(self) -> None:
        try:
            async for _ in self.read():
                pass
            await anyio.to_thread.run_sync(self.keep)
        except Problem:
            pass  # that it was given up is what is being kept
        except Exception:
            log.exception("what a client left behind could not be kept")

    def head(self, kind: str) -> dict[str, Any]:
        """What all answers and parts of answers begin with."""
        told = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**told, "system_fingerprint": self.version.fingerprint[:16]}

    def usage(self) -> dict[str, int]:
        """Tokens that were read and decided."""
        read = sum(len(ticket.context) for ticket in self.tickets)
        decided = sum(len(sample.decisions) for sample in self.samples.values())
        return {"prompt_tokens": read, "completion_tokens": decided, "total_tokens": read + decided}


@contextmanager
def told_plainly(param: str) -> Iterator[None]:
    """Has what cannot be read or followed told as a problem of that parameter."""
    try:
        yield
    except DataError as error:
        code = "context_length_exceeded" if "exceed the context" in str(error) else None
        raise Problem(400, str(error), param=param, code=code) from error
    except ConfigError as error:
        raise Problem(400, str(error), code="unsupported_value") from error


async def while_there(request: Request, work: Awaitable[T]) -> T | None:
    """What the work results in; None where the client leaves first, and then the work is cancelled."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait({working, leaving})


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def problem_in_stream(error: Exception) -> Problem:
    """What a client is told where its stream has begun and cannot go on."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, MeliorError):
        return problem_of(error)
    log.exception("a stream could not go on")
    return Problem(500, "the server failed while it answered; try again", code="internal_error", retry=True)
