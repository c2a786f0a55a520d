"""melior serve as a person starts it: a token, an answer, SIGTERM; and keys"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
from typer.testing import CliRunner

from melior.cli.main import app

RUN = CliRunner()


def test_a_server_is_started_asked_and_stopped(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "MELIOR_TOKEN"}
    environment["MELIOR_HOME"] = str(tmp_path)
    command = [sys.executable, "-m", "melior.cli.main", "serve", "--port", str(port), "--no-work"]
    with (tmp_path / "said").open("w") as said:
        server = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
    try:
        until = time.monotonic() + 60
        while True:
            assert server.poll() is None and time.monotonic() < until, (tmp_path / "said").read_text()
            try:
                if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        told = (tmp_path / "said").read_text()
        found = re.search(r"token +(\S+)", told)
        assert found and f"http://127.0.0.1:{port}/v1" in told
        headers = {"authorization": f"Bearer {found[1]}"}
        assert httpx.get(f"http://127.0.0.1:{port}/v1/models", headers=headers).json()["data"] == []
        assert httpx.get(f"http://127.0.0.1:{port}/v1/models").status_code == 401
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(40)
    assert "Traceback" not in (tmp_path / "said").read_text()


def test_others_are_not_let_near_without_a_token(tmp_path: Path) -> None:
    environment = {"MELIOR_HOME": str(tmp_path), "MELIOR_TOKEN": ""}
    result = RUN.invoke(app, ["serve", "--host", "0.0.0.0"], env=environment)
    assert result.exit_code == 1 and "set MELIOR_TOKEN, or bind 127.0.0.1" in result.output


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    store = ["--store", str(tmp_path / "melior.db")]
    made = json.loads(RUN.invoke(app, ["keys", "add", "shop", "--scope", "infer", *store, "--json"]).stdout)
    assert made["scopes"] == ["infer"] and len(made["token"]) > 30
    listed = RUN.invoke(app, ["keys", "list", *store]).stdout
    assert "shop" in listed and made["token"] not in listed
    assert "worth nothing" in RUN.invoke(app, ["keys", "revoke", made["id"], *store]).stdout
    assert json.loads(RUN.invoke(app, ["keys", "list", *store, "--json"]).stdout)[0]["revoked"]
    wrong = RUN.invoke(app, ["keys", "add", "x", "--scope", "all", *store])
    assert wrong.exit_code == 1 and "'all' is no scope; scopes are infer" in wrong.output
