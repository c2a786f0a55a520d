"""folders of runs that never were, written file by file"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

EVALUATION = {
    "grader": "chain_sum",
    "items": ["a", "b"],
    "reward": {"estimate": 0.25, "low": 0.2, "high": 0.3, "level": 0.95},
    "greedy": None,
    "pass_at": {"1": 0.25},
    "excluded": 0,
    "missing": [],
    "truncated": 0.1,
    "mean_tokens": 3.5,
    "examples": [{"key": "a", "inputs": "1 + 1 =", "output": "it is two", "value": 0.0, "greedy": "it is 3"}],
}
RESULT = {
    "run_id": "run_1",
    "version_id": "ver_1",
    "gate_id": "gate_1",
    "promoted": True,
    "steps": 3,
    "gate": {
        "result": "promote",
        "sentence": "Promote: reward changed by 0.5",
        "reasons": ["reward changed by 0.5"],
        "interval": {"estimate": 0.5, "low": 0.4, "high": 0.6},
    },
}


def metrics(steps: int, **more: Any) -> list[dict[str, Any]]:
    """Rows as an RFT run writes them."""
    return [
        {
            "step": step,
            "learning_rate": 1e-4,
            "loss": math.sin(step / 50) + step / steps,
            "reward": step / steps,
            "reward_std": 0.3,
            "grad_norm": 1.0 + step % 7,
            "completions/mean_length": 5.0 + step % 3,
            "num_tokens": 40.0,
            "skipped": 0.0,
            "seconds": 0.5,
            **more,
        }
        for step in range(steps)
    ]


def write_run(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    samples: Sequence[Mapping[str, Any]] = (),
    histograms: Sequence[Mapping[str, Any]] = (),
    **files: Any,
) -> Path:
    """A run's folder; `files` are JSON files by name, `_` for `-`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("metrics", rows), ("samples", samples), ("histograms", histograms)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, content in files.items():
        (folder / f"{name.replace('_', '-')}.json").write_text(json.dumps(content))
    return folder
