"""laws of a request: whatever a server does, it costs bounded time, bounded memory and bounded attempts"""

from __future__ import annotations

import contextlib
import gzip
import logging
import socket
import ssl
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpcore
import pytest
from local_server import Request, Script, Server, answer, certificate, closed_port, drip, hang_up, reset, serving

from melior.errors import ConfigError, OutboundError
from melior.outbound import Limits, Outbound, Rules

QUICK = Limits(timeout_s=0.8, connect_s=0.5, attempts=2, backoff_s=0.01)
HOME = Rules(hosts=frozenset({"rewards.example"}))  # a name that our resolver leads home


def home(host: str, port: int) -> list[str]:
    return ["127.0.0.1"]


def posted(server: Server, limits: Limits = QUICK, **how: Any) -> bytes:
    with Outbound(limits, **how) as client:
        return client.post(server.url, b"[]")


def fine(request: Request, connection: socket.socket, server: Server) -> None:
    answer(connection, b'"fine"')


def after(count: int, script: Script) -> Script:
    """The script for the first requests, a fine answer afterwards."""

    def play(request: Request, connection: socket.socket, server: Server) -> None:
        (script if request.number < count else fine)(request, connection, server)

    return play


def status(told: str, **headers: str) -> Script:
    return lambda request, connection, server: answer(connection, {"why": "because"}, told, **headers)


def raw(content: bytes) -> Script:
    def play(request: Request, connection: socket.socket, server: Server) -> None:
        connection.sendall(content)
        hang_up(connection)

    return play


def hang(request: Request, connection: socket.socket, server: Server) -> None:
    server.stopping.wait(20)


def drip_head(request: Request, connection: socket.socket, server: Server) -> None:
    drip(connection, b"HTTP/1.1 200 OK\r\nX: " + b"x" * 9_000, server)


def drip_body(request: Request, connection: socket.socket, server: Server) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n")
    drip(connection, b"x" * 9_000, server)


def drip_failure(request: Request, connection: socket.socket, server: Server) -> None:
    connection.sendall(b"HTTP/1.1 400 No\r\nContent-Type: text/plain\r\nContent-Length: 9000\r\n\r\n")
    drip(connection, b"x" * 9_000, server)


