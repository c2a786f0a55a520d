"""laws of keeping the page up to date: it never hurts a run, and never costs more than a small share of it"""

from __future__ import annotations

import errno
import json
import logging
import time
from pathlib import Path

import pytest
from folders import metrics, write_run

from melior import durable
from melior.errors import CheckpointError
from melior.reports.write import LEAST_S, Reporter, write_report


def test_a_page_that_cannot_be_written_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_run(tmp_path, metrics(3))

    def full(moment: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "failpoint", full)
    with pytest.raises(CheckpointError):
        write_report(folder)
    reporter = Reporter(folder)
    with caplog.at_level(logging.WARNING):
        reporter.update(force=True, state="running")
        reporter.update(force=True, state="running")
    assert len(caplog.records) == 1 and "No space left" in caplog.text and "the run goes on" in caplog.text


def test_a_run_under_way_is_not_redrawn_at_every_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, page = [100.0], tmp_path / "report.html"
    monkeypatch.setattr(time, "monotonic", lambda: now[0])  # so a page takes no time at all
    reporter = Reporter(write_run(tmp_path, metrics(3)))
    for passed, drawn in ((0.0, True), (LEAST_S / 2, False), (LEAST_S, True)):
        now[0] += passed
        page.unlink(missing_ok=True)
        reporter.update(state="running")
        assert page.exists() == drawn
    page.unlink()
    reporter.update(force=True, state="trained", best_step=2)
    assert page.exists()
    assert json.loads((tmp_path / "status.json").read_text()) == {"state": "trained", "best_step": 2}


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Reporter(None).update(force=True, state="running")
    assert list(tmp_path.iterdir()) == []
