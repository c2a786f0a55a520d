"""what is asked while a thread is at work is done together next

A network reads sixteen rows in little more than the time it takes for one, and a thread that is woken sixteen times
costs more than the work. Nobody waits for a batch to fill: whoever asks alone is served alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import anyio.to_thread

A = TypeVar("A")
B = TypeVar("B")


class Batches(Generic[A, B]):
    """Work that is done in batches, one at a time, in a thread.

    `work` is given up to `most` of what was asked, and returns for each its result, or the exception that whoever
    asked for it is to see. One event loop asks.
    """

    def __init__(self, work: Callable[[Sequence[A]], Sequence[B | Exception]], most: int) -> None:
        self.work, self.most = work, most
        self.waiting: deque[tuple[A, asyncio.Future[B]]] = deque()
        self.task: asyncio.Task[None] | None = None  # held: a loop forgets its tasks

    async def do(self, asked: A) -> B:
        """What came of it.

        Raises:
            Exception: the one that the work has for it.
        """
        future: asyncio.Future[B] = asyncio.get_running_loop().create_future()
        self.waiting.append((asked, future))
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self.waiting:
            batch = [self.waiting.popleft() for _ in range(min(self.most, len(self.waiting)))]
            results: Sequence[B | Exception]
            try:
                results = await anyio.to_thread.run_sync(self.work, [asked for asked, _ in batch])
                if len(results) != len(batch):
                    raise RuntimeError(f"{len(results)} results came of {len(batch)} that were asked for")
            except Exception as error:  # of all of them
                results = [error] * len(batch)
            for (_, future), result in zip(batch, results, strict=True):
                if future.done():  # whoever asked has left
                    continue
                future.set_exception(result) if isinstance(result, Exception) else future.set_result(result)
