"""feedback while the server is killed: what was acknowledged is stored, and nothing is stored twice

    python tests/soak/feedback_kills.py --events 50000 --kills 20 [--database postgresql://…]

Eight clients send each event until it is acknowledged, and three in ten again after that. Now and then one sends an
event's key with another body, which must be refused (409). The server is killed after every few seconds of service.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from load import Connection
from models import EPISODE
from served import Served

from melior.store import Store
from melior.types import Record

AGAIN = 0.3  # of acknowledged events are sent once more
TWISTED = 0.01  # are sent once more with another body
DECISIONS = 50  # that feedback is about, beside an episode
COME_AGAIN = ("lost", "refused", "503", "429")
PAUSE_S = 0.2  # before a client tries a server that did not answer
ANSWER_S = 20.0  # a client waits so long for an answer before it sends the event again


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much, how often, how long."""

    events: int
    kills: int
    every_s: float = 5.0  # of service between two kills
    clients: int = 8
    at_once: int = 4  # requests that a client has under way
    longest_s: float = 1_500.0
    seed: int = 0


@dataclass
class Happened:
    """What the clients saw."""

    acknowledged: set[str] = field(default_factory=set)
    sent: set[str] = field(default_factory=set)
    kills: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    served_s: float = 0.0


@dataclass
class Clients:
    """At-least-once clients of one server."""

    served: Served
    plan: Plan
    decisions: Sequence[str]
    seen: Happened = field(default_factory=Happened)
    going: bool = True
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(10**9)))

    def event(self, number: int) -> tuple[str, dict[str, Any]]:
        """The key and the body of an event: the same whenever it is sent."""
        about = {"decision_id": self.decisions[number % len(self.decisions)]} if number % 2 else {"episode_id": EPISODE}
        return f"event-{number}", {"metric_name": "soak", "value": number, **about, "comment": f"event {number}"}

    @property
    def done(self) -> bool:
        """Whether enough was sent and killed."""
        return len(self.seen.acknowledged) >= self.plan.events and self.seen.kills >= self.plan.kills

    async def work(self, client: int) -> None:
        """One line of one client."""
        chance, connection = random.Random(f"{self.plan.seed} {client}"), Connection(self.served.url)
        while self.going:
            key, body = self.event(next(self.numbers))
            self.seen.sent.add(key)
            while (status := await self._send(connection, key, body)) != "200" and self.going:
                if status not in COME_AGAIN:
                    self.seen.wrong.append(f"{key} was answered with {status}")
                    break
                await asyncio.sleep(PAUSE_S)
            if status != "200":
                continue
            self.seen.acknowledged.add(key)
            if chance.random() < AGAIN:
                again = await self._send(connection, key, body)
                if again not in ("200", *COME_AGAIN):
                    self.seen.wrong.append(f"{key}, sent again, was answered with {again}")
            if chance.random() < TWISTED:
                twisted = await self._send(connection, key, {**body, "value": -1})
                if twisted not in ("409", *COME_AGAIN):
                    self.seen.wrong.append(f"{key} with another body was answered with {twisted}")
        connection.close()

    async def _send(self, connection: Connection, key: str, body: dict[str, Any]) -> str:
        status, answer = await connection.post("/v1/feedback", body, key=key, timeout_s=ANSWER_S)
        self.seen.answers[status] += 1
        if status == "200" and json.loads(answer)["feedback_id"] != key:
            self.seen.wrong.append(f"{key} was kept as {answer[:80]!r}")
        return status

    async def kill(self) -> None:
        """Kills the server after every few seconds of service, until enough was sent."""
        ends = time.monotonic() + self.plan.longest_s
        while not self.done and time.monotonic() < ends:
            began = time.monotonic()
            await asyncio.sleep(self.plan.every_s)
            self.seen.served_s += time.monotonic() - began
            self.served.kill()
            self.seen.kills += 1
            await asyncio.to_thread(self.served.start)
        await asyncio.sleep(1.0)
        self.going = False


async def _all(clients: Clients) -> None:
    lines = [clients.work(number) for number in range(clients.plan.clients * clients.plan.at_once)]
    await asyncio.gather(clients.kill(), *lines)


def soak(plan: Plan, folder: Path, database: str = "") -> dict[str, Any]:
    """What happened, and `faults`, which must be empty."""
    database = database or f"sqlite:///{folder / 'melior.db'}"
    with Store.open(database) as store:
        records = [Record(inputs=f"q{n}", output="a") for n in range(DECISIONS)]
        decisions = store.add_records(records, episode_id=EPISODE)
    began = time.monotonic()
    with Served(folder, database) as served:
        clients = Clients(served, plan, decisions)
        asyncio.run(_all(clients))
        served.stop()
    seconds, seen = time.monotonic() - began, clients.seen
    with Store.open(database) as store:
        kept = store.feedback(metric="soak")
    stored, values = {row.id for row in kept}, Counter(row.value for row in kept)
    faults = list(seen.wrong[:10])
    if lost := seen.acknowledged - stored:
        faults.append(f"{len(lost)} acknowledged events are not stored, such as {min(lost)}")
    if twice := [value for value, count in values.items() if count > 1]:
        faults.append(f"{len(twice)} events are stored twice, such as {twice[0]}")
    if odd := stored - seen.sent:
        faults.append(f"{len(odd)} rows were never sent, such as {min(odd)}")
    if altered := [row.id for row in kept if row.id != f"event-{row.value}"]:
        faults.append(f"{len(altered)} events are stored with another body, such as {altered[0]}")
    if not clients.done:
        faults.append(f"after {plan.longest_s:.0f} s only {len(seen.acknowledged):,} events and {seen.kills} kills")
    return {
        "database": database.partition(":")[0],
        "events_sent": len(seen.sent),
        "acknowledged": len(seen.acknowledged),
        "stored": len(stored),
        "acknowledged_but_not_stored": len(lost),
        "stored_twice": len(twice),
        "kills": seen.kills,
        "requests": sum(seen.answers.values()),
        "answers": dict(sorted(seen.answers.items())),
        "seconds": round(seconds, 1),
        "seconds_of_service": round(seen.served_s, 1),
        "faults": faults,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--database", default="", help="an empty one; default: SQLite in a temporary folder")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(events=asked.events, kills=asked.kills, seed=asked.seed)
        told = soak(plan, Path(folder), asked.database)
    json.dump(told, sys.stdout, indent=1)
    print()
    sys.exit(bool(told["faults"]))


if __name__ == "__main__":
    main()
