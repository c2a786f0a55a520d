"""promotions by a process that is killed at the n-th thing it asks of the database"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from melior.store.rows import Version

Promote = Callable[[int, Version, Version], bool]  # at which moment it is killed, what it promotes, over what

# Promotes for each line that it reads, in a process of its own, which kills itself at the n-th thing it asks of the
# database: SIGKILL, as by an operator or the kernel.
PROMOTER = """
import os, signal, sys
from sqlalchemy import event
from melior.registry import Registry
from melior.store import Store

for line in sys.stdin:
    at, version, baseline = int(line.split()[0]), *line.split()[1:]
    child = os.fork()
    if not child:
        with Store.open(sys.argv[1]) as store:
            left = at
            def count(*_):
                global left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            for moment in ("before_cursor_execute", "after_cursor_execute", "commit"):
                event.listen(store.database.engine, moment, count)
            gate = store.add_gate(version, baseline, "promote")
            Registry(store).promote(version, gate_id=gate.id)
            count()  # it is promoted, and nobody was told yet
            os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@contextmanager
def promoting(database: str) -> Iterator[Promote]:
    """`promote(at, version, over)`: whether the promotion came through before it was killed."""
    command = [sys.executable, "-c", PROMOTER, database]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        questions, answers = process.stdin, process.stdout

        def promote(at: int, version: Version, over: Version) -> bool:
            print(at, version.id, over.id, file=questions, flush=True)
            return int(answers.readline()) == 0

        yield promote
        questions.close()
