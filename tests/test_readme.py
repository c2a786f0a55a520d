"""the README's Python runs as it stands, and the public names are pinned"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import melior
from melior.errors import ModelError
from melior.policies.weights import resolve

README = Path(__file__).resolve().parent.parent / "README.md"

PUBLIC = {
    "Classifier",
    "ClassifierPolicy",
    "Comparisons",
    "Demonstration",
    "Examples",
    "FitConfig",
    "Gate",
    "GraderPool",
    "HeldoutLoss",
    "Image",
    "Interaction",
    "Item",
    "LanguagePolicy",
    "LoRA",
    "Logged",
    "OffPolicy",
    "Pairs",
    "Preference",
    "Rated",
    "Ratings",
    "Record",
    "Reward",
    "RewardEnsemble",
    "RewardModel",
    "Rollouts",
    "Run",
    "Sampling",
    "Score",
    "Slate",
    "SlatePolicy",
    "SlateRequest",
    "Task",
    "advantage_weighted",
    "bradley_terry",
    "classification",
    "compare",
    "decide",
    "dpo",
    "evaluate",
    "evaluate_logged",
    "fit",
    "load_policy",
    "read_examples",
    "reinforcement",
    "reward_report",
    "split",
    "supervised",
}


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_public_names() -> None:
    assert set(melior.__all__) == PUBLIC
    assert all(getattr(melior, name) is not None for name in PUBLIC)
    for method in ("load", "log_probs", "sample", "save"):
        assert callable(getattr(melior.LanguagePolicy, method))


def test_the_examples_are_short() -> None:
    for block in blocks():
        assert len([line for line in block.splitlines() if line.strip()]) < 25


@pytest.mark.slow
def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        resolve("smollm2-135m-instruct")
    except ModelError as error:
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks():
        exec(compile(block, str(README), "exec"), names)
    run, before, after = names["run"], names["before"], names["after"]
    assert isinstance(run, melior.Run)
    assert run.last("loss") < run.metrics[0]["loss"] / 2
    assert before.reward.estimate > 0.15  # type: ignore[attr-defined]
    assert after.items == before.items  # type: ignore[attr-defined]
    points: dict[str, torch.Tensor] = names["points"]  # type: ignore[assignment]
    assert points["learnt"].mean() > 1.2 * points["logged"].mean()
    assert capsys.readouterr().out.count("\n") == 4
    assert (tmp_path / "models" / "sums-sft" / "adapter_model.safetensors").is_file()
