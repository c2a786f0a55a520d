"""recipes small enough to run in a second"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from melior.cycles.recipe import Recipe, recipe_of
from melior.store import Store

EVEN = f"{Path(__file__).parent / 'graders.py'}:even"
SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "melior.db") as opened:
        yield opened


@pytest.fixture
def recipe_for(folder_of: Callable[..., Path]) -> Callable[..., Recipe]:
    """`recipe_for("sft", fit={...})`: a tiny recipe with sections replaced."""

    def make(method: str, **sections: Any) -> Recipe:
        fit: dict[str, Any] = {"learning_rate": 1e-2, "checkpoint_every": 1}
        raw: dict[str, Any] = {
            "method": method,
            "model": {"path": str(folder_of("llama")), "lora": {"r": 4}},
            "data": {"train": {"reasoning_gym": "chain_sum", "size": 12, "config": SUMS}, "heldout": 6},
            "grader": EVEN,
            "sampling": {"n": 4, "max_tokens": 4},
            "sft": {"batch_size": 4, "epochs": 1},
            "rft": {"prompts": 3},
            "fit": fit if method == "sft" else {**fit, "steps": 3},
        }
        return recipe_of({**raw, **sections})

    return make


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    """Sixty demonstrations with one answer, which a tiny model learns at once."""
    path = tmp_path / "cats.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {i}", "completion": "the cat"}) + "\n" for i in range(60)))
    return path
