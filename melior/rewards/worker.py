"""the process in which graders run

    pool ──requests──▶ grader process          (one JSON line per call)
    pool ◀─answers──── grader process, guardian
                       guardian ◀── stdout, stderr of the grader process and its offspring

Every worker is a pair. The guardian runs no user code: it leads a session of its own, keeps the last lines that the
grader process prints, and when the pool closes the requests, dies, or the grader process ends, it kills whatever
that process has left behind, says on the answers what happened, and exits. The answers do not travel on stdout,
which user code may flood.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, cast

from melior.rewards.base import Grader, Isolated, call_grader
from melior.rewards.sandbox import Confinement
from melior.rewards.sandbox.confine import Sandbox
from melior.types import Record, Score

KEPT_OUTPUT = 16_384  # bytes of stdout and stderr, from the end
LAST_WORDS_S = 0.1  # how long a stuck grader process has to say where it is stuck
TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def main() -> NoReturn:
    """`python -m melior.rewards.worker REQUESTS ANSWERS [CONFINEMENT]`: two inherited file descriptors, and JSON."""
    requests, answers = (int(argument) for argument in sys.argv[1:3])
    guard(requests, answers, None, Confinement.from_json(sys.argv[3]) if len(sys.argv) > 3 else None)


def guard(requests: int, answers: int, grader: Grader | None, confinement: Confinement | None = None) -> NoReturn:
    """Run the grader process, outlive it, leave nothing behind; never returns."""
    for descriptor in (requests, answers):
        os.set_inheritable(descriptor, False)  # programs that user code starts must not hold the pipes open
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans of the grader process become ours
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # if another child of the pool's process holds the requests open
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    output_read, output_write = os.pipe()
    try:
        sandbox = Sandbox(confinement) if confinement is not None else None
    except OSError as error:
        _say_last(answers, f"no sandbox could be made, {error}", "")
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        for descriptor in (wake_read, wake_write, output_read):
            os.close(descriptor)
        _become_grader_process(output_write)
        serve(requests, answers, grader, sandbox)
        os._exit(0)
    os.close(output_write)
    tail = _Tail(output_read)
    ended = _watch(child, requests, wake_read, tail, sandbox)
    if ended is None:
        _ask_where(child, tail)
    _kill_offspring(child)
    if sandbox is not None:
        sandbox.remove()
    tail.read(0.0)
    _say_last(answers, ended or "killed", tail.text())


def _say_last(answers: int, how: str, output: str) -> NoReturn:
    """Tell how the grader process ended, and exit."""
    line = json.dumps({"ended": how, "output": output})
    with suppress(OSError):  # the pool may be gone
        os.write(answers, f"\n{line}\n".encode())  # after a line that may have been cut short
    os._exit(0)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


class _Tail:
    """The last bytes that came out of a pipe."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.kept = b""
        os.set_blocking(descriptor, False)

    def read(self, seconds: float, quiet: float = 0.0) -> None:
        """Read until nothing came for `quiet` seconds, for `seconds` at most, and once in any case."""
        end = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        while True:
            try:
                chunk = os.read(self.descriptor, 1 << 16)
            except BlockingIOError:
                chunk = b""
            self.kept = (self.kept + chunk)[-KEPT_OUTPUT:]
            if time.monotonic() >= end or not poll.poll(quiet * 1000):
                return

    def text(self) -> str:
        """What was kept, readable whatever the bytes are."""
        return self.kept.decode("utf-8", "replace")


def _watch(child: int, requests: int, wake: int, tail: _Tail, sandbox: Sandbox | None) -> str | None:
    """How the grader process ended, or None where the pool wants it ended; drains its output meanwhile."""
    poll = select.poll()
    poll.register(requests, 0)  # hang-up alone: the lines are the grader process's to read
    poll.register(wake, select.POLLIN)
    poll.register(tail.descriptor, select.POLLIN)
    while True:
        events = dict(poll.poll(sandbox.look_every_ms if sandbox is not None else None))
        if sandbox is not None and (overfull := sandbox.overfull()):
            return overfull
        if tail.descriptor in events:
            tail.read(0.0)
            if events[tail.descriptor] & select.POLLHUP:
                poll.unregister(tail.descriptor)  # the process closed its output, or ended: SIGCHLD will tell
        if wake in events:
            if signal.SIGTERM in os.read(wake, 4096):
                return None
            status = _reap(child)
            if status is not None:
                return _told(status)
        if requests in events:
            return None


