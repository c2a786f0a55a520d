"""checkpoints: a run killed at any instant goes on, bitwise

A checkpoint is a durable folder: trainable tensors and optimizer state as safetensors, everything else as JSON. The
newest that verifies is loaded; a damaged one is reported and the one before it serves.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from melior import durable
from melior.durable import durable_folder, remove_drafts, verify_folder
from melior.errors import CheckpointError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` steps."""

    step: int
    tensors: Mapping[str, Tensor]  # trainable
    optimizer: Mapping[str, Tensor]
    progress: Mapping[str, Any]  # JSON: metrics so far, the best step, counters, what the run was started with


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Writes `folder/step-000123`, then removes all but the newest `keep` of it and those before it.

    Raises:
        CheckpointError: if the disk refuses; the checkpoints before are still there.
    """
    target = folder / f"step-{checkpoint.step:06d}"
    with durable_folder(target) as draft:
        _write_tensors(draft / "policy.safetensors", checkpoint.tensors)
        durable.failpoint("policy written")
        _write_tensors(draft / "optimizer.safetensors", checkpoint.optimizer)
        durable.failpoint("optimizer written")
        (draft / "progress.json").write_text(json.dumps({"step": checkpoint.step, **checkpoint.progress}))
    # A later one lies there only if it was damaged, so it must not push out what this run stands on.
    for old in [found for found in _steps(folder) if found.name <= target.name][keep:]:
        shutil.rmtree(old)
        durable.failpoint("old checkpoint removed")
    return target


def load_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, verified.

    Raises:
        CheckpointError: if a file is missing, damaged or unreadable.
    """
    verify_folder(folder)
    try:
        progress = json.loads((folder / "progress.json").read_text())
        tensors, optimizer = load_file(folder / "policy.safetensors"), load_file(folder / "optimizer.safetensors")
        return Checkpoint(progress.pop("step"), tensors, optimizer, progress)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read ({error}); use an older checkpoint") from error


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies, None where there is none at all.

    Raises:
        CheckpointError: if there are checkpoints and every one is damaged.
    """
    remove_drafts(folder)
    found = _steps(folder)
    for candidate in found:
        try:
            return load_checkpoint(candidate)
        except CheckpointError as error:
            log.warning("%s", error)
    if found:
        raise CheckpointError(f"All {len(found)} checkpoints in {folder} are damaged; remove the folder to start again")
    return None


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:  # what the writer makes of a full disk
        raise CheckpointError(f"Cannot write {path.name}: {error}; free some space and try again") from error


def _steps(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted(folder.glob("step-??????"), reverse=True) if folder.is_dir() else []
