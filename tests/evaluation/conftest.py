"""items from hopeless to certain"""

from __future__ import annotations

import pytest


@pytest.fixture
def chances() -> dict[str, float]:
    """40 questions, and how likely each is to be answered rightly."""
    return {f"question {index}": index / 39 for index in range(40)}
