"""jobs are done once and to the end, whoever is killed; cancelled, paused and resumed where they are"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from melior.cycles.folders import alone
from melior.cycles.measures import read_evaluation
from melior.errors import DatabaseAway
from melior.jobs.trainer import DATABASE, FAILED
from melior.jobs.worker import Worker
from melior.store import Store
from melior.store.rows import Job

STEPS = 60


def rows(path: Path, count: int = 160) -> str:
    made = [
        {"inputs": {"height": i % 17, "width": i % 5}, "output": "yes" if i % 17 > 8 else "no"} for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(path)


def recipe(tmp_path: Path, **more: Any) -> dict[str, Any]:
    """Some seconds of training, with a checkpoint every few steps."""
    return {
        "method": "sft",
        "model": {"kind": "classifier"},
        "data": {"train": rows(tmp_path / "rows.jsonl"), "heldout": 0.25},
        "sft": {"batch_size": 8, "epochs": 4},
        "fit": {"learning_rate": 0.01, "checkpoint_every": 5, "steps": STEPS},
        "evaluate": {"every": 2},
        "save": {"name": "shapes"},
        **more,
    }


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'melior.db'}"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


@pytest.fixture
def worker(store: Store, url: str) -> Worker:
    return Worker(store, url, owner="here", beat_s=0.1)


def claimed(store: Store) -> Job:
    job = store.claim("here", 30)
    assert job is not None
    return job


def doing(worker: Worker, job: Job, stop: threading.Event | None = None) -> threading.Thread:
    thread = threading.Thread(target=worker.do, args=(job, stop))
    thread.start()
    return thread


def until(true: Callable[[], bool], what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"no {what} in {seconds} s"
        time.sleep(0.05)


def steps(store: Store, job: Job) -> list[int]:
    return [int(event.data["step"]) for event in store.job_events(job.id) if event.type == "metrics"]


def trainers(job: Job) -> list[int]:
    """Processes that do the job."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"melior.jobs.trainer" in command and job.id.encode() in command:
                found.append(int(folder.name))
    return found


def outcome(job: Job) -> Any:
    return read_evaluation(Path(job.folder) / "evaluation.json").values


@pytest.fixture
def whole(store: Store, worker: Worker, tmp_path: Path) -> Job:
    """A job that nobody disturbed."""
    made = store.add_job("sft", recipe(tmp_path), str(tmp_path / "whole"))
    worker.do(claimed(store))
    return store.job(made.id)


def test_a_job_is_done_and_tells_what_it_does(store: Store, whole: Job) -> None:
    assert whole.status == "succeeded" and whole.owner == "" and whole.finished
    assert whole.run_id and store.run(whole.run_id).status == "succeeded"
    assert store.version(whole.result["version_id"]).name == "shapes"
    assert steps(store, whole) == list(range(1, STEPS + 1))
    last = [event for event in store.job_events(whole.id) if event.type == "metrics"][-1]
    assert {"train_loss", "valid_loss", "learning_rate"} <= last.data.keys() and last.message.startswith(
        "Step 60/60: tr"
    )
    *_, verdict, end = [event.message for event in store.job_events(whole.id) if "promoted" not in event.message]
    assert verdict == f"Gate: {whole.result['gate']['sentence']}" and end == "The job has successfully completed"
    shown = [event.message for event in store.job_events(whole.id) if event.message.startswith("auto: ")]
    assert shown == [f"auto: {choice}" for choice in whole.result["choices"]]


def test_a_password_of_the_database_stands_on_no_command_line(store: Store, worker: Worker, tmp_path: Path) -> None:
    made = store.add_job("sft", recipe(tmp_path), str(tmp_path / "private"))
    thread = doing(worker, claimed(store))
    until(lambda: bool(trainers(made)), "trainer")
    said = b" ".join(Path(f"/proc/{number}/cmdline").read_bytes() for number in trainers(made))
    store.ask_job(made.id, "cancel")
    thread.join()
    assert made.id.encode() in said and str(tmp_path).encode() not in said


def test_a_paused_job_goes_on_to_the_same_numbers(store: Store, worker: Worker, whole: Job, tmp_path: Path) -> None:
    made = store.add_job("sft", recipe(tmp_path), str(tmp_path / "paused"))
    thread = doing(worker, claimed(store))
    until(lambda: len(steps(store, made)) > 5, "step")
    store.ask_job(made.id, "pause")
    thread.join()
    assert store.job(made.id).status == "paused" and 5 < len(steps(store, made)) < STEPS and not trainers(made)
    store.resume_job(made.id)
    worker.do(claimed(store))
    assert store.job(made.id).status == "succeeded" and outcome(store.job(made.id)) == outcome(whole)
    assert steps(store, made) == list(range(1, STEPS + 1)), "each step is told once"


