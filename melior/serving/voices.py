"""language models that answer: one engine each, in which all requests are decoded together

A voice is a thread around an engine. Requests enter whenever they come, and leave when they are done; one whose client
goes away is cancelled, and what it would have cost is left to the others.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from melior.errors import DataError, MeliorError
from melior.policies.engine import Engine, Request, Sample
from melior.policies.kinds import load_policy
from melior.serving.problems import Problem
from melior.store.rows import Version
from melior.types import Sampling

log = logging.getLogger(__name__)

MOST_ASKED = 256  # requests that one voice has taken and not answered: beyond, it would not answer within a minute
AGAIN_S = 2  # when to come again
LOADED = 2  # models that are held at once; the one that was asked least lately goes first
HALF = "\N{REPLACEMENT CHARACTER}"  # what a character looks like before its last byte has come


@dataclass(frozen=True)
class Piece:
    """More of one output: text that came since the last piece, or, at its end, the whole sample."""

    number: int
    text: str = ""
    sample: Sample | None = None


@dataclass
class Ticket:
    """One request, and where its pieces arrive: in the event loop that asked, where waiting costs no thread."""

    id: int
    loop: asyncio.AbstractEventLoop
    context: tuple[int, ...]
    settings: Sampling
    streams: bool
    pieces: asyncio.Queue[Piece | BaseException] = field(default_factory=asyncio.Queue)
    told: dict[int, str] = field(default_factory=dict)  # sample → the text that was sent of it
    left: int = 0  # samples whose end was not read
    open: int = 0  # samples that the engine is not done with

    def put(self, piece: Piece | BaseException) -> None:
        """What the voice has to tell."""
        try:
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)
        except RuntimeError:  # the loop has ended, and nobody waits any more
            log.debug("nobody waits for request %d any more", self.id)

    async def read(self) -> AsyncIterator[Piece]:
        """Pieces until every sample is done.

        Raises:
            MeliorError: if the engine failed.
            Problem: if the server stops before.
        """
        while self.left:
            piece = await self.pieces.get()
            if isinstance(piece, BaseException):
                raise piece
            self.left -= piece.sample is not None
            yield piece


class Voice:
    """One language model and the thread that decodes for it."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.engine: Engine = policy.engine()
        self.tickets: dict[int, Ticket] = {}
        self.coming: list[Ticket] = []
        self.going: list[int] = []
        self.awake = threading.Condition()
        self.count = 0
        self.stopped = False
        self.given_up: Problem | None = None
        self.thread = threading.Thread(target=self._work, name="voice", daemon=True)
        self.thread.start()

    def ask(self, inputs: Any, settings: Sampling, *, streams: bool, loop: asyncio.AbstractEventLoop) -> Ticket:
        """A request that is being answered; its pieces arrive in that loop.

        Raises:
            DataError: if the inputs leave no room for the answer.
            Problem: if too many are being answered already.
        """
        context = self.policy.renderer.context(inputs)
        room = self.policy.max_length - len(context)
        if not context or settings.max_tokens > room:
            raise DataError(
                f"{len(context)} tokens and an answer of up to {settings.max_tokens} exceed the context of "
                f"{self.policy.max_length}; send less, or lower max_tokens"
            )
        with self.awake:
            if (before := len(self.tickets) + len(self.coming)) >= MOST_ASKED:
                told = f"{before} requests are being answered by this model; ask again in {AGAIN_S} s"
                raise Problem(503, told, code="overloaded", retry=True, headers={"retry-after": str(AGAIN_S)})
            self.count += 1
            ticket = Ticket(self.count, loop, context, settings, streams, left=settings.n, open=settings.n)
            self.coming.append(ticket)
            self.awake.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Ends a request that nobody waits for any more."""
        with self.awake:
            self.going.append(ticket.id)
            self.awake.notify()

    def give_up(self, problem: Problem) -> None:
        """Tells all that is being answered, and all that still comes, that it will not be."""
        with self.awake:
            self.given_up = problem
            self.awake.notify()

    def stop(self, *, wait: bool = True) -> None:
        """Ends the thread; what is being answered is answered first."""
        with self.awake:
            self.stopped = True
            self.awake.notify()
        if wait:
            self.thread.join()

    # ------------------------------------------------------------------ the thread

    def _work(self) -> None:
        while self._enter():
            if self.given_up is not None:
                self._fail(self.given_up)
                continue
            try:
                self.engine.step()
                self._tell()
            except Exception as error:
                log.exception("the engine failed; its requests are told, and it begins anew")
                self._fail(error if isinstance(error, MeliorError) else RuntimeError("the engine failed"))

    def _enter(self) -> bool:
        """Lets requests in and out; waits where there are none. False when there will be no more."""
        with self.awake:
            while not (self.coming or self.tickets or self.stopped):
                self.awake.wait()
            coming, self.coming = self.coming, []
            going, self.going = self.going, []
        for ticket in coming:
            self.tickets[ticket.id] = ticket
            self.engine.submit(Request(id=ticket.id, context=ticket.context, settings=ticket.settings))
        for number in going:
            if number in self.tickets:
                self.engine.cancel(number)
                del self.tickets[number]
        return bool(self.tickets) or not self.stopped

    def _tell(self) -> None:
        for row in self.engine.rows:
            ticket = self.tickets.get(row.request.id)
            if ticket is not None and ticket.streams:
                self._stream(ticket, row.number, self.engine.renderer.text(row.decisions))
        for sample in self.engine.collect():
            ticket = self.tickets.get(sample.request)
            if ticket is None:
                continue
            if ticket.streams:
                self._stream(ticket, sample.number, sample.text, whole=True)
            ticket.put(Piece(sample.number, sample=sample))
            ticket.open -= 1
            if not ticket.open:
                del self.tickets[ticket.id]

    def _stream(self, ticket: Ticket, number: int, text: str, *, whole: bool = False) -> None:
        """Sends what is new of a text. A stop string may still be cut off its end, and a character be half there."""
        sent = ticket.told.get(number, "")
        if not whole:
            held = max((len(stop) for stop in ticket.settings.stop), default=1) - 1
            text = text[: len(text) - held] if held else text
            if text.endswith(HALF):
                return
        if text.startswith(sent) and len(text) > len(sent):
            ticket.told[number] = text
            ticket.put(Piece(number, text[len(sent) :]))

    def _fail(self, error: BaseException) -> None:
        for ticket in self.tickets.values():
            ticket.put(error)
        self.tickets.clear()
        self.engine = self.policy.engine()


@dataclass
class Voices:
    """The models that are loaded."""

    loaded: OrderedDict[str, Voice] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, version: Version) -> Voice:
        """The voice of a version, loaded where it is not yet.

        Raises:
            DataError: if it is no language model.
        """
        with self.lock:
            if version.id not in self.loaded:
                policy = load_policy(version.folder)
                if policy.kind != "language":
                    raise DataError(f"{version.name} is a {policy.kind} policy and does not chat; ask /v1/decisions")
                self.loaded[version.id] = Voice(policy)
                while len(self.loaded) > LOADED:
                    self.loaded.popitem(last=False)[1].stop(wait=False)
            self.loaded.move_to_end(version.id)
            return self.loaded[version.id]

    def give_up(self, problem: Problem) -> None:
        """Tells all that is being answered that it will not be."""
        with self.lock:
            for voice in self.loaded.values():
                voice.give_up(problem)

    def stop(self) -> None:
        """Ends all, when they have answered what they were asked."""
        with self.lock:
            while self.loaded:
                self.loaded.popitem()[1].stop()
