"""a server that ends without dropping what it was asked

    SIGTERM ─▶ /readyz says 503 ─ LINGER_S ─▶ the port is closed ─ DRAIN_S ─▶ what is left is told so, and it ends

While it lingers the port is open and every answer closes its connection, so that whoever balances load, and every
client that keeps connections, goes elsewhere by itself and finds no door slammed. Ctrl-C closes the port at once.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from melior.serving.pauses import spare_all
from melior.serving.problems import Problem
from melior.serving.service import Service

LINGER_S = 3.0  # health checks commonly come every second or two
DRAIN_S = 30.0  # for what is being answered
KEEP_ALIVE_S = 75  # longer than proxies keep a connection (nginx: 60 s), or they would send into one that was closed
TELL_S = 5.0  # for clients to be told that their answers will not be whole


class Draining(uvicorn.Server):
    """uvicorn's server, which announces its end before it begins."""

    def __init__(self, config: uvicorn.Config, service: Service, *, linger_s: float, drain_s: float) -> None:
        super().__init__(config)
        self.service, self.linger_s, self.drain_s = service, linger_s, drain_s
        self.asked: float | None = None  # when to end was asked for

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Only notes it where it can wait: a signal's handler may not take locks."""
        if sig == signal.SIGTERM and self.asked is None:
            self.asked = time.monotonic()
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Whether to end now; looked at ten times a second."""
        if self.asked is not None:
            self.service.draining.set()
            if not self.should_exit and time.monotonic() - self.asked >= self.linger_s:
                super().handle_exit(signal.SIGTERM, None)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Waits for what is being answered, and tells what cannot be."""
        self.service.draining.set()
        patience = asyncio.create_task(self._give_up())
        await super().shutdown(sockets)
        patience.cancel()

    async def _give_up(self) -> None:
        await asyncio.sleep(self.drain_s)
        told = f"this server stopped before the answer was whole, {self.drain_s:.0f} s after it was asked to; ask again"
        await asyncio.to_thread(self.service.voices.give_up, Problem(503, told, code="stopping", retry=True))


def serve_until_stopped(
    app: FastAPI, service: Service, host: str, port: int, *, linger_s: float = LINGER_S, drain_s: float = DRAIN_S
) -> None:
    """Serves until a signal comes and all is answered."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,  # what was asked is in the log of the store, and counted by route
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(drain_s + TELL_S),
    )
    server = Draining(config, service, linger_s=linger_s, drain_s=drain_s)
    spare_all()
    try:
        server.run()
    except KeyboardInterrupt:  # raised again by uvicorn once all is answered
        return
    if not server.started:  # uvicorn has said why
        sys.exit(1)
