"""GET and POST with every limit a stranger's server needs: address, time, size, attempts

One attempt may take `timeout_s` from the resolver to the last byte, however slowly the bytes drip. An answer longer
than `max_bytes` is given up; a compressed one is refused unread, since a few bytes of it can unfold to gigabytes.
Redirects are not followed and proxies of the environment not used: either would put another address in the place
of the one that was checked. Certificates are verified against the host's name; `SSL_CERT_FILE` adds an authority.

Refused and broken connections, timeouts, 429 and 5xx are tried again, after a pause drawn between 0 and a bound that
doubles, or after what Retry-After asks for. So a request may arrive twice: what is posted must be harmless to repeat.

Errors name the host and the path. They never hold what was sent in headers, the query or the body, where keys may
stand; of a failure's body they quote the beginning, with headers and the query blotted out.

Source: Brooker 2015, "Exponential Backoff And Jitter", AWS Architecture Blog (full jitter).
"""

from __future__ import annotations

import random
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any, Self
from urllib.parse import unquote_plus

import httpcore

from melior.errors import ConfigError, OutboundError
from melior.outbound.addresses import (
    Resolve,
    Rules,
    Target,
    checked_addresses,
    operator_rules,
    parse_url,
    system_resolve,
)

PIECE = 1 << 16  # bytes written between two looks at the clock
TOLD = 160  # characters of a failure's body that its error quotes

