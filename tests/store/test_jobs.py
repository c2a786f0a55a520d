"""a job has one worker at a time, whoever dies; files, keys and kept completions"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text, update

from melior.errors import FencedError, NotFound, StoreError
from melior.store import Store, schema
from melior.store.jobs import ATTEMPTS
from melior.store.query import later
from melior.store.rows import Job, JobStatus, Wanted

LONG, OVER = 60.0, -1.0  # seconds of a lease: one that lasts, one that has run out when it begins


def queued(store: Store, count: int = 1) -> list[Job]:
    return [store.add_job("sft", {"n": n}, f"runs/{n}") for n in range(count)]


def claimed(store: Store, owner: str = "a", seconds: float = LONG) -> Job:
    job = store.claim(owner, seconds)
    assert job is not None
    return job


def test_jobs_are_claimed_in_order_and_once(store: Store) -> None:
    made = queued(store, 3)
    taken = [claimed(store) for _ in made]
    assert [job.id for job in taken] == [job.id for job in made] and store.claim("b", LONG) is None
    assert all((job.status, job.owner, job.fence, job.attempts) == ("running", "a", 1, 0) for job in taken)


def test_of_many_workers_each_job_has_one(store: Store) -> None:
    made = queued(store, 24)

    def work(number: int) -> list[str]:
        found = []
        while (job := store.claim(f"worker {number}", LONG)) is not None:
            found.append(job.id)
        return found

    with ThreadPoolExecutor(6) as threads:
        taken = Counter(job for found in threads.map(work, range(6)) for job in found)
    assert taken == Counter({job.id: 1 for job in made})


def test_a_lease_that_ran_out_is_somebody_else_s_and_its_holder_can_write_nothing_more(store: Store) -> None:
    queued(store)
    first, second = claimed(store, "a", OVER), claimed(store, "b")
    assert second.id == first.id and (second.owner, second.fence, second.attempts) == ("b", 2, 1)
    for late in (
        lambda: store.renew(first.id, first.fence, LONG),
        lambda: store.add_event(first.id, "still here", fence=first.fence),
        lambda: store.tell_run(first.id, first.fence, "run"),
        lambda: store.end_job(first.id, first.fence, "succeeded"),
    ):
        with pytest.raises(FencedError, match="under lease 2, and this worker held lease 1"):
            late()
    assert store.end_job(second.id, second.fence, "succeeded", result={"steps": 3}).result == {"steps": 3}
    assert store.job_events(first.id) == []


def test_a_lease_is_held_by_renewing_it(store: Store) -> None:
    queued(store)
    job = claimed(store, seconds=0.2)
    for _ in range(4):
        time.sleep(0.1)
        assert store.renew(job.id, job.fence, 0.5) == ""
    assert store.claim("b", LONG) is None
    time.sleep(0.6)
    assert claimed(store, "b").fence == 2


def test_a_job_that_kills_its_workers_is_given_up(store: Store) -> None:
    (made,) = queued(store)
    for number in range(ATTEMPTS):
        assert claimed(store, f"worker {number}", OVER).attempts == number
    assert store.claim("the next", LONG) is None
    job = store.job(made.id)
    assert job.status == "failed" and job.finished and job.error is not None
    assert f"{ATTEMPTS} times the process that ran it was lost" in job.error["message"]


def test_what_nobody_runs_stops_at_once_and_what_runs_is_asked(store: Store) -> None:
    waiting, running = queued(store, 2)
    assert store.ask_job(waiting.id, "cancel").status == "cancelled"
    job = claimed(store)
    assert job.id == running.id and store.ask_job(job.id, "pause").status == "running"
    assert store.renew(job.id, job.fence, LONG) == "pause"
    paused = store.end_job(job.id, job.fence, "paused")
    assert (paused.status, paused.owner, paused.wanted, paused.finished) == ("paused", "", "", None)
    assert store.claim("b", LONG) is None, "who pauses a job wants it paused"
    assert store.resume_job(job.id).status == "queued"
    again = claimed(store, "b")
    assert again.fence == 2 and again.attempts == 0


def test_a_pause_is_taken_back_while_the_job_runs(store: Store) -> None:
    queued(store)
    job = claimed(store)
    store.ask_job(job.id, "pause")
    assert store.resume_job(job.id).status == "running" and store.renew(job.id, job.fence, LONG) == ""


@pytest.mark.parametrize("told", ["paused", "queued"])
@pytest.mark.parametrize(
    ("asks", "left"),
    [
        (["pause"], "paused"),
        (["pause", "resume"], "queued"),
        (["pause", "resume", "pause"], "paused"),
        (["cancel"], "cancelled"),
        (["pause", "cancel"], "cancelled"),
        (["cancel", "pause"], "cancelled"),
        (["cancel", "resume"], "cancelled"),
        ([], "queued"),
    ],
)
def test_a_job_that_stops_is_left_as_clients_want_it_by_then(
    store: Store, asks: list[Any], left: str, told: JobStatus
) -> None:
    queued(store)
    job = claimed(store)
    for ask in asks:
        assert (store.resume_job(job.id) if ask == "resume" else store.ask_job(job.id, ask)).status == "running"
    stopped = store.end_job(job.id, job.fence, told)
    assert (stopped.status, stopped.wanted, stopped.owner, stopped.lease) == (left, "", "", None)
    assert (stopped.finished is not None) == (left == "cancelled")


def test_a_job_lost_after_it_was_asked_to_pause_is_paused_and_runs_when_it_is_resumed(store: Store) -> None:
    queued(store)
    job = claimed(store)
    store.ask_job(job.id, "pause")
    lost = store.give_back(job.id, job.fence)
    assert (lost.status, lost.wanted, lost.attempts) == ("paused", "", 1)
    assert store.resume_job(job.id).status == "queued"
    again = claimed(store)
    assert store.renew(again.id, again.fence, LONG) == ""


def test_a_cancelled_job_that_is_lost_is_cancelled_however_often_that_happened(store: Store) -> None:
    queued(store)
    for _ in range(ATTEMPTS - 1):
        job = claimed(store)
        store.give_back(job.id, job.fence)
    job = claimed(store)
    store.ask_job(job.id, "cancel")
    lost = store.give_back(job.id, job.fence)
    assert lost.status == "cancelled" and lost.finished and lost.error is None


@pytest.mark.parametrize(("ask", "left"), [("pause", "paused"), ("cancel", "cancelled")])
def test_a_job_whose_lease_ran_out_stops_when_it_is_asked(store: Store, ask: Wanted, left: str) -> None:
    queued(store)
    gone = claimed(store, "a", OVER)
    job = store.ask_job(gone.id, ask)
    assert (job.status, job.wanted, job.owner) == (left, "", "") and job.fence > gone.fence
    assert store.claim("b", LONG) is None
    with pytest.raises(FencedError):
        store.renew(gone.id, gone.fence, LONG)


@pytest.mark.parametrize(
    ("before", "meanwhile", "call", "after"),
    [
        ("running", {"status": "paused"}, lambda store, job: store.ask_job(job, "cancel"), "cancelled"),
        ("queued", {"status": "succeeded"}, lambda store, job: store.ask_job(job, "cancel"), "has succeeded already"),
        ("paused", {"status": "cancelled"}, lambda store, job: store.resume_job(job), "has cancelled already"),
        ("paused", {"status": "running", "owner": "b"}, lambda store, job: store.resume_job(job), "running"),
    ],
)
def test_a_client_sees_what_another_is_about_to_do_with_a_job(
    store: Store, before: str, meanwhile: dict[str, str], call: Callable[[Store, str], Job], after: str
) -> None:
    (made,) = queued(store)
    table = schema.jobs
    with store.database.write() as connection:
        connection.execute(update(table).values(status=before, lease=later(LONG)))
    with ThreadPoolExecutor(1) as threads:
        with store.database.write() as connection:
            connection.execute(update(table).values(**meanwhile))
            asked = threads.submit(call, store, made.id)
            wait_for_its_turn(store)
        try:
            assert asked.result().status == after
        except StoreError as error:
            assert after in str(error)
    assert store.job(made.id).status == ("cancelled" if after == "cancelled" else meanwhile["status"])


def wait_for_its_turn(store: Store) -> None:
    """Returns when another connection to PostgreSQL waits for a row; SQLite's writers wait before they look."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    until = time.monotonic() + 60
    while store.database.engine.dialect.name == "postgresql":
        with store.database.read() as connection:
            if connection.scalar(text(waiting)):
                return
        assert time.monotonic() < until, "nobody waits for the row"
        time.sleep(0.01)


