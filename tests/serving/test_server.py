"""who gets in, what they are told, and files, feedback and models through real clients"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.routing import APIRoute
from live import TOKEN, Live

from melior.errors import ConfigError, DatabaseAway
from melior.serving.app import create_app
from melior.serving.security import OPEN, SCOPES, Limits, check_bind, first_key, hash_of, scope_of
from melior.store import Store
from melior.types import Record

ROWS = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n' * 3


def routes(live: Live) -> list[tuple[str, str, APIRoute]]:
    app = create_app(live.service)
    found = [
        (method, route.path, route) for route in app.routes if isinstance(route, APIRoute) for method in route.methods
    ]
    assert len(found) >= 10
    return found


def error(answer: Any) -> dict[str, Any]:
    body = answer.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"].startswith("req_") and "Traceback" not in answer.text
    return dict(body["error"])


# ---------------------------------------------------------------------- who gets in


def test_every_route_needs_a_token(server: Live) -> None:
    with server.http(token=None) as nobody, server.http(token="wrong") as stranger:
        for method, path, _ in [*routes(server), ("GET", "/v1/openapi.json", None), ("GET", "/nowhere", None)]:
            for client in (nobody, stranger):
                answer = client.request(method, path.replace("{", "").replace("}", ""))
                assert answer.status_code == (200 if path in OPEN else 401), (method, path)
                if path not in OPEN:
                    assert error(answer)["code"] == "invalid_api_key"


def test_every_route_needs_its_scope(server: Live) -> None:
    for scope in SCOPES:
        server.service.store.add_key(scope, hash_of(f"only {scope}"), [scope])
    with server.http(token="only infer") as infer, server.http(token="only admin") as admin:
        for method, path, route in routes(server):
            wanted = scope_of(route)
            if path in OPEN or wanted == "infer":
                continue
            asked = path.replace("{", "").replace("}", "")
            refused = infer.request(method, asked, files={"file": b"x"} if path == "/v1/files" else None)
            assert refused.status_code == 403, (method, path)
            assert f"needs {wanted}" in error(refused)["message"]
            assert admin.request(method, asked).status_code != 403


def test_a_route_without_a_scope_is_no_route(server: Live) -> None:
    from melior.serving.security import check_routes

    app = create_app(server.service)
    app.get("/v1/forgotten")(lambda: {})
    with pytest.raises(ConfigError, match="/v1/forgotten says not what scope it needs"):
        check_routes(app)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "localhost:80"}, 200),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "allowed.example"}, 200),
        ({"origin": "https://page.example"}, 200),
    ],
)
def test_other_hosts_and_other_pages_are_refused(
    live: Callable[..., Live], headers: dict[str, str], status: int
) -> None:
    made = live(hosts=frozenset({"allowed.example"}), origins=frozenset({"https://page.example"}))
    with made.http(headers=headers) as client:
        assert client.get("/v1/files").status_code == status
        assert client.get("/healthz").status_code == status, "a page may not even ask whether we live"


def test_a_revoked_key_is_refused(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("melior.serving.security.KNOWN_S", 0.0)
    key = server.service.store.add_key("guest", hash_of("guest"), ["read"])
    with server.http(token="guest") as guest:
        assert guest.get("/v1/files").status_code == 200
        server.service.store.revoke_key(key.id)
        assert guest.get("/v1/files").status_code == 401


def test_a_token_is_made_once_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "melior.db"
    with Store.open(path) as store:
        token = first_key(store, None)
        assert token and first_key(store, None) is None and store.key_of(hash_of(token)) is not None
        first_key(store, TOKEN)
        first_key(store, TOKEN)
        assert len(store.keys()) == 2
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert token.encode() not in kept and TOKEN.encode() not in kept


def test_others_are_not_let_near_without_a_token(tmp_path: Path) -> None:
    with Store.open(tmp_path / "melior.db") as store:
        check_bind("127.0.0.1", None, store)
        with pytest.raises(ConfigError, match=r"others can reach 0\.0\.0\.0"):
            check_bind("0.0.0.0", None, store)
        check_bind("0.0.0.0", TOKEN, store)


def test_too_much_and_too_fast_is_refused(live: Callable[..., Live]) -> None:
    made = live(limits=Limits(json_bytes=2_000, file_bytes=4_000, requests_per_s=1, burst=5))
    with made.http() as client:
        assert client.post("/v1/feedback", content=b"x" * 3_000).status_code == 413
        assert client.post("/v1/feedback", content=iter([b"x" * 1_500, b"x" * 1_500])).status_code == 413
        big = client.post("/v1/files", files={"file": b"x" * 9_000}, data={"purpose": "fine-tune"})
        assert big.status_code == 413 and not made.service.store.files()
        answers = [client.get("/v1/files") for _ in range(8)]
    slow = next(answer for answer in answers if answer.status_code == 429)
    assert int(slow.headers["retry-after"]) >= 1 and error(slow)["type"] == "rate_limit_error"


def test_what_is_wrong_is_said_in_the_dialect(server: Live) -> None:
    with server.http() as client:
        assert error(client.get("/v1/nowhere"))["message"] == "GET /v1/nowhere is not served here"
        assert error(client.delete("/v1/files"))["code"] == "method_not_allowed"
        odd = client.post("/v1/feedback", content=b"{", headers={"content-type": "application/json"})
        assert odd.status_code == 400 and error(odd)["type"] == "invalid_request_error"
        missing = client.post("/v1/feedback", json={"value": 1})
        assert missing.status_code == 400 and error(missing)["param"] == "metric_name"


def test_what_nobody_foresaw_is_told_without_a_trace(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: Any) -> Any:
        raise RuntimeError("secret /etc/passwd")

    monkeypatch.setattr(server.service.store, "file_page", broken)
    with server.http() as client:
        answer = client.get("/v1/files")
    assert answer.status_code == 500 and "secret" not in answer.text and error(answer)["type"] == "server_error"


def test_requests_are_counted_by_route_and_never_by_id(server: Live) -> None:
    with server.http() as client:
        client.get("/v1/files/file_one")
        client.get("/v1/files/file_two")
        told = client.get("/metrics").text
    assert 'melior_http_requests_total{code="404",method="GET",route="/v1/files/{file_id}"} 2.0' in told
    assert "file_one" not in told


# ---------------------------------------------------------------------- files


def test_files_through_the_official_client(server: Live) -> None:
    client = server.client()
    made = client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
    assert made.id.startswith("file") and made.bytes == len(ROWS) and made.filename == "rows.jsonl"
    assert client.files.wait_for_processing(made.id).status == "processed"
    assert client.files.retrieve(made.id) == made and client.files.content(made.id).content == ROWS
    others = [client.files.create(file=(f"{n}.jsonl", ROWS), purpose="evals").id for n in range(5)]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == [made.id, *others]
    assert [file.id for file in client.files.list(purpose="evals", limit=3)] == others[::-1]
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)
    assert len(list(server.service.files.iterdir())) == 5


def test_a_file_may_expire(server: Live) -> None:
    client = server.client()
    after: Any = {"anchor": "created_at", "seconds": 3600}
    made = client.files.create(file=("a.jsonl", ROWS), purpose="user_data", expires_after=after)
    assert made.expires_at == made.created_at + 3600
    with pytest.raises(openai.BadRequestError, match="3,600 to 2,592,000"):
        client.files.create(file=("a", ROWS), purpose="evals", expires_after={"anchor": "created_at", "seconds": 5})


def test_an_upload_that_no_row_names_leaves_no_bytes(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*file: Any, **more: Any) -> Any:
        raise DatabaseAway("the database does not answer")

    monkeypatch.setattr(server.service.store, "add_file", away)
    with pytest.raises(openai.InternalServerError):
        server.client().files.create(file=("a.jsonl", ROWS), purpose="fine-tune")
    assert not list(server.service.files.iterdir())


@pytest.mark.parametrize("by", ["list", "upload"])
def test_a_file_whose_time_is_over_goes(server: Live, by: str) -> None:
    client, store = server.client(), server.service.store
    kept = client.files.create(file=("a.jsonl", ROWS), purpose="evals")
    over = store.add_file("b.jsonl", "evals", size=len(ROWS), sha256="", expires="2020-01-01T00:00:00.000000Z")
    (server.service.files / over.id).write_bytes(ROWS)
    if by == "list":
        assert [file.id for file in client.files.list()] == [kept.id]
    else:
        kept = client.files.create(file=("c.jsonl", ROWS), purpose="evals")
    names = {file.name for file in server.service.files.iterdir()}
    assert kept.id in names and over.id not in names
    assert store.file(over.id, deleted=True).deleted is not None


@pytest.mark.parametrize(
    ("name", "content", "purpose", "told"),
    [("a.jsonl", b"", "fine-tune", "is empty"), ("a.jsonl", ROWS, "fun", "one of assistants, batch, fine-tune")],
)
def test_what_is_no_file_to_learn_from(server: Live, name: str, content: bytes, purpose: Any, told: str) -> None:
    with pytest.raises(openai.BadRequestError, match=told):
        server.client().files.create(file=(name, content), purpose=purpose)
    assert not list(server.service.files.glob("*")) and not server.service.store.files()


def test_what_a_client_calls_a_file_is_never_a_path(server: Live) -> None:
    client = server.client()
    made = client.files.create(file=("../../etc/passwd", ROWS), purpose="fine-tune")
    assert [file.name for file in server.service.files.iterdir()] == [made.id]
    with server.http() as http:
        assert http.get("/v1/files/..%2F..%2Fmelior.db/content").status_code == 404
        shown = http.get(f"/v1/files/{made.id}/content")
    assert shown.headers["content-type"] == "application/octet-stream"
    assert shown.headers["x-content-type-options"] == "nosniff" and "attachment" in shown.headers["content-disposition"]


# ---------------------------------------------------------------------- feedback


@pytest.fixture
def answer(server: Live) -> str:
    """The id of something that was answered."""
    return server.service.store.add_records([Record(inputs="hi", output="hello")])[0]


def test_feedback_is_kept_once_however_often_it_is_sent(server: Live, answer: str) -> None:
    said = {"metric_name": "helpful", "value": True, "inference_id": answer, "comment": "thanks"}
    with server.http() as client:
        first = client.post("/v1/feedback", json=said, headers={"idempotency-key": "k1"}).json()
        again = client.post("/v1/feedback", json={**said, "feedback_id": "k1"}).json()
        assert first == again == {"feedback_id": "k1"}
        other = client.post("/v1/feedback", json={**said, "value": False}, headers={"idempotency-key": "k1"})
        assert other.status_code == 409 and other.headers["x-should-retry"] == "false"
        listed = client.get("/v1/feedback", params={"inference_id": answer}).json()
    assert [row["value"] for row in listed["data"]] == [True] and listed["data"][0]["source"] == "MELIOR_TOKEN"


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        ({"inference_id": "dec_none"}, 404, "dec_none"),
        ({"inference_id": None}, 400, "neither a decision nor an episode"),
        ({"decision_id": "dec_other"}, 400, "two different answers"),
        ({"metric_name": ""}, 400, "metric_name"),
        ({"unknown": 1}, 400, "unknown"),
        ({"inference_id": "../x"}, 400, "inference_id"),
    ],
)
def test_feedback_that_means_nothing_is_refused(
    server: Live, answer: str, change: dict[str, Any], status: int, told: str
) -> None:
    said = {"metric_name": "helpful", "value": True, "inference_id": answer, **change}
    with server.http() as client:
        refused = client.post("/v1/feedback", json=said)
    assert refused.status_code == status and told in error(refused)["message"]
    assert server.service.store.feedback() == []


def test_what_many_say_at_once_is_all_kept_and_one_bad_word_spoils_nothing(server: Live, answer: str) -> None:
    def say(number: int) -> int:
        about = "dec_none" if number % 10 == 0 else answer
        with server.http() as client:
            return client.post(
                "/v1/feedback", json={"metric_name": "n", "value": number, "decision_id": about}
            ).status_code

    with ThreadPoolExecutor(8) as threads:
        codes = list(threads.map(say, range(100)))
    assert codes == [404 if number % 10 == 0 else 200 for number in range(100)]
    kept = sorted(row.value for row in server.service.store.feedback(metric="n"))
    assert kept == [number for number in range(100) if number % 10]


def test_feedback_that_was_acknowledged_is_there_when_the_server_stops(
    live: Callable[..., Live], tmp_path: Path
) -> None:
    made = live()
    about = made.service.store.add_records([Record(inputs="hi", output="hello")])[0]
    acknowledged: list[str] = []

    def say() -> None:
        with made.http() as client:
            for number in range(40):
                answer = client.post("/v1/feedback", json={"metric_name": "n", "value": number, "decision_id": about})
                if answer.status_code == 200:
                    acknowledged.append(answer.json()["feedback_id"])

    threads = [threading.Thread(target=say) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made.service.stop()
    with Store.open(tmp_path / "melior.db") as store:
        assert set(acknowledged) == {row.id for row in store.feedback()} and len(acknowledged) == 120
    made.service.writer.start()  # the fixture stops it again


# ---------------------------------------------------------------------- models, health


def test_models_are_versions_and_names(server: Live, tmp_path: Path) -> None:
    from melior.registry import Registry

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("w")
    registry = Registry(server.service.store)
    version = registry.register("support", folder, method="sft", base_model="base")
    registry.promote(version.id, force=True, reason="first")
    client = server.client()
    assert {version.id, "support@prod"} <= {model.id for model in client.models.list()}  # and what was pulled
    assert client.models.retrieve("support@prod").owned_by == "support"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other/one'"):
        client.models.retrieve("other/one")


def test_a_server_that_stops_says_so(server: Live) -> None:
    with server.http(token=None) as client:
        assert client.get("/readyz").status_code == 200
        server.service.draining.set()
        assert client.get("/readyz").status_code == 503 and client.get("/healthz").status_code == 200


def test_the_schema_names_every_route(server: Live) -> None:
    with server.http() as client:
        told = client.get("/v1/openapi.json").json()
    assert {path.replace(":path", "") for _, path, _ in routes(server)} == set(told["paths"])