def _reap(child: int) -> int | None:
    """Reap every child that ended; the wait status of the grader process if it is among them."""
    found = None
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            found = ended[1] if ended[0] == child else found
    except ChildProcessError:
        pass
    return found


def _told(status: int) -> str:
    """A wait status in words."""
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit status {code}"


def _ask_where(child: int, tail: _Tail) -> None:
    """Let the grader process print the Python stack of every thread; its handler works without the GIL."""
    try:
        os.kill(child, signal.SIGUSR2)
    except ProcessLookupError:
        return
    tail.read(LAST_WORDS_S, quiet=LAST_WORDS_S / 4)


def _kill_offspring(child: int) -> None:
    """Kill until no child is left; orphans of those killed become ours and are killed in turn."""
    listing = Path(f"/proc/self/task/{os.getpid()}/children")
    while True:
        offspring = [int(pid) for pid in listing.read_text().split()] if listing.exists() else [child]
        for pid in offspring:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _become_grader_process(output: int) -> None:
    """Send stdout and stderr into `output`, drop stdin, die with the guardian, leave no core files."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(output)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=1, errors="replace", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="replace", closefd=False)
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGUSR2, file=2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def serve(requests: int, answers: int, grader: Grader | None, sandbox: Sandbox | None = None) -> None:
    """Load the grader as the first line says, then answer one line per line until there are no more."""
    me = os.getpid()
    lines = os.fdopen(requests, "rb")
    hello = json.loads(lines.readline())
    loaded = grader

    def load() -> Score:
        nonlocal loaded
        if loaded is None:
            loaded = _described(hello)
        if sandbox is not None:
            sandbox.enter((requests, answers))
        loaded.load()
        if hello["memory_bytes"] is not None and sandbox is None:  # after loading: libraries reserve more than they use
            resource.setrlimit(resource.RLIMIT_AS, (hello["memory_bytes"], hello["memory_bytes"]))
        return Score(value=None)

    _answer(answers, hello["id"], call_grader(_Loading(hello["name"], load), Record(inputs="", output="")))
    for line in lines:
        request = json.loads(line)
        assert loaded is not None  # the pool sends no records where loading failed
        score = call_grader(loaded, record_of(request["record"]))
        for timer in TIMERS:  # a forgotten alarm must not strike the next call
            signal.setitimer(timer, 0)
        if os.getpid() != me:
            os._exit(0)  # a fork that user code forgot: one answer is enough
        _answer(answers, request["id"], score)


def _described(hello: dict[str, Any]) -> Grader:
    """The grader of the first line, not loaded yet; nothing of it has run."""
    if hello["inside"] and hello["spec"]["type"] == "python":  # starts in half the time without the other kinds
        from melior.rewards.python import python_grader

        return python_grader(hello["spec"], hello["name"]).inside()
    from melior.rewards.graders import load_grader

    if not hello["inside"]:
        sys.path[:] = hello["path"]
        return load_grader(hello["spec"])
    isolated = cast(Isolated, load_grader(hello["spec"]))
    for module in isolated.isolation.imports:
        importlib.import_module(module)
    return isolated.inside()


class _Loading:
    """Loading a grader in the shape of a grader, so that its failures are told like any other."""

    spec = None

    def __init__(self, name: str, work: Callable[[], Score]) -> None:
        self.name = name
        self.work = work

    def load(self) -> None: ...

    def grade(self, record: Record) -> Score:
        return self.work()


def _answer(answers: int, request: str, score: Score) -> None:
    line = memoryview(json.dumps({"id": request, "score": asdict(score)}).encode() + b"\n")
    while line:
        line = line[os.write(answers, line) :]


def message_of(record: Record) -> dict[str, Any]:
    """What a grader may read of a record, for JSON."""
    return {
        "inputs": record.inputs,
        "output": record.output,
        "item": dict(record.item),
        "group": record.group,
        "decisions": record.decisions,
        "finish": record.finish,
    }


def record_of(message: dict[str, Any]) -> Record:
    """The record a message describes."""
    decisions = message["decisions"]
    return Record(**{**message, "decisions": None if decisions is None else tuple(decisions)})


if __name__ == "__main__":
    main()
