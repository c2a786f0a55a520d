"""offers a server requests at a given rate, and tells how long they took, seen from when they should have been sent

    MELIOR_TOKEN=… python tests/soak/load.py http://127.0.0.1:8000 /v1/feedback --rate 300 --seconds 20 \\
        --body '{"metric_name": "helpful", "value": true, "episode_id": "load"}'

Arrivals are drawn beforehand (a Poisson process of a seed), and a request that had to wait for a free connection, or
for a slow server, has waited: its latency counts from its arrival, so a server that stalls cannot hide it by being sent
less. It runs in a process of its own, asks 127.0.0.1 only, and ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from served import TOKEN

MOST_S = 600  # of one offer, however long it was asked to be
PATIENCE_S = 35.0  # for one answer: the server's own limit is 30 s


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What is sent, how often, for how long."""

    url: str
    path: str
    body: str
    token: str
    rate: float  # requests per second, on average
    seconds: float
    connections: int = 64
    seed: int = 0
    key: str = ""  # the beginning of an Idempotency-Key of each request's own

    def __post_init__(self) -> None:
        if urlsplit(self.url).hostname != "127.0.0.1":
            raise SystemExit(f"{self.url} is not this machine; load is offered to 127.0.0.1 only")
        if not (0 < self.seconds <= MOST_S and self.rate > 0):
            raise SystemExit(f"a rate above 0 for up to {MOST_S} s, not {self.rate} for {self.seconds} s")

    def arrivals(self) -> list[float]:
        """Seconds from the beginning at which requests should be sent."""
        chance, now, times = random.Random(self.seed), 0.0, []
        while (now := now + chance.expovariate(self.rate)) < self.seconds:
            times.append(now)
        return times

    def request(self, number: int) -> bytes:
        """One request as it goes over the wire."""
        content = self.body.replace("{number}", str(number)).encode()
        key = f"{self.key}{number}" if self.key else ""
        return request_bytes(urlsplit(self.url).netloc, self.path, content, self.token, key)


@dataclass
class Told:
    """What came of it."""

    latencies: list[float] = field(default_factory=list)  # seconds, of answers with status 200, from their arrival
    served: list[float] = field(default_factory=list)  # the same from when they were sent
    statuses: Counter[str] = field(default_factory=Counter)
    retry_after: int = 0  # refusals that say when to come again

    def summary(self, offer: Offer, seconds: float) -> dict[str, object]:
        """As JSON."""
        return {
            "path": offer.path,
            "offered_per_s": offer.rate,
            "connections": offer.connections,
            "requests": sum(self.statuses.values()),
            "seconds": round(seconds, 2),
            "statuses": dict(sorted(self.statuses.items())),
            "answered_per_s": round(len(self.latencies) / seconds, 1),
            "latency_ms": quantiles(self.latencies),
            "service_ms": quantiles(self.served),
            "refusals_with_retry_after": self.retry_after,
        }


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and the longest, in milliseconds."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    at = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    told = {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in at.items()}
    return {name: round(value * 1000, 2) for name, value in {**told, "max": ordered[-1]}.items()}


async def send(offer: Offer) -> dict[str, object]:
    """The summary of an offer, made."""
    told, waiting = Told(), asyncio.Queue[tuple[float, bytes] | None]()
    arrivals = [(at, offer.request(number)) for number, at in enumerate(offer.arrivals())]
    lines = [asyncio.create_task(_line(offer, waiting, told)) for _ in range(offer.connections)]
    began = time.perf_counter()
    for at, request in arrivals:
        if (early := began + at - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        waiting.put_nowait((began + at, request))
    for _ in lines:
        waiting.put_nowait(None)
    await asyncio.wait(lines, timeout=PATIENCE_S)
    for line in lines:
        line.cancel()
    while not waiting.empty():
        if waiting.get_nowait() is not None:
            told.statuses["never sent"] += 1
    return told.summary(offer, time.perf_counter() - began)


async def _line(offer: Offer, waiting: asyncio.Queue[tuple[float, bytes] | None], told: Told) -> None:
    """One connection, opened anew where it breaks."""
    connection = Connection(offer.url)
    while (item := await waiting.get()) is not None:
        due, request = item
        sent = time.perf_counter()
        status, head, _ = await connection.exchange(request, PATIENCE_S)
        ended = time.perf_counter()
        told.statuses[status] += 1
        told.retry_after += b"\r\nretry-after:" in head
        if status == "200":
            told.latencies.append(ended - due)
            told.served.append(ended - sent)
    connection.close()


@dataclass
class Connection:
    """One connection to the server, opened anew where it broke: cheap, so that the load costs less than the answer."""

    url: str
    token: str = TOKEN
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: object, *, key: str = "", timeout_s: float = PATIENCE_S) -> tuple[str, bytes]:
        """Status and content; "lost" or "refused" where no answer came."""
        place = urlsplit(self.url).netloc
        request = request_bytes(place, path, json.dumps(body).encode(), self.token, key)
        status, _, content = await self.exchange(request, timeout_s)
        return status, content

    async def exchange(self, request: bytes, timeout_s: float) -> tuple[str, bytes, bytes]:
        """Status, head and content of one answer; "lost" where none came, "refused" where nobody took the request."""
        if self.streams is not None and self.streams[0].at_eof():  # the server had enough of waiting
            self.close()
        try:
            if self.streams is None:
                place = urlsplit(self.url)
                self.streams = await asyncio.open_connection(place.hostname, place.port)
        except OSError:
            return "refused", b"", b""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(request)
        except (OSError, ValueError, asyncio.IncompleteReadError, TimeoutError):
            self.close()
            return "lost", b"", b""

    async def _exchange(self, request: bytes) -> tuple[str, bytes, bytes]:
        assert self.streams is not None
        reader, writer = self.streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
        content = await reader.readexactly(int(length or b"0"))
        if b"\r\nconnection: close" in head:
            self.close()
        return head.split(b" ", 2)[1].decode(), head, content

    def close(self) -> None:
        """Gives it back."""
        if self.streams is not None:
            self.streams[1].close()
        self.streams = None


def request_bytes(place: str, path: str, content: bytes, token: str, key: str = "") -> bytes:
    """One request as it goes over the wire."""
    idempotent = f"Idempotency-Key: {key}\r\n" if key else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {place}\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\n{idempotent}Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("path")
    parser.add_argument("--body", required=True, help="JSON; {number} becomes the request's number")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--key", default="", help="the beginning of each request's Idempotency-Key")
    offer = Offer(token=os.environ.get("MELIOR_TOKEN", TOKEN), **vars(parser.parse_args()))
    json.dump(asyncio.run(send(offer)), sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
