"""a worker: takes jobs from the store, one at a time, and supervises the process that does each

    with Worker(store, "sqlite:///melior.db") as worker:
        worker.work(stop)          # until `stop` is set; what is half done then goes back to the queue

The trainer writes to the job's folder; the worker turns its metrics into events, holds the lease, and passes on what
clients ask: cancel, pause. Where the trainer is lost, the job is in the queue again and goes on from its checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from melior.errors import FencedError, StoreError
from melior.jobs.trainer import DATABASE, DONE, ERROR, FAILED, INTERRUPTED, WORKER
from melior.store import Store
from melior.store.jobs import STOPPED
from melior.store.rows import Job, JobStatus, Wanted

log = logging.getLogger(__name__)

LEASE_S = 20.0  # a job whose worker is gone is somebody else's after so long
BEAT_S = 2.0  # between two renewals: nine may fail before the lease is lost
POLL_S = 1.0  # between two looks into an empty queue
AT_ONCE = 200  # steps that are told in one transaction
GRACE_S = 120.0  # for a trainer to reach the end of its step, and its checkpoint

# of a job that was stopped, by what clients want of it
SAID: Mapping[Wanted, str] = {
    "cancel": "The job was cancelled",
    "pause": "The job was paused, and goes on from here when it is resumed",
    "": "The job was interrupted, and goes on from here with the next worker",
}

# what our metrics are called in the OpenAI dialect; the others keep their names
NAMES = {
    "loss": "train_loss",
    "heldout_loss": "valid_loss",
    "reward": "train_reward_mean",
    "heldout_reward": "valid_reward_mean",
    "mean_token_accuracy": "train_mean_token_accuracy",
    "heldout_mean_token_accuracy": "valid_mean_token_accuracy",
}


@dataclass
class Worker:
    """One worker. Several may share a database, and each does one job at a time."""

    store: Store
    database: str  # as the trainer opens it
    owner: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")
    lease_s: float = LEASE_S
    beat_s: float = BEAT_S
    poll_s: float = POLL_S

    def work(self, stop: threading.Event, *, once: bool = False) -> int:
        """Does jobs until `stop` is set, or, with `once`, until none waits; how many it took."""
        taken = 0
        while not stop.is_set():
            try:
                job = self.store.claim(self.owner, self.lease_s)
            except StoreError as error:  # a database that is busy or away comes back
                log.warning("no job could be claimed: %s", error)
                job = None
            if job is None and once:
                break
            if job is None:
                stop.wait(self.poll_s)
            else:
                self.do(job, stop)
                taken += 1
        return taken

    def do(self, job: Job, stop: threading.Event | None = None) -> None:
        """Does one job that this worker has claimed."""
        try:
            what = "Training" if job.eval_id is None else "Evaluation"
            self.store.add_event(job.id, f"{what} begins (attempt {job.fence})", fence=job.fence)
            _Doing(self, job, stop or threading.Event()).run()
        except FencedError as error:
            log.warning("%s", error)
        except (StoreError, OSError) as error:  # database or disk: the lease runs out, and somebody goes on from there
            log.warning("%s is left to whoever takes it next: %s", job.id, error)


class _Doing:
    """One job being done."""

    def __init__(self, worker: Worker, job: Job, stop: threading.Event) -> None:
        self.worker, self.store, self.job, self.stop = worker, worker.store, job, stop
        self.folder = Path(job.folder)
        told = [event.data.get("step", 0) for event in self.store.job_events(job.id)]
        self.told = max(told, default=0)  # steps that there are events of
        self.asked = False  # whether the trainer was asked to stop
        self.until = 0.0  # when it will be killed

    def run(self) -> None:
        command = [sys.executable, "-m", "melior.jobs.trainer", "--job", self.job.id]
        environment = {**os.environ, DATABASE: self.worker.database, WORKER: str(os.getpid())}
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "trainer.log").open("ab") as output:
            # of its own group: Ctrl-C is for the worker, which then decides what becomes of the job
            trainer = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
            try:
                self._watch(trainer)
            finally:
                if trainer.poll() is None:
                    trainer.kill()
                    trainer.wait()
        self._tell()
        self._end(trainer.returncode)

    def _watch(self, trainer: subprocess.Popen[bytes]) -> None:
        """Holds the lease until the trainer ends."""
        beat = 0.0
        while trainer.poll() is None:
            if time.monotonic() >= beat:
                beat = time.monotonic() + self.worker.beat_s
                self._beat(trainer)
            if self.asked and time.monotonic() > self.until:
                trainer.kill()
            time.sleep(min(0.1, self.worker.beat_s))

    def _beat(self, trainer: subprocess.Popen[bytes]) -> None:
        try:
            wanted = self.store.renew(self.job.id, self.job.fence, self.worker.lease_s)
            self._tell()
        except FencedError:
            raise
        except StoreError as error:  # it may be back at the next beat
            log.warning("%s could not be renewed: %s", self.job.id, error)
            return
        if (wanted or self.stop.is_set()) and not self.asked:
            self.asked, self.until = True, time.monotonic() + GRACE_S
            trainer.send_signal(signal.SIGINT)

    def _tell(self) -> None:
        """Events of the steps that were done since the last time; many take a while, in which the lease is held."""
        untold = list(self._untold())
        for start in range(0, len(untold), AT_ONCE):
            part = untold[start : start + AT_ONCE]
            self.store.add_steps(self.job.id, part, fence=self.job.fence, seconds=self.worker.lease_s)
            self.told = part[-1][1]["step"]

    def _untold(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What to say of each step that was done since the last time, and its metrics."""
        total = _read(self.folder / "run.json").get("total")
        try:
            lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        except OSError:
            return
        last = self.told
        for line in lines[self.told :]:
            try:
                row = json.loads(line)
            except ValueError:  # half written
                return
            step = int(row["step"]) + 1
            if step <= last:
                continue
            last = step
            data = {**{NAMES.get(name, name): value for name, value in row.items()}, "step": step}
            loss = f": training loss={row['loss']:.2f}" if isinstance(row.get("loss"), float) else ""
            yield f"Step {step}/{total or '?'}{loss}", data

    def _end(self, status: int) -> None:
        """Leaves the job as the trainer left it."""
        job = self.job
        if status == DONE:
            result = _read(self.folder / "result.json")
            for message in outcome_of(result):
                self.store.add_event(job.id, message, fence=job.fence)
            self._left("succeeded", "The job has successfully completed", result=result)
        elif status == FAILED:
            error = _read(self.folder / ERROR)
            self._left("failed", f"The job failed: {error.get('message', 'no message')}", error=error)
        else:
            self._stopped(status)

    def _stopped(self, status: int) -> None:
        """Leaves a job that is not done as clients want it by now."""
        job = self.job
        wanted = self.store.renew(job.id, job.fence, self.worker.lease_s)
        # asked before it can listen, a process dies of the signal, or of what the signal broke; late, it is killed
        if status == INTERRUPTED or self.asked or wanted == "cancel":
            self._left(STOPPED[wanted], SAID[wanted])
        else:
            told = f"signal {-status}" if status < 0 else f"status {status}"
            message = f"The training process ended with {told}; it goes on from its last checkpoint"
            self.store.add_event(job.id, message, fence=job.fence, level="warn")
            self.store.give_back(job.id, job.fence)

    def _left(self, status: JobStatus, message: str, **how: Mapping[str, Any]) -> None:
        level: Any = "error" if status == "failed" else "info"
        self.store.add_event(self.job.id, message, fence=self.job.fence, level=level)
        result = how.get("result", {})
        if isinstance(result.get("run_id"), str):
            self.store.tell_run(self.job.id, self.job.fence, result["run_id"])
        self.store.end_job(self.job.id, self.job.fence, status, **how)


def outcome_of(result: Mapping[str, Any]) -> Iterator[str]:
    """What a client should know of how a job came out: what "auto" became, why it stopped, what the gate says."""
    for choice in result.get("choices") or ():
        yield f"auto: {choice}"
    for told in (result.get("stopped"), result.get("warning"), result.get("note")):
        if told:
            yield str(told)
    if gate := result.get("gate"):
        yield f"Gate: {gate['sentence']}"
    if result.get("promoted"):
        yield f"{result['version_id']} is promoted"


def _read(path: Path) -> dict[str, Any]:
    """A JSON file; nothing where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
