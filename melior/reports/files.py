"""the files of a run's folder, read as far as they can be

A run may have been killed in the middle of a line, or be without half of its files; what is there is shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from melior.durable import write_file
from melior.errors import DataError

STATUS = "status.json"
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What a folder tells about a run; what it lacks is empty."""

    folder: Path
    metrics: Sequence[Row] = ()  # one per step, in order
    samples: Sequence[Row] = ()  # outputs that were learnt from
    heldout: Sequence[Row] = ()  # outputs of the same few held-out items at every evaluation
    histograms: Sequence[Row] = ()
    alarms: Sequence[Row] = ()  # that rang, in order
    run: Row = field(default_factory=dict)  # run.json: settings, fingerprints, environment
    status: Row = field(default_factory=dict)
    data: Row = field(default_factory=dict)
    recipe: str = ""  # YAML
    before: Row = field(default_factory=dict)
    after: Row = field(default_factory=dict)
    classification: Row = field(default_factory=dict)
    learning_curve: Row = field(default_factory=dict)
    slates: Row = field(default_factory=dict)
    reward_model: Row = field(default_factory=dict)
    result: Row = field(default_factory=dict)

    @property
    def settings(self) -> Row:
        """The recipe as a mapping, empty for a run of plain `fit`."""
        try:
            read = yaml.safe_load(self.recipe)
        except yaml.YAMLError:
            return {}
        return read if isinstance(read, dict) else {}

    @property
    def method(self) -> str:
        """`sft`, `rft`, or the name of the objective."""
        named = self.settings.get("method") or self.run.get("objective", {}).get("name", "")
        short = {"Supervised": "sft", "Reinforcement": "rft", "OffPolicy": "off_policy", "Dpo": "dpo"}
        return short.get(named, str(named))

    @property
    def kind(self) -> str:
        """Of the policy: language, classifier, slate; empty where nobody says."""
        model = self.settings.get("model")
        asked = model.get("kind") if isinstance(model, dict) else None
        return str(self.run.get("kind") or self.result.get("kind") or asked or "")

    @property
    def steps(self) -> int:
        """Steps done."""
        return int(self.metrics[-1]["step"]) + 1 if self.metrics else 0

    @property
    def kept(self) -> int:
        """Steps after which the weights were kept: the best ones where a metric chose them, else the last."""
        return int(number(self.status.get("best_step")) or self.steps)

    @property
    def total(self) -> int | None:
        """Steps there were to be."""
        return self.run.get("total")

    @property
    def state(self) -> str:
        """`finished`, `trained`, `running`, `interrupted` or `failed`."""
        return "finished" if self.result else str(self.status.get("state", "running"))


def read_run(folder: str | Path) -> RunFiles:
    """What there is to know of the run in a folder.

    Raises:
        DataError: if the folder holds no run.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("metrics.jsonl", "run.json", "recipe.yaml")):
        raise DataError(f"{folder} holds no run: it has neither metrics.jsonl nor recipe.yaml; give a run's folder")
    return RunFiles(
        folder=folder,
        metrics=_steps(read_lines(folder / "metrics.jsonl")),
        samples=read_lines(folder / "samples.jsonl"),
        heldout=read_lines(folder / "heldout.jsonl"),
        histograms=_steps(read_lines(folder / "histograms.jsonl")),
        alarms=read_lines(folder / "alarms.jsonl"),
        run=_mapping(folder / "run.json"),
        status=_mapping(folder / STATUS),
        data=_mapping(folder / "data.json"),
        recipe=_text(folder / "recipe.yaml"),
        before=_mapping(folder / "evaluation-before.json"),
        after=_mapping(folder / "evaluation.json"),
        classification=_mapping(folder / "classification.json"),
        learning_curve=_mapping(folder / "learning_curve.json"),
        slates=_mapping(folder / "slates.json"),
        reward_model=_mapping(folder / "reward_model.json"),
        result=_mapping(folder / "result.json"),
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; lines that are none, such as a last one cut off by a kill, are left out."""
    rows = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def note(folder: Path, **facts: Any) -> None:
    """Adds to what the folder says about how the run stands."""
    write_file(folder / STATUS, json.dumps({**_mapping(folder / STATUS), **facts}, indent=1))


def number(value: Any) -> float | None:
    """The value if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _steps(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by step, in order; of a step that was repeated the last one counts."""
    kept = {row["step"]: row for row in rows if number(row.get("step")) is not None}
    return [kept[step] for step in sorted(kept)]


def _mapping(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(_text(path) or "{}")
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
