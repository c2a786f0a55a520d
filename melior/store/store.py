"""the store: plain methods in, frozen rows out

Everything decided, scored or said is one append-only log. A method that adds returns what it added; one that lists
does so in order of arrival; one that takes a reference takes an id or the beginning of one.
"""

from __future__ import annotations

from pathlib import Path

from melior.store.counts import Counts
from melior.store.database import Database, default_database
from melior.store.evals import Evals
from melior.store.jobs import Jobs
from melior.store.log import Log
from melior.store.runs import Runs
from melior.store.served import Served
from melior.store.verdicts import Verdicts
from melior.store.versions import Versions
from melior.store.webhooks import Webhooks


class Store(Runs, Log, Verdicts, Versions, Jobs, Served, Evals, Webhooks, Counts):
    """All of melior that is kept in one database: from what was decided and said to what was learnt and who may ask.

    Threads may share a store; a process opens its own.
    """

    @classmethod
    def open(cls, where: str | Path | None = None) -> Store:
        """The store at a URL or a path, by default `default_database()`; created or upgraded where needed.

        Raises:
            StoreError: if it cannot be opened, or was written by a newer melior.
        """
        return cls(Database.open(default_database() if where is None else where))

    def close(self) -> None:
        """Give the connections back."""
        self.database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
