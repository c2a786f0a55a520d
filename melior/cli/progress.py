"""progress on stderr: bars with the time left on a terminal, a line now and then elsewhere"""

from __future__ import annotations

import sys
import time
from typing import Any, Self

EVERY_S = 20.0  # between two lines where nobody watches


class Progress:
    """Reports what is going on; use it in a `with` statement and call it as cycles call their `report`."""

    def __init__(self) -> None:
        self.what = ""
        self.started = self.spoke = time.monotonic()
        self.first = 0
        self.bars: Any = None
        self.task: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars
            from rich.table import Column

            self.bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True, elapsed_when_finished=True),  # what is left, then what it took
                TextColumn("{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
                console=Console(stderr=True),
                expand=True,  # so that a long note is cut at the edge, and never wraps
            )
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars is not None:
            self.bars.stop()

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """Notes that `done` of `total` parts of something are done."""
        fresh = what != self.what
        if fresh:
            self._finish()
            self.what, self.started, self.first = what, time.monotonic(), done
        if self.bars is not None:
            self._draw(fresh, done, total, note)
        elif fresh or done >= total or time.monotonic() - self.spoke > EVERY_S:
            self.spoke = time.monotonic()
            print(f"{what}{self._line(done, total, note)}", file=sys.stderr, flush=True)

    def _draw(self, fresh: bool, done: int, total: int, note: str) -> None:
        if fresh:
            self.task = self.bars.add_task(self.what, total=total, completed=done, note=note)
        self.bars.update(self.task, total=total, completed=done, note=note)

    def _finish(self) -> None:
        """What was going on is over, though it may not have counted itself to the end."""
        if self.bars is not None and self.task is not None:
            task = self.bars.tasks[-1]
            self.bars.update(self.task, completed=task.total)

    def _line(self, done: int, total: int, note: str) -> str:
        if total <= 1:
            return "" if done < total else f": {note or 'done'}"
        per_part = (time.monotonic() - self.started) / max(1, done - self.first)
        left = f", about {clock(per_part * (total - done))} left" if self.first < done < total else ""
        return f": {done} of {total}{left}{', ' * bool(note)}{note}"


def clock(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