def test_a_job_asked_to_stop_before_its_process_listens_is_left_as_it_was_asked(
    store: Store, worker: Worker, tmp_path: Path
) -> None:
    made = store.add_job("sft", recipe(tmp_path), str(tmp_path / "early"))
    for ask, left in (("pause", "paused"), ("cancel", "cancelled")):
        held = claimed(store)
        store.ask_job(made.id, ask)  # type: ignore[arg-type]
        worker.do(held)
        job = store.job(made.id)
        assert (job.status, job.attempts, job.wanted) == (left, 0, "") and not trainers(made)
        if ask == "pause":
            store.resume_job(made.id)
    assert steps(store, made) == []


def test_a_worker_that_stops_before_its_process_listens_gives_the_job_back(
    store: Store, worker: Worker, tmp_path: Path
) -> None:
    made, stop = store.add_job("sft", recipe(tmp_path), str(tmp_path / "early")), threading.Event()
    stop.set()
    worker.do(claimed(store), stop)
    job = store.job(made.id)
    assert (job.status, job.attempts) == ("queued", 0) and not trainers(made)


STUBBORN = """
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).touch()
time.sleep(600)
"""

# takes its time to come to the end of its step
SLOW = """
import pathlib, signal, sys, time
asked = []
signal.signal(signal.SIGINT, lambda *_: asked.append(1))
pathlib.Path(sys.argv[1]).touch()
while not asked or not pathlib.Path(sys.argv[1] + ".end").exists():
    time.sleep(0.05)
    if asked:
        pathlib.Path(sys.argv[1] + ".asked").touch()
sys.exit(130)
"""


def instead(monkeypatch: pytest.MonkeyPatch, source: str, *given: str | Path) -> None:
    """What the worker starts in place of a trainer."""
    starts = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **how: starts([sys.executable, "-c", source, *given], **how))


@pytest.mark.parametrize(("ask", "left"), [("pause", "paused"), ("cancel", "cancelled"), ("stop", "queued")])
def test_what_does_not_stop_in_time_is_killed_and_the_job_left_as_it_was_asked(
    store: Store, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: str, left: str
) -> None:
    instead(monkeypatch, STUBBORN, tmp_path / "listens")
    monkeypatch.setattr("melior.jobs.worker.GRACE_S", 0.2)
    made, stop = store.add_job("sft", recipe(tmp_path), str(tmp_path / "stubborn")), threading.Event()
    thread = doing(worker, claimed(store), stop)
    until((tmp_path / "listens").exists, "process")
    if ask == "stop":
        stop.set()
    else:
        store.ask_job(made.id, ask)  # type: ignore[arg-type]
    thread.join()
    job = store.job(made.id)
    assert (job.status, job.attempts, job.wanted) == (left, 0, "")


BREAKS = """
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(1))
pathlib.Path(sys.argv[1]).touch()
time.sleep(600)
"""


def test_a_process_that_the_signal_breaks_was_not_lost(
    store: Store, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, BREAKS, tmp_path / "listens")
    made = store.add_job("sft", recipe(tmp_path), str(tmp_path / "broken"))
    thread = doing(worker, claimed(store))
    until((tmp_path / "listens").exists, "process")
    store.ask_job(made.id, "pause")
    thread.join()
    job = store.job(made.id)
    assert (job.status, job.attempts) == ("paused", 0)


def test_a_job_that_is_resumed_while_its_step_ends_is_in_the_queue_again(
    store: Store, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, SLOW, tmp_path / "slow")
    made = store.add_job("sft", recipe(tmp_path), str(tmp_path / "resumed"))
    thread = doing(worker, claimed(store))
    until((tmp_path / "slow").exists, "process")
    store.ask_job(made.id, "pause")
    until((tmp_path / "slow.asked").exists, "signal")
    assert store.resume_job(made.id).status == "running"
    (tmp_path / "slow.end").touch()
    thread.join()
    job = store.job(made.id)
    assert (job.status, job.attempts) == ("queued", 0)
    assert not any("paused" in event.message for event in store.job_events(made.id))


def test_a_cancelled_job_stops(store: Store, worker: Worker, tmp_path: Path) -> None:
    made = store.add_job("sft", recipe(tmp_path), str(tmp_path / "cancelled"))
    thread = doing(worker, claimed(store))
    until(lambda: bool(steps(store, made)), "step")
    store.ask_job(made.id, "cancel")
    thread.join()
    assert store.job(made.id).status == "cancelled" and not trainers(made) and store.versions() == []


