"""what deploy/ and docs/deploy.md tell to copy does what they say"""

from __future__ import annotations

import http.server
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from live import TOKEN, Live, serving

from melior.serving.security import first_key
from melior.serving.service import Service, Settings
from melior.store import Store
from melior.types import Record

ROOT = Path(__file__).resolve().parents[2]
NGINX = shutil.which("nginx") or ("/usr/sbin/nginx" if Path("/usr/sbin/nginx").exists() else "")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd here")
def test_systemd_knows_every_line_of_the_unit(tmp_path: Path) -> None:
    unit = (ROOT / "deploy" / "melior.service").read_text()
    place = tmp_path / "melior.service"
    place.write_text(unit.replace("/opt/melior/bin/melior", "/bin/true"))
    told = subprocess.run(["systemd-analyze", "verify", str(place)], capture_output=True, text=True)
    assert "melior.service" not in told.stderr, told.stderr


def test_what_containers_install_and_run_is_there() -> None:
    steps = (ROOT / "deploy" / "Containerfile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [asked] = re.findall(r"'\.\[([a-z,]+)\]'", steps)
    assert set(asked.split(",")) <= set(extras)
    for line in re.findall(r"^COPY (.+) \S+$", steps, re.MULTILINE):
        assert all((ROOT / name).exists() for name in line.split())
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    assert services["serve"]["command"][0] == "serve" and services["work"]["command"] == ["work"]
    assert set(services["work"]["environment"]) == {"MELIOR_TOKEN", "MELIOR_DATABASE"}


class Slow(http.server.BaseHTTPRequestHandler):
    """Sends one piece, and the other only when the first was read."""

    seen = threading.Event()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b"data: one\n\n")
        self.wfile.flush()
        self.wfile.write(b"data: two\n\n" if self.seen.wait(20) else b"data: too late\n\n")

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Callable[[int], int]]:
    """`proxy(port)`: the port on which nginx stands in front of another one."""
    started: list[subprocess.Popen[bytes]] = []

    def start(upstream: int) -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ours = (ROOT / "deploy" / "nginx.conf").read_text()
        assert "listen 443 ssl" in ours and "127.0.0.1:8000" in ours
        ours = ours.replace("listen 443 ssl", f"listen 127.0.0.1:{port}").replace(":8000", f":{upstream}")
        ours = "\n".join(line for line in ours.splitlines() if "ssl_certificate" not in line)
        temporary = "".join(
            f"{name}_temp_path {tmp_path};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        whole = f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ access_log off; {temporary}\n{ours} }}"
        (tmp_path / "nginx.conf").write_text(whole)
        command = [NGINX, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-g", "daemon off;"]
        started.append(subprocess.Popen(command))
        until = time.monotonic() + 20
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert started[-1].poll() is None and time.monotonic() < until, "nginx did not start"
            time.sleep(0.05)
        return port

    yield start
    for process in started:
        process.terminate()
        process.wait(20)


@pytest.mark.skipif(not NGINX, reason="there is no nginx here")
def test_the_proxy_passes_names_on_and_serves_no_metrics(
    live: Callable[..., Live], proxy: Callable[[int], int]
) -> None:
    server = live(hosts=frozenset({"models.example"}))
    port = proxy(int(server.url.rpartition(":")[2]))
    with server.http(headers={"host": "models.example"}) as client:
        assert client.get(f"http://127.0.0.1:{port}/v1/models").status_code == 200
        assert client.get(f"http://127.0.0.1:{port}/metrics").status_code == 404
        assert client.get("/metrics").status_code == 200
    with server.http(headers={"host": "other.example"}) as client:
        assert client.get(f"http://127.0.0.1:{port}/v1/models").status_code == 403


@pytest.mark.skipif(not NGINX, reason="there is no nginx here")
def test_the_proxy_holds_no_piece_of_a_stream_back(proxy: Callable[[int], int]) -> None:
    Slow.seen.clear()
    upstream = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    thread = threading.Thread(target=upstream.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{proxy(upstream.server_port)}/"
        with httpx.stream("GET", url, headers={"host": "models.example"}, timeout=30) as answer:
            pieces = []
            for piece in answer.iter_text():
                pieces.append(piece)
                Slow.seen.set()
        assert "".join(pieces) == "data: one\n\ndata: two\n\n"
    finally:
        upstream.shutdown()
        thread.join()
        upstream.server_close()


def blocks(page: str) -> list[str]:
    """The bash of a page."""
    return re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


@pytest.mark.skipif(not shutil.which("sqlite3"), reason="there is no sqlite3 here")
def test_a_backup_of_a_server_that_works_has_all_it_had_acknowledged(tmp_path: Path) -> None:
    home, backup = tmp_path, tmp_path / "backup"
    backup.mkdir()
    environment = {**os.environ, "MELIOR_HOME": str(home), "BACKUP": str(backup)}
    save, restore = blocks("deploy.md")
    told: list[str] = []
    stop = threading.Event()
    database = home / "melior.db"
    with Store.open(database) as store:
        first_key(store, TOKEN)
        about = store.add_records([Record(inputs="a", output="b")])[0]
        settings = Settings(data=home / "server", database=str(database), work=False)
        with serving(Service(settings, store)) as server:
            rows = b'{"prompt": "a", "completion": "b"}\n'
            file = server.client().files.create(file=("rows.jsonl", rows), purpose="fine-tune")

            def speak() -> None:
                with server.http() as client:
                    while not stop.is_set():
                        said = {"metric_name": "helpful", "value": True, "decision_id": about}
                        told.append(client.post("/v1/feedback", json=said).json()["feedback_id"])

            speaker = threading.Thread(target=speak)
            speaker.start()
            try:
                while len(told) < 20:
                    assert speaker.is_alive()
                    time.sleep(0.01)
                before = list(told)
                subprocess.run(["bash", "-euc", save], env=environment, check=True)
            finally:
                stop.set()
                speaker.join()
    shutil.rmtree(home / "server")
    subprocess.run(["bash", "-euc", restore], env=environment, check=True)
    with Store.open(database) as store:
        kept = {row.id for row in store.feedback()}
        assert set(before) <= kept <= set(told)
        assert (home / "server" / "files" / store.file(file.id).id).read_bytes() == rows
