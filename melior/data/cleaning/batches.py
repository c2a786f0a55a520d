"""rows in batches of bounded size, examined here or in other processes"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context

from melior.data.cleaning.examine import Examined, Examiner
from melior.data.cleaning.languages import Sample
from melior.data.cleaning.views import strings
from melior.data.readers import Line, Problem

ROWS, CHARACTERS = 1024, 1 << 20  # of a batch; a longer row is a batch of its own
WAITING = 2  # batches per worker

Batch = list[Line | Problem]


def batches(lines: Iterable[Line | Problem]) -> Iterator[Batch]:
    """Rows in batches."""
    batch: Batch = []
    size = 0
    for line in lines:
        batch.append(line)
        size += sum(map(len, strings(line.row))) if isinstance(line, Line) else 0
        if len(batch) >= ROWS or size >= CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def examined(source: Iterator[Batch], examiner: Examiner, workers: int, sample: Sample | None) -> Iterator[Examined]:
    """What each batch shows, in order."""
    if workers == 1:
        for batch in source:
            yield examiner(batch, sample.below if sample else 0)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting: deque[Future[Examined]] = deque()
        for batch in source:
            waiting.append(pool.submit(examiner, batch, sample.below if sample else 0))
            if len(waiting) > WAITING * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