@pytest.mark.parametrize("ended", ["succeeded", "failed", "cancelled"])
def test_what_has_ended_stays_as_it_ended(store: Store, ended: str) -> None:
    queued(store)
    job = claimed(store)
    store.end_job(job.id, job.fence, ended, error={"message": "x"})  # type: ignore[arg-type]
    for late in (lambda: store.ask_job(job.id, "cancel"), lambda: store.resume_job(job.id)):
        with pytest.raises(StoreError, match=f"has {ended} already"):
            late()
    with pytest.raises(FencedError):
        store.end_job(job.id, job.fence, "failed")
    assert store.job(job.id).status == ended


def test_a_request_that_comes_twice_makes_one_job(store: Store) -> None:
    def ask(_: int) -> str:
        return store.add_job("sft", {}, "runs/a", asked={"model": "m"}, request_key="k").id

    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(ask, range(8)))) == 1
    with pytest.raises(StoreError, match=r"'k' made .* of another request"):
        store.add_job("sft", {}, "runs/a", asked={"model": "other"}, request_key="k")
    assert len(store.jobs()) == 1


def test_events_come_in_order_with_their_numbers(store: Store) -> None:
    queued(store)
    job = claimed(store)
    store.add_event(job.id, "begun", fence=job.fence)
    store.add_event(job.id, "step 1", fence=job.fence, data={"step": 1, "train_loss": 0.1 + 0.2})
    store.add_event(job.id, "asked to stop", level="warn")
    told = store.job_events(job.id)
    assert [(event.level, event.type, event.message) for event in told] == [
        ("info", "message", "begun"),
        ("info", "metrics", "step 1"),
        ("warn", "message", "asked to stop"),
    ]
    assert told[1].data == {"step": 1, "train_loss": 0.1 + 0.2}


