"""the folder of a run: what it was started with, its metrics, its samples

run.json        settings, fingerprints, machine and package versions
metrics.jsonl   one line per step; a number that is not finite is null
samples.jsonl   a few outputs per step, for people
histograms.jsonl  how ratios, lengths and rewards of each step were distributed, where there are any
alarms.jsonl    alarms that rang, in order
status.json     how the run stands; report.html shows all of this
tracker.json    the name under which trackers know the run, where there are any
checkpoints/    the newest few; best/ the best one by held-out metric
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from melior.durable import append_file, remove_drafts, write_file
from melior.errors import CheckpointError
from melior.trainers.reports import environment
from melior.trainers.steps import Histogram


def open_folder(folder: Path, identity: Mapping[str, Any], metrics: Sequence[Mapping[str, float]], steps: int) -> None:
    """Makes the folder say what a run resumed after `steps` steps knows; lines of steps to be repeated are removed."""
    for inner in (folder, folder / "best"):
        remove_drafts(inner)
    write_file(folder / "run.json", json.dumps({**identity, "environment": environment()}, indent=1))
    write_file(folder / "metrics.jsonl", _as_lines(metrics))
    for name in ("samples.jsonl", "histograms.jsonl", "alarms.jsonl"):
        kept = [row for row in _rows(folder / name) if row["step"] < steps]
        write_file(folder / name, _as_lines(kept))


def append_step(
    folder: Path,
    metrics: Mapping[str, float],
    samples: Sequence[Mapping[str, Any]],
    histograms: Mapping[str, Histogram],
    alarms: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Adds one step's lines.

    Raises:
        CheckpointError: if the disk refuses.
    """
    append_file(folder / "metrics.jsonl", _as_lines([metrics]))
    step = int(metrics["step"])
    append_file(folder / "samples.jsonl", _as_lines([{"step": step, **sample} for sample in samples]))
    if histograms:
        told = {name: {"edges": list(h.edges), "counts": h.counts.tolist()} for name, h in histograms.items()}
        append_file(folder / "histograms.jsonl", _as_lines([{"step": step, **told}]))
    if alarms:
        append_file(folder / "alarms.jsonl", _as_lines(alarms))


def tracked_steps(folder: Path) -> int:
    """How many steps the folder's metrics tell of, those that a resumed run will repeat among them."""
    rows = _rows(folder / "metrics.jsonl")
    return int(rows[-1]["step"]) + 1 if rows else 0


def run_key(folder: Path) -> str:
    """A random name for the run in a folder, the same whenever it is resumed: trackers find theirs by it."""
    path = folder / "tracker.json"
    if not path.is_file():
        write_file(path, json.dumps({"id": secrets.token_hex(6)}))
    return str(json.loads(path.read_text())["id"])


def check_identity(theirs: Mapping[str, Any], mine: Mapping[str, Any], folder: Path) -> None:
    """Passes when a checkpoint was written by a run with the same settings.

    Raises:
        CheckpointError: naming the first setting that differs.
    """
    was, now = dict(_leaves(theirs)), dict(_leaves(json.loads(json.dumps(mine))))
    for name in sorted(was.keys() | now.keys()):
        if was.get(name) != now.get(name):
            raise CheckpointError(
                f"{folder} holds a run with another {name} ({was.get(name)} there, {now.get(name)} here); "
                "choose another folder, or remove it"
            )


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _as_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps({name: _finite(value) for name, value in row.items()}) + "\n" for row in rows)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rows(path: Path) -> list[Any]:
    """The rows of a file; a last line cut off by a kill is left out."""
    content = path.read_bytes() if path.is_file() else b""
    return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].split(b"\n") if line]
