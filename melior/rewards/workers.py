"""graders in processes of their own, with a time limit

Nothing a grader does reaches the caller: it may raise, hang, crash, print without end or eat memory, and the call
comes back as a score without a value that says so. A worker that hangs or dies is replaced. Workers import neither
torch nor transformers, and die with the pool, with the process that made it, and take their children along.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

import melior
from melior.errors import ConfigError, GraderError
from melior.rewards.base import BatchGrader, Combined, Grader, call_many, failed, runs_here
from melior.rewards.graders import Spec, load_grader
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
    """One worker, seen from outside; started and used by one thread."""

    def __init__(self, grader: Grader, limits: Limits, closing: threading.Event) -> None:
        self.grader, self.limits, self.closing = grader, limits, closing
        self._process: _Process | None = None

    def start(self) -> None:
        """Start the process and load the grader, if that has not been done.

        Raises:
            GraderError: if the grader cannot be loaded, with the traceback.
        """
        if self._process is not None:
            return
        self._process = _Process.forked(self.grader) if self.grader.spec is None else _Process.spawned()
        hello = {
            "name": self.grader.name,
            "spec": self.grader.spec,
            "path": sys.path,
            "memory_bytes": self.limits.memory_bytes,
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
            answer = self._process.ask(line, request, start + timeout_s, self.closing)
            return Score(**answer)
        except TimeoutError:
            return failed(name, f"{name} did not answer within {timeout_s:g} s and was stopped", self.stop())
        except _Ended as end:
            return failed(name, f"{name} ended its worker process ({end.how})", end.output + self.stop())


class _Process:
    """A guardian's process and the two pipes to its pair."""

    def __init__(self, pid: int, poll: Callable[[], int | None], requests: int, answers: int) -> None:
        self.pid, self.requests, self.answers = pid, requests, answers
        self._poll = poll
        self._unread = b""
        for descriptor in (requests, answers):
            os.set_blocking(descriptor, False)

    @classmethod
    def spawned(cls) -> _Process:
        """A fresh Python, which will be told by JSON what to load."""
        roots = [str(Path(melior.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        # single-threaded mathematics: workers share the cores with the trainer
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(roots)}

        def spawn(theirs: tuple[int, int]) -> tuple[int, Callable[[], int | None]]:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "melior.rewards.worker", *map(str, theirs)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
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

    def ask(self, line: bytes, request: str, deadline: float, closing: threading.Event) -> dict[str, Any]:
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
                    return dict(message["score"])
                if "ended" in message:
                    raise _Ended(message["ended"], message["output"])
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
        return [message for line in lines if (message := _parsed(line))]

    def end(self) -> str:
        """Have the guardian clear up, kill its group if it does not; the last lines that were printed."""
        os.close(self.requests)
        output, deadline = "", time.monotonic() + FAREWELL_S
        poll = select.poll()
        poll.register(self.answers, select.POLLIN)
        try:
            while not self.exited() and time.monotonic() < deadline:
                poll.poll(SLICE_S * 1000)
                output += "".join(message["output"] for message in self._read() if "ended" in message)
                time.sleep(0.001)  # the guardian exits right after its last words
            output += "".join(message["output"] for message in self._read() if "ended" in message)
        except _Ended:
            pass
        with suppress(ProcessLookupError, PermissionError):  # nobody is left
            os.killpg(self.pid, signal.SIGKILL)
        while not self.exited():
            time.sleep(0.005)
        os.close(self.answers)
        _our_ends.difference_update({self.requests, self.answers})
        return output


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None  # cut short by a kill, or written by a fork
    return message if isinstance(message, dict) else None


def _waited(pid: int) -> int | None:
    """The wait status of a child that ended."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return 0  # someone else has reaped it
    return status if ended else None


def _combined(name: str, combine: Callable[[Mapping[str, Score]], Score], scores: Mapping[str, Score]) -> Score:
    """The score of a combined grader whose parts have been graded."""
    try:
        score = combine(scores)
    except GraderError as error:
        score = failed(name, str(error), kind=error.kind)
    return replace(score, name=name, seconds=math.fsum(part.seconds for part in scores.values()))


Job = tuple[Callable[[Worker], Score], Future[Score]]


class GraderPool:
    """Grades records in `processes` workers; close it, or use it in a `with` statement.

    Graders of a name or a file are rebuilt in new processes. Closures and objects run in forks of this one, which
    must not use a GPU there. Graders that score in batches (models, calls over the network) run in this process, and a
    combined grader with such a part has a pool for each of its parts.

    Raises:
        GraderError: if the grader cannot be loaded.
    """

    def __init__(
        self,
        grader: Spec,
        *,
        processes: int = 2,
        timeout_s: float = 10.0,
        load_timeout_s: float = 60.0,
        memory_bytes: int | None = None,
    ) -> None:
        if processes < 1:
            raise ConfigError(f"a grader needs at least 1 process, got {processes}")
        self.grader = load_grader(grader)
        self._limits = Limits(timeout_s=timeout_s, load_timeout_s=load_timeout_s, memory_bytes=memory_bytes)
        self._closing = threading.Event()
        self._submitting = threading.Lock()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._stack = ExitStack()
        self._parts: dict[str, GraderPool] = {}
        self._threads: list[threading.Thread] = []
        if isinstance(self.grader, Combined) and runs_here(self.grader):
            with self._stack:
                for key, part in self.grader.graders.items():
                    pool = GraderPool(
                        part,
                        processes=processes,
                        timeout_s=timeout_s,
                        load_timeout_s=load_timeout_s,
                        memory_bytes=memory_bytes,
                    )
                    self._parts[key] = self._stack.enter_context(pool)
                self._stack = self._stack.pop_all()
        elif isinstance(self.grader, BatchGrader):
            self.grader.load()
        else:
            self._start(processes)

    def _start(self, processes: int) -> None:
        """Start the workers, each with a thread of its own."""
        ready: list[Future[None]] = [Future() for _ in range(processes)]
        self._threads = [threading.Thread(target=self._work, args=(future,), daemon=True) for future in ready]
        for thread in self._threads:
            thread.start()
        try:
            for future in ready:
                future.result()
        except BaseException:
            self.close()
            raise

    def submit(self, record: Record) -> Future[Score]:
        """The score of a record, soon; the future raises only if it was cancelled."""
        future: Future[Score] = Future()
        with self._submitting:
            if self._closing.is_set():
                raise GraderError(f"the pool of grader {self.grader.name} is closed; make a new one")
            if self._threads:
                self._jobs.put((lambda worker: worker.grade(record), future))
        if not self._threads:
            future.set_result(self.grade([record])[0])
        return future

    def grade(self, records: Sequence[Record]) -> list[Score]:
        """One score per record, in order."""
        return self._begin(records)()

    def _begin(self, records: Sequence[Record]) -> Callable[[], list[Score]]:
        """Sets workers to work; what is returned grades what belongs here meanwhile, and waits for them."""
        if isinstance(self.grader, Combined) and self._parts:
            combine = self.grader.combine
            begun = {key: pool._begin(records) for key, pool in self._parts.items()}

            def combined() -> list[Score]:
                columns = {key: finish() for key, finish in begun.items()}
                rows = [{key: column[row] for key, column in columns.items()} for row in range(len(records))]
                return [_combined(self.grader.name, combine, row) for row in rows]

            return combined
        if isinstance(self.grader, BatchGrader):
            grader = self.grader
            return lambda: call_many(grader, records)
        futures = [self.submit(record) for record in records]
        return lambda: [future.result() for future in futures]

    def close(self) -> None:
        """End all workers and cancel what waits; calls under way come back as failed."""
        with self._submitting:
            self._closing.set()
        while True:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                break
            if job is not None:
                job[1].cancel()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self, ready: Future[None]) -> None:
        """One thread per worker: Linux ends a worker with the thread that started it."""
        worker = Worker(self.grader, self._limits, self._closing)
        try:
            worker.start()
            ready.set_result(None)
            while (job := self._jobs.get()) is not None:
                work, future = job
                if future.set_running_or_notify_cancel():
                    future.set_result(work(worker))
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
                return
            raise
        finally:
            worker.stop()
