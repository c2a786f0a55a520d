"""a server that stops: it says so first, answers what it was asked, and tells what it cannot answer"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from live import TOKEN

from melior.registry import Registry
from melior.serving.app import create_app
from melior.serving.drain import Draining
from melior.serving.security import Limits, first_key
from melior.serving.service import Service, Settings
from melior.store import Store

CHAT = {"model": "talk@prod", "messages": [{"role": "user", "content": "hi"}], "stream": True}
CHAT |= {"temperature": 0, "logit_bias": {"1": -100, "3": -100}}  # never what ends an answer
HEADERS = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def draining(tmp_path: Path, folder_of: Callable[..., Path]) -> Iterator[Draining]:
    """A server with a model that talks on and on, which lingers for a moment and drains for another."""
    database = f"sqlite:///{tmp_path / 'melior.db'}"
    with Store.open(database) as store:
        first_key(store, TOKEN)
        registry = Registry(store)
        folder = folder_of("llama", max_position_embeddings=100_000)
        version = registry.register("talk", folder, method="sft", base_model="none")
        registry.promote(version.id, force=True, reason="first")
        settings = Settings(data=tmp_path / "data", database=database, work=False, limits=Limits(at_once=2))
        service = Service(settings, store)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        config = uvicorn.Config(create_app(service), port=port, log_level="critical", timeout_graceful_shutdown=9)
        server = Draining(config, service, linger_s=0.5, drain_s=0.5)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield server
        server.should_exit = True
        thread.join()


def test_a_stream_that_outlasts_the_drain_ends_with_a_valid_event(draining: Draining) -> None:
    url = f"http://127.0.0.1:{draining.config.port}"
    events: list[str] = []
    with httpx.Client(base_url=url, headers=HEADERS, timeout=30) as client:
        with client.stream("POST", "/v1/chat/completions", json={**CHAT, "max_tokens": 90_000}) as answer:
            assert answer.status_code == 200
            for line in answer.iter_lines():
                if line.startswith("data: ") and not events:
                    draining.asked = time.monotonic()  # as SIGTERM does
                    while httpx.get(f"{url}/readyz").status_code == 200:
                        time.sleep(0.01)
                    told = httpx.get(f"{url}/healthz")
                    assert told.status_code == 200 and told.headers["connection"] == "close", "clients go elsewhere"
                events += [line.removeprefix("data: ")] if line.startswith("data: ") else []
    error = json.loads(events[-1])["error"]
    assert error["code"] == "stopping" and error["type"] == "server_error" and len(events) > 1


def test_more_at_once_than_may_be_is_refused_and_health_is_not(draining: Draining) -> None:
    url = f"http://127.0.0.1:{draining.config.port}"
    with httpx.Client(base_url=url, headers=HEADERS, timeout=30) as client:
        with client.stream("POST", "/v1/chat/completions", json={**CHAT, "max_tokens": 90_000}):
            with client.stream("POST", "/v1/chat/completions", json={**CHAT, "max_tokens": 90_000}):
                refused = httpx.get(f"{url}/v1/models", headers=HEADERS)
                assert refused.status_code == 503 and refused.json()["error"]["code"] == "overloaded"
                assert refused.headers["retry-after"] == "1" and refused.headers["x-should-retry"] == "true"
                assert httpx.get(f"{url}/healthz").status_code == 200
        until = time.monotonic() + 20
        while httpx.get(f"{url}/v1/models", headers=HEADERS).status_code != 200:
            assert time.monotonic() < until, "those who left are still counted"
            time.sleep(0.05)
