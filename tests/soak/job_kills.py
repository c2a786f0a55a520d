"""jobs while their workers are killed: each is done once, to the numbers of a run that nobody disturbed

    python tests/soak/job_kills.py --kills 100 --workers 3 [--database postgresql://…]

Workers share one queue. Again and again a worker, or the process that trains for it, is killed wherever it happens to
be; a killed worker is replaced. A job whose holder is gone must be somebody else's when the lease has run out.
Workers and trainers are forked from one process that has imported everything, so that a kill costs a second and not
ten; `tests/jobs/test_worker.py` kills some that are started as people start them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

os.environ["OMP_NUM_THREADS"] = "1"  # a process with threads cannot be forked safely

import melior.cycles.train  # noqa: F401  what every trainer needs, once
from melior.cycles.measures import read_evaluation
from melior.jobs import trainer
from melior.jobs import worker as working
from melior.jobs.worker import LEASE_S, Worker
from melior.store import Store
from melior.store.jobs import ATTEMPTS
from melior.store.rows import Job

STEPS = 150
LONGEST_LEASE_S = 30.0
BEGINS = "Training begins"
FORK = get_context("fork")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How many workers, how many of them are killed, and how often."""

    kills: int
    workers: int = 3
    lease_s: float = LEASE_S
    between_s: float = 1.5  # on average
    longest_s: float = 1_500.0
    seed: int = 0


def recipe(folder: Path) -> dict[str, Any]:
    """Some seconds of training, with a checkpoint every few steps."""
    rows = folder / "rows.jsonl"
    if not rows.exists():
        made = [({"height": i % 17, "width": i % 5}, "yes" if i % 17 > 8 else "no") for i in range(160)]
        rows.write_text("".join(json.dumps({"inputs": inputs, "output": output}) + "\n" for inputs, output in made))
    return {
        "method": "sft",
        "model": {"kind": "classifier"},
        "data": {"train": str(rows), "heldout": 0.25},
        "sft": {"batch_size": 8, "epochs": 10},
        "fit": {"learning_rate": 0.01, "checkpoint_every": 10, "steps": STEPS},
        "save": {"name": "shapes"},
    }


class Forked:
    """A trainer as `subprocess.Popen` starts one, but forked."""

    def __init__(
        self, command: Sequence[str], *, stdout: IO[bytes], stderr: IO[bytes], env: Mapping[str, str], **_: Any
    ) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            status = 1
            try:
                os.setsid()
                os.dup2(stdout.fileno(), 1)
                os.dup2(stderr.fileno(), 2)
                os.environ.update(env)
                status = trainer.main(list(command[3:]))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self) -> int | None:
        while self.poll() is None:
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _work(database: str, lease_s: float, log: Path) -> None:
    """What a worker's process does until it is killed."""
    with log.open("ab") as output:
        os.dup2(output.fileno(), 2)
    working.subprocess.Popen = Forked  # type: ignore[assignment,misc]
    with Store.open(database) as store:
        Worker(store, database, lease_s=lease_s, beat_s=0.2, poll_s=0.2).work(threading.Event())


@dataclass
class Gang:
    """Workers, some of them doomed."""

    database: str
    plan: Plan
    folder: Path
    running: list[Any] = field(default_factory=list)

    def fill(self) -> None:
        """Replaces those that are gone."""
        self.running = [worker for worker in self.running if worker.is_alive()]
        while len(self.running) < self.plan.workers:
            given = (self.database, self.plan.lease_s, self.folder / "workers.log")
            self.running.append(FORK.Process(target=_work, args=given))
            self.running[-1].start()

    def end(self) -> None:
        """Kills all."""
        for worker in self.running:
            worker.kill()
            worker.join()


def soak(plan: Plan, folder: Path, database: str = "") -> dict[str, Any]:
    """What happened, and `faults`, which must be empty."""
    database, chance = database or f"sqlite:///{folder / 'melior.db'}", random.Random(plan.seed)
    began, killed, leases = time.monotonic(), {"worker": 0, "trainer": 0}, [0.0]
    with Store.open(database) as store:
        whole = _undisturbed(store, database, folder)
        made: list[str] = []
        gang = Gang(database, plan, folder)
        try:
            gang.fill()
            while time.monotonic() - began < plan.longest_s:
                short = sum(killed.values()) < plan.kills
                if short and len(_left(store, made)) <= plan.workers:  # never fewer jobs than hands
                    made.append(store.add_job("sft", recipe(folder), str(folder / f"job-{len(made)}")).id)
                elif not (short or _left(store, made)):
                    break
                time.sleep(chance.expovariate(1 / plan.between_s))
                if short:
                    leases.append(_kill(store, gang, made, chance, killed))
                gang.fill()
        finally:
            gang.end()
        faults = [fault for job in made for fault in _faults(store, store.job(job), whole)]
        waits = [wait for job in made for wait in _waits(store, job)]
        lost = sum(store.job(job).attempts for job in made)
    if max(leases) > LONGEST_LEASE_S:
        faults.append(f"a lease was held for {max(leases):.1f} s more when its worker was killed")
    if sum(killed.values()) < plan.kills:
        faults.append(f"only {sum(killed.values())} kills in {plan.longest_s:.0f} s")
    return {
        "database": database.partition(":")[0],
        "workers": plan.workers,
        "jobs": len(made),
        "kills": killed,
        "leases_lost": lost,
        "longest_lease_left_by_a_killed_worker_s": round(max(leases), 1),
        "longest_silence_of_a_job_between_two_workers_s": round(max(waits, default=0.0), 1),
        "seconds": round(time.monotonic() - began, 1),
        "faults": faults,
    }


