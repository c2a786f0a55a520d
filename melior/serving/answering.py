"""prompts while they are answered, and the log of all answers

Every answer is a decision in the log before its client has the end of it: what was read, what was decided, with which
log-probs, by which version. The id of the answer is that of its first choice's decision; choice i has `ID:i`. Where a
client leaves, the engine stops within a step, and what it had decided is in the log with finish "cancelled", which
nothing is trained on. Where the engine fails, the choices that were complete are in the log.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
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


@dataclass(frozen=True)
class Prompt:
    """What is read: as the log keeps it, and as tokens."""

    inputs: Any
    context: tuple[int, ...]


class Answering:
    """One request while it is answered."""

    def __init__(self, service: Service, model: str, *, prefix: str, reads_only: bool = False) -> None:
        """Raises NotFound or Problem if nothing answers by that name.

        `reads_only`: the token that an engine decides behind each prompt was not asked for, and is no answer.
        """
        self.service, self.model, self.reads_only = service, model, reads_only
        self.id, self.created = f"{prefix}_{secrets.token_hex(12)}", int(time.time())
        self.version: Version = version_of(service, model)
        self.alias = alias_of(model, self.version) or None
        self.voice: Speaker = service.voices.speaker(self.version)
        self.prompts: list[Prompt] = []
        self.tickets: list[Ticket] = []
        self.samples: dict[int, Sample] = {}  # by the number of their choice
        self.kept = False  # whether they are, or are being, written to the log

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
        except Exception:
            for ticket in self.tickets:
                ticket.cancel()
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
                yield self._noted(place, piece), piece

    def _noted(self, place: int, piece: Piece) -> int:
        number = place * self.settings.n + piece.number
        if piece.sample is not None and not self.reads_only:
            self.samples[number] = piece.sample
        return number

    async def whole(self, then: Callable[[], None] | None = None) -> None:
        """Has all samples completed and kept.

        Raises:
            Problem: if it cannot be answered to the end.
        """
        try:
            async for _ in self.read():
                pass
            await self.keep(then)
        finally:
            self.leave()

    async def keep(self, then: Callable[[], None] | None = None) -> None:
        """Writes what was decided to the log, and then does what else is to be done, even if its client leaves.

        Raises:
            Problem: if an answer was given up.
        """
        self.kept = True
        keeping = self._hold(anyio.to_thread.run_sync(self._write, then))
        try:
            await asyncio.shield(keeping)
        except asyncio.CancelledError:
            keeping.add_done_callback(_log_failure)
            raise

    def _hold(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self.service.keeping.add(task)
        task.add_done_callback(self.service.keeping.discard)
        return task

    def _write(self, then: Callable[[], None] | None = None) -> None:
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
        if then is not None:
            then()

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
        """Ends what nobody waits for any more, if anything; what was decided and is not kept yet will be."""
        for ticket in self.tickets:
            if ticket.left:
                ticket.cancel()
        if not self.kept:
            self.kept = True
            self._hold(self._keep_the_rest()).add_done_callback(_log_failure)

    async def _keep_the_rest(self) -> None:
        for place, ticket in enumerate(self.tickets):
            try:
                async for piece in ticket.read():
                    self._noted(place, piece)
            except Exception as error:  # of the engine, which has told its log
                log.debug("request %d was not answered to the end: %s", ticket.id, error)
        await anyio.to_thread.run_sync(self._write)

    def head(self, kind: str) -> dict[str, Any]:
        """What all answers and parts of answers begin with."""
        told = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**told, "system_fingerprint": self.version.fingerprint[:16]}

    def usage(self) -> dict[str, int]:
        """Tokens that were read and decided."""
        read = sum(len(ticket.context) for ticket in self.tickets)
        decided = sum(len(sample.decisions) for sample in self.samples.values())
        return {"prompt_tokens": read, "completion_tokens": decided, "total_tokens": read + decided}


def _log_failure(keeping: asyncio.Task[None]) -> None:
    """For want of anybody who waits for it. A Problem is what a client would have been told of its answer."""
    if not keeping.cancelled() and (error := keeping.exception()) and not isinstance(error, Problem):
        log.error("what a client left behind could not be kept", exc_info=error)


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
