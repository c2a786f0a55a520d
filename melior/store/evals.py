"""evals: what clients have graded again and again, its runs, and the outputs that each run came to

An eval's run is a job with an `eval_id`, and a run of the same id in `runs`; what it grades are decisions of that run,
written together with all their scores, so that an output is either done or not begun.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.exc import IntegrityError

from melior.errors import FencedError, NotFound, StoreError
from melior.store import schema
from melior.store.jobs import ENDED
from melior.store.query import (
    Order,
    Page,
    Rows,
    add,
    add_row,
    fetch,
    fetch_page,
    find,
    new_id,
    now,
    record_columns,
    score_columns,
)
from melior.store.rows import Eval, Job, JobStatus
from melior.types import Record, Score


@dataclass(frozen=True)
class Graded:
    """What one output of a run is known by, and what each criterion said of it."""

    id: str
    key: str  # of the item: equal items of two runs share it
    created: str
    values: dict[str, float | None] = field(default_factory=dict)  # by criterion, None where it failed
    errors: dict[str, str] = field(default_factory=dict)  # by criterion that failed
    usage: dict[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)  # by criterion that asked a judge


class Evals(Rows):
    """Evals, their runs, and what the runs came to."""

    def add_eval(self, name: str, asked: Mapping[str, Any], labels: Mapping[str, str] | None = None) -> Eval:
        """An eval as its client asked for it."""
        time = now()
        row = Eval(
            id=new_id("eval"),
            name=schema.clean(name),
            asked=dict(asked),
            labels=dict(labels or {}),
            updated=time,
            deleted=None,
            created=time,
        )
        with self.database.write() as connection:
            return add_row(connection, row)

    def one_eval(self, eval_id: str) -> Eval:
        """One eval.

        Raises:
            NotFound: if there is none, or it was deleted.
        """
        with self.database.read() as connection:
            found = fetch(connection, Eval, schema.evals.c.deleted.is_(None), id=eval_id)
        if not found:
            raise NotFound(f"there is no eval {eval_id!r}")
        return found[0]

    def evals(self) -> list[Eval]:
        """The evals there are, the oldest first."""
        with self.database.read() as connection:
            return fetch(connection, Eval, schema.evals.c.deleted.is_(None))

    def evals_page(self, *, after: str | None = None, limit: int = 20, order: Order = "asc") -> Page[Eval]:
        """One page of the evals there are."""
        with self.database.read() as connection:
            there = schema.evals.c.deleted.is_(None)
            return fetch_page(connection, Eval, there, after=after, limit=limit, order=order)

    def change_eval(self, eval_id: str, *, name: str | None = None, labels: Mapping[str, str] | None = None) -> Eval:
        """The eval with another name or other labels; None changes nothing."""
        found = self.one_eval(eval_id)
        changed: dict[str, Any] = {"updated": now()}
        if name is not None:
            changed["name"] = schema.clean(name)
        if labels is not None:
            changed["labels"] = dict(labels)
        with self.database.write() as connection:
            connection.execute(update(schema.evals).where(schema.evals.c.id == found.id).values(**changed))
            return find(connection, Eval, found.id)

    def delete_eval(self, eval_id: str) -> Eval:
        """The eval, no longer found; what its runs came to stays in the log.

        Raises:
            StoreError: if one of its runs goes on.
        """
        found = self.one_eval(eval_id)
        with self.database.write() as connection:
            busy = [run for run in fetch(connection, Job, eval_id=found.id) if run.status not in ENDED]
            if busy:
                raise StoreError(f"{len(busy)} runs of {found.id} go on, {busy[0].id} among them; cancel them first")
            connection.execute(update(schema.evals).where(schema.evals.c.id == found.id).values(deleted=now()))
            return find(connection, Eval, found.id)

    # ------------------------------------------------------------------ runs

    def eval_run(self, eval_id: str, run_id: str) -> Job:
        """One run of an eval.

        Raises:
            NotFound: if the eval has none of this id, or it was deleted.
        """
        with self.database.read() as connection:
            found = fetch(connection, Job, schema.jobs.c.deleted.is_(None), id=run_id, eval_id=eval_id)
        if not found:
            raise NotFound(f"there is no run {run_id!r} of {eval_id!r}")
        return found[0]

    def eval_runs(
        self,
        eval_id: str,
        *,
        among: Sequence[JobStatus] = (),
        after: str | None = None,
        limit: int = 20,
        order: Order = "asc",
    ) -> Page[Job]:
        """One page of an eval's runs; `among` are the statuses wanted, all where it is empty."""
        table = schema.jobs
        where: list[ColumnElement[bool]] = [table.c.deleted.is_(None)]
        where += [table.c.status.in_(among)] if among else []
        with self.database.read() as connection:
            return fetch_page(connection, Job, *where, after=after, limit=limit, order=order, eval_id=eval_id)

    def delete_eval_run(self, eval_id: str, run_id: str) -> Job:
        """The run, no longer found; what it came to stays in the log.

        Raises:
            StoreError: if it goes on.
        """
        run = self.eval_run(eval_id, run_id)
        with self.database.write() as connection:
            run = find(connection, Job, run.id)
            if run.status not in ENDED:
                raise StoreError(f"{run.id} is {run.status}; cancel it before it can be deleted")
            connection.execute(update(schema.jobs).where(schema.jobs.c.id == run.id).values(deleted=now()))
            return find(connection, Job, run.id)

    # ------------------------------------------------------------------ what runs come to

    def add_outputs(
        self,
        run_id: str,
        ids: Sequence[str],
        records: Sequence[Record],
        scores: Sequence[Sequence[Score]],
        *,
        fence: int,
    ) -> None:
        """Outputs with all their scores, stored together or not at all, by the worker that holds the run.

        Raises:
            FencedError: if another worker has it.
            StoreError: if one of the ids is taken, or the lengths differ.
        """
        if not len(ids) == len(records) == len(scores):
            raise StoreError(f"{len(records)} records came with {len(ids)} ids and {len(scores)} lists of scores")
        shared = {"run_id": run_id, "alias": None, "episode_id": None, "propensities": None, "created": now()}
        rows = [{"id": one, **record_columns(record), **shared} for one, record in zip(ids, records, strict=True)]
        said = [
            {"id": new_id("sco"), "decision_id": one, "created": shared["created"], **score_columns(score)}
            for one, each in zip(ids, scores, strict=True)
            for score in each
        ]
        jobs = schema.jobs
        with self.database.write() as connection:
            held = connection.scalar(select(jobs.c.fence).where(jobs.c.id == run_id).with_for_update())
            if held != fence:
                raise FencedError(f"{run_id} is under lease {held}, and this worker held lease {fence}")
            try:
                add(connection, schema.records, rows)
            except IntegrityError as error:
                raise StoreError(f"an output of {run_id} is there already ({error.orig}); go on behind it") from error
            add(connection, schema.scores, said)

    def graded(self, run_id: str) -> list[Graded]:
        """Every output of a run with its scores, in order; without what was read and decided, which can be long."""
        records, scores = schema.records, schema.scores
        columns = [scores.c[name] for name in ("name", "value", "error", "usage")]
        query = (
            select(records.c.id, records.c.input_group, records.c.created, *columns)
            .join(scores, scores.c.decision_id == records.c.id, isouter=True)
            .where(records.c.run_id == run_id)
            .order_by(records.c.sequence, scores.c.sequence)
        )
        found: dict[str, Graded] = {}
        with self.database.read() as connection:
            for one, key, created, name, value, error, usage in connection.execute(query):
                output = found.setdefault(one, Graded(one, key, created))
                if name is not None:
                    output.values[name] = value
                if error:
                    output.errors[name] = error
                if usage:
                    output.usage[name] = usage
        return list(found.values())
