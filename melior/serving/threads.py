"""threads for work that may take long, so that those which all requests share are free for short work

A key is looked up, a row is read and an answer is written to the log in the threads of anyio, of which there are 40 for
all. A request that waits there for a model to be loaded would keep all others waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import anyio.to_thread
from anyio.lowlevel import RunVar

T = TypeVar("T")


class Threads:
    """Up to so many threads of each event loop; what comes while all are busy waits without one."""

    def __init__(self, name: str, most: int) -> None:
        self.most = most
        self.limiter: RunVar[anyio.CapacityLimiter] = RunVar(name)  # each event loop has its own

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """What the call results in."""
        limiter = self.limiter.get(None)
        if limiter is None:
            limiter = anyio.CapacityLimiter(self.most)
            self.limiter.set(limiter)
        return await anyio.to_thread.run_sync(call, *args, limiter=limiter)


ANSWERING = Threads("answering", 40)  # wait for a model to be loaded, or for room for it
GRADING = Threads("grading", 16)  # wait for judges, and for programs in the sandbox
EMBEDDING = Threads("embedding", 1)  # takes all cores it gets
