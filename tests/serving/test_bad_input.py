"""what clients do wrong, by mistake or on purpose: an error of the dialect with the right status, and nothing lost"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import socket
import time
from contextlib import suppress
from typing import Any

import pytest
from live import TOKEN, Live
from test_server import ROWS, error

from melior.serving.security import _Body
from melior.types import Record

SAID = [{"role": "user", "content": "hi"}]
JSON = {"content-type": "application/json"}
SFT: dict[str, Any] = {"type": "supervised"}
BAD_GRADER = {"type": "reinforcement", "reinforcement": {"grader": {"type": "string_check"}}}
CHAT, HOOKS = "/v1/chat/completions", "/v1/webhook_endpoints"
GRADER = "method.reinforcement.grader"
DEEP = "[" * 20_000 + "]" * 20_000


@pytest.fixture
def files(server: Live) -> dict[str, str]:
    """A file to learn from, and one for another purpose; and something that was answered, as "a"."""
    server.service.store.add_records([Record(inputs="q", output="a")], ids=["a"])
    client = server.client()
    return {
        purpose: client.files.create(file=("rows.jsonl", ROWS), purpose=purpose).id  # type: ignore[arg-type]
        for purpose in ("fine-tune", "evals")
    }


def jobs(**more: Any) -> dict[str, Any]:
    return {"url": "/v1/fine_tuning/jobs", "json": {"model": "gone@prod", "training_file": "FINE", **more}}


def raw(content: str | bytes, url: str = "/v1/feedback", **headers: str) -> dict[str, Any]:
    return {"url": url, "content": content, "headers": {**JSON, **headers}}


WRONG: list[tuple[str, dict[str, Any], int, str | None, str | None]] = [
    ("unknown model", {"url": CHAT, "json": {"model": "no", "messages": SAID}}, 404, "model", None),
    ("unknown model to decide", {"url": "/v1/decisions", "json": {"model": "no", "input": 1}}, 404, "model", None),
    ("unknown model of a job", jobs(), 400, "model", "model_not_found"),
    ("unknown file", jobs(training_file="file_none", model="KNOWN"), 400, "training_file", "file_not_found"),
    ("wrong purpose", jobs(training_file="EVALS", model="KNOWN"), 400, "training_file", "invalid_purpose"),
    ("a grader that cannot be read", jobs(method=BAD_GRADER, model="KNOWN"), 400, GRADER, "invalid_grader"),
    ("an unknown method", jobs(method={"type": "magic"}, model="KNOWN"), 400, "method", None),
    ("an unknown key", jobs(modle="x"), 400, "modle", None),
    ("a path for a file", jobs(training_file="../../etc/passwd"), 400, "training_file", None),
    ("too much metadata", jobs(metadata={str(n): "" for n in range(17)}), 400, "metadata", None),
    ("nothing missing but all", {"url": CHAT, "json": {}}, 400, "model", None),
    ("a text for a number", {"url": CHAT, "json": {"model": "m", "messages": SAID, "n": "x"}}, 400, "n", None),
    ("no JSON", raw("{"), 400, None, None),
    ("a list for an object", raw("[1]"), 400, None, None),
    ("deep JSON", raw('{"metric_name": "m", "inference_id": "a", "value": ' + DEEP + "}"), 400, None, None),
    ("a huge number", raw('{"metric_name": "m", "inference_id": "a", "value": ' + "9" * 5_000 + "}"), 400, None, None),
    ("no number", raw('{"metric_name": "m", "inference_id": "a", "value": NaN}'), 400, None, None),
    ("a lone surrogate", raw('{"metric_name": "m\\ud800", "inference_id": "\\ud800", "value": 1}'), 400, None, None),
    ("a NUL in an id", raw('{"metric_name": "m", "inference_id": "a\\u0000", "value": 1}'), 400, "inference_id", None),
    ("bytes that are no text", raw(b'{"metric_name": "\xff"}'), 400, None, None),
    ("a compressed body", raw(gzip.compress(b'{"a": 1}'), **{"content-encoding": "gzip"}), 400, None, None),
    ("another content type", raw("a=1", **{"content-type": "text/plain"}), 400, None, None),
    ("a chat of another type", raw("a=1", CHAT, **{"content-type": "text/plain"}), 400, None, None),
    ("no purpose", {"url": "/v1/files", "files": {"file": b"x"}}, 400, "purpose", None),
    ("no such event", {"url": HOOKS, "json": {"url": "https://a.example", "event_types": ["x"]}}, 400, None, None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "status", "param", "code"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG]
)
def test_what_is_wrong_is_told(
    server: Live, files: dict[str, str], request_: dict[str, Any], status: int, param: str | None, code: str | None
) -> None:
    text = json.dumps(request_.get("json")).replace("FINE", files["fine-tune"]).replace("EVALS", files["evals"])
    asked = json.loads(text)
    if asked and asked.get("model") == "KNOWN":
        asked["model"] = "smollm2-135m-instruct"
    with server.http() as client:
        answer = client.post(**{**request_, **({"json": asked} if asked is not None else {})})
    told = error(answer)
    assert answer.status_code == status, answer.text
    assert told["type"] == "invalid_request_error" and (param is None or told["param"] == param), told
    assert code is None or told["code"] == code
    assert server.service.store.jobs() == [] and server.service.store.feedback() == []


def test_a_conflict_is_for_good_and_one_key_makes_nothing_twice(server: Live, files: dict[str, str]) -> None:
    asked = {"model": "smollm2-135m-instruct", "training_file": files["fine-tune"], "method": SFT}
    with server.http(headers={"idempotency-key": "once"}) as client:
        first = client.post("/v1/fine_tuning/jobs", json=asked)
        assert first.status_code == 200, first.text
        assert client.post("/v1/fine_tuning/jobs", json=asked).json()["id"] == first.json()["id"]
        other = client.post("/v1/fine_tuning/jobs", json={**asked, "seed": 1})
        assert other.status_code == 409 and other.headers["x-should-retry"] == "false" and error(other)
        assert client.post(f"/v1/fine_tuning/jobs/{first.json()['id']}/cancel").status_code == 200
        again = client.post(f"/v1/fine_tuning/jobs/{first.json()['id']}/cancel")
        assert again.status_code == 409 and again.headers["x-should-retry"] == "false"
    assert len(server.service.store.jobs()) == 1


# ---------------------------------------------------------------------- attacks


def test_a_token_in_the_url_opens_nothing(server: Live) -> None:
    with server.http(token=None) as nobody:
        for name in ("token", "api_key", "access_token", "key"):
            assert nobody.get("/v1/files", params={name: TOKEN}).status_code == 401
        assert nobody.get("/v1/files", headers={"cookie": f"token={TOKEN}"}).status_code == 401
        assert nobody.get("/v1/files", headers={"authorization": f"Basic {TOKEN}"}).status_code == 401


@pytest.mark.parametrize(
    "name", ['a"\r\nx-evil: 1.jsonl', "a\r\n\r\n<script>", "é\u202e.jsonl", "a;filename=b", "../x"]
)
def test_a_file_name_is_no_header(server: Live, name: str) -> None:
    with server.http() as client:
        sent = client.post("/v1/files", files={"file": (name, b"{}")}, data={"purpose": "evals"})
        if sent.status_code != 200:
            assert error(sent)
            return
        shown = client.get(f"/v1/files/{sent.json()['id']}/content")
    assert "x-evil" not in shown.headers and shown.content == b"{}"
    assert "\n" not in shown.headers["content-disposition"] and "<script>" not in shown.headers["content-disposition"]


def test_what_the_log_says_of_a_request_is_one_line_without_secrets(
    server: Live, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="melior.access"), server.http() as client:
        client.get("/v1/files/a%0A%7B%22status%22%3A200%7D", params={"q": "secret"})
        client.get("/v1/nowhere%0Ax", headers={"user-agent": "secret"})
    lines = [record.getMessage() for record in caplog.records if record.name == "melior.access"]
    assert len(lines) == 2 and not any(word in line for line in lines for word in (TOKEN, "secret", "\n"))
    first = json.loads(lines[0])
    assert (first["route"], first["status"], first["method"]) == ("/v1/files/{file_id}", 404, "GET")
    assert first["key"].startswith("key_") and first["request_id"].startswith("req_") and first["ms"] > 0


def test_who_drips_a_body_is_not_waited_for(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("melior.serving.security.PIECE_S", 0.3)
    host, port = server.url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/feedback HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 99\r\n\r\n{{"
    )
    with socket.create_connection((host, int(port)), timeout=20) as slow:
        slow.sendall(head.encode())
        assert b" 408 " in slow.recv(4_096).splitlines()[0]


def test_a_body_that_comes_in_drops_is_not_waited_for(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("melior.serving.security.PIECE_S", 1.0)
    host, port = server.url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/feedback HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 99999\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=0.1) as slow:
        slow.sendall(head.encode())
        answer, until = b"", time.monotonic() + 60
        while not answer and time.monotonic() < until:
            with suppress(OSError):  # it may be answered and closed by now
                slow.sendall(b" ")
            with suppress(TimeoutError):
                answer = slow.recv(4_096)
    assert b" 408 " in answer.splitlines()[0]


def test_a_long_body_over_a_slow_line_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("melior.serving.security.PIECE_S", 5.0)
    pieces = 12

    async def slow_line() -> dict[str, Any]:
        await asyncio.sleep(0.5)
        return {"type": "http.request", "body": bytes(1 << 16), "more_body": True}

    async def take() -> int:
        body = _Body(slow_line, 1 << 30)
        return sum([len((await body.receive()).get("body", b"")) for _ in range(pieces)])

    assert asyncio.run(take()) == pieces << 16
