"""one process that grades, seen from outside

Nothing that happens in the process reaches the caller but a score: a call comes back whatever the grader does.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import melior
from melior.errors import ConfigError, GraderError
from melior.rewards.answers import LONGEST_OUTPUT, message_in, score_in, text_in
from melior.rewards.base import Grader, failed
from melior.rewards.sandbox import Confinement, Level
from melior.rewards.sandbox.confine import environment
from melior.rewards.worker import guard, message_of
from melior.types import Record, Score

SLICE_S = 0.1  # how often a waiting caller looks whether the worker is alive and the pool open
FAREWELL_S = 3.0  # how long a guardian has to clear up before its whole group is killed
LONGEST_ANSWER = 4 << 20  # bytes; ours are a hundred times shorter

_starting = threading.Lock()  # no process may be forked while another worker's pipes are half made
_our_ends: set[int] = set()  # pipe ends of this process, which forked workers must not hold open


class _Ended(Exception):
    """The worker cannot answer: how it ended, and the last lines it printed."""

    def __init__(self, how: str, output: str = "") -> None:
        super().__init__(how)
        self.how, self.output = how, output


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one worker may use."""

    timeout_s: float = 10.0  # per call
    load_timeout_s: float = 60.0  # to import the grader
    memory_bytes: int | None = None  # address space, reservations of libraries included; None: no limit

    def __post_init__(self) -> None:
        if self.timeout_s <= 0 or self.load_timeout_s <= 0 or (self.memory_bytes is not None and self.memory_bytes < 1):
            raise ConfigError(f"limits of a grader must be positive, got {self}")


class Worker:
    """One worker, seen from outside; started and used by one thread.

    With a confinement, the grader's `inside` runs there: code of others, or code that evaluates what a model wrote.
    """

    def __init__(
        self, grader: Grader, limits: Limits, closing: threading.Event, confinement: Confinement | None = None
    ) -> None:
        self.grader, self.limits, self.closing, self.confinement = grader, limits, closing, confinement
        self._process: _Process | None = None

    def start(self) -> None:
        """Start the process and load the grader, if that has not been done.

        Raises:
            GraderError: if the grader cannot be loaded, with the traceback.
        """
        if self._process is not None:
            return
        forked = self.grader.spec is None
        self._process = _Process.forked(self.grader) if forked else _Process.spawned(self.confinement)
        hello = {
            "name": self.grader.name,
            "spec": self.grader.spec,
            "path": sys.path,
            "memory_bytes": self.limits.memory_bytes,
            "inside": self.confinement is not None,
        }
        loaded = self._ask(hello, self.limits.load_timeout_s)
        if loaded.error:
            self.stop()
            told = f"grader {self.grader.name} cannot be loaded: {loaded.error}"
            raise GraderError(f"{told}\n{loaded.traceback}".rstrip())

    def grade(self, record: Record) -> Score:
        """The grader's score of the record; what went wrong is in its `error`."""
        if self._process is not None and self._process.exited():  # killed while idle: not this record's fault
            self.stop()
        try:
            self.start()
        except GraderError as error:
            return failed(self.grader.name, *str(error).partition("\n")[::2])
        return self._ask({"record": message_of(record)}, self.limits.timeout_s)

    def stop(self) -> str:
        """End the process and all its offspring; the last lines they printed."""
        process, self._process = self._process, None
        return process.end() if process is not None else ""

    def _ask(self, message: dict[str, Any], timeout_s: float) -> Score:
        assert self._process is not None  # start() made it
        start, request, name = time.monotonic(), secrets.token_hex(8), self.grader.name
        try:
            line = json.dumps({**message, "id": request}).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            return failed(name, f"{name} cannot be given this record: {error}; use JSON values in inputs and item")
        try:
            return score_in(name, self._process.ask(line, request, start + timeout_s, self.closing))
        except TimeoutError:
            how, output = f"did not answer within {timeout_s:g} s and was stopped", ""
        except _Ended as end:
            how, output = f"ended its worker process ({end.how})", end.output
        return failed(name, f"{name} {how}", output + self.stop(), "python_grader_server_error")


