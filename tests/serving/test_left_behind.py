"""answers whose client left, or whose engine failed: what was decided is in the log, and counted once"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import TOKEN, Live, serving

from melior.policies.engine import Sample
from melior.registry import Registry
from melior.serving.security import first_key
from melior.serving.service import Service, Settings
from melior.serving.voices import Voice
from melior.store import Store

SHARED = 40  # threads of anyio, for all short work
ENDLESS = {"logit_bias": {"1": -100, "3": -100}}  # never what ends an answer
CHAT = {"model": "tiny@prod", "messages": [{"role": "user", "content": "say something"}], "max_tokens": 12}


@pytest.fixture
def tiny(live: Callable[..., Live], folder_of: Callable[..., Path]) -> Live:
    """A server whose model has been asked once."""
    return begun(live(), folder_of("llama", "chatml"))


def begun(server: Live, folder: Path) -> Live:
    registry = Registry(server.service.store)
    version = registry.register("tiny", folder, method="none", base_model="tiny")
    registry.promote(version.id, force=True, reason="the only one")
    with server.http() as http:
        assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
    return server


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    over = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < over, "it did not happen in time"
        time.sleep(0.01)


def voice_of(server: Live) -> Voice:
    (voice,) = server.service.voices.loaded.values()
    return voice


def settled(server: Live) -> None:
    """Waits until nothing is answered, and nothing is on its way to the log."""
    voice = voice_of(server)
    until(lambda: not (voice.tickets or voice.coming))
    turns(server)
    until(lambda: not server.service.keeping)


def turns(server: Live) -> None:
    """Waits until the event loop has seen what happened before."""
    with server.http(token=None) as http:
        for _ in range(3):
            assert http.get("/healthz").status_code == 200


@contextmanager
def asked(server: Live, path: str, body: dict[str, Any]) -> Iterator[None]:
    """A client that asks, and leaves at the end of the block without having read anything."""
    url, sent = httpx.URL(server.url), json.dumps(body).encode()
    with socket.create_connection((url.host, url.port or 80)) as connection:
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {TOKEN}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(sent)}\r\n\r\n"
        connection.sendall(head.encode() + sent)
        yield
    turns(server)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_was_complete_is_in_the_log_however_busy_the_server_is_when_its_client_leaves(
    tiny: Live, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    store, voice = tiny.service.store, voice_of(tiny)
    before = len(store.decisions())
    decide, free = threading.Event(), threading.Event()
    step, pages, busy = voice.engine.step, store.file_page, list[int]()

    def waiting_step() -> bool:
        assert decide.wait(120)
        return step()

    def waiting_page(**how: Any) -> Any:
        busy.append(1)
        assert free.wait(120)
        return pages(**how)

    monkeypatch.setattr(voice.engine, "step", waiting_step)
    monkeypatch.setattr(store, "file_page", waiting_page)
    with ThreadPoolExecutor(SHARED) as threads, tiny.http(limits=httpx.Limits(max_connections=SHARED)) as http:
        try:
            with asked(tiny, "/v1/chat/completions", {**CHAT, **ENDLESS, "stream": stream}):
                until(lambda: bool(voice.tickets))
                others = [threads.submit(http.get, "/v1/files", timeout=120) for _ in range(SHARED)]
                until(lambda: len(busy) == SHARED)
                decide.set()
                until(lambda: not voice.tickets)
                turns(tiny)
            assert len(store.decisions()) == before, "no thread is free"
        finally:
            decide.set()
            free.set()
        assert all(other.result().status_code == 200 for other in others)
    until(lambda: len(store.decisions()) == before + 1)
    assert store.decisions()[-1].record.finish == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_choices_that_were_complete_when_the_engine_failed_are_in_the_log(
    tiny: Live, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    store, engine = tiny.service.store, voice_of(tiny).engine
    before = len(store.decisions())
    step, collect, complete = engine.step, engine.collect, list[int]()

    def failing_step() -> bool:
        if complete:
            raise RuntimeError("out of memory")
        return step()

    def noted_collect() -> Any:
        found = collect()
        complete.extend(sample.number for sample in found)
        return found

    monkeypatch.setattr(engine, "step", failing_step)
    monkeypatch.setattr(engine, "collect", noted_collect)
    sooner = {"logit_bias": {"1": 4, "3": 4}, "n": 8, "max_tokens": 200, "seed": 11, "temperature": 1}
    with tiny.http() as http:
        told = http.post("/v1/chat/completions", json={**CHAT, **sooner, "stream": stream}).text
    assert "error" in told and 0 < len(complete) < 8
    until(lambda: len(store.decisions()) == before + len(complete))
    kept = store.decisions()[before:]
    assert {int(row.id.partition(":")[2] or 0) for row in kept} == set(complete)
    assert {row.record.finish for row in kept} == {"stop"}


def test_prompts_that_were_answered_when_the_engine_failed_are_in_the_log(
    tiny: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second prompt is complete and the first, whose pieces are read before its own, is not."""
    store, voice = tiny.service.store, voice_of(tiny)
    before = len(store.decisions())
    tell, collect, second = voice._tell, voice.engine.collect, voice.count + 2
    found: list[Sample] = []

    def failing_tell() -> None:
        found[:] = [sample for sample in collect() if sample.request == second]
        tell()
        if found:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(voice.engine, "collect", lambda: found)
    monkeypatch.setattr(voice, "_tell", failing_tell)
    with tiny.http() as http:
        body = {"model": "tiny@prod", "prompt": ["the cat sat", "the hat"], "max_tokens": 5, **ENDLESS}
        assert http.post("/v1/completions", json=body).status_code == 500
    until(lambda: len(store.decisions()) == before + 1)
    assert store.decisions()[-1].record.inputs == "the hat" and store.decisions()[-1].id.endswith(":1")


