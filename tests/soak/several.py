"""two servers and their workers on one PostgreSQL database: each job is done once, each opinion is kept once

    python tests/soak/several.py --database postgresql://… [--jobs 4]

The same key is sent to both at the same moment, over and over: with the same body one row must come of it, with two
bodies one must be refused. Both answer with the models of the one registry, whole and streamed. Jobs that were put in
the queue meanwhile are each done by one of the two workers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from job_kills import STEPS, recipe
from load import Connection
from models import CHAT, EPISODE, register
from served import Served

from melior.store import Store

PAIRS = 200
DONE_S = 400.0  # for all jobs


async def _both(servers: list[Served], wrong: list[str]) -> Counter[str]:
    """The same key to both at once: what they answered."""
    left, right = (Connection(served.url) for served in servers)
    seen: Counter[str] = Counter()
    for number in range(PAIRS):
        key, twisted = f"both-{number}", number % 2 == 1
        body = {"metric_name": "several", "value": number, "episode_id": EPISODE}
        other = {**body, "value": -number - 1} if twisted else body
        answers = await asyncio.gather(
            left.post("/v1/feedback", body, key=key), right.post("/v1/feedback", other, key=key)
        )
        told = sorted(status for status, _ in answers)
        seen[" and ".join(told)] += 1
        if told != (["200", "409"] if twisted else ["200", "200"]):
            wrong.append(f"{key} was answered with {told}")
    left.close()
    right.close()
    return seen


def _chats(servers: list[Served], wrong: list[str]) -> int:
    """Answers of both, whole and streamed; how many are in the log."""
    names = []
    for served in servers:
        with served.client() as client:
            names.append(client.post("/v1/chat/completions", json=CHAT).raise_for_status().json()["id"])
            streamed = client.post("/v1/chat/completions", json={**CHAT, "stream": True}).text.strip().split("\n\n")
            names.append(json.loads(streamed[0].removeprefix("data: "))["id"])
            if streamed[-1] != "data: [DONE]":
                wrong.append(f"{served.url} ended a stream with {streamed[-1]}")
    with Store.open(servers[0].database) as store:
        return len(store.decisions(names))


def soak(folder: Path, database: str, jobs: int = 4) -> dict[str, Any]:
    """What happened, and `faults`, which must be empty."""
    faults: list[str] = []
    register(database, folder / "models")
    with Store.open(database) as store:
        made = [store.add_job("sft", recipe(folder), str(folder / f"several-{n}")).id for n in range(jobs)]
    one, two = (Served(folder / name, database, arguments=("--work",)) for name in ("one", "two"))
    one.start(wait=False)  # while the other starts
    with two, one:
        seen = asyncio.run(_both([one, two], faults))
        chats = _chats([one, two], faults)
        with Store.open(database) as store:
            ends = time.monotonic() + DONE_S
            while any(store.job(job).status in ("queued", "running") for job in made) and time.monotonic() < ends:
                time.sleep(1)
            done = [store.job(job) for job in made]
            steps = [[event.data["step"] for event in store.job_events(job) if event.type == "metrics"] for job in made]
            kept = [row for row in store.feedback(metric="several") if row.id.startswith("both-")]
        one.stop()
        two.stop()
    if len(kept) != PAIRS or len({row.id for row in kept}) != PAIRS:
        faults.append(f"{PAIRS} keys made {len(kept)} rows")
    if chats != 4:
        faults.append(f"{chats} of 4 answers are in the log")
    for job, told in zip(done, steps, strict=True):
        if (job.status, job.fence, job.attempts) != ("succeeded", 1, 0) or told != list(range(1, STEPS + 1)):
            faults.append(f"{job.id} is {job.status} after {job.fence} leases and {job.attempts} losses")
    return {
        "keys_sent_to_both": PAIRS,
        "answers": dict(sorted(seen.items())),
        "rows": len(kept),
        "answers_of_both_in_the_log": chats,
        "jobs_done_once": sum(job.status == "succeeded" and job.fence == 1 for job in done),
        "faults": faults,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--database", required=True, help="an empty PostgreSQL database")
    parser.add_argument("--jobs", type=int, default=4)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = soak(Path(folder), asked.database, asked.jobs)
    print(json.dumps(told, indent=1))
    sys.exit(bool(told["faults"]))


if __name__ == "__main__":
    main()
