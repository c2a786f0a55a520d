"""an empty store on SQLite always, and on PostgreSQL where there is one"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from databases import DATABASES, empty_postgres

from melior.store import Store


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'melior.db'}" if request.param == "sqlite" else empty_postgres()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened
