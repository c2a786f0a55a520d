"""opening, migrating, durability"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from melior.errors import StoreError
from melior.store import Store, default_database
from melior.store.database import MIGRATIONS
from melior.store.schema import metadata
from melior.types import Record

WRITER = """
import sys
from melior.store import Store
from melior.types import Record
store = Store.open(sys.argv[1])
for number in range(int(sys.argv[2])):
    print(store.add_records([Record(inputs=number, output=number)])[0], flush=True)
print("done", flush=True)
sys.stdin.read()
"""


def pragma(store: Store, name: str) -> object:
    with store.database.read() as connection:
        return connection.execute(text(f"PRAGMA {name}")).scalar()


def test_sqlite_is_durable_on_every_connection(tmp_path: Path) -> None:
    with Store.open(tmp_path / "melior.db") as store:
        with store.database.read():  # holds the first connection, so that the pragmas are read from a second one
            assert pragma(store, "journal_mode") == "wal"
            assert pragma(store, "synchronous") == 2  # FULL
            assert pragma(store, "foreign_keys") == 1
            assert pragma(store, "busy_timeout") >= 10_000


def test_the_migrations_build_what_the_schema_says(url: str) -> None:
    with Store.open(url) as store, store.database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        found = inspect(connection)
        for table in metadata.tables.values():
            assert found.get_pk_constraint(table.name)["constrained_columns"] == [c.name for c in table.primary_key]
            wanted = {(key.parent.name, key.column.table.name) for key in table.foreign_keys}
            keys = found.get_foreign_keys(table.name)
            assert {(key["constrained_columns"][0], key["referred_table"]) for key in keys} == wanted


def test_opening_twice_keeps_what_is_there(url: str) -> None:
    with Store.open(url) as store:
        [first] = store.add_records([Record(inputs="2+2", output="4")])
    with Store.open(url) as store:
        assert store.records([first]) == [Record(inputs="2+2", output="4")]


def test_many_may_open_an_empty_database_at_once(url: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda _: Store.open(url), range(8)))
    with stores[0].database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM alembic_version")).scalar() == 1
    for store in stores:
        store.close()


def test_a_newer_schema_is_refused_and_left_alone(url: str) -> None:
    with Store.open(url) as store, store.database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match="schema 9999 and this melior knows up to 0004"):
        Store.open(url)
    with pytest.raises(StoreError, match="9999"):
        Store.open(url)


def test_a_failed_transaction_leaves_no_trace(store: Store) -> None:
    with pytest.raises(StoreError, match="taken"):
        store.add_records([Record(inputs=n, output=n) for n in range(3)], ids=["one", "two", "one"])
    assert store.decisions() == []


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "melior.db"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), "20"], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    acknowledged = [writer.stdout.readline().strip() for _ in range(10)]
    writer.kill()
    writer.communicate()
    with Store.open(path) as store:
        assert [decision.id for decision in store.decisions(limit=10)] == acknowledged


def test_processes_write_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "melior.db"
    command = [sys.executable, "-c", WRITER, str(path), "25"]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) for _ in range(2)]
    said = [writer.communicate()[0].split() for writer in writers]
    assert all(lines[-1] == "done" for lines in said)
    with Store.open(path) as store:
        assert {decision.id for decision in store.decisions()} == {line for lines in said for line in lines[:-1]}
        assert len(store.decisions()) == 50


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("sqlite://", "name a file"),
        ("sqlite:///:memory:", "name a file"),
        ("nosuch://host/db", "no driver"),
        ("://", "URL"),
    ],
)
def test_what_is_no_database_is_refused(where: str, says: str) -> None:
    with pytest.raises(StoreError, match=says):
        Store.open(where)


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary, " * 100)
    with pytest.raises(StoreError, match="not a database"):
        Store.open(path)
    assert path.read_text() == "dear diary, " * 100


def test_an_unreachable_server_does_not_show_its_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError) as refusal:
        Store.open("postgresql://melior:hunter2@127.0.0.1:9/melior?connect_timeout=2")
    assert "hunter2" not in str(refusal.value)


def test_the_default_database_is_in_the_home_of_melior(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MELIOR_HOME", str(tmp_path / "home"))
    assert default_database() == tmp_path / "home" / "melior.db"
    Store.open().close()
    assert (tmp_path / "home" / "melior.db").is_file()
    monkeypatch.setenv("MELIOR_HOME", "")
    assert default_database() == Path.home() / ".melior" / "melior.db"


@pytest.mark.parametrize("revision", ["0001", "0002", "0003"])
def test_a_database_of_an_older_schema_gains_what_came_since(url: str, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        columns = "sequence, id, created, metric, value, source, comment, tags"
        said = "1, 'fb_1', '2026-01-01T00:00:00.000000Z', 'helpful', 'true', 'ann', '', '{}'"
        connection.execute(text(f"INSERT INTO feedback ({columns}) VALUES ({said})"))
    engine.dispose()
    with Store.open(url) as store:
        with store.database.read() as connection:
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        [kept] = store.feedback()
        assert (kept.id, kept.value, kept.replaces_id) == ("fb_1", True, None)