def _undisturbed(store: Store, database: str, folder: Path) -> Any:
    """What training comes to when nobody is killed."""
    made = store.add_job("sft", recipe(folder), str(folder / "whole"))
    claimed = store.claim("soak", LEASE_S, job_id=made.id)
    assert claimed is not None
    Worker(store, database, owner="soak").do(claimed)
    return _outcome(store.job(made.id))


def _outcome(job: Job) -> Any:
    return read_evaluation(Path(job.folder) / "evaluation.json").values


def _left(store: Store, jobs: Sequence[str]) -> list[Job]:
    return [job for status in ("queued", "running") for job in store.jobs(status=status) if job.id in jobs]


def _kill(store: Store, gang: Gang, jobs: Sequence[str], chance: random.Random, killed: dict[str, int]) -> float:
    """Kills a worker that holds a job, or its trainer; none that would cost a job its last attempt.

    Returned are the seconds for which a killed worker still holds its lease.
    """
    held = [job for job in _left(store, jobs) if job.status == "running" and job.attempts < ATTEMPTS - 2]
    chance.shuffle(held)
    for job in held:
        workers = [worker for worker in gang.running if job.owner.endswith(f":{worker.pid}")]
        if not workers or not workers[0].is_alive():  # killed already, and the lease not over yet
            continue
        trainers = _children(workers[0].pid)
        if trainers and chance.random() < 0.5:
            os.kill(trainers[0], signal.SIGKILL)
            killed["trainer"] += 1
        else:
            workers[0].kill()
            workers[0].join()
            killed["worker"] += 1
            lease = store.job(job.id).lease
            if lease is not None:
                return (datetime.fromisoformat(lease) - datetime.now(UTC)).total_seconds()
        return 0.0
    return 0.0


def _children(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in children.read_text().split()] if children.exists() else []


def _faults(store: Store, job: Job, whole: Any) -> list[str]:
    """What is wrong with a job in the end."""
    if job.status != "succeeded":
        return [f"{job.id} is {job.status} after {job.attempts} losses: {job.error}"]
    faults = []
    if _outcome(job) != whole:
        faults.append(f"{job.id} came to other numbers than a run that nobody disturbed")
    events = store.job_events(job.id)
    steps = [event.data["step"] for event in events if event.type == "metrics"]
    if steps != list(range(1, STEPS + 1)):
        faults.append(f"{job.id} told its steps as {steps}")
    # every event is signed with a lease and refused under an older one, and a lease's first words are its number: so
    # numbers that only rise, and steps that are told once and in order, leave no room for two that wrote by turns
    fences = [int(event.message.split()[-1].rstrip(")")) for event in events if event.message.startswith(BEGINS)]
    if fences != sorted(set(fences)) or fences[-1] != job.fence:
        faults.append(f"{job.id} was begun under leases {fences}, and ended under {job.fence}")
    if job.attempts > job.fence - 1:
        faults.append(f"{job.id} counts {job.attempts} losses and {job.fence} leases")
    versions = [version for version in store.versions(name="shapes") if version.run_id == job.run_id]
    if len(versions) != 1:
        faults.append(f"{job.id} made {len(versions)} models")
    return faults


def _waits(store: Store, job: str) -> list[float]:
    """Seconds from the last word under one lease to the first under the next."""
    waits, before = [], None
    for event in store.job_events(job):
        now = datetime.fromisoformat(event.created)
        if event.message.startswith(BEGINS) and before is not None:
            waits.append((now - before).total_seconds())
        before = now
    return waits


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--database", default="", help="an empty one; default: SQLite in a temporary folder")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(kills=asked.kills, workers=asked.workers, seed=asked.seed)
        told = soak(plan, Path(folder), asked.database)
    json.dump(told, sys.stdout, indent=1)
    print()
    sys.exit(bool(told["faults"]))


if __name__ == "__main__":
    main()