def test_the_first_token_of_a_stream_that_is_left_is_counted_once(tiny: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = "melior_time_to_first_token_seconds_count"
    voice, left, steps = voice_of(tiny), threading.Event(), count()
    step = voice.engine.step

    def waiting_step() -> bool:
        assert next(steps) < 50 or left.wait(120)
        return step()

    monkeypatch.setattr(voice.engine, "step", waiting_step)
    with tiny.http() as http:
        body = {**CHAT, **ENDLESS, "max_tokens": 400, "stream": True}
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            chunks = (json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line)
            next(chunk for chunk in chunks if chunk["choices"][0]["delta"].get("content"))
        until(lambda: bool(voice.going) or not voice.tickets)
        left.set()
        settled(tiny)
        assert tiny.service.store.decisions()[-1].record.finish == "cancelled"
        (line,) = [line for line in http.get("/metrics").text.splitlines() if line.startswith(counted)]
    assert float(line.split()[1]) == 1


def test_a_client_that_only_had_its_prompt_read_leaves_no_answer_behind(
    tiny: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice = voice_of(tiny)
    before = len(tiny.service.store.decisions())
    read, begun, left = voice._read, threading.Event(), threading.Event()

    def waiting_read() -> None:
        begun.set()
        assert left.wait(120)
        read()

    monkeypatch.setattr(voice, "_read", waiting_read)
    body = {"model": "tiny@prod", "prompt": "hello there", "max_tokens": 0, "echo": True, "logprobs": 1}
    with asked(tiny, "/v1/completions", body):
        assert begun.wait(60)
    until(lambda: bool(voice.going))
    left.set()
    settled(tiny)
    assert len(tiny.service.store.decisions()) == before


def test_what_clients_left_is_in_the_log_before_a_server_has_stopped(
    tmp_path: Path, folder_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(tmp_path / "melior.db") as store:
        first_key(store, TOKEN)
        service = Service(Settings(data=tmp_path, database=str(tmp_path / "melior.db"), work=False), store)
        steps, last = count(), threading.Event()
        with serving(service) as server:
            voice = voice_of(begun(server, folder_of("llama", "chatml")))
            step = voice.engine.step

            def slow_end() -> bool:
                if next(steps) > 2:
                    last.set()
                    time.sleep(1)  # in which the server begins to stop
                return step()

            monkeypatch.setattr(voice.engine, "step", slow_end)
            with asked(server, "/v1/chat/completions", {**CHAT, **ENDLESS}):
                assert last.wait(60)
        assert [row.record.finish for row in store.decisions()[1:]] == ["cancelled"]
