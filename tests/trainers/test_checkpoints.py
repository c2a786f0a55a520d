"""checkpoints: whole or absent, whatever the disk does"""

from __future__ import annotations

import errno
import logging
import resource
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tabular import Tabular
from test_loop import ROWS

from melior import durable
from melior.errors import CheckpointError
from melior.trainers.checkpoints import Checkpoint, load_checkpoint, newest_checkpoint, save_checkpoint
from melior.trainers.loop import FitConfig, fit
from melior.trainers.supervised import Examples, Supervised


def checkpoint(step: int, size: int = 8) -> Checkpoint:
    tensor = torch.full((size,), float(step))
    return Checkpoint(
        step, {"w": tensor}, {"exp_avg/w": tensor * 2, "step/w": torch.tensor(3.0)}, {"metrics": [{"loss": 1.5}]}
    )


def same(first: Checkpoint | None, second: Checkpoint) -> bool:
    if first is None or (first.step, first.progress) != (second.step, second.progress):
        return False
    pairs = [(first.tensors, second.tensors), (first.optimizer, second.optimizer)]
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)


@pytest.fixture
def failing() -> Iterator[Any]:
    """`failing(n, error)`: the n-th moment of a durable write raises it; returns the list of moments passed."""
    before = durable.failpoint

    def arm(number: int, error: BaseException) -> list[str]:
        moments: list[str] = []

        def failpoint(moment: str) -> None:
            moments.append(moment)
            if len(moments) == number:
                raise error

        durable.failpoint = failpoint
        return moments

    yield arm
    durable.failpoint = before


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(4), keep=2)
    assert same(newest_checkpoint(tmp_path), checkpoint(4))
    assert newest_checkpoint(tmp_path / "none") is None


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        save_checkpoint(tmp_path, checkpoint(step), keep=2)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-000003", "step-000010"]


def test_a_damaged_later_one_does_not_push_out_what_the_run_stands_on(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(5), keep=1)
    (tmp_path / "step-000005" / "progress.json").unlink()
    save_checkpoint(tmp_path, checkpoint(3), keep=1)
    assert same(newest_checkpoint(tmp_path), checkpoint(3))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_refusing_disk_leaves_the_old_or_the_new_one_never_a_mixture(tmp_path: Path, failing: Any, code: int) -> None:
    save_checkpoint(tmp_path / "count", checkpoint(2), keep=1)
    moments = failing(0, OSError())
    save_checkpoint(tmp_path / "count", checkpoint(2), keep=1)  # over itself
    names = ["draft made", "policy written", "optimizer written", "manifest written", "old one aside", "renamed"]
    assert set(names) <= set(moments)
    for target in (2, 1):  # a new folder, and one that is already there
        for number in range(1, len(moments) + 2):
            folder = tmp_path / f"{target}-{number}"
            failing(0, OSError())
            save_checkpoint(folder, checkpoint(1), keep=1)
            failing(number, OSError(code, "No space left on device"))
            try:
                save_checkpoint(folder, checkpoint(target), keep=1)
                if target == 2:
                    assert same(newest_checkpoint(folder), checkpoint(2))
            except (CheckpointError, OSError) as error:
                assert "No space left" in str(error)
            found = newest_checkpoint(folder)
            assert same(found, checkpoint(1)) or same(found, checkpoint(2))
            shutil.rmtree(folder)


def test_a_file_that_cannot_grow_is_a_clear_error_and_the_old_one_loads(tmp_path: Path) -> None:
    """The operating system itself refuses to write more than 64 KiB."""
    save_checkpoint(tmp_path, checkpoint(1), keep=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(CheckpointError, match=r"Cannot write .*free some space"):
            save_checkpoint(tmp_path, checkpoint(2, size=1 << 16), keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert same(newest_checkpoint(tmp_path), checkpoint(1))
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000001"]


def test_no_flipped_bit_is_loaded_silently(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, checkpoint(1), keep=1)
    source = torch.Generator().manual_seed(0)
    files = sorted(entry for entry in folder.iterdir())
    assert len(files) == 4
    for trial in range(120):
        file = files[trial % len(files)]
        content = file.read_bytes()
        bit = int(torch.randint(8 * len(content), (1,), generator=source))
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        with suppress(CheckpointError):
            assert same(load_checkpoint(folder), checkpoint(1)), f"{file.name}, bit {bit}"
        file.write_bytes(content)


def run(folder: Path) -> Tabular:
    policy = Tabular()
    steps = Examples(policy, ROWS, batch_size=2, epochs=4)
    fit(policy, steps, Supervised(), FitConfig(folder=folder, checkpoint_every=3, learning_rate=0.1))
    return policy


def test_the_one_before_a_damaged_one_serves_and_all_damaged_is_an_error(tmp_path: Path, caplog: Any) -> None:
    expected = run(tmp_path).state()["logits"]
    newest, older = sorted((tmp_path / "checkpoints").iterdir(), reverse=True)
    damage(newest)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(run(tmp_path).state()["logits"], expected)
    assert any(newest.name in message and "damaged" in message for message in caplog.messages)
    damage(newest)
    damage(older)
    with pytest.raises(CheckpointError, match="All 2 checkpoints"):
        run(tmp_path)


def damage(folder: Path) -> None:
    file = folder / "policy.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
