"""the comparison of hybrids: equal budgets, tables of what was found, and a run that goes on where it was stopped"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import hybrids
import letters
from hybrid_tasks import BannerTask, LettersTask, Sorted

from melior.types import Record

PRICES = {"sft": 90.0, "rl": 162.0, "both": 251.0, "best": 80.0}


@pytest.fixture
def task(tmp_path: Path) -> LettersTask:
    return LettersTask(tmp_path, budget=40, fresh=12, tasks=40)


def found(arm: str, seed: int, values: list[float]) -> dict[str, Any]:
    told = {"arm": arm, "seed": seed, "steps": {"rl": 2}, "planned": 3_240.0, "cpu_s": 1.0}
    return {**told, "mean": float(np.mean(values)), "values": values}


@pytest.mark.parametrize("prices", [PRICES, {"sft": 61.7, "rl": 222.9, "both": 283.5, "best": 121.0}])
def test_every_arm_has_the_same_budget(tmp_path: Path, prices: dict[str, float]) -> None:
    for task in (LettersTask(tmp_path), BannerTask()):
        plans = {arm: hybrids.planned(task, arm, prices) for arm in hybrids.ARMS}
        budget = task.budget * prices["rl"]
        assert all(abs(plan.cost / budget - 1) <= hybrids.TOLERANCE for plan in plans.values())
        assert plans[hybrids.THEN].steps["sft"] == plans[hybrids.BEST].steps["sft"]


def test_a_budget_that_cannot_be_shared_is_refused(task: LettersTask) -> None:
    task.budget = 2
    with pytest.raises(SystemExit, match="raise the budget"):
        hybrids.planned(task, hybrids.THEN, PRICES)


def test_a_table_tells_means_and_gains_of_the_seeds_that_all_arms_have(task: LettersTask) -> None:
    rows = [found(hybrids.THEN, seed, [0.2 + seed / 10, 0.4]) for seed in (0, 1)]
    rows += [found(hybrids.RL, seed, [0.3 + seed / 10, 0.5]) for seed in (0, 1, 2)]
    assert hybrids.told(task, rows[:3], PRICES) == ""  # one seed has no spread
    text = hybrids.told(task, rows, PRICES)
    (told,) = [line for line in text.splitlines() if line.startswith(f"| {hybrids.RL} |")]
    assert "seeds 0, 1;" in text and "+0.100 [" in told and "0.400 0.450" in told
    drawn = ElementTree.fromstring(hybrids.picture(task, rows))
    words = "".join(drawn.itertext())
    assert drawn.tag.endswith("svg") and hybrids.RL in words and hybrids.THEN in words


def test_words_are_different_and_sorted_ones_are_right(task: LettersTask) -> None:
    assert len(set(task.words)) == len(task.words)
    assert letters.sorted_word("hbbac=") == "abbch"
    outputs = [Record(inputs="hbbac=", output=text) for text in ("abbch", "abbch=", "hbbac")]
    assert [score.value for score in Sorted().grade(outputs)] == [1.0, 0.0, 0.0]


def test_results_of_other_settings_are_not_mixed_in(task: LettersTask) -> None:
    path = task.folder / "0-3.json"
    path.write_text(json.dumps({"settings": repr(task), "mean": 0.5}))
    assert hybrids.kept(path, task)["mean"] == 0.5 and not hybrids.kept(task.folder / "0-4.json", task)
    task.budget += 1
    with pytest.raises(SystemExit, match="other settings of letters; give another --folder"):
        hybrids.kept(path, task)


def test_a_run_goes_on_where_it_was_stopped(task: LettersTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letters, "STEPS", 2)
    assert hybrids.finished(task, task.folder, [hybrids.SFT], [0]) == ""
    (kept,) = task.folder.glob("?-*.json")
    before = kept.stat().st_mtime_ns
    text = hybrids.finished(task, task.folder, [hybrids.SFT], [0, 1])
    assert kept.stat().st_mtime_ns == before and len(list(task.folder.glob("?-*.json"))) == 2
    assert "seeds 0, 1;" in text and (task.folder.parent / "hybrids-letters.svg").exists()
