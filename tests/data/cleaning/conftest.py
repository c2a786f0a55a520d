"""real rows, read once"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from real_rows import DATA, SETS, Rows


@pytest.fixture(scope="session")
def real_rows() -> Callable[[str, int], Rows]:
    """`real_rows(name, count)`: the first rows of a real data set."""
    read: dict[str, Rows] = {}

    def rows(name: str, count: int) -> Rows:
        if not DATA.is_dir():
            pytest.skip(f"no data at {DATA}; set MELIOR_DATA")
        if name not in read:
            read[name] = SETS[name]()
        return json.loads(json.dumps(read[name][:count]))

    return rows
