"""what `make soak` does at full size, at a size that takes seconds"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import feedback_kills
import full
import job_kills
import load
import pytest
import stops

SMALL = load.Offer(url="http://127.0.0.1:1", path="/", body='{"n": {number}}', token="t", rate=50, seconds=4, key="k")


def sound(told: dict[str, Any]) -> dict[str, Any]:
    """What was told, if there was nothing to complain of."""
    assert not told["faults"], json.dumps(told, indent=1)
    return told


@pytest.mark.slow
def test_what_is_acknowledged_is_stored_once_however_often_the_server_is_killed(tmp_path: Path) -> None:
    plan = feedback_kills.Plan(events=300, kills=3, every_s=1.5)
    told = sound(feedback_kills.soak(plan, tmp_path))
    assert told["kills"] >= 3 and told["answers"]["lost"] > 0, "the clients noticed"
    assert told["stored"] >= told["acknowledged"] >= 300 and told["requests"] > told["events_sent"]


@pytest.mark.slow
def test_jobs_are_done_once_however_often_their_workers_are_killed(tmp_path: Path) -> None:
    told = sound(job_kills.soak(job_kills.Plan(kills=3, workers=2, lease_s=2.0, between_s=1.0), tmp_path))
    assert sum(told["kills"].values()) == 3 and told["jobs"] >= 2
    assert 1 <= told["leases_lost"] <= 3, "a process that is killed as it ends costs nothing"


@pytest.mark.slow
def test_a_server_that_is_asked_to_stop_drops_nothing(tmp_path: Path) -> None:
    told = sound(stops.soak(stops.Plan(streams=2, speakers=2), tmp_path))
    assert sum(told["streams"].values()) == 2 and told["acknowledged"] > 0


@pytest.mark.slow
def test_a_disk_that_is_full_is_told_and_costs_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    told = sound(full.soak(tmp_path))
    assert told["acknowledged"] == told["stored"] == 6


# ---------------------------------------------------------------------- the load generator


def test_arrivals_come_at_the_rate_and_by_their_seed() -> None:
    times = SMALL.arrivals()
    assert times == SMALL.arrivals() and all(0 < time < 4 for time in times) and times == sorted(times)
    assert abs(len(times) - 200) < 4 * 200**0.5


def test_a_server_that_stalls_cannot_hide_it() -> None:
    """One connection and answers of 50 ms at 50 a second: most requests wait for those before them."""

    async def stalling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"}"):
                await asyncio.sleep(0.05)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        except asyncio.IncompleteReadError:
            writer.close()

    async def measured() -> dict[str, Any]:
        async with await asyncio.start_server(stalling, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            offer = load.Offer(url=url, path="/", body="{}", token="t", rate=50, seconds=1, connections=1)
            return dict(await load.send(offer))

    told: Any = asyncio.run(measured())
    assert set(told["statuses"]) == {"200"} and told["service_ms"]["p50"] < 200
    assert told["latency_ms"]["max"] > 4 * told["service_ms"]["max"] / 2
    assert told["latency_ms"]["p50"] > 3 * told["service_ms"]["p50"]


@pytest.mark.parametrize("wrong", [{"url": "http://example.com"}, {"seconds": 10_000}, {"rate": 0}])
def test_load_is_offered_to_this_machine_only_and_ends(wrong: dict[str, Any]) -> None:
    with pytest.raises(SystemExit):
        load.Offer(**{**vars(SMALL), **wrong})
