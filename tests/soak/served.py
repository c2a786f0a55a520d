"""a server as people start it, in a process of its own, that can be killed, stopped and started again"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

TOKEN = "a token for the soak"
START_S = 300.0  # for a server to answer on a machine with much else to do


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass
class Served:
    """`melior serve` on 127.0.0.1. It keeps its port, so that clients find it again."""

    folder: Path
    database: str
    arguments: Sequence[str] = ("--no-work",)
    environment: Mapping[str, str] = field(default_factory=dict)
    before: Sequence[str] = ()  # a command that runs the server, such as one that limits it
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """What it says."""
        return self.folder / "server.log"

    def client(self, **more: Any) -> httpx.Client:
        """Somebody who may ask for everything."""
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {TOKEN}"}, timeout=60, **more)

    def start(self, *, wait: bool = True) -> Served:
        """Starts it, and waits until it is ready."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [*self.before, sys.executable, "-m", "melior.cli.main", "serve", "--port", str(self.port)]
        command += ["--data", str(self.folder / "data"), "--database", self.database, *self.arguments]
        scene = {**os.environ, "OMP_NUM_THREADS": "1", **self.environment, "MELIOR_TOKEN": TOKEN}
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env=scene)
        if wait:
            self.ready()
        return self

    def ready(self) -> None:
        """Waits until it takes requests."""
        until = time.monotonic() + START_S
        while True:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """Ends it as a power cut would end its process."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Asks it to end, and waits."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait()

    def __enter__(self) -> Served:
        if self.process is None:
            return self.start()
        self.ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