_deadline: ContextVar[float] = ContextVar("deadline")  # of the attempt under way in this thread


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may cost."""

    timeout_s: float = 30.0  # of one attempt, whole
    connect_s: float = 5.0  # of it, to connect; a machine that is up accepts at once
    attempts: int = 4
    backoff_s: float = 0.5  # bound of the first pause; it doubles
    longest_pause_s: float = 30.0  # bound of every pause, also of what Retry-After asks for
    max_bytes: int = 8 << 20  # of an answer; a batch of scores is a thousand times shorter
    connections: int = 8  # at once, to all hosts

    def __post_init__(self) -> None:
        bad = [name for name, value in vars(self).items() if not 0 < value < float("inf")]
        if bad:
            raise ConfigError(f"limits of a request are positive numbers, got {bad[0]}={getattr(self, bad[0])}")


class _Again(Exception):
    """This attempt failed, another may not."""

    def __init__(self, told: str, after_s: float = 0.0, status: int = 0) -> None:
        super().__init__(told)
        self.after_s, self.status = after_s, status


@dataclass(frozen=True)
class _Request:
    method: str
    target: Target
    body: bytes | None
    headers: Mapping[str, str]
    secrets: Collection[str]  # what no error may repeat


class Outbound:
    """A client with a pool of connections; any number of threads may use it. Close it when done."""

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        rules: Rules | None = None,
        resolve: Resolve = system_resolve,
        tls: ssl.SSLContext | None = None,
        sleep: Callable[[float], Any] | None = None,
    ) -> None:
        self.limits, self.rules, self.resolve = limits or Limits(), rules or operator_rules(), resolve
        self._tls = tls
        self._closing = threading.Event()
        self._sleep = self._closing.wait if sleep is None else sleep
        self._random = random.Random()  # pauses alone hang on it

    @cached_property
    def _pool(self) -> httpcore.ConnectionPool:
        return httpcore.ConnectionPool(
            ssl_context=self._tls or httpcore.default_ssl_context(),
            max_connections=self.limits.connections,
            keepalive_expiry=15.0,  # seconds; below the 60 after which load balancers commonly close
            network_backend=_CheckedBackend(self.rules, self.resolve, self.limits.connect_s),
        )

    def post(self, url: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
        """The body of the 2xx answer to a POST of JSON.

        Raises:
            OutboundError: if there is none after all attempts, in one sentence.
            ConfigError: if the URL cannot be used.
        """
        return self._post(url, body, headers or {})[1]

    def tell(self, url: str, body: bytes, headers: Mapping[str, str] | None = None) -> int:
        """The status of the 2xx answer to a POST of JSON, for whoever does not mind what was answered.

        Raises:
            OutboundError: if there is none after all attempts, in one sentence.
            ConfigError: if the URL cannot be used.
        """
        return self._post(url, body, headers or {})[0]

    def _post(self, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        kinds = {"Content-Type": "application/json", "Accept": "application/json"}
        return self._send("POST", url, body, kinds, headers)

    def get(self, url: str, headers: Mapping[str, str] | None = None) -> bytes:
        """The body of the 2xx answer to a GET.

        Raises:
            OutboundError: if there is none after all attempts, in one sentence.
            ConfigError: if the URL cannot be used.
        """
        return self._send("GET", url, None, {}, headers or {})[1]

    def _send(
        self, method: str, url: str, body: bytes | None, kinds: Mapping[str, str], headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        target = parse_url(url)
        own = {"Host": _authority(target), "Accept-Encoding": "identity", "User-Agent": "melior"}
        query = target.path.partition("?")[2]
        secrets = [part for value in headers.values() for part in (value, value.rpartition(" ")[2])]
        values = [pair.partition("=")[2] for pair in query.split("&")]
        secrets += [query, *values, *map(unquote_plus, values)]
        request = _Request(method, target, body, {**own, **kinds, **headers}, secrets)
        pool, bound = self._pool, self.limits.backoff_s  # made here: reading all certificates is not the server's time
        for left in reversed(range(self.limits.attempts)):
            try:
                return self._attempt(pool, request)
            except _Again as failure:
                if not left or self._closing.is_set():
                    tried = self.limits.attempts - left
                    raise OutboundError(f"{target} {failure}, in {tried} of {tried} attempts", failure.status) from None
                pause = failure.after_s + self._random.uniform(0, bound)
                self._sleep(min(pause, self.limits.longest_pause_s))
                bound = min(2 * bound, self.limits.longest_pause_s)
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        """Close idle connections and end pauses; attempts under way end by their own limits."""
        self._closing.set()
        if "_pool" in vars(self):
            self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _attempt(self, pool: httpcore.ConnectionPool, request: _Request) -> tuple[int, bytes]:
        target = request.target
        token = _deadline.set(time.monotonic() + self.limits.timeout_s)
        try:
            return self._answer(pool, request)
        except (TimeoutError, httpcore.TimeoutException):
            raise _Again(f"did not answer within {self.limits.timeout_s:g} s") from None
        except httpcore.RemoteProtocolError as error:
            raise _Again(f"broke off its answer ({error})") from None
        except httpcore.LocalProtocolError as error:
            raise OutboundError(
                f"the request to {target} cannot be sent ({type(error).__name__}); check headers"
            ) from None
        except (httpcore.NetworkError, OSError) as error:
            if isinstance(error.__cause__ or error.__context__, ssl.SSLCertVerificationError):
                raise OutboundError(
                    f"{target} has no certificate to trust ({_first_line(error)}); use one of a known authority, or "
                    "name its authority's file in SSL_CERT_FILE"
                ) from None
            raise _Again(f"cannot be reached ({_first_line(error)})") from None
        finally:
            _deadline.reset(token)

    def _answer(self, pool: httpcore.ConnectionPool, request: _Request) -> tuple[int, bytes]:
        target = request.target
        url = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
        waits = dict.fromkeys(("connect", "read", "write", "pool"), self.limits.timeout_s)
        sent, content = list(request.headers.items()), request.body
        with pool.stream(request.method, url, headers=sent, content=content, extensions={"timeout": waits}) as response:
            answered = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
            if not 200 <= response.status < 300:
                quoted = _quoted(answered, response.iter_stream(), request.secrets)
                self._refused(target, response.status, answered, quoted)
            coding = answered.get("content-encoding", "identity").lower()
            if coding not in ("identity", ""):
                raise OutboundError(f"{target} sent its answer compressed ({coding[:20]}); have it send identity")
            return response.status, self._read(target, answered, response.iter_stream())

    def _read(self, target: Target, headers: Mapping[str, str], stream: Iterable[bytes]) -> bytes:
        most, told = self.limits.max_bytes, headers.get("content-length", "")
        if told.isdigit() and len(told) < 20 and int(told) > most:
            raise OutboundError(f"{target} announced an answer of {int(told):,} bytes; at most {most:,} are read")
        got = bytearray()
        for piece in stream:
            got += piece
            if len(got) > most:
                raise OutboundError(f"{target} sent more than {most:,} bytes; at most so many are read")
        return bytes(got)

    def _refused(self, target: Target, status: int, headers: Mapping[str, str], quoted: str) -> None:
        """Raises what a status other than 2xx means."""
        if 300 <= status < 400:
            told = f"{target} answered {status}, a redirect, and none is followed; write the final URL"
            raise OutboundError(told, status)
        told = f"answered {status}{quoted}"
        if status == 429 or status >= 500:
            pause = min(_retry_after(headers.get("retry-after", "")), self.limits.longest_pause_s)
            raise _Again(told, pause, status)
        raise OutboundError(f"{target} {told}", status)


class _CheckedBackend(httpcore.NetworkBackend):
    """Connects to addresses that the rules permit, and to the very ones that were looked at."""

    def __init__(self, rules: Rules, resolve: Resolve, connect_s: float) -> None:
        self.rules, self.resolve, self.connect_s = rules, resolve, connect_s
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = checked_addresses(host, port, self.rules, self.resolve, _left(timeout))
        for address in addresses[:-1]:
            try:
                return self._connected(address, port, timeout)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue  # the next address may do, as in every browser
        return self._connected(addresses[-1], port, timeout)

    def _connected(self, address: str, port: int, timeout: float | None) -> httpcore.NetworkStream:
        return _TimedStream(self._plain.connect_tcp(address, port, min(_left(timeout), self.connect_s)))


class _TimedStream(httpcore.NetworkStream):
    """A connection on which every wait ends with the attempt it belongs to."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), PIECE):
            self._stream.write(buffer[start : start + PIECE], _left(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, _left(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(timeout: float | None) -> float:
    """Seconds until the attempt's deadline, or until the wait's own, whichever comes first."""
    left = _deadline.get() - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the attempt's time is over")
    return left if timeout is None else min(left, timeout)


def _authority(target: Target) -> str:
    return str(Target(target.scheme, target.host, target.port, "")).partition("://")[2]


def _retry_after(value: str) -> float:
    """Seconds that a Retry-After header asks to wait: a number, or a date; 0 where it is neither."""
    if value.isascii() and value.strip().isdigit():  # not the other digits of Unicode, which are no numbers to `float`
        return float(value) if len(value) < 10 else float("inf")
    try:
        when = parsedate_to_datetime(value)
    except (TypeError, ValueError, IndexError):
        return 0.0
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _quoted(headers: Mapping[str, str], stream: Iterable[bytes], secrets: Collection[str]) -> str:
    """The beginning of a failure's body, if a person can read it; servers like to repeat what they were sent."""
    kind = headers.get("content-type", "")
    if headers.get("content-encoding") or not kind.startswith(("text/plain", "application/json")):
        return ""
    got = bytearray()
    for piece in stream:
        got += piece
        if len(got) >= 1 << 12:
            break
    text = " ".join("".join(c if c.isprintable() else " " for c in got.decode("utf-8", "replace")).split())
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "…") if len(secret) > 3 else text
    return f" ({text[:TOLD]})" if text else ""


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
