"""every recipe on a page is one that can be read"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from melior.cycles.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{place}")
    for page in sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    for place, block in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
    if re.search(r"^method:", block, re.MULTILINE)
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_recipe_on_a_page_can_be_read(tmp_path: Path, block: str) -> None:
    (tmp_path / "run.yaml").write_text(block)
    assert isinstance(load_recipe(tmp_path / "run.yaml"), Recipe)


def test_pages_have_recipes() -> None:
    assert len(BLOCKS) >= 4
