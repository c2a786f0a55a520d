"""what a server counts, by the names of Prometheus; nothing in it tells users apart"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # seconds


class Metrics:
    """One server's counters, in a registry of their own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("melior_requests", "Requests by what was asked.", ["route", "method", "code"], **made)
        self.durations = Histogram(
            "melior_request_duration_seconds", "From a request to the end of its answer.", ["route"],
            buckets=LATENCIES, **made,
        )  # fmt: skip
        self.tokens = Counter("melior_tokens", "Tokens that models read and decided.", ["model", "type"], **made)
        self.feedback = Counter("melior_feedback", "What people and systems said.", ["name"], **made)

    def exposition(self) -> bytes:
        """Everything that was counted, as Prometheus reads it."""
        return generate_latest(self.registry)


class Counted:
    """ASGI middleware that counts requests and times them, by the route's pattern and never by its ids."""

    def __init__(self, app: Callable[[Any, Any, Any], Awaitable[None]], metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, code = time.perf_counter(), "500"

        async def sending(message: Any) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "")
            self.metrics.requests.labels(route or "none", scope["method"], code).inc()
            self.metrics.durations.labels(route or "none").observe(time.perf_counter() - started)
