"""webhooks by the official client on both sides: made, signed, unwrapped, replaced; nothing lost when a sender dies"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from live import Live
from local_server import Request, Server, answer
from local_server import serving as receiving
from openai import InvalidWebhookSignatureError

from melior.serving.courier import Courier
from melior.serving.security import hash_of
from melior.store import Store
from melior.store.jobs import Jobs
from melior.store.rows import Webhook

EVENTS = ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]


def taken(request: Request, connection: socket.socket, server: Server) -> None:
    answer(connection, {}, "204 No Content")


def end(store: Jobs) -> str:
    """A job that has ended."""
    job = store.add_job("sft", {}, "/nowhere")
    return store.ask_job(job.id, "cancel").id


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    over = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < over, "it did not happen in time"
        time.sleep(0.02)


def test_what_is_sent_is_what_the_official_client_believes(server: Live) -> None:
    client = server.client()
    with receiving(taken) as receiver:
        made = client.webhooks.create(name="ops", url=receiver.url, event_types=EVENTS)  # type: ignore[arg-type]
        job = end(server.service.store)
        until(lambda: len(receiver.requests) == 1)
        got = receiver.requests[0]
        told = client.webhooks.unwrap(got.body, got.headers, secret=made.signing_secret)
        assert told.type == "fine_tuning.job.cancelled" and told.data.id == job
        for body, secret in ((got.body + b" ", made.signing_secret), (got.body, "whsec_" + "A" * 44)):
            with pytest.raises(InvalidWebhookSignatureError):
                client.webhooks.unwrap(body, got.headers, secret=secret)
        until(lambda: server.service.store.deliveries()[0].status == "delivered")
    assert "authorization" not in got.headers and len(receiver.requests) == 1


def test_one_is_made_changed_replaced_and_deleted(server: Live) -> None:
    client = server.client()
    made = client.webhooks.create(name="ops", url="https://ops.example/a?key=1", event_types=["eval.run.failed"])
    assert made.object == "webhook_endpoint" and made.signing_secret.startswith("whsec_")
    shown = client.webhooks.retrieve(made.id)
    assert made.signing_secret not in shown.to_json() and shown.signing_secret_hint
    assert client.webhooks.update(made.id, name="other", event_types=EVENTS).event_types == EVENTS  # type: ignore[arg-type]
    others = [client.webhooks.create(name="", url="https://x.example", event_types=EVENTS).id for _ in range(3)]  # type: ignore[arg-type]
    assert [row.id for row in client.webhooks.list(limit=2)] == [*others[::-1], made.id]
    assert client.webhooks.rotate_secret(made.id).signing_secret != made.signing_secret
    assert client.webhooks.delete(made.id).deleted
    for call in (client.webhooks.retrieve, client.webhooks.delete, client.webhooks.rotate_secret):
        with pytest.raises(openai.NotFoundError, match="there is no webhook"):
            call(made.id)  # type: ignore[operator]
    assert "model.promoted" in client.webhooks.event_types.list().data


def test_both_secrets_sign_for_a_day_where_that_was_asked_for(server: Live) -> None:
    client = server.client()
    with receiving(taken) as receiver:
        old = client.webhooks.create(name="", url=receiver.url, event_types=EVENTS)  # type: ignore[arg-type]
        new = client.webhooks.rotate_secret(old.id, keep_old_secret_active_for_24_hours=True)
        end(server.service.store)
        until(lambda: len(receiver.requests) == 1)
        got = receiver.requests[0]
        for secret in (old.signing_secret, new.signing_secret):
            client.webhooks.unwrap(got.body, got.headers, secret=secret)


def test_a_test_tells_what_the_address_answered(server: Live) -> None:
    client = server.client()

    def broken(request: Request, connection: socket.socket, server: Server) -> None:
        answer(connection, {}, "500 Internal Server Error")

    for script, status in ((taken, 204), (broken, 500)):
        with receiving(script) as receiver:
            made = client.webhooks.create(name="", url=receiver.url, event_types=EVENTS)  # type: ignore[arg-type]
            result = client.webhooks.test(made.id, event_type="fine_tuning.job.failed")
        assert (result.success, result.status_code) == (True, status)
    with pytest.raises(openai.BadRequestError, match="cannot be reached"):
        client.webhooks.test(made.id, event_type="fine_tuning.job.failed")
    assert server.service.store.deliveries() == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"url": "ftp://x.example"}, "starts with http"),
        ({"url": "https://user:secret@x.example"}, "holds a user or a password"),
        ({"event_types": ["batch.completed"]}, "Input should be"),
        ({"event_types": []}, "at least 1"),
    ],
)
def test_what_can_be_no_webhook(server: Live, change: dict[str, object], told: str) -> None:
    asked = {"name": "", "url": "https://x.example", "event_types": EVENTS, **change}
    with pytest.raises(openai.BadRequestError, match=told):
        server.client().webhooks.create(**asked)  # type: ignore[arg-type]


def test_only_administrators_may(server: Live) -> None:
    server.service.store.add_key("trainer", hash_of("trainer"), ["train", "read", "infer", "feedback"])
    with pytest.raises(openai.PermissionDeniedError, match="needs admin"):
        server.client("trainer").webhooks.list()


def test_private_addresses_are_not_told_anything(server: Live) -> None:
    client = server.client()
    made = client.webhooks.create(name="", url="http://169.254.169.254/latest", event_types=EVENTS)  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError, match="not public"):
        client.webhooks.test(made.id, event_type="fine_tuning.job.failed")


def test_what_is_gone_is_not_told_again(server: Live) -> None:
    def gone(request: Request, connection: socket.socket, server: Server) -> None:
        answer(connection, {}, "410 Gone")

    store = server.service.store
    with receiving(gone) as receiver:
        store.add_webhook(receiver.url, EVENTS)
        end(store)
        until(lambda: not store.webhooks())
        end(store)
    assert [row.status for row in store.deliveries()] == ["failed"] and len(receiver.requests) == 1


def test_a_message_that_cannot_be_signed_keeps_no_other_waiting(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    store = server.service.store
    with receiving(taken) as receiver:
        store.add_webhook(receiver.url, EVENTS)
        odd = store.add_webhook("http://127.0.0.1:1", EVENTS)
        monkeypatch.setattr(
            server.service.courier,
            "send",
            lambda hook, *said: Courier.send(server.service.courier, broken(hook), *said),
        )

        def broken(hook: Webhook) -> Webhook:
            return replace(hook, secret="whsec_A") if hook.id == odd.id else hook

        end(store)
        until(lambda: sorted(row.status for row in store.deliveries()) == ["delivered", "waiting"])
        until(lambda: any(row.error == "this server failed to send it" for row in store.deliveries()))
        end(store)
        until(lambda: len(receiver.requests) == 2)


def test_messages_go_on_after_whatever_kept_them(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    store, failed = server.service.store, threading.Event()
    claim = store.claim_deliveries

    def odd(most: int) -> Any:
        if failed.is_set():
            return claim(most)
        failed.set()
        raise RuntimeError("not what a store says")

    monkeypatch.setattr(store, "claim_deliveries", odd)
    with receiving(taken) as receiver:
        store.add_webhook(receiver.url, EVENTS)
        until(failed.is_set)
        end(store)
        until(lambda: len(receiver.requests) == 1)


SENDER = """
import sys, time
from melior.serving.courier import Courier
from melior.store import Store, webhooks
webhooks.LEASE_S = 2.0
courier = Courier(Store.open(sys.argv[1]), poll_s=0.05)
courier.start()
print("sends", flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_senders_that_are_killed_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each message arrives; one that was on its way when its sender died arrives again, under the same id."""
    monkeypatch.setattr("melior.store.webhooks.LEASE_S", 2.0)
    where = str(tmp_path / "melior.db")
    got: list[str] = []
    lock = threading.Lock()

    def slow(request: Request, connection: socket.socket, server: Server) -> None:
        time.sleep(0.05)
        with lock:
            got.append(request.headers["webhook-id"])
        answer(connection, {})

    with Store.open(where) as store, receiving(slow) as receiver:
        store.add_webhook(receiver.url, EVENTS)
        for _ in range(60):
            end(store)
        wanted = {row.id for row in store.deliveries()}
        for _ in range(3):
            sender = subprocess.Popen([sys.executable, "-c", SENDER, where], stdout=subprocess.PIPE)
            assert sender.stdout is not None and sender.stdout.readline() == b"sends\n"
            time.sleep(0.15)
            sender.send_signal(signal.SIGKILL)
            sender.wait()
            sender.stdout.close()
        couriers = [Courier(store, poll_s=0.05) for _ in range(2)]
        for courier in couriers:
            courier.start()
        until(lambda: all(row.status == "delivered" for row in store.deliveries()), 60)
        for courier in couriers:
            courier.stop()
    assert set(got) == wanted
    assert len(got) <= len(wanted) + 3 * 8, "only what a killed sender had claimed may come twice"
