"""what many requests bring, made durable together

One transaction holds all that arrived while the one before was being written, so a disk that takes four milliseconds to
be sure does not mean two hundred and fifty opinions a second. What waits is bounded: beyond that a client is told to
come again, which is kinder than an answer that comes after it has given up.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from melior.serving.problems import Problem
from melior.store import Store
from melior.store.feedback import Said
from melior.store.log import Decided
from melior.store.rows import Feedback

T = TypeVar("T")
MOST = 256  # of one transaction
MOST_WAITING = 1_024  # more than this would wait for seconds
WAIT_S = 30.0  # for the database to say that it is sure
AGAIN_S = 1  # when to come again


@dataclass(frozen=True, eq=False)
class Asked:
    """One thing to write, and whom to tell."""

    what: Said | Decided
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]


@dataclass
class Writer:
    """A thread that writes what many requests bring, in as few transactions as it can."""

    store: Store
    most_waiting: int = MOST_WAITING
    waiting: deque[Asked] = field(default_factory=deque)
    awake: threading.Condition = field(default_factory=threading.Condition)
    stopped: bool = False
    thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to write."""
        self.stopped = False
        self.thread = threading.Thread(target=self._work, name="feedback", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Writes what is left, and ends."""
        with self.awake:
            self.stopped = True
            self.awake.notify()
        if self.thread is not None:
            self.thread.join()

    async def write(self, said: Said) -> Feedback:
        """The row, once it is durable.

        Raises:
            StoreError: if the store refuses it.
            Problem: if too much waits already, or the database does not answer.
        """
        row: Feedback = await self._written(said)
        return row

    async def log(self, decided: Decided) -> None:
        """Returns once the decisions are durable.

        Raises:
            StoreError: if the store refuses them.
            Problem: if too much waits already, or the database does not answer.
        """
        await self._written(decided)

    async def _written(self, what: Said | Decided) -> Any:
        loop = asyncio.get_running_loop()
        asked = Asked(what, loop, loop.create_future())
        with self.awake:
            if self.stopped:
                raise Problem(503, "this server is stopping; ask another", retry=True)
            if len(self.waiting) >= self.most_waiting:
                told = f"{len(self.waiting):,} others wait to be written; send it again in {AGAIN_S} s"
                raise Problem(503, told, code="overloaded", retry=True, headers={"retry-after": str(AGAIN_S)})
            self.waiting.append(asked)
            self.awake.notify()
        try:
            return await asyncio.wait_for(asked.future, WAIT_S)
        except TimeoutError:
            raise self._too_late(asked) from None

    def _too_late(self, asked: Asked) -> Problem:
        """What is told to who waited in vain. What nobody has begun to write is not written any more."""
        with self.awake:
            waits = asked in self.waiting
            if waits:
                self.waiting.remove(asked)
        if waits:
            rest, again = "nothing was kept, send it again", True
        elif isinstance(asked.what, Decided):
            rest, again = "what was decided may be in the log all the same; asked again it is decided anew", False
        elif asked.what.feedback_id is None:
            rest, again = (
                "it may be kept all the same, and twice if it is sent again; a feedback_id prevents that",
                False,
            )
        else:
            rest, again = "send it again, it will be kept once", True
        headers = {"retry-after": str(AGAIN_S)} if again else {}
        return Problem(503, f"the database has not answered for {WAIT_S:.0f} s; {rest}", retry=again, headers=headers)

    def _work(self) -> None:
        while batch := self._next():
            self._write(batch)

    def _next(self) -> Sequence[Asked]:
        """What is written next; nothing when there will be no more."""
        with self.awake:
            while not (self.waiting or self.stopped):
                self.awake.wait()
            return [self.waiting.popleft() for _ in range(min(MOST, len(self.waiting)))]

    def _write(self, batch: Sequence[Asked]) -> None:
        decided = [(asked, asked.what) for asked in batch if isinstance(asked.what, Decided)]
        said = [(asked, asked.what) for asked in batch if isinstance(asked.what, Said)]
        if decided:  # first: what is said may be of them
            self._together(decided, self._log)
        if said:
            self._together(said, self.store.add_feedbacks)

    def _log(self, decided: Sequence[Decided]) -> Sequence[None]:
        self.store.add_decided(decided)
        return [None] * len(decided)

    def _together(self, pairs: Sequence[tuple[Asked, T]], write: Callable[[Sequence[T]], Sequence[Any]]) -> None:
        """One transaction, and everybody told what became of their own."""
        batch = [asked for asked, _ in pairs]
        try:
            results: Sequence[Any] = write([what for _, what in pairs])
        except Exception as error:  # of the database: nobody's is kept
            results = [error] * len(batch)
        for loop in {asked.loop for asked in batch}:
            told = [(asked.future, result) for asked, result in zip(batch, results, strict=True) if asked.loop is loop]
            try:
                loop.call_soon_threadsafe(_tell, told)
            except RuntimeError:  # the loop has ended, and with it all who would hear
                continue


def _tell(results: Iterable[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in results:
        if future.done():  # whoever asked has left
            continue
        future.set_exception(result) if isinstance(result, Exception) else future.set_result(result)