class _Process:
    """A guardian's process and the two pipes to its pair."""

    def __init__(self, pid: int, poll: Callable[[], int | None], requests: int, answers: int) -> None:
        self.pid, self.requests, self.answers = pid, requests, answers
        self._poll = poll
        self._unread = b""
        for descriptor in (requests, answers):
            os.set_blocking(descriptor, False)

    @classmethod
    def spawned(cls, confinement: Confinement | None = None) -> _Process:
        """A fresh Python, which will be told by JSON what to load; where it is confined, nothing of ours is in it."""
        roots = [str(Path(melior.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        # single-threaded mathematics: workers share the cores with the trainer
        variables = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(roots)}
        confined = []
        if confinement is not None and confinement.level > Level.L1:
            variables = {**environment(tempfile.gettempdir()), "PYTHONPATH": roots[0]}
            confined = [confinement.to_json()]

        def spawn(theirs: tuple[int, int]) -> tuple[int, Callable[[], int | None]]:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "melior.rewards.worker", *map(str, theirs), *confined],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=variables,
                pass_fds=theirs,
                start_new_session=True,
            )
            return process.pid, process.poll

        return cls._start(spawn)

    @classmethod
    def forked(cls, grader: Grader) -> _Process:
        """A copy of this process, for graders that no other process could import."""

        def fork(theirs: tuple[int, int]) -> tuple[int, Callable[[], int | None]]:
            with warnings.catch_warnings():  # about other threads: the child calls none of them
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                try:
                    os.setsid()
                    for descriptor in _our_ends:
                        os.close(descriptor)
                    _our_ends.clear()
                    _starting.release()  # for a grader with a pool of its own
                    guard(*theirs, grader)
                finally:
                    os._exit(1)
            return pid, lambda: _waited(pid)

        return cls._start(fork)

    @classmethod
    def _start(cls, start: Callable[[tuple[int, int]], tuple[int, Callable[[], int | None]]]) -> _Process:
        with _starting:
            their_requests, requests = os.pipe()
            answers, their_answers = os.pipe()
            ours = {requests, answers}
            _our_ends.update(ours)
            try:
                pid, poll = start((their_requests, their_answers))
            except BaseException:
                _our_ends.difference_update(ours)
                os.close(requests)
                os.close(answers)
                raise
            finally:
                os.close(their_requests)
                os.close(their_answers)
        return cls(pid, poll, requests, answers)

    def exited(self) -> bool:
        """Whether the guardian has ended."""
        return self._poll() is not None

    def ask(self, line: bytes, request: str, deadline: float, closing: threading.Event) -> Any:
        """The score in the answer to this request; answers to others are dropped.

        Raises:
            TimeoutError: at the deadline.
            _Ended: if the worker ended, or the pool is being closed.
        """
        rest = memoryview(line)
        poll = select.poll()
        poll.register(self.answers, select.POLLIN)
        while True:
            rest = self._write(rest)
            for message in self._read():
                if message.get("id") == request:
                    return message.get("score")
                if "ended" in message:
                    raise _Ended(
                        text_in(message["ended"], LONGEST_OUTPUT), text_in(message.get("output"), LONGEST_OUTPUT)
                    )
            if closing.is_set():
                raise _Ended("the pool was closed")
            if self.exited():
                raise _Ended("its guardian was killed")
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError
            poll.register(self.requests, select.POLLOUT) if rest else None
            poll.poll(min(left, SLICE_S) * 1000)
            poll.unregister(self.requests) if rest else None

    def _write(self, rest: memoryview) -> memoryview:
        try:
            return rest[os.write(self.requests, rest) :] if rest else rest
        except BlockingIOError:
            return rest
        except BrokenPipeError:
            return rest[:0]  # it is ending; its last words are on the answers

    def _read(self) -> list[dict[str, Any]]:
        """The whole lines that have come, those that are messages."""
        try:
            while chunk := os.read(self.answers, 1 << 16):
                self._unread += chunk
                if len(self._unread) > LONGEST_ANSWER:
                    raise _Ended(f"an answer longer than {LONGEST_ANSWER} bytes")
        except BlockingIOError:
            pass
        *lines, self._unread = self._unread.split(b"\n")
        return [message for line in lines if (message := message_in(line))]

    def _last_words(self) -> str:
        said = [message.get("output") for message in self._read() if "ended" in message]
        return "".join(text_in(output, LONGEST_OUTPUT) for output in said)

    def end(self) -> str:
        """Have the guardian clear up, kill its group if it does not; the last lines that were printed."""
        os.close(self.requests)
        output, deadline = "", time.monotonic() + FAREWELL_S
        poll = select.poll()
        poll.register(self.answers, select.POLLIN)
        try:
            while not self.exited() and time.monotonic() < deadline:
                poll.poll(SLICE_S * 1000)
                output += self._last_words()
                time.sleep(0.001)  # the guardian exits right after its last words
            output += self._last_words()
        except _Ended:
            pass
        with suppress(ProcessLookupError, PermissionError):  # nobody is left
            os.killpg(self.pid, signal.SIGKILL)
        while not self.exited():
            time.sleep(0.005)
        os.close(self.answers)
        _our_ends.difference_update({self.requests, self.answers})
        return output


def _waited(pid: int) -> int | None:
    """The wait status of a child that ended."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return 0  # someone else has reaped it
    return status if ended else None
