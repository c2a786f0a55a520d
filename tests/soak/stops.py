"""a server that is asked to stop (SIGTERM): what it was asked is answered, what it acknowledged is there

    python tests/soak/stops.py

Streams are under way and feedback keeps coming when the signal strikes, and for half of the time that the port stays
open, as from behind a proxy that looks every second. Readiness must say 503 at once; each stream must end with a valid
event; each request that a connection took must be answered, be it with 503; the process must end. Who goes on until the
port is closed may find a connection reset that was made in that instant: nothing of it was read.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from load import Connection
from models import CHAT, EPISODE, register
from served import TOKEN, Served

from melior.serving.drain import LINGER_S
from melior.store import Store

AT_ONCE_S = LINGER_S  # before the port is closed: on a machine with much else to do a look takes its time
ENDS_S = 60.0  # for the process to end: three seconds of lingering, thirty of draining, and some to spare


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is under way when the signal comes."""

    streams: int = 4
    tokens: int = 400
    speakers: int = 4  # that send feedback, one after the other
    before_s: float = 1.5


@dataclass
class Seen:
    """What the clients saw."""

    acknowledged: set[str] = field(default_factory=set)
    answers: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    whole: list[str] = field(default_factory=list)  # ids of streams that came to their end
    unready_s: float | None = None
    ended_s: float | None = None
    leaves: float = math.inf  # when clients go elsewhere


async def _stream(served: Served, plan: Plan, seen: Seen) -> None:
    """One streamed answer, read to its end."""
    asked = {**CHAT, "max_tokens": plan.tokens, "stream": True}
    last, name = "", ""
    async with httpx.AsyncClient(timeout=ENDS_S, headers={"authorization": f"Bearer {TOKEN}"}) as client:
        try:
            async with client.stream("POST", f"{served.url}/v1/chat/completions", json=asked) as answer:
                async for line in answer.aiter_lines():
                    last = line.removeprefix("data: ") or last
                    if last.startswith('{"id"'):
                        name = json.loads(last)["id"]
        except httpx.HTTPError as error:
            last = type(error).__name__
    if last == "[DONE]":
        seen.ends["done"] += 1
        seen.whole.append(name)
    else:
        seen.ends["error event" if last.startswith('{"error"') else f"broken off: {last[:60]}"] += 1


async def _speak(served: Served, number: int, seen: Seen) -> None:
    """Feedback until it is time to go elsewhere."""
    connection, count = Connection(served.url), 0
    while time.monotonic() < seen.leaves:
        count += 1
        key = f"said-{number}-{count}"
        body = {"metric_name": "soak", "value": count, "episode_id": EPISODE}
        status, _ = await connection.post("/v1/feedback", body, key=key)
        seen.answers[status] += 1
        if status == "200":
            seen.acknowledged.add(key)
        elif status in ("refused", "lost"):
            return
        await asyncio.sleep(0.005)


async def _watch(served: Served, seen: Seen) -> None:
    """Asks it to stop, and looks when it is unready and when it is gone."""
    process = served.process
    assert process is not None
    asked = time.monotonic()
    seen.leaves = asked + LINGER_S / 2
    process.terminate()
    async with httpx.AsyncClient() as client:
        while process.poll() is None and time.monotonic() - asked < ENDS_S:
            try:
                answer = await client.get(f"{served.url}/readyz", headers={"connection": "close"}, timeout=5)
                if answer.status_code == 503 and seen.unready_s is None:
                    seen.unready_s = time.monotonic() - asked
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.05)
    seen.ended_s = time.monotonic() - asked


async def _all(served: Served, plan: Plan, seen: Seen) -> None:
    under_way = [asyncio.create_task(_stream(served, plan, seen)) for _ in range(plan.streams)]
    under_way += [asyncio.create_task(_speak(served, number, seen)) for number in range(plan.speakers)]
    await asyncio.sleep(plan.before_s)
    await _watch(served, seen)
    await asyncio.gather(*under_way)


def soak(plan: Plan, folder: Path, database: str = "") -> dict[str, Any]:
    """What happened, and `faults`, which must be empty."""
    database, seen = database or f"sqlite:///{folder / 'melior.db'}", Seen()
    register(database, folder / "models")
    with Served(folder, database) as served:
        with served.client() as client:
            client.post("/v1/chat/completions", json=CHAT).raise_for_status()  # the model is loaded
        asyncio.run(_all(served, plan, seen))
        status = served.process.poll() if served.process else None
    with Store.open(database) as store:
        stored = {row.id for row in store.feedback(metric="soak")}
        logged = {row.id for row in store.decisions()}
    faults = []
    if seen.unready_s is None or seen.unready_s > AT_ONCE_S:
        faults.append(f"readiness said 503 after {seen.unready_s} s")
    if lost := seen.acknowledged - stored:
        faults.append(f"{len(lost)} acknowledged are not stored, such as {min(lost)}")
    if seen.answers["lost"]:
        faults.append(f"{seen.answers['lost']} requests were taken and not answered")
    if odd := set(seen.ends) - {"done", "error event"}:
        faults.append(f"streams ended otherwise: {sorted(odd)}")
    if missing := set(seen.whole) - logged:
        faults.append(f"{len(missing)} answers that came to their end are not in the log")
    if status is None:
        faults.append(f"the process has not ended after {ENDS_S:.0f} s")
    return {
        "database": database.partition(":")[0],
        "unready_after_s": None if seen.unready_s is None else round(seen.unready_s, 2),
        "ended_after_s": None if seen.ended_s is None else round(seen.ended_s, 1),
        "streams": dict(seen.ends),
        "feedback": dict(sorted(seen.answers.items())),
        "acknowledged": len(seen.acknowledged),
        "stored": len(stored),
        "faults": faults,
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        told = soak(Plan(), Path(made))
    print(json.dumps(told, indent=1))
    sys.exit(bool(told["faults"]))
