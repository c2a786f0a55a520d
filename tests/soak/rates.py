"""what a server does at given rates: feedback, decisions, chat, more than it can take, and promotions under load

    python tests/soak/rates.py [--seconds 20] [--database postgresql://…]

The load comes from a process of its own (`load.py`), at times that were drawn beforehand. Seconds of the server's
processor are told beside the latencies: on a machine with much else to do, they alone can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from models import CHAT, EPISODE, LABEL, OTHER, register
from served import TOKEN, Served

from melior.registry import Registry
from melior.store import Store

FEEDBACK = {"metric_name": "helpful", "value": True, "episode_id": EPISODE, "comment": "as it should be"}
WARM = 30  # requests before anything is measured: the first of each kind compile their queries
FEEDBACK_RATE, DECISION_RATE, TOO_MUCH = 310.0, 200.0, 3_000.0  # per second
CROWD = 800  # connections at once that send too much: more than a server answers at once
SWAP_S = 2.0  # between two promotions


def offer(served: Served, path: str, body: object, *, rate: float, seconds: float, **more: Any) -> dict[str, Any]:
    """What came of a load."""
    command = [sys.executable, str(Path(__file__).parent / "load.py"), served.url, path, "--body", json.dumps(body)]
    command += ["--rate", str(rate), "--seconds", str(seconds)]
    for name, value in more.items():
        command += [f"--{name}", str(value)]
    assert served.process is not None
    process = psutil.Process(served.process.pid)
    before = process.cpu_times()
    told = subprocess.run(command, env={**os.environ, "MELIOR_TOKEN": TOKEN}, capture_output=True, check=True)
    after = process.cpu_times()
    summary: dict[str, Any] = json.loads(told.stdout)
    used = after.user + after.system - before.user - before.system
    return {**summary, "server_cpu_ms_per_request": round(1000 * used / max(1, summary["requests"]), 2)}


@contextmanager
def promoting(served: Served) -> Iterator[list[str]]:
    """Meanwhile the alias goes back and forth between two versions; which they were, in order."""
    stop, done = threading.Event(), list[str]()
    with Store.open(served.database) as store:
        registry = Registry(store)
        folders = [served.folder / "models" / name for name in ("talk", OTHER)]
        two = [registry.register("talk", folder, method="sft", base_model="none").id for folder in folders]

        def swap() -> None:
            while not stop.wait(SWAP_S):
                registry.promote(two[len(done) % 2], force=True, reason="under load")
                done.append(two[len(done) % 2])

        thread = threading.Thread(target=swap)
        thread.start()
        try:
            yield done
        finally:
            stop.set()
            thread.join()


def soak(folder: Path, database: str = "", *, seconds: float = 20.0) -> dict[str, Any]:
    """What happened, and `faults`, which must be empty; rates and latencies are told, and judged by the reader."""
    database, faults = database or f"sqlite:///{folder / 'melior.db'}", list[str]()
    register(database, folder / "models")
    with Served(folder, database) as served:
        with served.client() as client:
            for path, body in (("feedback", FEEDBACK), ("decisions", LABEL), ("chat/completions", CHAT)):
                for _ in range(WARM):
                    client.post(f"/v1/{path}", json=body).raise_for_status()
        told = {
            "feedback": offer(served, "/v1/feedback", FEEDBACK, rate=FEEDBACK_RATE, seconds=seconds, key="load-"),
            "decisions": offer(served, "/v1/decisions", LABEL, rate=DECISION_RATE, seconds=seconds),
        }
        with promoting(served) as promoted:
            told["chat_under_promotion"] = offer(served, "/v1/chat/completions", CHAT, rate=5, seconds=seconds)
        told["too_much"] = offer(
            served, "/v1/feedback", FEEDBACK, rate=TOO_MUCH, seconds=5, key="much-", connections=CROWD
        )
        with served.client() as client:
            after = client.post("/v1/feedback", json=FEEDBACK).status_code
        served.stop()
    if set(told["chat_under_promotion"]["statuses"]) != {"200"}:
        faults.append(f"requests failed while models were promoted: {told['chat_under_promotion']['statuses']}")
    for name in ("feedback", "decisions"):
        if set(told[name]["statuses"]) - {"200", "503", "never sent"}:
            faults.append(f"{name}: {told[name]['statuses']}")
    much = told["too_much"]["statuses"]
    refused = much.get("429", 0) + much.get("503", 0)
    if set(much) - {"200", "429", "503", "lost", "never sent"} or not refused:
        faults.append(f"too much was answered with {much}")
    if told["too_much"]["refusals_with_retry_after"] != refused:
        faults.append(f"of {refused} refusals {told['too_much']['refusals_with_retry_after']} say when to come again")
    if after != 200:
        faults.append(f"after too much had come, feedback was answered with {after}")
    with Store.open(database) as store:
        versions = {row.record.policy_version for row in store.decisions()} & set(promoted)
        kept = len(store.feedback(metric="helpful"))
    sent = sum(told[name]["statuses"].get("200", 0) for name in ("feedback", "too_much"))
    if kept < sent + WARM + (after == 200):
        faults.append(f"{sent + WARM + 1} were acknowledged and {kept} are stored")
    return {
        "database": database.partition(":")[0],
        "load_average": round(os.getloadavg()[0], 1),
        **told,
        "promotions": len(promoted),
        "versions_that_answered": len(versions),
        "faults": faults,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--database", default="", help="an empty one; default: SQLite in a temporary folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = soak(Path(folder), asked.database, seconds=asked.seconds)
    print(json.dumps(told, indent=1))
    sys.exit(bool(told["faults"]))


if __name__ == "__main__":
    main()
