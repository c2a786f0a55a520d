"""who may ask for what: every path needs a token but two, and every route names the scope that it needs

A server on localhost is not safe by that alone: any page a browser shows can send requests there. So a request must
name a host that is ours, come from no other page, and carry a token, of which only a hash is kept.

What happens otherwise: CVE-2025-62593, DNS rebinding against a server on localhost that asked for no token.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.datastructures import Headers, MutableHeaders

from melior.errors import ConfigError
from melior.serving.problems import Problem, no_room
from melior.store import Store
from melior.store.rows import Key

Scope = Literal["infer", "feedback", "read", "train", "admin"]
SCOPES: tuple[Scope, ...] = ("infer", "feedback", "read", "train", "admin")
OPEN = ("/healthz", "/readyz")  # what needs no token: whether the server lives, and whether it takes requests
LOOPBACK = ("127.0.0.1", "localhost", "::1")
KNOWN_S = 5.0  # a key that was looked up is believed so long; a revoked one is refused after it
AGAIN_S = 1  # when to come again, where too much is being answered
PIECE_S = 30.0  # for the next piece of a body
LEAST_RATE = 1 << 10  # bytes a second of a whole body: who drips bytes holds no request open for ever
MOST_KNOWN = 1_000  # keys, and clients with a rate, that are remembered
FIRST_TOKEN = "melior-first"  # the name of the key that is made where there is none

log = logging.getLogger(__name__)
Asgi = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client may ask for."""

    json_bytes: int = 16 << 20  # of a body that is not a file
    file_bytes: int = 512 << 20
    requests_per_s: float = 500.0  # sustained, of one key
    burst: int = 1_000
    at_once: int = 512  # of all keys: what is more would wait for others, and a client is better told so


