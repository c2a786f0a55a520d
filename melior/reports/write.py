"""the page of a run, written into its folder"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from melior.durable import write_file
from melior.reports.files import note, read_run

log = logging.getLogger(__name__)

NAME = "report.html"
SHARE = 20  # while a run is under way, a page comes at most after this many times the seconds the last one took
LEAST_S = 5.0  # between two pages of a run under way: nobody reloads faster


def write_report(folder: str | Path) -> Path:
    """The page made from what the folder holds, written beside it.

    Raises:
        DataError: if the folder holds no run.
        CheckpointError: if the disk refuses.
    """
    from melior.reports.page import page

    path = Path(folder) / NAME
    write_file(path, page(read_run(folder)).encode("utf-8", "replace"))
    return path


class Reporter:
    """Keeps the page of a run under way up to date. It may fail; the run never does because of it, and is told."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.due = 0.0  # monotonic seconds
        self.told = False

    def update(self, *, force: bool = False, **facts: Any) -> None:
        """Notes how the run stands, and writes the page where one is due or asked for."""
        if self.folder is None or (not force and time.monotonic() < self.due):
            return
        started = time.monotonic()
        try:
            note(self.folder, **facts)
            write_report(self.folder)
        except Exception as error:
            if not self.told:
                log.warning("no report of %s: %s: %s; the run goes on", self.folder, type(error).__name__, error)
            self.told = True
        took = time.monotonic() - started
        self.due = time.monotonic() + max(LEAST_S, SHARE * took)
