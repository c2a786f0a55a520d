"""graders that a recipe names by file"""

from __future__ import annotations

from typing import Any


def even(sample: dict[str, Any], item: dict[str, Any]) -> float:
    """1 for texts of even length: about half of what a random model says, so groups differ."""
    return float(len(sample["output_text"]) % 2 == 0)


def broken(sample: dict[str, Any], item: dict[str, Any]) -> float:
    raise RuntimeError("no verdict today")
