"""policies on the way: the newest few that a run saves as it trains, each a version that can answer"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from melior.errors import StoreError
from melior.store import Store
from melior.store.rows import JobStatus, Version

FOLDER = "kept"  # in the run's folder
UNDONE: tuple[JobStatus, ...] = ("validating_files", "queued", "running", "paused")


def folder_of(run: Path, step: int) -> Path:
    """Where a run keeps what it was after so many steps."""
    return run.resolve() / FOLDER / f"step-{step:06d}"


def kept_steps(run: Path) -> list[int]:
    """The steps of which a run has kept the policy, the earliest first."""
    return sorted(int(place.name.removeprefix("step-")) for place in (run.resolve() / FOLDER).glob("step-??????"))


@dataclass(frozen=True)
class Kept:
    """What one run keeps."""

    run: Path  # its folder
    most: int
    every: int  # steps: of an epoch, or from one measurement to the next
    store: Store
    register: Callable[[Path, int], Version]  # the folder and step of a policy that was saved
    measure: Callable[[Any], Mapping[str, float]]  # what is told of such a policy

    def see(self, policy: Any, done: int) -> Mapping[str, float]:
        """Saves and measures the policy where so many steps end an epoch, and lets go of the oldest beyond the most."""
        if done % self.every:
            return {}
        place = folder_of(self.run, done)
        policy.save(place)
        self.register(place, done)
        for step in kept_steps(self.run)[: -self.most]:
            self.let_go(step)
        return self.measure(policy)

    def let_go(self, step: int) -> None:
        """Deletes one, its files too, unless somebody has promoted it, trained from it, or is to."""
        place = folder_of(self.run, step)
        for version in self.store.versions(within=str(place)):
            try:
                if self._needed(version):
                    return
                self.store.delete_version(version.id)
            except StoreError:  # an alias points to it
                return
        shutil.rmtree(place, ignore_errors=True)

    def _needed(self, version: Version) -> bool:
        """Whether others stand on its files: versions, runs that may go on, jobs that wait or run."""
        if self.store.versions(parent_id=version.id):
            return True
        if any(run.status != "succeeded" for run in self.store.runs(base_version=version.id)):
            return True
        waiting = (job for status in UNDONE for job in self.store.jobs(status=status))
        return any(version.id in json.dumps(job.recipe) for job in waiting)  # as model, teacher, or what is evaluated
