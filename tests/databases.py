"""databases for tests: SQLite always, and PostgreSQL where MELIOR_TEST_POSTGRES names a database that may be emptied

Where tests run in several processes each has a database of its own beside the named one, made when it is first needed.
"""

from __future__ import annotations

import os

from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ProgrammingError

POSTGRES = os.environ.get("MELIOR_TEST_POSTGRES", "")
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")  # "" where there is one process
DATABASES = ["sqlite", *(["postgresql"] if POSTGRES else [])]


def empty_postgres() -> str:
    """The address of a PostgreSQL database that holds nothing."""
    named = make_url(POSTGRES)
    own = named.set(database=f"{named.database}_{WORKER}") if WORKER else named
    if WORKER:
        _create(named, own)
    engine = create_engine(own.set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return own.render_as_string(hide_password=False)


def _create(named: URL, own: URL) -> None:
    engine = create_engine(named.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            known = text("SELECT 1 FROM pg_database WHERE datname = :name")
            if connection.execute(known, {"name": own.database}).scalar() is None:
                connection.execute(text(f'CREATE DATABASE "{own.database}"'))
    except ProgrammingError as error:
        raise RuntimeError(
            f"{named.username} may not create {own.database}; ALTER ROLE {named.username} CREATEDB, or run one process"
        ) from error
    finally:
        engine.dispose()
