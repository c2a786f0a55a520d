"""a durable database, opened, migrated, and its transactions

SQLite runs in WAL mode with synchronous=FULL: what was acknowledged survives a power cut. Writers take SQLite's
write lock when they begin, so a transaction that read before it wrote never fails half way on a stale snapshot.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
    StatementError,
    TimeoutError,
)

from melior.errors import DatabaseAway, DiskFull, StoreError

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_S = 30.0  # a writer waits this long for another one before it gives up
POOL = 20  # connections to a SQLite file that are kept: it is cheaper than to open one for every thread of a server
MIGRATION_LOCK = 0x6D656C696F72  # "melior", the key of PostgreSQL's advisory lock
FULL = ("sqlite_full", "sqlite_ioerr_write", "sqlite_ioerr_truncate", "sqlite_ioerr_fsync", "53100")  # codes
AWAY = ("sqlite_busy", "sqlite_locked", "sqlite_ioerr", "sqlite_cantopen", "57P0", "08", "53")  # beginnings of codes
_WRITES = "melior_writes"  # execution option: this connection's transactions write


def default_database() -> Path:
    """`melior.db` in the folder $MELIOR_HOME names, `~/.melior` where it names none."""
    return Path(os.environ.get("MELIOR_HOME") or Path.home() / ".melior").expanduser() / "melior.db"


class Database:
    """One database at the newest schema. Threads may share it; a process opens its own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writer = engine.execution_options(**{_WRITES: True})
        # SQLite lets one write at a time, and who must wait sleeps for up to a tenth of a second before it looks again;
        # threads of one process wait in line instead
        self._turn = threading.RLock() if engine.dialect.name == "sqlite" else nullcontext()

    @classmethod
    def open(cls, where: str | Path) -> Database:
        """The database at a URL or a path, created or upgraded where needed.

        Raises:
            StoreError: if it cannot be opened, or was written by a newer melior.
        """
        database = cls(_connect(_url(where)))
        try:
            database._migrate()
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with _refusals(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is durable when the block ends and leaves no trace when it raises."""
        with self._turn, _refusals(), self._writer.begin() as connection:
            yield connection

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        newest = ScriptDirectory.from_config(config).get_current_head()
        with self.read() as connection:
            if _revision(connection) == newest:
                return
        with self.write() as connection:  # from here on only one process migrates
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
            found = _revision(connection)
            known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
            if found is not None and found not in known:
                raise StoreError(
                    f"{self.engine.url.render_as_string()} has schema {found} and this melior knows up to {newest}; "
                    "install the melior that wrote it, or a newer one"
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _url(where: str | Path) -> URL:
    if isinstance(where, str) and "://" in where:
        try:
            url = make_url(where)
        except ArgumentError:  # its message may hold a password
            raise StoreError("the database URL cannot be read; write sqlite:///file or postgresql://…") from None
        return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgres", "postgresql") else url
    return URL.create("sqlite", database=str(Path(where).expanduser().absolute()))


def _connect(url: URL) -> Engine:
    name = url.render_as_string()
    try:
        if url.get_backend_name() != "sqlite":
            return create_engine(url, pool_pre_ping=True)
        if url.database in (None, "", ":memory:"):
            raise StoreError("a database in memory forgets everything when the process ends; name a file")
        Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S}, pool_size=POOL, max_overflow=POOL)
    except NoSuchModuleError:
        raise StoreError(f"no driver for {name}; use sqlite:///file or postgresql://…") from None
    except ModuleNotFoundError as error:
        raise StoreError(f"{name} needs the package {error.name}; pip install {error.name}") from error
    except OSError as error:
        raise StoreError(f"the folder of {name} cannot be made: {error.strerror}") from error
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself; `_begin_sqlite` does
    mode = _switch_to_wal(connection)
    if mode != "wal":
        raise StoreError(f"SQLite stays in journal mode {mode}, not WAL; put the database on a local disk")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _switch_to_wal(connection: sqlite3.Connection) -> str:
    """The journal mode after asking for WAL. SQLite's busy timeout does not cover the switch, so this waits."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            return str(connection.execute("PRAGMA journal_mode=WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _refusals() -> Iterator[None]:
    """What the driver refuses, as one sentence of ours."""
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise _away(error) from error
    except TimeoutError as error:
        raise DatabaseAway("all connections to the database are in use; try again in a moment") from error
    except StatementError as error:
        raise StoreError(f"the database refused: {_words(error)}") from error
    except SQLAlchemyError as error:
        raise StoreError(f"the database refused: {error}") from error


def _away(error: DBAPIError) -> StoreError:
    """A database that cannot, told from one that will not."""
    cause = error.orig
    code = str(getattr(cause, "sqlite_errorname", None) or getattr(cause, "sqlstate", None) or "").lower()
    if code in FULL:
        return DiskFull(f"the database has no room ({_words(error)}); free some space and try again")
    if error.connection_invalidated or not code or code.startswith(tuple(known.lower() for known in AWAY)):
        return DatabaseAway(f"the database does not answer ({_words(error)}); try again in a moment")
    return StoreError(f"the database refused: {_words(error)}")


def _words(error: StatementError) -> str:
    return " ".join(str(error.orig).split())
