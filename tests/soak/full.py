"""a disk that fills up under a server: it says so, loses nothing it acknowledged, and goes on when there is room

    python tests/soak/full.py [--disk FOLDER]

Without a disk of its own the server's files are limited in size while it runs (RLIMIT_FSIZE, which needs no rights);
with `--disk`, a small file system such as a tmpfs of 32 MiB, that is filled to its last byte.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models import CHAT, EPISODE, LABEL, register
from served import Served

from melior.store import Store

FULL = 507
ROWS = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n'
UPLOAD = ROWS * 40_000  # more than is kept in memory on its way
CHUNK = 1 << 16


@contextmanager
def no_room(served: Served, disk: Path | None) -> Iterator[None]:
    """Within, nothing that the server writes finds room."""
    assert served.process is not None
    if disk is None:
        before = resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, (0, before[1]))
        yield
        resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, before)
        return
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        for size in (CHUNK, 512, 1):  # to the last byte
            try:
                while True:
                    os.write(file.fileno(), b"\0" * size)
            except OSError:
                continue
    yield
    ballast.unlink()


def soak(folder: Path, disk: Path | None = None) -> dict[str, Any]:
    """What happened, and `faults`, which must be empty."""
    place = (disk or folder) / "served"
    place.mkdir()
    database = f"sqlite:///{place / 'melior.db'}"
    register(database, folder / "models")
    seen: dict[str, Counter[str]] = {}
    acknowledged: dict[str, list[str]] = {"feedback": [], "file": []}
    faults: list[str] = []
    with Served(place, database, environment={"TMPDIR": str(place)}) as served, served.client() as client:

        def ask(what: str, when: str, number: int) -> None:
            """One request; what was acknowledged is remembered."""
            key = f"{when}-{number}".replace(" ", "-")
            said = {"metric_name": "soak", "value": number, "episode_id": EPISODE, "comment": "x" * 3_000}
            answer = {
                "feedback": lambda: client.post("/v1/feedback", json={**said, "feedback_id": key}),
                "decision": lambda: client.post("/v1/decisions", json=LABEL),
                "chat": lambda: client.post("/v1/chat/completions", json={**CHAT, "store": True}),
                "file": lambda: client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": UPLOAD}),
            }[what]()
            seen.setdefault(f"{what}, {when}", Counter())[str(answer.status_code)] += 1
            body = answer.json()
            if answer.status_code == 200 and what in acknowledged:
                acknowledged[what].append(body["feedback_id"] if what == "feedback" else body["id"])
            if answer.status_code != 200 and set(body["error"]) != {"message", "type", "param", "code"}:
                faults.append(f"{what} was refused with {answer.text[:200]}")

        for when in ("room", "no room", "room again"):
            with no_room(served, disk) if when == "no room" else _nothing():
                for number in range(3):
                    for what in ("feedback", "decision", "chat", "file"):
                        ask(what, when, number)
                if client.get("/healthz").status_code != 200:
                    faults.append(f"{when}: it does not live")
        for name in acknowledged["file"]:
            if client.get(f"/v1/files/{name}/content").content != UPLOAD:
                faults.append(f"{name} is not what was sent")
        drafts = [file.name for file in (place / "data" / "files").iterdir() if file.name not in acknowledged["file"]]
        served.stop()
    with Store.open(database) as store:
        stored = {row.id for row in store.feedback(metric="soak")}
    for name, statuses in seen.items():
        wanted = {str(FULL)} if name.endswith("no room") else {"200"}
        if set(statuses) != wanted:
            faults.append(f"{name}: {dict(statuses)}")
    if stored != set(acknowledged["feedback"]):
        faults.append(f"{len(acknowledged['feedback'])} were acknowledged and {len(stored)} are stored")
    if drafts:
        faults.append(f"{len(drafts)} half-written files were left")
    return {
        "how": "a limit on the size of its files" if disk is None else "a full file system",
        "answers": {name: dict(statuses) for name, statuses in seen.items()},
        "acknowledged": len(acknowledged["feedback"]),
        "stored": len(stored),
        "faults": faults,
    }


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--disk", type=Path, default=None, help="an empty, small file system")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = soak(Path(folder), asked.disk)
    print(json.dumps(told, indent=1))
    sys.exit(bool(told["faults"]))


if __name__ == "__main__":
    main()
