"""the recipe runs in its small size and writes what it says"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.slow
def test_the_quick_banner_runs_and_learns_from_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "banner_of_five.py", "--quick", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=RECIPES, capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "summary.json").read_text())["families"]["logit"]
    assert found["claims"]["from logs > logging policy"]["held"]
    means = {name: each["estimate"] for name, each in found["means"][0].items()}
    assert means["best slate found"] == max(means.values())
    page = (tmp_path / "report.html").read_text()
    assert "How many impressions it took" in page and "Which item after which history" in page
