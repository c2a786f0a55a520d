"""what may take long keeps nothing waiting that is short"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio.from_thread
import anyio.to_thread
import httpx
import pytest
import torch
from live import Live

from melior.registry import Registry
from melior.serving import embeddings, graders
from melior.serving.loaded import Voices

SHARED = 40  # threads of anyio, for all short work
CHAT = {"model": "tiny@prod", "messages": [{"role": "user", "content": "say something"}], "max_tokens": 2}


@pytest.fixture
def tiny(live: Callable[..., Live], folder_of: Callable[..., Path]) -> Live:
    """A server with a tiny model called tiny@prod."""
    made = live()
    registry = Registry(made.service.store)
    version = registry.register("tiny", folder_of("llama", "chatml"), method="none", base_model="tiny")
    registry.promote(version.id, force=True, reason="the only one")
    return made


def test_others_are_answered_while_many_wait_for_a_model(tiny: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, waiting = threading.Event(), list[int]()
    speaker = Voices.speaker

    def slow(self: Voices, version: Any) -> Any:
        waiting.append(1)
        assert loaded.wait(120)
        return speaker(self, version)

    monkeypatch.setattr(Voices, "speaker", slow)
    many = SHARED + 5
    with ThreadPoolExecutor(many) as threads, tiny.http(limits=httpx.Limits(max_connections=many + 1)) as http:
        try:
            chats = [threads.submit(http.post, "/v1/chat/completions", json=CHAT, timeout=180) for _ in range(many)]
            until = time.monotonic() + 60
            while len(waiting) < SHARED:
                assert time.monotonic() < until, "they did not come in time"
                time.sleep(0.01)
            assert http.get("/readyz").status_code == 200
            assert http.get("/v1/files").status_code == 200
        finally:
            loaded.set()
        assert {chat.result().status_code for chat in chats} == {200}


def shared_threads() -> int:
    """How many of the threads that all share are busy; asked in any thread of anyio."""
    return int(anyio.from_thread.run_sync(lambda: anyio.to_thread.current_default_thread_limiter().borrowed_tokens))


class Slow:
    """An encoder that only notes where it is asked."""

    longest = 9

    def __init__(self, busy: list[int]) -> None:
        self.busy = busy

    def length(self, text: str) -> int:
        return len(text)

    def embed(self, texts: list[str]) -> torch.Tensor:
        self.busy.append(shared_threads())
        return torch.ones(len(texts), 2)


def test_graders_and_vectors_take_no_thread_that_others_need(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    busy: list[int] = []
    run_grader = graders.run_grader

    def noted(*given: Any, **how: Any) -> Any:
        busy.append(shared_threads())
        return run_grader(*given, **how)

    monkeypatch.setattr(graders, "run_grader", noted)
    monkeypatch.setattr(embeddings, "_encoder", lambda: Slow(busy))
    check = {"type": "string_check", "name": "right", "operation": "eq", "input": "7", "reference": "7"}
    with server.http() as http:
        graded = http.post("/v1/fine_tuning/alpha/graders/run", json={"grader": check, "model_sample": "7"})
        vector = http.post("/v1/embeddings", json={"model": embeddings.MODEL, "input": "a"})
    assert graded.json()["reward"] == 1 and vector.json()["data"][0]["embedding"] == [1, 1]
    assert busy == [0, 0]
