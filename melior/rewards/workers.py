"""graders in processes of their own, with a time limit

Nothing a grader does reaches the caller: it may raise, hang, crash, print without end or eat memory, and the call
comes back as a score without a value that says so. A worker that hangs or dies is replaced. Workers import neither
torch nor transformers, and die with the pool, with the process that made it, and take their children along.
"""

from __future__ import annotations

import math
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from melior.errors import ConfigError, GraderError
from melior.rewards.base import BatchGrader, Combined, call_many, failed
from melior.rewards.graders import Spec, load_grader
from melior.rewards.isolation import confinement_for, runs_apart
from melior.rewards.process import Limits, Worker
from melior.rewards.sandbox import Confinement, Level
from melior.types import Record, Score


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
    combined grader with such a part has a pool for each of its parts. Code of others (`type: python`) runs in a sandbox
    of the highest level this machine has, or of `level`; `level` then says which, and is None for all other graders.

    Raises:
        GraderError: if the grader cannot be loaded, or its sandbox cannot be had.
    """

    def __init__(
        self,
        grader: Spec,
        *,
        processes: int = 2,
        timeout_s: float = 10.0,
        load_timeout_s: float = 60.0,
        memory_bytes: int | None = None,
        level: Level | None = None,
        allow_unsandboxed: bool = False,
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
        self._confinement: Confinement | None = None
        self._threads: list[threading.Thread] = []
        if isinstance(self.grader, Combined) and runs_apart(self.grader):
            with self._stack:
                for key, part in self.grader.graders.items():
                    pool = GraderPool(
                        part,
                        processes=processes,
                        timeout_s=timeout_s,
                        load_timeout_s=load_timeout_s,
                        memory_bytes=memory_bytes,
                        level=level,
                        allow_unsandboxed=allow_unsandboxed,
                    )
                    self._parts[key] = self._stack.enter_context(pool)
                self._stack = self._stack.pop_all()
        elif isinstance(self.grader, BatchGrader):
            self.grader.load()
        else:
            self._confinement = confinement_for(
                self.grader, level=level, memory_bytes=memory_bytes, allow_unsandboxed=allow_unsandboxed
            )
            self._start(processes)

    @property
    def name(self) -> str:
        """The grader's name."""
        return self.grader.name

    @property
    def level(self) -> Level | None:
        """The lowest sandbox level at which code of others runs here; None where there is no such code."""
        own = self._confinement.level if self._confinement is not None else None
        levels = [level for level in [own, *(pool.level for pool in self._parts.values())] if level is not None]
        return min(levels, default=None)

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
        worker = Worker(self.grader, self._limits, self._closing, self._confinement)
        try:
            worker.start()
            ready.set_result(None)
            while (job := self._jobs.get()) is not None:
                work, future = job
                if future.set_running_or_notify_cancel():
                    future.set_result(self._done(work, worker))
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
                return
            raise
        finally:
            worker.stop()

    def _done(self, work: Callable[[Worker], Score], worker: Worker) -> Score:
        """The score of one call; one for which no process can be had fails, as others wait for this thread."""
        try:
            return work(worker)
        except Exception as error:  # out of memory, of open files, of process numbers
            name = self.grader.name
            return failed(name, f"{name} could not be called: {type(error).__name__}: {error}", traceback.format_exc())
