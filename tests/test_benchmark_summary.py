"""what a benchmark's figures are made of: medians over rounds, as ratios to the peer's defaults"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/run.py`, whatever else is called run."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    spec = importlib.util.spec_from_file_location("benchmarks_run", BENCHMARKS / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def side(seconds: float, cpu_seconds: float, memory: float, **more: Any) -> dict[str, Any]:
    told = {"seconds": [seconds], "cpu_seconds": [cpu_seconds], "peak_bytes": memory, "cold_s": seconds + 5.0}
    return {**told, "versions": {"torch": "2", "trl": "1.16.0"}, "setting": "plain", "rows": 16, **more}


def test_ratios_are_of_medians_over_rounds(benchmark: ModuleType) -> None:
    runs = {
        "melior": [side(seconds, 2 * seconds, 1e9, flops=8e9, tokens=400) for seconds in (2.0, 1.0, 9.0)],
        "default": [side(seconds, 2 * seconds, 4e9) for seconds in (8.0, 9.0, 10.0)],
        "tuned": [side(seconds, 2 * seconds, 2e9) for seconds in (4.0, 5.0, 5.0)],
    }
    found = benchmark.summary("dpo", runs, peak=8e9)
    assert found["speedup_vs_default"] == 4.5 and found["speedup_vs_tuned"] == 2.5
    assert found["cpu_time_vs_default"] == 4.5 and found["share_of_peak"] == 0.5
    assert (found["memory_ratio"], found["memory_ratio_vs_tuned"]) == (0.25, 0.5)
    assert found["tokens_per_second"] == 200 and found["cold_start_ratio"] == pytest.approx(1.0)
    assert "TRL 1.16.0" in found["peer"] and "torch 2" in found["machine"]
