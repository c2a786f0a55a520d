"""one line of JSON for each request: who asked what, and how it ended; never a token, a body, an id or a query"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from melior.store.query import now

log = logging.getLogger("melior.access")


class AccessLog:
    """ASGI middleware that writes a line when an answer is over."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not log.isEnabledFor(logging.INFO):
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            key = scope.get("melior.key")
            line = {
                "time": now(),
                "request_id": scope.get("melior.request_id"),
                "method": scope["method"],
                "route": getattr(scope.get("route"), "path", None),
                "status": status or None,  # none was sent: the client had left
                "ms": round(1_000 * (time.perf_counter() - started), 1),
                "key": key.id if key is not None else None,
            }
            log.info("%s", json.dumps(line))


def log_requests(level: str, *, access: bool) -> None:
    """Has the server write to stderr: lines of requests where they are wanted, and what goes wrong from a level on."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.propagate = False
    log.setLevel(logging.INFO if access else logging.WARNING)
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
