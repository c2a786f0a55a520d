"""data sets and training runs"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, update

from melior.errors import StoreError
from melior.store import schema
from melior.store.query import Rows, add_row, fetch, find, new_id, now, one_of
from melior.store.rows import Dataset, Run, RunStatus, Version

FINISHED = ("succeeded", "failed", "cancelled")


class Runs(Rows):
    """What was trained, from what, and how it ended."""

    def add_dataset(self, fingerprint: str, *, kind: str, path: str | Path, rows: int) -> Dataset:
        """The data set with this fingerprint and kind; added if it is new."""
        with self.database.write() as connection:
            known = fetch(connection, Dataset, fingerprint=fingerprint, kind=kind)
            if known:
                return known[0]
            row = Dataset(id=new_id("ds"), fingerprint=fingerprint, kind=kind, path=str(path), rows=rows, created=now())
            return add_row(connection, row)

    def dataset(self, reference: str) -> Dataset:
        """One data set."""
        return self._find(Dataset, reference)

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

    def runs(self, *, status: RunStatus | None = None, method: str | None = None) -> list[Run]:
        """Runs, the oldest first."""
        return self._list(Run, status=status, method=method)

    def _change_run(self, connection: Connection, run: Run, values: Mapping[str, Any]) -> Run:
        connection.execute(update(schema.runs).where(schema.runs.c.id == run.id).values(**values))
        return find(connection, Run, run.id)
