"""jobs in a queue: leased to one worker at a time, fenced against the one before, cancelled, paused and resumed

    queued ──claim──▶ running ──finish──▶ succeeded, failed, cancelled
       ▲                 │ pause, or a lease that ran out
       └── resume ── paused

A worker that claims a job holds a lease, which it must renew, and a fence, a number that is higher with every lease.
Whatever it writes it signs with that number: after its lease ran out and another worker took the job, it can write
nothing more, however alive it is. Times are those of the worker's clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, or_, select, update
from sqlalchemy.exc import IntegrityError

from melior.errors import FencedError, StoreError
from melior.store import schema
from melior.store.query import Page, Rows, add, add_row, fetch, find, labelled, later, new_id, now, one_of
from melior.store.rows import Job, JobEvent, JobStatus, Level, Wanted
from melior.store.webhooks import Event, announce

ENDED = ("succeeded", "failed", "cancelled")
STOPPED: Mapping[Wanted, JobStatus] = {"cancel": "cancelled", "pause": "paused", "": "queued"}  # as clients want it
ATTEMPTS = 5  # processes that may be lost over a job before it is called failed


class Jobs(Rows):
    """Training that was asked for."""

    def add_job(
        self,
        method: str,
        recipe: Mapping[str, Any],
        folder: str,
        *,
        asked: Mapping[str, Any] | None = None,
        training_file: str | None = None,
        validation_file: str | None = None,
        labels: Mapping[str, str] | None = None,
        request_key: str | None = None,
        job_id: str | None = None,
        eval_id: str | None = None,
    ) -> Job:
        """A job in the queue; the same `request_key` again returns the job that it made.

        Raises:
            StoreError: if the key came with another request before, or a file is unknown.
        """
        row = Job(
            id=job_id or new_id("ftjob"),
            method=method,
            asked=dict(asked or {}),
            recipe=dict(recipe),
            folder=folder,
            status="queued",
            wanted="",
            owner="",
            lease=None,
            fence=0,
            attempts=0,
            training_file=training_file,
            validation_file=validation_file,
            run_id=None,
            result={},
            error=None,
            labels=dict(labels or {}),
            finished=None,
            request_key=request_key,
            created=now(),
            eval_id=eval_id,
        )
        with self.database.write() as connection:
            known = _made_by(connection, request_key, row.asked, eval_id)
            if known is not None:
                return known
            try:
                with connection.begin_nested():
                    return add_row(connection, row)
            except IntegrityError:  # PostgreSQL: somebody used this key since we looked
                known = _made_by(connection, request_key, row.asked, eval_id)
                if known is None:
                    raise
                return known

    def job_made_by(self, request_key: str | None, asked: Mapping[str, Any], eval_id: str | None = None) -> Job | None:
        """The job that this request made when it came before; None where it did not.

        Raises:
            StoreError: if the key came with another request, or the job was deleted.
        """
        with self.database.read() as connection:
            return _made_by(connection, request_key, dict(asked), eval_id)

    def job(self, reference: str) -> Job:
        """One job."""
        return self._find(Job, reference)

    def jobs(self, *, status: JobStatus | None = None, method: str | None = None) -> list[Job]:
        """Jobs, the oldest first."""
        return self._list(Job, status=status, method=method)

    def job_page(
        self, *, labels: Mapping[str, str] | None = None, after: str | None = None, limit: int = 20
    ) -> Page[Job]:
        """Jobs that train, the newest first, with all of these labels."""
        table = schema.jobs
        return self._page(
            Job, table.c.eval_id.is_(None), *labelled(table.c.labels, labels or {}), after=after, limit=limit
        )

    # ------------------------------------------------------------------ what workers do

    def claim(self, owner: str, seconds: float, *, job_id: str | None = None) -> Job | None:
        """The oldest job that waits, or whose lease ran out, leased for so many seconds; None where there is none.

        A job that was lost `ATTEMPTS` times is failed instead of leased again.
        """
        table, time = schema.jobs, now()
        lost = (table.c.status == "running") & (table.c.lease < time)
        waiting = select(table.c.id).where(or_(table.c.status == "queued", lost)).order_by(table.c.sequence)
        if job_id is not None:
            waiting = waiting.where(table.c.id == job_id)
        while True:
            with self.database.write() as connection:
                found = connection.scalar(waiting.limit(1).with_for_update(skip_locked=True))
                if found is None:
                    return None
                job = find(connection, Job, found)
                if job.status == "running":
                    job = _lost(connection, job)
                if job.status == "queued":
                    leased = {"owner": owner, "lease": later(seconds), "fence": job.fence + 1}
                    return _change(connection, job, {"status": "running", **leased})

    def renew(self, job_id: str, fence: int, seconds: float) -> Wanted:
        """Holds the lease for so many seconds from now; what was asked of its holder meanwhile.

        Raises:
            FencedError: if another worker has it.
        """
        with self.database.write() as connection:
            return _change(connection, _held(connection, job_id, fence), {"lease": later(seconds)}).wanted

    def add_event(
        self,
        job_id: str,
        message: str,
        *,
        fence: int | None = None,
        level: Level = "info",
        data: Mapping[str, Any] | None = None,
    ) -> JobEvent:
        """What happened to a job; with data, its metrics. A worker signs with its fence.

        Raises:
            FencedError: if another worker has it.
        """
        row = _told(job_id, message, level, data or {})
        with self.database.write() as connection:
            if fence is not None:
                _held(connection, job_id, fence)
            return add_row(connection, row)

    def add_steps(
        self, job_id: str, steps: Sequence[tuple[str, Mapping[str, Any]]], *, fence: int, seconds: float
    ) -> None:
        """Messages with their metrics, all stored or none, by a worker that holds the lease for so many seconds more.

        Raises:
            FencedError: if another worker has it.
        """
        rows = [vars(_told(job_id, message, "info", data)) for message, data in steps]
        with self.database.write() as connection:
            _change(connection, _held(connection, job_id, fence), {"lease": later(seconds)})
            add(connection, schema.job_events, rows)

    def tell_run(self, job_id: str, fence: int, run_id: str) -> Job:
        """The job, with the run that does its work."""
        with self.database.write() as connection:
            return _change(connection, _held(connection, job_id, fence), {"run_id": run_id})

    def end_job(
        self,
        job_id: str,
        fence: int,
        status: JobStatus,
        *,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> Job:
        """The job as its worker leaves it: ended, paused, or queued again.

        One that has not ended is left as clients want it by now, whatever they wanted when its worker last looked.

        Raises:
            FencedError: if another worker has it.
        """
        one_of(JobStatus, status)
        told = {"result": dict(result or {}), "error": dict(error) if error else None}
        with self.database.write() as connection:
            job = _held(connection, job_id, fence)
            return _change(connection, job, {**_left(status if status in ENDED else STOPPED[job.wanted]), **told})

    def give_back(self, job_id: str, fence: int) -> Job:
        """The job, lost by its worker and in the queue again, or stopped as it was asked to.

        Where that has happened too often it has failed.

        Raises:
            FencedError: if another worker has it.
        """
        with self.database.write() as connection:
            return _lost(connection, _held(connection, job_id, fence))

    # ------------------------------------------------------------------ what clients do

    def ask_job(self, reference: str, wanted: Wanted) -> Job:
        """The job, asked to stop for good or for a while. One that nobody runs stops at once.

        Raises:
            StoreError: if it has ended.
        """
        with self.database.write() as connection:
            job = _locked(connection, find(connection, Job, reference).id)
            if job.status in ENDED:
                raise StoreError(f"{job.id} has {job.status} already and cannot {wanted}")
            job = replace(job, wanted="cancel" if job.wanted == "cancel" else wanted)
            if job.status != "running":
                return _change(connection, job, _left(STOPPED[job.wanted]))
            if job.lease is not None and job.lease < now():
                return _lost(connection, job)
            return _change(connection, job, {"wanted": job.wanted})

    def resume_job(self, reference: str) -> Job:
        """The job, waiting for a worker again; one that runs on is no longer asked to pause.

        Raises:
            StoreError: if it has ended.
        """
        with self.database.write() as connection:
            job = _locked(connection, find(connection, Job, reference).id)
            if job.status in ENDED:
                raise StoreError(f"{job.id} has {job.status} already and cannot be resumed; make a new one")
            if job.wanted == "cancel":
                return job
            return _change(
                connection, job, {"wanted": "", "status": "running" if job.status == "running" else "queued"}
            )

    def job_events(self, job_id: str) -> list[JobEvent]:
        """What happened to a job, in order."""
        return self._list(JobEvent, job_id=self.job(job_id).id)

    def job_event_page(self, job_id: str, *, after: str | None = None, limit: int = 20) -> Page[JobEvent]:
        """What happened to a job, the newest first."""
        return self._page(JobEvent, after=after, limit=limit, job_id=job_id)


def _held(connection: Connection, job_id: str, fence: int) -> Job:
    """The job, if this fence is the newest and the job runs."""
    job = _locked(connection, job_id)
    if job.fence != fence or job.status != "running":
        raise FencedError(f"{job.id} is {job.status} under lease {job.fence}, and this worker held lease {fence}")
    return job


def _locked(connection: Connection, job_id: str) -> Job:
    """The job, which nobody else claims or changes before this transaction ends."""
    connection.execute(select(schema.jobs.c.id).where(schema.jobs.c.id == job_id).with_for_update())
    return find(connection, Job, job_id)


def _made_by(
    connection: Connection, request_key: str | None, asked: Mapping[str, Any], eval_id: str | None
) -> Job | None:
    known = fetch(connection, Job, request_key=request_key) if request_key else []
    if not known:
        return None
    (job,) = known
    if (job.asked, job.eval_id) != (asked, eval_id):
        raise StoreError(f"request key {request_key!r} made {job.id} of another request; use a new key")
    if job.deleted is not None:
        raise StoreError(f"request key {request_key!r} made {job.id}, which was deleted; use a new key")
    return job


def _change(connection: Connection, job: Job, values: Mapping[str, Any]) -> Job:
    connection.execute(update(schema.jobs).where(schema.jobs.c.id == job.id).values(**values))
    if values.get("status") in ENDED:
        announce(connection, _event(job, values["status"]), {"id": job.id})
    return find(connection, Job, job.id)


def _told(job_id: str, message: str, level: Level, data: Mapping[str, Any]) -> JobEvent:
    return JobEvent(
        id=new_id("ftevent"),
        job_id=job_id,
        level=one_of(Level, level),
        type="metrics" if data else "message",
        message=schema.clean(message),
        data=dict(data),
        created=now(),
    )


def _event(job: Job, status: str) -> Event:
    if job.eval_id is None:
        return f"fine_tuning.job.{status}"  # type: ignore[return-value]
    return "eval.run.canceled" if status == "cancelled" else f"eval.run.{status}"  # type: ignore[return-value]


def _lost(connection: Connection, job: Job) -> Job:
    attempts, status = job.attempts + 1, STOPPED[job.wanted]
    values: dict[str, Any] = {"attempts": attempts}
    if attempts >= ATTEMPTS and status != "cancelled":
        status = "failed"
        values["error"] = _error(f"{attempts} times the process that ran it was lost; look at the worker's log")
    if status != "queued":  # who held it may live; where it is queued, the next claim shuts it out
        values["fence"] = job.fence + 1
    return _change(connection, job, {**_left(status), **values})


def _left(status: JobStatus) -> dict[str, Any]:
    ended = {"finished": now()} if status in ENDED else {}
    return {"status": status, "owner": "", "lease": None, "wanted": "", **ended}


def _error(message: str) -> dict[str, Any]:
    return {"code": "internal_error", "message": message, "param": None}


__all__: Sequence[str] = ("ATTEMPTS", "ENDED", "Jobs")