def test_a_trainer_that_is_killed_is_started_again(store: Store, worker: Worker, whole: Job, tmp_path: Path) -> None:
    made = store.add_job("sft", recipe(tmp_path), str(tmp_path / "killed"))
    thread = doing(worker, claimed(store))
    until(lambda: len(steps(store, made)) > 7, "step")
    for process in trainers(made):
        os.kill(process, signal.SIGKILL)
    thread.join()
    lost = store.job(made.id)
    assert (lost.status, lost.attempts, lost.owner) == ("queued", 1, "")
    worker.do(claimed(store))
    assert outcome(store.job(made.id)) == outcome(whole) and steps(store, made) == list(range(1, STEPS + 1))
    assert any("ended with signal 9" in event.message for event in store.job_events(made.id))


def test_a_worker_that_is_killed_takes_its_trainer_with_it_and_another_goes_on(
    store: Store, url: str, whole: Job, tmp_path: Path
) -> None:
    made = store.add_job("sft", recipe(tmp_path), str(tmp_path / "orphan"))
    source = (
        "import sys, threading; from melior.jobs.worker import Worker; from melior.store import Store; "
        "Worker(Store.open(sys.argv[1]), sys.argv[1], owner='doomed', lease_s=2, beat_s=.1).work(threading.Event())"
    )
    doomed = subprocess.Popen([sys.executable, "-c", source, url])
    try:
        until(lambda: len(steps(store, made)) > 7, "step")
    finally:
        doomed.kill()
        doomed.wait()
    until(lambda: not trainers(made), "end of the trainer", 10)
    assert store.job(made.id).status == "running", "nobody knows yet"
    other, stop = Worker(store, url, owner="other", beat_s=0.1, poll_s=0.1), threading.Event()
    thread = threading.Thread(target=other.work, args=(stop,))
    thread.start()
    until(lambda: store.job(made.id).status == "succeeded", "success")
    stop.set()
    thread.join()
    done = store.job(made.id)
    assert (done.fence, done.attempts) == (2, 1) and outcome(done) == outcome(whole)
    assert steps(store, made) == list(range(1, STEPS + 1))


def test_a_worker_that_stops_gives_its_job_back(store: Store, worker: Worker, tmp_path: Path) -> None:
    made = store.add_job("sft", recipe(tmp_path), str(tmp_path / "given"))
    stop = threading.Event()
    thread = threading.Thread(target=worker.work, args=(stop,))
    thread.start()
    until(lambda: bool(steps(store, made)), "step")
    stop.set()
    thread.join()
    job = store.job(made.id)
    assert (job.status, job.attempts, job.lease) == ("queued", 0, None) and not trainers(made)


def test_a_worker_that_is_killed_as_it_starts_its_trainer_takes_it_along(
    store: Store, url: str, tmp_path: Path
) -> None:
    made = store.add_job("sft", recipe(tmp_path), str(tmp_path / "orphan"))
    source = (
        "import os, signal, subprocess, sys, threading; from melior.jobs.worker import Worker; "
        "from melior.store import Store; starts = subprocess.Popen; "
        "subprocess.Popen = lambda *a, **k: (starts(*a, **k), os.kill(os.getpid(), signal.SIGKILL)); "
        "Worker(Store.open(sys.argv[1]), sys.argv[1], owner='doomed').work(threading.Event(), once=True)"
    )
    assert subprocess.run([sys.executable, "-c", source, url], check=False).returncode == -signal.SIGKILL
    until(lambda: not trainers(made), "end of the trainer")
    assert store.job(made.id).status == "running" and store.runs() == []


STOPS = """
import sys
from melior import errors
from melior.jobs.trainer import main
from melior.store import Store
def add_gate(*_, **__):
    raise getattr(errors, sys.argv[1])("no room, or no answer")
Store.add_gate = add_gate
sys.exit(main(["--job", sys.argv[2]]))
"""


@pytest.mark.parametrize("error", ["DatabaseAway", "FencedError"])
def test_a_training_that_the_database_left_at_its_end_goes_on(
    store: Store, worker: Worker, tmp_path: Path, error: str
) -> None:
    fit = {"learning_rate": 0.01, "checkpoint_every": 2, "steps": 4}
    made = store.add_job("sft", recipe(tmp_path, fit=fit), str(tmp_path / "left"))
    with pytest.MonkeyPatch.context() as patch:
        instead(patch, STOPS, error, made.id)
        worker.do(claimed(store))
    left = store.job(made.id)
    assert (left.status, left.attempts, left.error) == ("queued", 1, None)
    worker.do(claimed(store))
    assert store.job(made.id).status == "succeeded" and steps(store, made) == [1, 2, 3, 4]
    assert len(store.versions()) == 1


