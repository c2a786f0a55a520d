"""the demonstration, small: killed in its middle and started again it ends with the same numbers"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from melior.cycles.demo import Demo, DemoSettings, run_demo
from melior.errors import CheckpointError
from melior.registry import Registry
from melior.store import Store

STAGE = {
    "name", "reward", "ci_low", "ci_high", "greedy", "gain", "gain_ci_low", "gain_ci_high", "tokens", "seconds",
    "layout", "nodes", "padded_tokens",
}  # fmt: skip


def tiny(model: Path, **numbers: Any) -> DemoSettings:
    """The demonstration's shape with numbers for a test."""
    config = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    sizes = {
        "heldout": 32,
        "demonstrations": 64,
        "sft_batch": 8,
        "sft_epochs": 2,
        "tasks": 24,
        "prompts": 6,
        "rft_steps": 4,
    }
    rates = {"sft_rate": 1e-2, "rft_rate": 3e-3}
    return DemoSettings(
        **{"model": str(model), "config": config, "max_tokens": 3, "checkpoint_every": 3, **sizes, **rates, **numbers}
    )


def without_seconds(summary: Any) -> Any:
    stages = [{name: value for name, value in stage.items() if name != "seconds"} for stage in summary["stages"]]
    return {**summary, "stages": stages}


@pytest.fixture(scope="module")
def done(folder_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return run_demo(tiny(folder_of("llama")), tmp_path_factory.mktemp("whole") / "demo")


def test_the_summary_has_the_agreed_form(done: Demo) -> None:
    summary = json.loads((done.folder / "summary.json").read_text())
    assert summary == done.summary
    assert set(summary) == {"stages", "heldout_items", "gate", "promoted"}
    assert [stage["name"] for stage in summary["stages"]] == ["base", "sft", "rft"]
    assert all(set(stage) == STAGE for stage in summary["stages"])
    assert summary["stages"][0]["gain"] is None and summary["heldout_items"] == 32
    assert all(stage["ci_low"] <= stage["reward"] <= stage["ci_high"] for stage in summary["stages"])
    base, sft, rft = summary["stages"]
    assert sft["gain"] == pytest.approx(sft["reward"] - base["reward"])
    assert rft["gain"] == pytest.approx(rft["reward"] - sft["reward"])
    assert all(0 < stage["nodes"] < stage["padded_tokens"] for stage in (sft, rft))  # both really trained


def test_its_registry_tells_the_same_story(done: Demo) -> None:
    with Store.open(done.folder / "melior.db") as store:
        chain = Registry(store).lineage(done.rft.version_id).chain
        assert [link.version.id for link in chain] == [done.rft.version_id, done.sft.version_id]
        held = store.alias("sums", "prod")
    promoted = done.summary["promoted"]
    assert (held is None) == (promoted is None)
    if held is not None:
        assert held.version_id == {"sft": done.sft, "rft": done.rft}[promoted["stage"]].version_id


def test_started_again_it_only_reads(done: Demo, folder_of: Callable[..., Path]) -> None:
    seen: list[str] = []
    again = run_demo(tiny(folder_of("llama")), done.folder, report=lambda what, *rest: seen.append(what))
    assert again == done and seen == []


def test_other_settings_are_refused(done: Demo, folder_of: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match="learning_rate"):
        run_demo(tiny(folder_of("llama"), sft_rate=1e-3), done.folder)


KILLED = """
import json, os, signal, sys, torch
torch.set_num_threads(1)
from melior.cycles.demo import DemoSettings, run_demo
def report(what, done, total, note):
    if what == sys.argv[3] and done == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
run_demo(DemoSettings(**json.loads(sys.argv[1])), sys.argv[2], report=report)
"""


def test_killed_in_both_stages_it_goes_on_to_the_same_numbers(
    done: Demo, folder_of: Callable[..., Path], tmp_path: Path
) -> None:
    settings = json.dumps(vars(tiny(folder_of("llama"))))
    folder = tmp_path / "demo"
    environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    ends = []
    for moment in (("SFT: training", 8), ("RFT: training", 2), ("never", 0)):
        command = [sys.executable, "-c", KILLED, settings, str(folder), *map(str, moment)]
        ends.append(subprocess.run(command, env=environment, check=False, capture_output=True).returncode)
    assert ends == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert without_seconds(json.loads((folder / "summary.json").read_text())) == without_seconds(done.summary)
    saved = ["models/sft/adapter_model.safetensors", "models/rft/adapter_model.safetensors"]
    assert all((folder / name).read_bytes() == (done.folder / name).read_bytes() for name in saved)
