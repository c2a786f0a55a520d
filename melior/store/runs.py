"""data sets and training runs"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, update
from sqlalchemy.exc import IntegrityError

from melior.errors import StoreError
from melior.store import schema
from melior.store.query import CHUNK, Order, Page, Rows, add, add_row, fetch, find, new_id, now, one_of
from melior.store.rows import Dataset, DatasetRow, Run, RunStatus, Version

FINISHED = ("succeeded", "failed", "cancelled")


class Runs(Rows):
    """What was trained, from what, and how it ended."""

    def add_dataset(self, fingerprint: str, *, kind: str, path: str | Path, rows: int) -> Dataset:
        """The data set with this fingerprint and kind; added if it is new."""
        row = Dataset(id=new_id("ds"), fingerprint=fingerprint, kind=kind, path=str(path), rows=rows, created=now())
        with self.database.write() as connection:
            return _added(connection, row)

    def add_export(
        self,
        fingerprint: str,
        *,
        kind: str,
        path: str | Path,
        rows: int,
        details: Mapping[str, Any],
        origin: Iterable[tuple[int, str, str | None]],
    ) -> Dataset:
        """The data set of rows that were made from the log; added, with what each row was made of, if it is new.

        `origin` holds (position, decision, feedback), positions rising. The same rows made of other feedback are the
        same data set, which then names both.
        """
        row = Dataset(
            id=new_id("ds"),
            fingerprint=fingerprint,
            kind=kind,
            path=str(path),
            rows=rows,
            created=now(),
            details=dict(details),
        )
        with self.database.write() as connection:
            dataset = _added(connection, row)
            known = dataset is not row
            every = iter(origin)
            while page := list(islice(every, CHUNK)):
                links = [
                    DatasetRow(dataset_id=dataset.id, position=position, decision_id=decision, feedback_id=feedback)
                    for position, decision, feedback in page
                ]
                there = _links(connection, dataset.id, links[0].position, links[-1].position) if known else set()
                add(connection, schema.dataset_rows, [vars(link) for link in links if link not in there])
        return dataset

    def dataset_of(self, fingerprint: str, kind: str) -> Dataset | None:
        """The data set with this fingerprint and kind, or None."""
        return next(iter(self._list(Dataset, fingerprint=fingerprint, kind=kind)), None)

    def dataset_rows(self, dataset_id: str, *, after: int = -1, limit: int | None = None) -> list[DatasetRow]:
        """What the rows of an export were made of, in their order; `limit` rows behind the position `after`."""
        at = schema.dataset_rows.c.position
        where = [at > after] if limit is None else [at > after, at <= after + limit]
        with self.database.read() as connection:
            found = fetch(connection, DatasetRow, *where, dataset_id=dataset_id)
        return sorted(found, key=lambda row: row.position)

    def dataset(self, reference: str) -> Dataset:
        """One data set."""
        return self._find(Dataset, reference)

    def datasets_page(self, *, after: str | None = None, limit: int = 20, order: Order = "desc") -> Page[Dataset]:
        """Some data sets, behind the one with the id `after`."""
        return self._page(Dataset, after=after, limit=limit, order=order)

    def datasets(self) -> list[Dataset]:
        """Every data set."""
        return self._list(Dataset)

    def add_run(
        self,
        method: str,
        config: Mapping[str, Any],
        folder: str | Path,
        *,
        base_model: str | None = None,
        base_version: str | None = None,
        dataset_id: str | None = None,
        status: RunStatus = "running",
        run_id: str | None = None,
    ) -> Run:
        """A run that starts now from a base model or from a version."""
        row = Run(
            id=run_id or new_id("run"),
            method=method,
            config=dict(config),
            status=one_of(RunStatus, status),
            folder=str(folder),
            base_model=base_model,
            base_version=None if base_version is None else self._find(Version, base_version).id,
            dataset_id=dataset_id,
            finished=None,
            metrics={},
            error="",
            created=now(),
        )
        with self.database.write() as connection:
            return add_row(connection, row)

    def finish_run(
        self,
        run_id: str,
        *,
        status: RunStatus = "succeeded",
        metrics: Mapping[str, Any] | None = None,
        error: str = "",
    ) -> Run:
        """The run, ended. A run that has ended stays as it ended: ending it again the same way changes nothing.

        Raises:
            StoreError: if the status is not one a run ends with, or it has ended with another.
        """
        if status not in FINISHED:
            raise StoreError(f"a run ends {', '.join(FINISHED)}, not {status!r}")
        with self.database.write() as connection:
            run = find(connection, Run, run_id)
            if run.status == status:
                return run
            if run.status in FINISHED:
                raise StoreError(f"{run.id} has ended as {run.status}; reopen it before it can end as {status}")
            ended = {"status": status, "finished": now(), "metrics": dict(metrics or {}), "error": error}
            return self._change_run(connection, run, ended)

    def reopen_run(self, run_id: str) -> Run:
        """The run, running again: to resume what failed, was cancelled, or was killed without a word."""
        with self.database.write() as connection:
            run = find(connection, Run, run_id)
            if run.status == "succeeded":
                raise StoreError(f"{run.id} has succeeded and cannot be resumed; start a new run from its version")
            return self._change_run(connection, run, {"status": "running", "finished": None, "error": ""})

    def run(self, reference: str) -> Run:
        """One run."""
        return self._find(Run, reference)

    def runs(
        self, *, status: RunStatus | None = None, method: str | None = None, base_version: str | None = None
    ) -> list[Run]:
        """Runs, the oldest first; of a status, by a method, from a version, or all."""
        return self._list(Run, status=status, method=method, base_version=base_version)

    def _change_run(self, connection: Connection, run: Run, values: Mapping[str, Any]) -> Run:
        connection.execute(update(schema.runs).where(schema.runs.c.id == run.id).values(**values))
        return find(connection, Run, run.id)


def _added(connection: Connection, row: Dataset) -> Dataset:
    """The data set with this fingerprint and kind: the one that is there, or else this row, added."""
    known = fetch(connection, Dataset, fingerprint=row.fingerprint, kind=row.kind)
    if known:
        return known[0]
    try:
        with connection.begin_nested():
            return add_row(connection, row)
    except IntegrityError:  # PostgreSQL: somebody added it since we looked
        return fetch(connection, Dataset, fingerprint=row.fingerprint, kind=row.kind)[0]


def _links(connection: Connection, dataset_id: str, first: int, last: int) -> set[DatasetRow]:
    at = schema.dataset_rows.c.position
    return set(fetch(connection, DatasetRow, at >= first, at <= last, dataset_id=dataset_id))