def test_a_training_that_finds_no_room_says_so(
    store: Store, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = {"learning_rate": 0.01, "steps": 1}
    made = store.add_job("sft", recipe(tmp_path, fit=fit), str(tmp_path / "full"))
    instead(monkeypatch, STOPS, "DiskFull", made.id)
    worker.do(claimed(store))
    job = store.job(made.id)
    assert job.status == "failed" and job.error is not None and job.error["message"] == "no room, or no answer"


IMPATIENT = """
import sys
from melior.jobs import trainer
trainer.PATIENCE_S = 0.1
sys.exit(trainer.main(["--job", sys.argv[1]]))
"""


def test_a_job_whose_folder_is_not_free_is_tried_again(
    store: Store, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = store.add_job("sft", recipe(tmp_path), str(tmp_path / "taken"))
    instead(monkeypatch, IMPATIENT, made.id)
    (tmp_path / "taken").mkdir()
    with alone(tmp_path / "taken"):
        worker.do(claimed(store))
    job = store.job(made.id)
    assert (job.status, job.attempts, job.error) == ("queued", 1, None) and store.runs() == []


BACKLOG = """
import pathlib, sys
lines = [f'{{"step": {step}, "loss": 0.5}}\\n' for step in range(1000)]
pathlib.Path(sys.argv[1], "metrics.jsonl").write_text("".join(lines) + '{"step": 1000, "lo')
sys.exit(3)
"""


def test_many_steps_are_told_together_and_the_lease_is_held_as_they_are(
    store: Store, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = store.add_job("sft", recipe(tmp_path), str(tmp_path / "backlog"))
    instead(monkeypatch, BACKLOG, tmp_path / "backlog")
    adds, leases = Store.add_steps, []

    def add_steps(self: Store, *given: Any, **more: Any) -> None:
        before = self.job(made.id).lease
        adds(self, *given, **more)
        leases.append((before, self.job(made.id).lease))

    monkeypatch.setattr(Store, "add_steps", add_steps)
    worker.do(claimed(store))
    assert steps(store, made) == list(range(1, 1001)), "each step is told once, and what is half written not yet"
    assert 1 < len(leases) <= 10 and all(before < after for before, after in leases)


LATE = """
import atexit, os, signal, sys
atexit.register(os.kill, os.getpid(), signal.SIGINT)
from melior.jobs.trainer import main
sys.exit(main(["--job", sys.argv[1]]))
"""


def test_a_trainer_asked_to_stop_after_its_end_still_says_how_it_ended(store: Store, url: str, tmp_path: Path) -> None:
    job = store.add_job("sft", recipe(tmp_path, model={"path": str(tmp_path / "none")}), str(tmp_path / "run"))
    ended = subprocess.run(
        [sys.executable, "-c", LATE, job.id], env={**os.environ, DATABASE: url}, capture_output=True, check=False
    )
    assert ended.returncode == FAILED and b"Interrupt" not in ended.stderr, ended


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        ({"data": {"train": "nowhere.jsonl"}}, "invalid_training_file", "nowhere.jsonl cannot be read"),
        ({"gate": {"minimum_items": "many"}}, "training_failed", "gate.minimum_items"),
    ],
)
def test_what_cannot_be_trained_says_why(
    store: Store, worker: Worker, tmp_path: Path, change: dict[str, Any], code: str, told: str
) -> None:
    made = store.add_job("sft", recipe(tmp_path, **change), str(tmp_path / "wrong"))
    worker.do(claimed(store))
    job = store.job(made.id)
    assert job.status == "failed" and job.error is not None and job.error["code"] == code
    assert told in job.error["message"] and store.job_events(job.id)[-1].level == "error"


def test_a_worker_outlives_a_database_that_goes_away_in_the_middle_of_a_job(
    store: Store, worker: Worker, whole: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = store.add_job("sft", recipe(tmp_path), str(tmp_path / "away"))
    monkeypatch.setattr(worker, "lease_s", 0.5)
    ends, away = Store.end_job, [True]

    def end_job(self: Store, *given: Any, **more: Any) -> Any:
        if away:
            away.clear()
            raise DatabaseAway("the database does not answer (connection refused); try again in a moment")
        return ends(self, *given, **more)

    monkeypatch.setattr(Store, "end_job", end_job)
    stop = threading.Event()
    thread = threading.Thread(target=worker.work, args=(stop,))
    thread.start()
    until(lambda: store.job(made.id).status == "succeeded", "success")
    stop.set()
    thread.join()
    done = store.job(made.id)
    assert (done.fence, done.attempts) == (2, 1) and outcome(done) == outcome(whole)
