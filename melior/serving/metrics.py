"""what a server counts and what its database says, by the names of Prometheus; nothing in it tells users apart

Labels come from lists that stay short: models of the registry, names of keys, graders, feedback. A name that nobody
registered is "unknown", and of names that clients invent the first are told and the rest are "other".
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter as Tally
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from melior.errors import StoreError
from melior.store import Store

LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # seconds
MOST_NAMES = 200  # of one kind that are told apart
METHODS = ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH")
UNKNOWN, OTHER = "unknown", "other"
FRESH_S = 5.0  # what the database said is told again for so long: scrapes of several watchers cost one
UNKEPT = "other_error"  # the kind of an error in the log, which keeps its words and not its kind

log = logging.getLogger(__name__)


@dataclass
class Asked:
    """One request as far as it is understood; filled in while it is answered."""

    started: float = field(default_factory=time.perf_counter)
    model: str = ""
    alias: str = ""
    answering: bool = False  # by a model: not a look at one


_asked: ContextVar[Asked | None] = ContextVar("asked", default=None)


def asks_for(model: str, alias: str = "") -> None:
    """Notes for which model the request under way is; the first that is named counts."""
    asked = _asked.get()
    if asked is not None and asked.model in ("", UNKNOWN):
        asked.model, asked.alias = model, alias


class Names:
    """The first names of a kind that come by; all others are one."""

    def __init__(self, most: int = MOST_NAMES) -> None:
        self.most, self.known, self.lock = most, set[str](), threading.Lock()

    def __call__(self, name: str) -> str:
        with self.lock:
            if len(self.known) < self.most:
                self.known.add(name)
            return name if name in self.known else OTHER


class Metrics:
    """One server's counters, in a registry of their own; with a store, what the database says too."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, store: Store | None = None) -> None:
        self.registry = CollectorRegistry()
        self.models, self.names, self.sources, self.graders = Names(), Names(), Names(), Names()
        made: dict[str, Any] = {"registry": self.registry}
        timed: dict[str, Any] = {"buckets": LATENCIES, **made}
        self.requests = Counter(
            "melior_requests", "Requests, by the model that was asked for.", ["model", "alias", "code"], **made
        )
        self.durations = Histogram(
            "melior_request_duration_seconds", "From a request to a model to the end of its answer.", **timed
        )
        self.first_tokens = Histogram(
            "melior_time_to_first_token_seconds", "From a request to the first words of a streamed answer.", **timed
        )
        self.routes = Counter("melior_http_requests", "Requests, by route.", ["route", "method", "code"], **made)
        self.route_durations = Histogram(
            "melior_http_request_duration_seconds", "From a request to the end of its answer, by route.", ["route"],
            **timed,
        )  # fmt: skip
        self.tokens = Counter("melior_tokens", "Tokens that models read and decided.", ["model", "type"], **made)
        self.feedback = Counter("melior_feedback", "What people and systems said.", ["name", "source"], **made)
        if store is not None:
            self.stored = Stored(store, self.graders)
            self.registry.register(self.stored)

    def exposition(self) -> bytes:
        """Everything that was counted, as Prometheus reads it."""
        return generate_latest(self.registry)

    def told(self, name: str, source: str) -> None:
        """Counts one piece of feedback; its source is the name of the key it came with."""
        self.feedback.labels(self.names(name), self.sources(source)).inc()

    def first_token(self) -> None:
        """Notes that the first words of the request under way go out."""
        asked = _asked.get()
        if asked is not None:
            self.first_tokens.observe(time.perf_counter() - asked.started)

    def grader_failed(self, grader: str, kind: str) -> None:
        """Counts one output that a grader had no number for."""
        self.stored.errors[self.graders(grader), kind] += 1

    def answered(self, asked: Asked, route: str, method: str, code: str) -> None:
        """Counts one request that is over."""
        seconds = time.perf_counter() - asked.started
        self.routes.labels(route, method, code).inc()
        self.route_durations.labels(route).observe(seconds)
        self.requests.labels(self.models(asked.model) if asked.answering else "", asked.alias, code).inc()
        if asked.answering:
            self.durations.observe(seconds)


class Stored(Collector):
    """What the database says: of jobs in other processes and of other servers too."""

    def __init__(self, store: Store, graders: Names) -> None:
        self.store, self.lock = store, threading.Lock()
        self.graders = graders  # that errors are told of
        self.models, self.rewarded = Names(), Names()  # of means, which take no room from errors
        self.errors: Tally[tuple[str, str]] = Tally()  # of graders that this server ran
        self.logged: Tally[tuple[str]] = Tally()  # of those in the log
        self.counted, self.until = 0, 0.0
        self.last: list[Metric] = []

    def collect(self) -> Iterator[Metric]:
        with self.lock:
            if time.monotonic() > self.until:
                try:
                    self.last = list(self._read())
                except StoreError as error:  # a database that is away for a while: what it said before is told again
                    log.warning("the database was not counted: %s", error)
                self.until = time.monotonic() + FRESH_S
            yield from self.last
            yield self._errors()

    def _read(self) -> Iterator[Metric]:
        store = self.store
        yield _family(GaugeMetricFamily, "melior_jobs", "Jobs.", ["method", "status"], store.count_jobs())
        told = "Decisions of gates."
        yield _family(CounterMetricFamily, "melior_gate_decisions", told, ["result"], store.count_gates())
        told = "Mean of the newest scores in the log."
        yield _family(GaugeMetricFamily, "melior_reward_mean", told, ["model", "grader"], self._rewards())
        self.counted, found = store.count_grader_errors(self.counted)
        for (grader,), number in found.items():
            self.logged[(self.graders(grader),)] += number

    def _rewards(self) -> dict[tuple[str, str], float]:
        means = self.store.mean_rewards()
        named = {(self.models(model), self.rewarded(grader)): mean for (model, grader), mean in means.items()}
        return {names: mean for names, mean in named.items() if OTHER not in names}  # a mean of unlike things

    def _errors(self) -> Metric:
        values = Tally(self.errors) + Tally({(grader, UNKEPT): number for (grader,), number in self.logged.items()})
        told = "Outputs that a grader had no number for."
        return _family(CounterMetricFamily, "melior_grader_errors", told, ["grader", "kind"], values)


def _family(kind: Callable[..., Any], name: str, told: str, labels: list[str], values: Mapping[Any, float]) -> Metric:
    made: Metric = kind(name, told, labels=labels)
    for label, value in sorted(values.items()):
        made.add_metric(label, value)  # type: ignore[attr-defined]
    return made


class Counted:
    """ASGI middleware that counts requests and times them, by the route's pattern and never by its ids."""

    def __init__(self, app: Callable[[Any, Any, Any], Awaitable[None]], metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked, code = Asked(), "500"
        token = _asked.set(asked)

        async def sending(message: Any) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            _asked.reset(token)
            route = scope.get("route")
            asked.answering = bool(asked.model) and scope.get("melior.scope") == "infer"
            method = scope["method"] if scope["method"] in METHODS else OTHER
            self.metrics.answered(asked, getattr(route, "path", "") or "none", method, code)