def test_steps_are_told_together_by_who_holds_the_job_and_hold_it_longer(store: Store) -> None:
    queued(store)
    job = claimed(store)
    told = [(f"Step {step}", {"step": step}) for step in (1, 2, 3)]
    store.add_steps(job.id, told, fence=job.fence, seconds=2 * LONG)
    assert [(event.message, event.data) for event in store.job_events(job.id)] == told
    assert (store.job(job.id).lease or "") > (job.lease or "")
    store.give_back(job.id, job.fence)
    with pytest.raises(FencedError):
        store.add_steps(job.id, told, fence=job.fence, seconds=LONG)
    assert len(store.job_events(job.id)) == 3 and store.job(job.id).lease is None


def test_a_job_of_a_file_that_is_not_there_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="training_file"):
        store.add_job("sft", {}, "runs/a", training_file="file_none")


def test_files_are_found_until_they_are_deleted(store: Store) -> None:
    kept, gone = (store.add_file(name, "fine-tune", size=3, sha256="0" * 64) for name in ("a.jsonl", "b.jsonl"))
    other = store.add_file("c.jsonl", "evals", size=1, sha256="1" * 64)
    assert store.file(kept.id) == kept and [file.id for file in store.files(purpose="evals")] == [other.id]
    store.delete_file(gone.id)
    with pytest.raises(NotFound, match=gone.id):
        store.file(gone.id)
    assert store.file(gone.id, deleted=True).deleted and gone.id not in {file.id for file in store.files()}
    with pytest.raises(NotFound):
        store.file(kept.id[:12])


def test_a_key_is_known_by_its_hash_until_it_is_revoked(store: Store) -> None:
    key = store.add_key("laptop", "a" * 64, ["infer", "read"])
    assert store.key_of("a" * 64) == key and key.scopes == ("infer", "read") and store.key_of("b" * 64) is None
    assert store.revoke_key(key.id).revoked and store.key_of("a" * 64) is None and len(store.keys()) == 1
    with pytest.raises(StoreError):
        store.add_key("twice", "a" * 64, [])


def test_completions_are_kept_labelled_and_deleted(store: Store) -> None:
    made = store.add_completion("chatcmpl_1", "m", {"metadata": {"topic": "tea"}, "n": 1}, {"choices": []})
    store.add_completion("chatcmpl_2", "other", {}, {})
    assert made.labels == {"topic": "tea"} and [one.id for one in store.completions(model="m")] == ["chatcmpl_1"]
    assert store.label_completion("chatcmpl_1", {"topic": "coffee"}).labels == {"topic": "coffee"}
    store.delete_completion("chatcmpl_1")
    with pytest.raises(NotFound):
        store.completion("chatcmpl_1")
    with pytest.raises(NotFound):
        store.label_completion("chatcmpl_1", {})
