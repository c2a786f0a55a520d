"""a real server on a real port, and the official client"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from openai import OpenAI

from melior.serving.app import create_app
from melior.serving.security import Limits, first_key
from melior.serving.service import Service, Settings
from melior.store import Store

TOKEN = "a token that the tests know"


@dataclass
class Live:
    """A server that answers on 127.0.0.1."""

    service: Service
    url: str

    def client(self, token: str = TOKEN, **more: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=token, max_retries=0, **more)

    def http(self, token: str | None = TOKEN, **more: Any) -> httpx.Client:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers={**headers, **more.pop("headers", {})}, timeout=30, **more)


@contextmanager
def serving(service: Service) -> Iterator[Live]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(create_app(service), host="127.0.0.1", port=port, log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + 30
        while not server.started:
            assert thread.is_alive() and time.monotonic() < until, "the server did not start"
            time.sleep(0.01)
        yield Live(service, f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Callable[..., Live]]:
    """`live()` is a server with an empty store; `live(limits=…)` one with other settings."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def make(limits: Limits | None = None, **settings: Any) -> Live:
            database = f"sqlite:///{tmp_path / 'melior.db'}"
            store = stack.enter_context(Store.open(database))
            first_key(store, TOKEN)
            asked = Settings(
                data=tmp_path / "data", database=database, limits=limits or Limits(), **{"work": False, **settings}
            )
            return stack.enter_context(serving(Service(asked, store)))

        yield make


@pytest.fixture
def server(live: Callable[..., Live]) -> Live:
    return live()
