"""everything that is killed, stopped, filled and overloaded, at full size: `make soak`

    python tests/soak/run.py [--only feedback jobs …] [--size 0.1]

Each part runs by itself; what came of it goes to `tests/soak/results/DATE.json`, part by part, and docs/soak.md is
written from there. On PostgreSQL too where MELIOR_TEST_POSTGRES names a database, which is emptied first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import feedback_kills
import full
import job_kills
import rates
import several
import stops
from sqlalchemy import create_engine, text

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PAGE = HERE.parent.parent / "docs" / "soak.md"
POSTGRES = os.environ.get("MELIOR_TEST_POSTGRES", "")
EVENTS, KILLS, JOB_KILLS = 50_000, 20, 100  # of each database
DISK_MB = 32
BEGINS, ENDS = "<!-- results -->\n", "<!-- end -->\n"

Part = Callable[[Path, float], dict[str, Any]]


def empty(database: str) -> str:
    """A PostgreSQL database with nothing in it."""
    engine = create_engine(database.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return database


def feedback(folder: Path, size: float, database: str = "") -> dict[str, Any]:
    plan = feedback_kills.Plan(events=round(EVENTS * size), kills=max(1, round(KILLS * size)))
    return feedback_kills.soak(plan, folder, database and empty(database))


def jobs(folder: Path, size: float, database: str = "") -> dict[str, Any]:
    plan = job_kills.Plan(kills=max(1, round(JOB_KILLS * size)))
    return job_kills.soak(plan, folder, database and empty(database))


def disk(folder: Path, size: float) -> dict[str, Any]:
    """On a file system of its own, where this may be mounted."""
    with _small_disk(folder / "disk") as made:
        return full.soak(folder, made)


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def parts() -> Mapping[str, Part]:
    """What there is to run here, by name."""
    found: dict[str, Part] = {
        "feedback": feedback,
        "jobs": jobs,
        "stop": lambda folder, size: stops.soak(stops.Plan(), folder),
        "file-limit": lambda folder, size: full.soak(folder),
        "rates": lambda folder, size: rates.soak(folder, seconds=max(5.0, 30 * size)),
    }
    if os.geteuid() == 0:
        found["disk"] = disk
    if POSTGRES:
        found["feedback-postgresql"] = lambda folder, size: feedback(folder, size, POSTGRES)
        found["jobs-postgresql"] = lambda folder, size: jobs(folder, size / 4, POSTGRES)
        found["stop-postgresql"] = lambda folder, size: stops.soak(stops.Plan(), folder, empty(POSTGRES))
        found["several"] = lambda folder, size: several.soak(folder, empty(POSTGRES), max(2, round(8 * size)))
        found["rates-postgresql"] = lambda folder, size: rates.soak(
            folder, empty(POSTGRES), seconds=max(5.0, 30 * size)
        )
    return found


def record(name: str, told: Mapping[str, Any]) -> None:
    """Adds what came of a part to the day's results, and writes the page anew."""
    RESULTS.mkdir(exist_ok=True)
    today = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}.json"
    results = json.loads(today.read_text()) if today.exists() else {}
    results[name] = dict(told)
    today.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.partition(BEGINS)[0], page.partition(ENDS)[2]
    PAGE.write_text(before + BEGINS + table(today.stem, results) + ENDS + after, encoding="utf-8")


def table(date: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The results as a person reads them."""
    lines = [f"\n## {date}\n", "| part | what came of it | faults |", "|---|---|---|"]
    for name, told in sorted(results.items()):
        lines.append(f"| {name} | {'; '.join(_words(told))} | {len(told['faults'])} |")
    return "\n".join(lines) + "\n\n"


def _words(told: Mapping[str, Any]) -> Iterator[str]:
    """Each figure with its name; of a load, those that matter."""
    for name, value in told.items():
        words = name.replace("_", " ")
        if name in ("faults", "seconds_of_service", "requests", "seconds", "load_average", "commit"):
            continue
        if isinstance(value, Mapping) and "latency_ms" in value:
            late = value["latency_ms"]
            yield (
                f"{words}: {value['answered_per_s']:g} of {value['offered_per_s']:g} a second answered, "
                f"p50 {late.get('p50')} ms, p99 {late.get('p99')} ms, "
                f"{value['server_cpu_ms_per_request']} ms of processor each"
            )
        elif isinstance(value, Mapping):
            counts = {key: " ".join(count) if isinstance(count, Mapping) else count for key, count in value.items()}
            yield f"{words}: " + ", ".join(f"{key} {count}" for key, count in counts.items())
        else:
            yield f"{words} {value:,}" if isinstance(value, int) else f"{words} {value}"
    yield f"load of the machine {told['load_average']}"


def main() -> None:
    known = parts()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=sorted(known), default=list(known))
    parser.add_argument("--size", type=float, default=1.0, help="a part of the full size")
    asked, faults = parser.parse_args(), 0
    for name in asked.only:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            told = known[name](Path(folder), asked.size)
        told = {**told, "load_average": round(os.getloadavg()[2], 1)}
        record(name, told)
        faults += len(told["faults"])
        print(f"{name}: {len(told['faults'])} faults in {time.monotonic() - began:.0f} s", flush=True)
        for fault in told["faults"]:
            print(f"  {fault}", flush=True)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
