"""which sandbox this machine has, and which a grader gets

The level is found by trying: a process is confined, attempts what is forbidden and does what is promised.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from melior.errors import ConfigError, GraderError
from melior.rewards.base import Combined, Grader, Isolated, runs_here
from melior.rewards.process import Limits, Worker
from melior.rewards.python import PythonGrader
from melior.rewards.sandbox import Confinement, Level
from melior.rewards.sandbox import probe as _probe
from melior.rewards.sandbox.landlock import landlock_abi
from melior.types import Record

ALLOW = "MELIOR_ALLOW_UNSANDBOXED"  # set to 1, code of others runs below the level it needs
CAP = "MELIOR_SANDBOX_LEVEL"  # L1, L2 or L3: no higher level is used
PROBE_LIMITS = Limits(timeout_s=20.0, load_timeout_s=30.0)  # a loaded machine is slow, not without a sandbox


@dataclass(frozen=True, kw_only=True)
class Detected:
    """The highest level that holds on this machine, and why no higher one does."""

    level: Level
    own_user: bool = False
    landlock_abi: int = 0
    reasons: Mapping[str, str] = field(default_factory=dict)  # level → what was in the way

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "level": self.level.name,
            "user": "own" if self.own_user else "root without capabilities" if os.getuid() == 0 else "same",
            "landlock_abi": self.landlock_abi,
            "reasons": dict(self.reasons),
        }


_trying = threading.Lock()  # two threads need not try the same


def detected() -> Detected:
    """What this machine allows; tried once per process, in a fraction of a second.

    Raises:
        ConfigError: if MELIOR_SANDBOX_LEVEL names no level.
    """
    highest = _highest()
    reasons = {level.name: f"{CAP} is {highest.name}" for level in Level if level > highest}
    for level in sorted((level for level in Level if Level.L1 < level <= highest), reverse=True):
        found = _tried(level)
        if isinstance(found, Confinement):
            return Detected(level=level, own_user=found.own_user, landlock_abi=landlock_abi(), reasons=reasons)
        reasons[level.name] = found
    return Detected(level=Level.L1, landlock_abi=landlock_abi() if sys.platform == "linux" else 0, reasons=reasons)


def sandbox_in_use() -> dict[str, Any] | None:
    """What this machine was found to allow; None if nothing in this process has asked for a sandbox yet."""
    return detected().to_json() if _tried_once.cache_info().currsize else None


def _highest() -> Level:
    cap = os.environ.get(CAP, Level.L3.name)
    if cap not in Level.__members__:
        raise ConfigError(f"{CAP} is {cap!r}; set it to L1, L2 or L3, or leave it unset")
    return Level[cap]


def _tried(level: Level) -> Confinement | str:
    """The confinement that holds at a level on this machine, or why there is none."""
    with _trying:
        return _tried_once(level)


@cache
def _tried_once(level: Level) -> Confinement | str:
    if level is Level.L1:
        return Confinement(level=level)
    if sys.platform != "linux":
        return f"the sandbox needs Linux, and this is {sys.platform}"
    reason = ""
    for own_user in (True, False) if os.getuid() == 0 else (False,):
        confinement = Confinement(level=level, own_user=own_user)
        reason = _obstacle(confinement)
        if not reason:
            return confinement
    return reason


def _obstacle(confinement: Confinement) -> str:
    """Why a level does not hold here; empty if it does."""
    source = Path(_probe.__file__).read_text(encoding="utf-8")
    worker = Worker(
        PythonGrader("probe", {"type": "python", "name": "probe", "source": source}, source),
        PROBE_LIMITS,
        threading.Event(),
        confinement,
    )
    with tempfile.NamedTemporaryFile(prefix="melior-probe-") as outside:
        os.chmod(outside.name, 0o644)
        item = {"outside": outside.name, "guardian": os.getpid(), "level": int(confinement.level)}
        try:
            error = worker.grade(Record(inputs="", output="", item=item)).error
            return error.removeprefix("grader probe cannot be loaded: ")
        finally:
            worker.stop()


def runs_apart(grader: Combined) -> bool:
    """Whether parts of a combined grader run in different places."""
    return runs_here(grader) or any(map(_is_isolated, grader.graders.values()))


def _is_isolated(grader: Grader) -> bool:
    if isinstance(grader, Combined):
        return any(map(_is_isolated, grader.graders.values()))
    return isinstance(grader, Isolated)


def confinement_for(
    grader: Grader, *, level: Level | None = None, memory_bytes: int | None = None, allow_unsandboxed: bool = False
) -> Confinement | None:
    """How a grader's process is confined; None for code of the operator's own.

    Raises:
        GraderError: if the level cannot be had, or is lower than the grader needs and nobody allowed that.
    """
    if not isinstance(grader, Isolated):
        return None
    machine = detected()
    used = machine.level if level is None else level
    made = _tried(used)
    if not isinstance(made, Confinement):
        asked, has = used.name, machine.level.name
        raise GraderError(f"grader {grader.name} asks for sandbox level {asked}, this machine has {has}: {made}")
    needed = grader.isolation.minimum
    if used < needed and not (allow_unsandboxed or os.environ.get(ALLOW) == "1"):
        why = machine.reasons.get(needed.name, f"{used.name} was asked for")
        raise GraderError(
            f"grader {grader.name} runs code of others and needs sandbox level {needed.name}, it would get {used.name} "
            f"({why}); if you trust the code, set {ALLOW}=1"
        )
    return made if memory_bytes is None else replace(made, memory_bytes=memory_bytes)