PASSING = {
    "500": status("500 Oops"),
    "503": status("503 Busy"),
    "429": status("429 Slow", Retry_After="0"),
    "truncated body": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[1"),
    "truncated chunk": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n[1"),
    "no answer": raw(b""),
    "no HTTP": raw(b"220 mail.example ESMTP\r\n"),
    "reset": lambda request, connection, server: reset(connection),
    "hang": hang,
    "drip of headers": drip_head,
    "drip of a body": drip_body,
    "drip of a failure's body": drip_failure,
}

ENDLESS = ("hang", "drip of headers", "drip of a body", "drip of a failure's body")  # no error but the deadline's


@pytest.mark.parametrize("fault", PASSING)
def test_what_may_pass_is_tried_again(fault: str) -> None:
    with serving(after(1, PASSING[fault])) as server:
        assert posted(server, replace(QUICK, attempts=9)) == b'"fine"'
        assert len(server.requests) >= 2  # more where this machine is too slow for the limit


@pytest.mark.parametrize("fault", PASSING)
def test_what_does_not_pass_ends_in_time(fault: str) -> None:
    with serving(PASSING[fault]) as server:
        with pytest.raises(
            OutboundError, match=rf"http://127\.0\.0\.1:{server.port}/score .* in 2 of 2 attempts"
        ) as error:
            posted(server)
        assert "did not answer within 0.8 s" in str(error.value) or fault not in ENDLESS
        assert len(server.requests) == QUICK.attempts


PERMANENT = {
    "400": (status("400 Bad"), "answered 400.*because"),
    "401": (status("401 Who"), "answered 401"),
    "404": (status("404 Where"), "answered 404"),
    "413": (status("413 Large"), "answered 413"),
    "301": (status("301 Moved", Location="http://169.254.169.254/"), "301, a redirect, and none is followed"),
    "307": (status("307 Moved", Location="/other"), "307, a redirect"),
    "announced": (status("200 OK", Content_Length="99999999999"), "announced an answer of 99,999,999,999 bytes"),
}


@pytest.mark.parametrize("fault", PERMANENT)
def test_what_will_not_pass_is_told_at_once(fault: str) -> None:
    script, told = PERMANENT[fault]
    with serving(script) as server, pytest.raises(OutboundError, match=told):
        posted(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize("how", ["plain", "chunked"])
def test_a_huge_body_is_given_up(how: str) -> None:
    sent = []

    def flood(request: Request, connection: socket.socket, server: Server) -> None:
        coding = b"Transfer-Encoding: chunked\r\n" if how == "chunked" else b""
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + coding + b"\r\n")
        piece = b"x" * 65_536
        for _ in range(1_000):
            connection.sendall(b"10000\r\n" + piece + b"\r\n" if how == "chunked" else piece)
            sent.append(len(piece))

    with serving(flood) as server:
        tracemalloc.start()
        with pytest.raises(OutboundError, match="more than 1,000,000 bytes"):
            posted(server, Limits(timeout_s=5, max_bytes=1_000_000))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8_000_000 and len(server.requests) == 1 and len(sent) < 1_000


def test_a_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(b"0" * 20_000_000)
    with serving(status("200 OK", Content_Encoding="gzip")) as server, pytest.raises(OutboundError, match="compressed"):
        posted(server)
    asked: list[str] = []

    def send(request: Request, connection: socket.socket, server: Server) -> None:
        asked.append(request.headers["accept-encoding"])
        answer(connection, bomb, Content_Encoding="gzip")

    with serving(send) as server:
        tracemalloc.start()
        with pytest.raises(OutboundError, match=r"compressed \(gzip\)"):
            posted(server)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
        tracemalloc.stop()
    assert asked == ["identity"]


def test_endless_headers_are_given_up() -> None:
    def flood(request: Request, connection: socket.socket, server: Server) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        with contextlib.suppress(OSError):
            for index in range(200_000):
                connection.sendall(f"X-{index}: {'y' * 50}\r\n".encode())

    with serving(flood) as server, pytest.raises(OutboundError):
        posted(server)


def test_nobody_listens() -> None:
    with Outbound(QUICK) as client, pytest.raises(OutboundError, match=r"cannot be reached .* in 2 of 2 attempts"):
        client.post(f"http://127.0.0.1:{closed_port()}/", b"[]")


def test_an_unknown_name() -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with Outbound(QUICK, resolve=unknown) as client, pytest.raises(OutboundError, match="not known"):
        client.post("http://rewards.example/", b"[]")


def test_a_resolver_that_hangs() -> None:
    event = threading.Event()

    def slow(host: str, port: int) -> list[str]:
        event.wait(20)
        return []

    with Outbound(QUICK, resolve=slow) as client, pytest.raises(OutboundError, match="did not answer within"):
        client.post("http://rewards.example/", b"[]")
    event.set()


def test_a_server_that_does_not_read() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        with Outbound(QUICK) as client, pytest.raises(OutboundError, match="did not answer"):
            client.post(f"http://127.0.0.1:{listener.getsockname()[1]}/", b"x" * 50_000_000)


class Pauses(list[float]):
    """Pauses that were asked for, none of them made."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def test_pauses_grow_and_are_drawn() -> None:
    limits = Limits(timeout_s=2, attempts=9, backoff_s=1.0, longest_pause_s=10)
    with serving(status("503 Busy")) as server:
        drawn = []
        for _ in range(8):
            pauses = Pauses()
            with pytest.raises(OutboundError):
                posted(server, limits, sleep=pauses)
            drawn.append(pauses)
    bounds = [1, 2, 4, 8, 10, 10, 10, 10]
    assert all(len(pauses) == len(bounds) for pauses in drawn)
    assert all(0 <= pause <= bound for pauses in drawn for pause, bound in zip(pauses, bounds, strict=True))
    assert max(pauses[3] for pauses in drawn) > 4 and min(pauses[3] for pauses in drawn) < 4  # the whole range
    assert len({pauses[0] for pauses in drawn}) == len(drawn)


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("7", 7, 8),
        (lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True), 18, 21),
        (lambda: format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True), 0, 1),
        ("999999999999", 30, 30),
        ("soon", 0, 1),
        ("-5", 0, 1),
        ("", 0, 1),
    ],
)
def test_retry_after_is_honoured_within_bounds(value: Any, low: float, high: float) -> None:
    told = value if isinstance(value, str) else value()
    pauses = Pauses()
    with serving(after(1, status("429 Slow", Retry_After=told))) as server:
        assert posted(server, Limits(timeout_s=2, backoff_s=1), sleep=pauses) == b'"fine"'
    assert len(pauses) == 1 and low <= pauses[0] <= high


def test_a_pause_in_digits_that_are_no_number_is_none() -> None:
    pauses = Pauses()
    with serving(after(1, raw(b"HTTP/1.1 429 Slow\r\nRetry-After: \xb2\r\nContent-Length: 0\r\n\r\n"))) as server:
        assert posted(server, Limits(timeout_s=5, backoff_s=1), sleep=pauses) == b'"fine"'
    assert len(pauses) == 1 and 0 <= pauses[0] <= 1


def test_the_pause_is_really_made() -> None:
    with serving(after(1, status("429 Slow", Retry_After="1"))) as server:
        posted(server)
    assert server.times[1] - server.times[0] >= 0.9


def test_closing_ends_pauses() -> None:
    with serving(status("429 Slow", Retry_After="30")) as server:
        client = Outbound(Limits(timeout_s=2))
        threading.Timer(0.3, client.close).start()
        started = time.monotonic()
        with pytest.raises(OutboundError):
            client.post(server.url, b"[]")
        assert time.monotonic() - started < 25  # of the 30 that were asked for


def test_connections_are_kept_and_replaced() -> None:
    def last(request: Request, connection: socket.socket, server: Server) -> None:
        fine(request, connection, server)
        if request.number == 2:
            hang_up(connection)  # without having said so

    with serving(last) as server, Outbound(Limits(timeout_s=10, attempts=2, backoff_s=0.01)) as client:
        for _ in range(5):
            assert client.post(server.url, b"[]") == b'"fine"'
            time.sleep(0.05)
        assert [request.connection for request in server.requests] == [1, 1, 1, 2, 2]


def test_no_more_connections_than_allowed() -> None:
    busy, most, lock = [0], [0], threading.Lock()

    def slow(request: Request, connection: socket.socket, server: Server) -> None:
        with lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        time.sleep(0.05)
        with lock:
            busy[0] -= 1
        fine(request, connection, server)

    with serving(slow) as server, Outbound(Limits(timeout_s=10, connections=3)) as client:
        with ThreadPoolExecutor(12) as threads:
            assert set(threads.map(lambda _: client.post(server.url, b"[]"), range(24))) == {b'"fine"'}
    assert most[0] == 3


def test_a_name_that_moves_home_is_refused() -> None:
    answers = iter([["8.8.8.8"], ["127.0.0.1"]])  # looked up for the check, and again to connect: one look is enough
    looked: list[str] = []

    def rebinding(host: str, port: int) -> list[str]:
        looked.append(host)
        return next(answers, ["127.0.0.1"])

    connected: list[str] = []

    class Watched(httpcore.SyncBackend):
        def connect_tcp(self, host: str, *rest: Any, **named: Any) -> Any:
            connected.append(host)
            raise httpcore.ConnectError("unplugged")

    with serving(fine) as server, Outbound(Limits(attempts=2, backoff_s=0.01), resolve=rebinding) as client:
        client._pool._network_backend._plain = Watched()  # type: ignore[attr-defined]
        with pytest.raises(OutboundError, match=r"rewards\.example is at 127\.0\.0\.1, which is not public"):
            client.post(f"http://rewards.example:{server.port}/", b"[]")
        assert connected == ["8.8.8.8"] and len(looked) == 2 and not server.requests


def test_a_private_address_is_not_even_connected_to() -> None:
    with serving(fine) as server:
        for host in ("rewards.example", "[::ffff:127.0.0.1]"):
            with Outbound(QUICK, resolve=home) as client, pytest.raises(OutboundError, match="not public"):
                client.post(f"http://{host}:{server.port}/", b"[]")
        with Outbound(QUICK, rules=Rules(loopback=False)) as client, pytest.raises(OutboundError, match="not public"):
            client.post(server.url, b"[]")
        assert not server.requests
        with Outbound(QUICK, rules=HOME, resolve=home) as client:
            assert client.post(f"http://rewards.example:{server.port}/", b"[]") == b'"fine"'
        assert server.requests[0].headers["host"] == f"rewards.example:{server.port}"


def test_the_next_address_is_tried() -> None:
    with serving(fine) as server, Outbound(QUICK, rules=HOME, resolve=lambda *_: ["127.1.2.3", "127.0.0.1"]) as client:
        assert client.post(f"http://rewards.example:{server.port}/", b"[]") == b'"fine"'


def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(status("200 OK")) as proxy, serving(fine) as server:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert posted(server) == b'"fine"' and not proxy.requests


def trusting(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(folder / "cert.pem"))


def test_certificates_are_verified(tmp_path: Path) -> None:
    limits = Limits(timeout_s=3, attempts=3, backoff_s=0.01)
    with serving(fine, tls=certificate(tmp_path, "rewards.example")) as server:

        def ask(host: str, **how: Any) -> bytes:
            rules = Rules(hosts=frozenset({host}))
            with Outbound(limits, rules=rules, resolve=home, **how) as client:
                return client.post(f"https://{host}:{server.port}/", b"[]")

        for host, tls, told in (
            ("rewards.example", None, "self-signed"),
            ("other.example", trusting(tmp_path), "not valid for"),
        ):
            with pytest.raises(OutboundError, match=f"no certificate to trust .*{told}"):
                ask(host, tls=tls)
        assert not server.requests
        assert ask("rewards.example", tls=trusting(tmp_path)) == b'"fine"'  # connected by address, verified by name


def test_an_authority_can_be_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(fine, tls=certificate(tmp_path, "rewards.example")) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        with Outbound(QUICK, rules=HOME, resolve=home) as client:
            assert client.post(f"https://rewards.example:{server.port}/", b"[]") == b'"fine"'


def test_an_expired_certificate(tmp_path: Path) -> None:
    with serving(fine, tls=certificate(tmp_path, "rewards.example", valid=False)) as server:
        with Outbound(QUICK, rules=HOME, resolve=home, tls=trusting(tmp_path)) as client:
            with pytest.raises(OutboundError, match="expired"):
                client.post(f"https://rewards.example:{server.port}/", b"[]")
    assert not server.requests


def test_https_to_a_server_without_it() -> None:
    with serving(fine) as server, Outbound(QUICK) as client, pytest.raises(OutboundError):
        client.post(server.url.replace("http:", "https:"), b"[]")


def test_secrets_stay_out_of_errors_and_logs(caplog: pytest.LogCaptureFixture) -> None:
    def telltale(request: Request, connection: socket.socket, server: Server) -> None:
        answer(connection, {"you_sent": request.headers}, "400 Bad")

    with caplog.at_level(logging.DEBUG), serving(telltale) as server, Outbound(QUICK) as client:
        with pytest.raises(OutboundError, match="you_sent") as error:
            client.post(f"{server.url}?key=hush-query", b'"hush-body"', {"Authorization": "Bearer hush-token"})
    assert server.requests[0].headers["authorization"] == "Bearer hush-token"
    assert server.requests[0].line == "POST /score?key=hush-query HTTP/1.1"
    shown = f"{error.value!r} {error.value.__cause__} {caplog.text}"
    assert "hush-token" not in shown and "hush-body" not in shown and "hush-query" not in str(error.value)


def test_a_handshake_that_breaks_off_is_tried_again() -> None:
    """A server that restarts is no server without a certificate."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up_twice() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1 << 16)

        thread = threading.Thread(target=hang_up_twice, daemon=True)
        thread.start()
        limits = Limits(timeout_s=10, attempts=2, backoff_s=0.01)
        with Outbound(limits) as client, pytest.raises(OutboundError, match=r"cannot be reached .* in 2 of 2 attempts"):
            client.post(f"https://127.0.0.1:{listener.getsockname()[1]}/", b"[]")
        thread.join(10)
        assert not thread.is_alive()


def test_a_query_that_a_server_repeats_is_blotted_out() -> None:
    def telltale(request: Request, connection: socket.socket, server: Server) -> None:
        answer(connection, {"detail": f"cannot do {request.line} with key hush query"}, "400 Bad")

    with serving(telltale) as server, Outbound(QUICK) as client:
        with pytest.raises(OutboundError, match="cannot do POST") as error:
            client.post(f"{server.url}?a=1&key=hush%20query", b"[]")
    assert "hush" not in str(error.value)


def test_limits_are_positive() -> None:
    for bad in ({"timeout_s": 0}, {"attempts": -1}, {"max_bytes": float("inf")}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Limits(**bad)  # type: ignore[arg-type]


def test_a_file_is_fetched_by_get_without_a_body() -> None:
    with serving(lambda request, connection, server: answer(connection, b"1,2\n")) as server:
        with Outbound(QUICK) as client:
            assert client.get(f"{server.url}?download=1", {"Authorization": "Bearer hidden"}) == b"1,2\n"
    (request,) = server.requests
    assert request.line.startswith("GET /score?download=1 ") and request.body == b""
    assert "content-type" not in {name.lower() for name in request.headers}


@pytest.mark.parametrize("status", ["404 Not Found", "302 Found", "503 Service Unavailable"])
def test_an_error_knows_the_status_that_came_back(status: str) -> None:
    def refuse(request: Request, connection: socket.socket, server: Server) -> None:
        answer(connection, {}, status)

    with serving(refuse) as server, pytest.raises(OutboundError) as refused:
        posted(server)
    assert refused.value.status == int(status[:3])