def hash_of(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def first_key(store: Store, token: str | None) -> str | None:
    """Sees to it that somebody has a key. A token that was made here is returned, and never seen again."""
    if token:
        if store.key_of(hash_of(token)) is None:
            store.add_key("MELIOR_TOKEN", hash_of(token), SCOPES)
        return None
    if _has_keys(store):
        return None
    made = secrets.token_urlsafe(32)
    store.add_key(FIRST_TOKEN, hash_of(made), SCOPES)
    return made


def check_bind(host: str, token: str | None, store: Store) -> None:
    """Nothing, if the server may listen there.

    Raises:
        ConfigError: if others could reach it and no token was set.
    """
    if host not in LOOPBACK and not token and not _has_keys(store):
        raise ConfigError(f"others can reach {host}, and there is no token; set MELIOR_TOKEN, or bind 127.0.0.1")


def _has_keys(store: Store) -> bool:
    known = store.keys()
    return any(key.revoked is None for key in known)


def needs(scope: Scope) -> Callable[[Request], Awaitable[Key]]:
    """A dependency of a route: the caller's key, which has the scope."""

    async def check(request: Request) -> Key:  # async: it has nothing to wait for, and a thread would cost more
        key: Key = request.scope["melior.key"]
        request.scope["melior.scope"] = scope
        if scope not in key.scopes and "admin" not in key.scopes:
            raise Problem(403, f"this key may {', '.join(key.scopes) or 'nothing'}, and this needs {scope}")
        return key

    check.scope = scope  # type: ignore[attr-defined]
    return check


def check_routes(app: FastAPI) -> None:
    """Nothing, if every route says what scope it needs.

    Raises:
        ConfigError: naming one that does not.
    """
    for route in app.routes:
        if isinstance(route, APIRoute) and route.path not in OPEN and scope_of(route) is None:
            raise ConfigError(f"{route.path} says not what scope it needs; add Depends(needs(…))")


def scope_of(route: APIRoute) -> Scope | None:
    """The scope a route needs; None where it says nothing."""
    for dependency in route.dependant.dependencies:
        scope: Scope | None = getattr(dependency.call, "scope", None)
        if scope is not None:
            return scope
    return None


@dataclass
class Guard:
    """ASGI middleware: no request passes it that is not somebody's, for us, and of a size we can take."""

    app: Asgi
    store: Store
    hosts: frozenset[str]  # names we answer to, beside the loopback ones
    origins: frozenset[str]  # pages that may ask, beside our own
    limits: Limits = field(default_factory=Limits)
    draining: threading.Event = field(default_factory=threading.Event)  # set: clients should go elsewhere
    open: int = 0  # requests that are being answered; the event loop alone changes it
    keys: OrderedDict[str, tuple[float, Key]] = field(default_factory=OrderedDict)
    rates: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)  # key → (tokens left, when)
    lock: threading.Lock = field(default_factory=threading.Lock)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name = f"req_{secrets.token_hex(12)}"
        scope["melior.request_id"] = name

        started = False

        async def sending(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = name
                headers["x-content-type-options"] = "nosniff"
                headers.setdefault("cache-control", "no-store")
                if self.draining.is_set():
                    headers["connection"] = "close"
            await send(message)

        body = _Body(receive, self._most(scope))
        try:
            await self._check(scope)
            with self._one_more(scope):
                await self.app(scope, body.receive, body.unless_too_long(sending))
            body.check()
        except Problem as problem:
            await problem.answer()(scope, receive, sending)
        except Exception as error:
            log.exception("%s %s (%s) failed", scope["method"], scope["path"], name)
            if not started:
                told = f"something went wrong here; the server's log says what, at {name}"
                await (no_room(error) or Problem(500, told)).answer()(scope, receive, sending)

    @contextmanager
    def _one_more(self, scope: Any) -> Iterator[None]:
        """One of those that are answered at once; health checks are always answered.

        Raises:
            Problem: where there are as many as may be.
        """
        if scope["path"] not in OPEN and self.open >= self.limits.at_once:
            told = f"{self.open} requests are being answered; send it again in {AGAIN_S} s"
            raise Problem(503, told, code="overloaded", retry=True, headers={"retry-after": str(AGAIN_S)})
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    async def _check(self, scope: Any) -> None:
        headers = Headers(scope=scope)
        host = _name(headers.get("host", ""))
        if host not in self.hosts and host not in LOOPBACK:
            raise Problem(403, f"this server does not answer to {host!r}; start it with --allow-host {host}")
        origin = headers.get("origin")
        if origin is not None and origin not in self.origins and _name(origin.partition("://")[2]) != host:
            raise Problem(403, f"pages of {origin} may not ask this server; start it with --allow-origin {origin}")
        if scope["path"] in OPEN:
            return
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            raise Problem(401, "no token came with this request; send Authorization: Bearer …")
        scope["melior.key"] = key = await self._key(hash_of(token.strip()))
        self._spend(key.id)
        size = headers.get("content-length", "0")
        if size.isdigit() and int(size) > self._most(scope):
            raise Problem(413, f"{int(size):,} bytes are more than the {self._most(scope):,} this path takes")

    async def _key(self, hash: str) -> Key:
        with self.lock:
            found = self.keys.get(hash)
        if found is None or time.monotonic() > found[0]:
            if found is not None:  # one request looks it up again; the others need not wait for it, nor ask too
                with self.lock:
                    self.keys[hash] = (time.monotonic() + KNOWN_S, found[1])
            key = await anyio.to_thread.run_sync(self.store.key_of, hash)
            if key is None:
                with self.lock:
                    self.keys.pop(hash, None)
                raise Problem(401, "this token is not known here, or was revoked")
            found = (time.monotonic() + KNOWN_S, key)
            with self.lock:
                _remember(self.keys, hash, found)
        return found[1]

    def _spend(self, key: str) -> None:
        """One request of the key's rate.

        Raises:
            Problem: where there is none left.
        """
        rate, burst, now = self.limits.requests_per_s, self.limits.burst, time.monotonic()
        with self.lock:
            left, when = self.rates.get(key, (float(burst), now))
            left = min(burst, left + (now - when) * rate)
            _remember(self.rates, key, (max(0.0, left - 1), now))
        if left < 1:
            wait = {"retry-after": f"{max(1, round((1 - left) / rate))}"}
            raise Problem(429, f"more than {rate:g} requests a second came with this key", headers=wait)

    def _most(self, scope: Any) -> int:
        return self.limits.file_bytes if scope["path"] == "/v1/files" else self.limits.json_bytes


class _Body:
    """A body that ends where it is longer than may be; what the app would answer to the part is not sent."""

    def __init__(self, receive: Any, most: int) -> None:
        self.source, self.most, self.left = receive, most, most
        self.whole = self.slow = False
        self.waited = 0.0  # seconds, for its pieces; what the app takes in between is not the client's

    async def receive(self) -> Any:
        began = time.monotonic()
        try:
            async with asyncio.timeout(None if self.whole else self._patience()):
                message = await self.source()
        except TimeoutError:
            self.slow = True
        self.waited += time.monotonic() - began
        if self.slow:
            return {"type": "http.disconnect"}
        self.whole = not message.get("more_body", False)
        self.left -= len(message.get("body", b""))
        return message if self.left >= 0 else {"type": "http.disconnect"}

    def _patience(self) -> float:
        """Seconds for the next piece; every piece buys time for those after it."""
        return min(PIECE_S, PIECE_S + (self.most - self.left) / LEAST_RATE - self.waited)

    def unless_too_long(self, send: Any) -> Any:
        async def sending(message: Any) -> None:
            if self.left >= 0 and not self.slow:
                await send(message)

        return sending

    def check(self) -> None:
        if self.slow:
            told = (
                f"the body came too slowly: nothing more for {PIECE_S:g} s, or less than {LEAST_RATE:,} bytes a second"
            )
            raise Problem(408, told, code="request_timeout", retry=True)
        if self.left < 0:
            raise Problem(413, f"the body is longer than the {self.most:,} bytes this path takes")


def _remember(table: OrderedDict[str, Any], key: str, value: Any) -> None:
    table[key] = value
    table.move_to_end(key)
    while len(table) > MOST_KNOWN:
        table.popitem(last=False)


def _name(host: str) -> str:
    """A host without its port, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if host.count(":") == 1 else host.lower()
