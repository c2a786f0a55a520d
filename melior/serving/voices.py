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
from pathlib import Path
from typing import Any

from melior.errors import DataError, MeliorError
from melior.policies.engine import Engine, Request, Sample, Thought
from melior.policies.mixing import Mixture, read_adapter
from melior.serving.problems import Problem
from melior.serving.said import spoken
from melior.types import Sampling

log = logging.getLogger(__name__)

MOST_ASKED = 256  # requests that one voice has taken and not answered: beyond, it would not answer within a minute
AGAIN_S = 2  # when to come again
HALF = "\N{REPLACEMENT CHARACTER}"  # what a character looks like before its last byte has come


@dataclass(frozen=True)
class Piece:
    """More of one output: text that came since the last piece, or, at its end, the whole sample."""

    number: int
    text: str = ""
    sample: Sample | None = None
    thoughts: tuple[Thought, ...] = ()  # of the tokens whose text has come to its end, where they were asked for


@dataclass
class Ticket:
    """One request, and where its pieces arrive: in the event loop that asked, where waiting costs no thread."""

    id: int
    voice: Voice = field(repr=False)  # which counts its ids
    loop: asyncio.AbstractEventLoop
    context: tuple[int, ...]
    settings: Sampling
    streams: bool
    adapter: str = ""  # which of the model's adapters answers; "" is the model itself
    likeliest: int | None = None  # how many likely tokens are told beside each; None: not even its own log-prob
    echoes: bool = False  # whether that is told of the context's tokens too
    read_thoughts: list[Thought] | None = None  # of the context's tokens but the first, before the first sample ends
    pieces: asyncio.Queue[Piece | BaseException] = field(default_factory=asyncio.Queue)
    told: dict[int, str] = field(default_factory=dict)  # sample → the text that was sent of it
    thought: dict[int, int] = field(default_factory=dict)  # sample → how many of its tokens were told of
    left: int = 0  # samples whose end was not read
    open: int = 0  # samples that the engine is not done with

    def put(self, piece: Piece | BaseException) -> None:
        """What the voice has to tell."""
        try:
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)
        except RuntimeError:  # the loop has ended, and nobody waits any more
            log.debug("nobody waits for request %d any more", self.id)

    def cancel(self) -> None:
        """Ends it where nobody waits for it any more."""
        self.voice.cancel(self)

    async def read(self) -> AsyncIterator[Piece]:
        """Pieces until every sample is done.

        Raises:
            MeliorError: if the engine failed.
            Problem: if the server stops before.
        """
        while self.left:
            piece = await self.pieces.get()
            if isinstance(piece, BaseException):
                self.left = 0  # nothing more will come
                raise piece
            self.left -= piece.sample is not None
            yield piece


class Gone(Exception):
    """A voice, or one of its adapters, has made room for others and must be loaded again."""


