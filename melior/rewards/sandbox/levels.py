"""how far a process can be confined

L1  a limit on time, one on memory where the pool sets it, and no process left behind; for the operator's own code
L2  L1, and: a session, an environment and an empty folder of its own, no new privileges, no capabilities, Landlock
    (read Python and the libraries, write that folder), a filter of system calls (no sockets, processes or threads)
L3  L2, and: no network, no other processes and no other files exist (namespaces)
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Self


class Level(IntEnum):
    """How far a process is confined; a higher one includes those below."""

    L1 = 1
    L2 = 2
    L3 = 3


@dataclass(frozen=True, kw_only=True)
class Confinement:
    """A level and the limits that hold within it."""

    level: Level = Level.L1
    own_user: bool = False  # root gives the process a user id that nobody else has
    memory_bytes: int = 2 << 30  # address space; the OpenAI dialect promises 2 GB
    folder_bytes: int = 64 << 20  # what the working folder may hold
    file_bytes: int = 8 << 20  # one file; what unlinked files hold is bounded by this times `open_files`
    open_files: int = 64  # twice what the imports of pandas and its libraries were seen to hold open
    cpu_s: int = 24 * 3600  # of the whole process, a backstop: each call has a time limit of its own

    def to_json(self) -> str:
        """One line for the command line of a worker."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Self:
        """What `to_json` wrote."""
        fields = json.loads(line)
        return cls(**{**fields, "level": Level(fields["level"])})


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """What a grader that runs code of others asks for."""

    minimum: Level  # below it the grader is refused, unless the operator says otherwise
    imports: tuple[str, ...] = ()  # modules of melior that the grader needs, which cannot be found inside
