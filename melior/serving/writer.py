"""feedback of many requests, made durable together

One transaction holds all that arrived while the one before was being written, so a disk that takes four milliseconds to
be sure does not mean two hundred and fifty opinions a second.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from melior.serving.problems import Problem
from melior.store import Store
from melior.store.log import Said
from melior.store.rows import Feedback

MOST = 256  # of one transaction
WAIT_S = 30.0  # for the database to say that it is sure


@dataclass
class Writer:
    """A thread that writes what many requests bring, in as few transactions as it can."""

    store: Store
    waiting: queue.Queue[tuple[Said, Future[Feedback]] | None] = field(default_factory=queue.Queue)
    thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to write."""
        self.thread = threading.Thread(target=self._work, name="feedback", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Writes what is left, and ends."""
        self.waiting.put(None)
        if self.thread is not None:
            self.thread.join()

    def write(self, said: Said) -> Feedback:
        """The row, once it is durable.

        Raises:
            StoreError: if the store refuses it.
        """
        future: Future[Feedback] = Future()
        self.waiting.put((said, future))
        try:
            return future.result(WAIT_S)
        except TimeoutError:
            told = f"the database has not answered for {WAIT_S:.0f} s; send it again, it will be kept once"
            raise Problem(503, told, retry=True) from None

    def _work(self) -> None:
        while (first := self.waiting.get()) is not None:
            batch = [first]
            last = False
            while len(batch) < MOST and not self.waiting.empty():
                item = self.waiting.get()
                if item is None:
                    last = True
                    break
                batch.append(item)
            self._write(batch)
            if last:
                return

    def _write(self, batch: Sequence[tuple[Said, Future[Feedback]]]) -> None:
        try:
            results: Sequence[Feedback | Exception] = self.store.add_feedbacks([said for said, _ in batch])
        except Exception as error:  # of the database: nobody's is kept
            results = [error] * len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            future.set_exception(result) if isinstance(result, Exception) else future.set_result(result)
