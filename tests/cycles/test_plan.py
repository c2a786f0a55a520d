"""the law of dry runs: memory and time foretold are those that come"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from melior.cycles.plan import dry_run
from melior.cycles.recipe import Recipe, load_recipe
from melior.cycles.train import run_recipe
from melior.errors import ModelError
from melior.policies.backbones import CausalBackbone
from melior.policies.weights import resolve
from melior.store import Store
from melior.trainers import memory

MEASURE = Path(__file__).parent / "measure_peak.py"
PEAK_TOLERANCE = 0.2  # of the peak, docs/tuning.md
WIDE = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "head_dim": 64}
ROWS = [{"prompt": f"say {i}", "completion": "the cat sat on the mat " * 12} for i in range(80)]


def measured(what: str, recipe: Path, database: Path) -> int:
    """Bytes, of a process of its own: memory that another test left behind would count."""
    command = [sys.executable, str(MEASURE), what, str(recipe), str(database)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def written(tmp_path: Path, model: str, lora: str, rows: list[dict[str, str]]) -> Path:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "run.yaml"
    path.write_text(
        f"method: sft\nmodel: {{path: {model}, lora: {lora}}}\ndata: {{train: rows.jsonl, heldout: 30}}\n"
        "sft: {batch_size: 8, epochs: 1}\nfit: {learning_rate: 1e-3}\n"
    )
    return path


@pytest.mark.skipif(not memory.STATUS.exists(), reason="peaks are read from Linux's /proc")
@pytest.mark.parametrize("lora", ["auto", "null"], ids=["adapter", "every weight"])
def test_the_peak_foretold_is_the_peak(lora: str, tmp_path: Path, folder_of: Callable[..., Path]) -> None:
    recipe = written(tmp_path, str(folder_of("llama", **WIDE)), lora, ROWS)
    foretold, held = (measured(what, recipe, tmp_path / "db") for what in ("plan", "train"))
    assert foretold == pytest.approx(held, rel=PEAK_TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("lora", ["auto", "null"], ids=["adapter", "every weight"])
def test_the_peak_of_a_real_model_is_foretold(lora: str, tmp_path: Path) -> None:
    try:
        resolve("smollm2-135m-instruct")
    except ModelError as error:
        pytest.skip(str(error))
    rows = [{"prompt": f"Count to {i}.", "completion": " ".join(map(str, range(100)))} for i in range(46)]
    recipe = written(tmp_path, "smollm2-135m-instruct", lora, rows)
    foretold, held = (measured(what, recipe, tmp_path / "db") for what in ("plan", "train"))
    assert foretold == pytest.approx(held, rel=PEAK_TOLERANCE)


def test_what_autograd_keeps_is_counted_once() -> None:
    weights = torch.ones(64, 64, requires_grad=True)
    inputs = torch.ones(128, 64, requires_grad=True)
    known = {weights.untyped_storage().data_ptr(), inputs.untyped_storage().data_ptr()}
    kept = memory.saved_for_backward(lambda: torch.relu(inputs @ weights).sum(), but=known)
    assert kept == 128 * 64 * 4  # what relu made; the product itself is not needed again
    twice = memory.saved_for_backward(lambda: (inputs * inputs).sum(), but={weights.untyped_storage().data_ptr()})
    assert twice == 128 * 64 * 4


def test_the_time_foretold_is_that_of_the_work_to_be_done(
    tmp_path: Path, folder_of: Callable[..., Path], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that counts tokens: how fast a machine will be is nobody's to foretell."""
    work, states = [0.0], CausalBackbone.states

    def counted(self: CausalBackbone, sequences: Sequence[Sequence[int]]) -> Any:
        work[0] += sum(map(len, sequences))
        return states(self, sequences)

    monkeypatch.setattr(CausalBackbone, "states", counted)
    monkeypatch.setattr(time, "perf_counter", lambda: work[0])
    recipe = load_recipe(written(tmp_path, str(folder_of("llama")), "auto", ROWS))
    plan = dry_run(recipe, store)
    outcome = run_recipe(recipe, tmp_path / "run", store=store)
    assert plan.seconds == pytest.approx(outcome.seconds, rel=1e-3) and outcome.seconds > 1000
    assert plan.steps == outcome.steps
    checkpoints = sum(f.stat().st_size for f in (tmp_path / "run").rglob("*.safetensors"))
    assert checkpoints <= plan.disk_bytes


def test_the_time_of_a_baseline_is_foretold(
    recipe_for: Callable[..., Recipe], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that ticks when it is looked at, so that four prompts with four outputs each take one second."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    told = [dry_run(recipe_for("rft", rft={"prompts": 3, "baseline": size}), store) for size in (0, 64)]
    with_one, without = told[1].evaluation_seconds, told[0].evaluation_seconds
    assert with_one is not None and without is not None
    assert with_one - without == pytest.approx(12 * 4 / 16)  # all twelve tasks, four outputs each


def test_files_that_were_read_do_not_fill_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("an accelerator's memory is asked of its driver")
    gigabyte = 1 << 30
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {64 * gigabyte // 1024} kB\n")
    assert memory.available() == 64 * gigabyte
    for name, amount in (("max", 8), ("current", 7)):
        (tmp_path / f"memory.{name}").write_text(f"{amount * gigabyte}\n")
    (tmp_path / "memory.stat").write_text(f"anon {gigabyte}\ninactive_file {5 * gigabyte}\nactive_file 1\n")
    assert memory.available() == 6 * gigabyte
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available() == 64 * gigabyte


def test_bytes_as_people_say_them() -> None:
    assert [memory.in_bytes(n) for n in (12, 4096, 1.25e9, 3e13)] == ["12 B", "4 kB", "1.2 GB", "30.0 TB"]
