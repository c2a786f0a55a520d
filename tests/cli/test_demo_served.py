"""what the demonstration prints last: a server and a request, as they stand"""

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from melior.cli.demo import serving_lines
from melior.registry import Registry
from melior.store import Store


def test_the_last_lines_serve_the_model_and_are_answered(tmp_path: Path, folder_of: Callable[..., Path]) -> None:
    database = tmp_path / "melior.db"
    with Store.open(database) as store:
        version = Registry(store).register("sums", folder_of("llama", "chatml"), base_model="tiny", method="sft")
        Registry(store).promote(version.id, force=True, reason="a test")
    serve, ask = serving_lines("sums@prod", [{"role": "user", "content": "What's 2 + 3?"}], database)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    token, _, *rest = shlex.split(serve)
    command = [sys.executable, "-m", "melior.cli.main", *rest, "--port", port]
    environment = {**os.environ, "MELIOR_HOME": str(tmp_path), **dict([token.split("=", 1)])}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        curl, url, *options = shlex.split(ask)
        assert curl == "curl" and options[::2] == ["-H", "-H", "-d"]
        headers = dict(header.split(": ", 1) for header in options[1:5:2])
        answer = _answer(url.replace("8000", port), headers, options[5], server)
    finally:
        server.terminate()
        server.wait(60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "sums@prod"
    with Store.open(database) as store:
        [decision] = store.decisions()
    assert decision.id == answer.json()["id"] and decision.record.policy_version == version.id
    assert decision.record.inputs == [{"role": "user", "content": "What's 2 + 3?"}]


def _answer(url: str, headers: dict[str, str], body: str, server: subprocess.Popen[str]) -> httpx.Response:
    until = time.monotonic() + 120
    while True:
        try:
            return httpx.post(url, headers=headers, content=body, timeout=120)
        except httpx.ConnectError:
            assert server.poll() is None and time.monotonic() < until, "the server did not start"
            time.sleep(0.2)
