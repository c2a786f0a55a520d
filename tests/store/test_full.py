"""a database that cannot is told from one that will not: what was kept is safe, and there is room again later"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy import text

from melior.errors import DatabaseAway, DiskFull, StoreError
from melior.store import Store
from melior.store.database import Database
from melior.types import Record


def test_a_full_database_says_so_keeps_what_it_has_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with Store.open(tmp_path / "melior.db") as store:
        kept = store.add_records([Record(inputs="a", output="b")])
        with store.database.read() as connection:
            pages = connection.scalar(text("PRAGMA page_count")) + 2
        with store.database.write() as connection:  # the only connection in the pool: it keeps the limit
            connection.execute(text(f"PRAGMA max_page_count = {pages}"))
        with pytest.raises(DiskFull, match=r"has no room \(database or disk is full\); free some space"):
            for _ in range(100):
                kept += store.add_records([Record(inputs="a", output="b" * 4_000)])
        with store.database.write() as connection:
            connection.execute(text("PRAGMA max_page_count = 1000000"))
        kept += store.add_records([Record(inputs="a", output="there is room again")])
        assert [decision.id for decision in store.decisions()] == kept


def test_a_database_that_another_process_holds_is_away_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("melior.store.database.BUSY_TIMEOUT_S", 0.05)
    with Store.open(tmp_path / "melior.db") as store, Store.open(tmp_path / "melior.db") as other:
        with other.database.write():
            with pytest.raises(DatabaseAway, match=r"does not answer \(database is locked\)"):
                store.add_records([Record(inputs="a", output="b")])
        assert len(store.add_records([Record(inputs="a", output="b")])) == 1


def test_what_a_database_will_not_do_is_no_absence(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "melior.db")
    with pytest.raises(StoreError, match="no such table") as told, database.read() as connection:
        connection.execute(text("SELECT * FROM nowhere"))
    assert not isinstance(told.value, DatabaseAway)
    database.close()


def test_threads_that_write_wait_in_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("melior.store.database.BUSY_TIMEOUT_S", 0.0)  # whoever did not wait would be refused
    with Store.open(tmp_path / "melior.db") as store:
        refused: list[Exception] = []

        def write(number: int) -> None:
            try:
                for _ in range(20):
                    store.add_records([Record(inputs=number, output="b")])
            except StoreError as error:
                refused.append(error)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not refused and len(store.decisions()) == 160