class Voice:
    """One language model, the adapters over it, and the thread that decodes for them all."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.adapters: OrderedDict[str, Path] = OrderedDict()  # name → folder; the one asked least lately first
        self.mixture: Mixture | None = None  # made with the first of them
        self.engine: Engine = policy.engine()
        self.tickets: dict[int, Ticket] = {}
        self.coming: list[Ticket] = []
        self.going: list[int] = []
        self.entering: list[Ticket] = []  # of the thread: those that came and went since its last step
        self.leaving: list[int] = []
        self.awake = threading.Condition()
        self.count = 0
        self.stopped = False
        self.broken = False  # whether the engine failed, and no other could be made
        self.given_up: Problem | None = None
        self.thread = threading.Thread(target=self._work, name="voice", daemon=True)
        self.thread.start()

    def ask(
        self,
        context: tuple[int, ...],
        settings: Sampling,
        *,
        streams: bool,
        loop: asyncio.AbstractEventLoop,
        likeliest: int | None = None,
        echoes: bool = False,
        adapter: str = "",
    ) -> Ticket:
        """A request that an adapter, or the model itself, is answering; its pieces arrive in that loop.

        Raises:
            DataError: if the context leaves no room for the answer.
            Problem: if too many are being answered already.
            Gone: if it has ended, or holds the adapter no more.
        """
        room = self.policy.max_length - len(context)
        if not context or settings.max_tokens > room:
            raise DataError(
                f"{len(context)} tokens and an answer of up to {settings.max_tokens} exceed the context of "
                f"{self.policy.max_length}; send less, or lower max_tokens"
            )
        with self.awake:
            if self.stopped or (adapter and adapter not in self.adapters):
                raise Gone
            if (before := len(self.tickets) + len(self.coming)) >= MOST_ASKED:
                told = f"{before} requests are being answered by this model; ask again in {AGAIN_S} s"
                raise Problem(503, told, code="overloaded", retry=True, headers={"retry-after": str(AGAIN_S)})
            self.count += 1
            asked = (loop, context, settings, streams, adapter, likeliest, echoes and likeliest is not None)
            ticket = Ticket(self.count, self, *asked, left=settings.n, open=settings.n)
            self.coming.append(ticket)
            self.awake.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Ends a request that nobody waits for any more."""
        with self.awake:
            self.going.append(ticket.id)
            self.awake.notify()

    # ------------------------------------------------------------------ what it holds

    def hold(self, name: str, folder: Path, *, most: int) -> None:
        """Loads an adapter; beyond `most`, those leave that answer nobody and were asked least lately.

        Raises:
            ModelError, CheckpointError: if it cannot be read, or does not fit.
            Gone: if this voice has ended.
        """
        if name not in self.adapters:
            read = read_adapter(folder, self.policy.backbone.device)  # the engine goes on meanwhile
            with self.awake:
                if self.mixture is None:
                    self.mixture = self.policy.backbone.mixture = Mixture(self.policy.backbone.inner)
                self.mixture.add(name, read)
                self.adapters[name] = folder
        with self.awake:
            if self.stopped or name not in self.adapters:
                raise Gone
            self.adapters.move_to_end(name)
            spare = [other for other in self.adapters if other not in self._asked() and other != name]
            for other in spare[: max(0, len(self.adapters) - most)]:
                self._drop(other)

    def let_go(self, name: str) -> bool:
        """Drops an adapter unless it answers somebody; whether it is not held any more."""
        with self.awake:
            if name in self.adapters and name not in self._asked():
                self._drop(name)
            return name not in self.adapters

    def stop_if_idle(self) -> bool:
        """Ends a voice that answers nobody, and lets its weights go; whether it did."""
        with self.awake:
            if self.coming or self.tickets:
                return False
            self.stopped = True
            self.awake.notify()
        self.thread.join()
        return True

    def _asked(self) -> set[str]:
        return {ticket.adapter for ticket in [*self.tickets.values(), *self.coming]}

    def _drop(self, name: str) -> None:
        assert self.mixture is not None
        del self.adapters[name]
        self.mixture.drop(name)

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
        while self._wait():
            if self.given_up is not None:
                self._fail(self.given_up)
                continue
            try:
                if self.broken:
                    self.engine, self.broken = self.policy.engine(), False
                self._enter()
                self._read()
                self.engine.step()
                self._tell()
            except Exception as error:
                log.exception("the engine failed; its requests are told, and it begins anew")
                self._fail(_told_of(error))

    def _wait(self) -> bool:
        """Waits until there are requests. False when there will be no more."""
        with self.awake:
            while not (self.coming or self.tickets or self.stopped):
                self.awake.wait()
            self.entering, self.coming = self.coming, []
            self.leaving, self.going = self.going, []
            self.tickets |= {ticket.id: ticket for ticket in self.entering}  # at no time is one of them nowhere
        return bool(self.tickets) or not self.stopped

    def _enter(self) -> None:
        """Lets requests in and out."""
        for ticket in self.entering:
            try:
                self.engine.submit(
                    Request(
                        id=ticket.id,
                        context=ticket.context,
                        settings=ticket.settings,
                        adapter=ticket.adapter,
                        told=ticket.likeliest,
                    )
                )
            except Exception as error:  # its own fault; the others are answered
                log.exception("the engine did not take a request")
                del self.tickets[ticket.id]
                ticket.put(_told_of(error))
        for number in self.leaving:
            if number in self.tickets:
                self.engine.cancel(number)  # what it had decided is told, and whoever left it may keep it

    def _read(self) -> None:
        for ticket in self.tickets.values():
            if ticket.echoes and ticket.read_thoughts is None:
                ticket.read_thoughts = self.engine.read(ticket.context, ticket.likeliest or 0, ticket.adapter)

    def _tell(self) -> None:
        for row in self.engine.rows:
            ticket = self.tickets.get(row.request.id)
            if ticket is not None and ticket.streams:
                self._stream(ticket, row, self.engine.renderer.text(row.decisions))
        for sample in self.engine.collect():
            ticket = self.tickets.get(sample.request)
            if ticket is None:
                continue
            if ticket.streams:
                self._stream(ticket, sample, sample.text, whole=True)
            ticket.put(Piece(sample.number, sample=sample, thoughts=self._told(ticket, sample, len(sample.text))))
            ticket.open -= 1
            if not ticket.open:
                del self.tickets[ticket.id]

    def _stream(self, ticket: Ticket, output: Any, text: str, *, whole: bool = False) -> None:
        """Sends what is new of a text. A stop string may still be cut off its end, and a character be half there."""
        number = output.number
        sent = ticket.told.get(number, "")
        if not whole:
            held = max((len(stop) for stop in ticket.settings.stop), default=1) - 1
            text = text[: len(text) - held] if held else text
            if text.endswith(HALF):
                return
        if text.startswith(sent) and len(text) > len(sent):
            ticket.told[number] = text
            ticket.put(Piece(number, text[len(sent) :], thoughts=self._told(ticket, output, len(text))))

    def _told(self, ticket: Ticket, output: Any, length: int) -> tuple[Thought, ...]:
        """What was thought of tokens, not told of yet, that end within so much of the text."""
        first = ticket.thought.get(output.number, 0)
        last = spoken(output.decisions, length, self.engine.renderer) if output.thoughts else 0
        ticket.thought[output.number] = max(first, last)
        return tuple(output.thoughts[first:last])

    def _fail(self, error: BaseException) -> None:
        for ticket in self.tickets.values():
            ticket.put(error)
        self.tickets.clear()
        try:
            self.engine = self.policy.engine()
        except Exception:
            log.exception("no other engine could be made; the next request has it tried again")
            self.broken = True


def _told_of(error: Exception) -> Exception:
    return error if isinstance(error, MeliorError) else RuntimeError("the engine failed")
