"""shingle sets and bands on disk, so that finding near duplicates needs memory for one band only"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from melior.data.cleaning.shingles import Entries, Sets, Shingler, jaccard

Index = NDArray[np.int64]

CROWD = 24  # texts that share a band and are all compared with one another; of more, neighbours in size are
KEPT_SETS = 20_000  # sets held in memory while pairs are compared


class Spool:
    """Entries of texts, numbered by the row they come from, in files of a temporary folder."""

    def __init__(self, folder: Path, name: str, shingler: Shingler, banded: bool = True) -> None:
        self.shingler = shingler
        self._owners, self._sizes = array("q"), array("q")
        self._paths = [folder / f"{name}.{band}.bands" for band in range(shingler.shape[0] if banded else 0)]
        self._bands: list[IO[bytes]] = [path.open("wb") for path in self._paths]
        self._sets = (folder / f"{name}.sets").open("w+b")
        self._set = lru_cache(KEPT_SETS)(self._read)

    def add(self, entries: Entries, first: int) -> None:
        """Writes a batch whose texts belong to the rows from `first` on."""
        self._owners.frombytes((entries.owners + first).astype(np.int64).tobytes())
        self._sizes.frombytes(entries.sizes.astype(np.int64).tobytes())
        self._sets.write(entries.sets.tobytes())
        for file, band in zip(self._bands, entries.bands.T, strict=True):
            file.write(np.ascontiguousarray(band).tobytes())

    def finish(self) -> None:
        """Ends writing; pairs can be asked for."""
        for file in (*self._bands, self._sets):
            file.flush()
        for file in self._bands:
            file.close()
        self.owners = np.frombuffer(self._owners, np.int64) if self._owners else np.zeros(0, np.int64)
        self.sizes = np.frombuffer(self._sizes, np.int64) if self._sizes else np.zeros(0, np.int64)
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.sizes)])

    def close(self) -> None:
        """Gives up the files."""
        self._set.cache_clear()
        self._sets.close()

    def similarity(self, first: int, second: int) -> float:
        """The Jaccard index of two entries."""
        smaller, larger = sorted((int(self.sizes[first]), int(self.sizes[second])))
        if smaller < self.shingler.near * larger:
            return 0.0  # it is at most the ratio of sizes
        return jaccard(self._set(first), self._set(second))

    def of_rows(self, first: int, second: int) -> float:
        """The Jaccard index of two rows' texts; 1 where neither has a set, 0 where only one has."""
        ours, theirs = self._entries(first), self._entries(second)
        if not ours or not theirs:
            return float(bool(ours) == bool(theirs))
        return max(self.similarity(a, b) for a in ours for b in theirs)

    def _entries(self, row: int) -> range:
        return range(*np.searchsorted(self.owners, [row, row + 1]).tolist())

    def runs(self, wanted: NDArray[np.bool_], keys: NDArray[np.uint64]) -> Iterator[Index]:
        """Entries that share a band, two or more at a time, of the rows wanted; in an order by size, then key.

        `keys` are of rows; they make the order, and with it what is found, independent of where a row stands.
        """
        chosen = np.flatnonzero(wanted[self.owners]) if len(self.owners) else np.zeros(0, np.int64)
        for path in self._paths:
            hashes = np.fromfile(path, np.uint64)[chosen]
            _, run, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
            shared = np.flatnonzero(sizes[run] > 1)
            members = chosen[shared]
            order = np.lexsort((keys[self.owners[members]], self.sizes[members], run[shared]))
            bounds = np.flatnonzero(np.diff(run[shared][order])) + 1
            yield from (part for part in np.split(members[order], bounds) if len(part) > 1)

    def _read(self, entry: int) -> Sets:
        self._sets.seek(int(self._starts[entry]) * 4)
        return np.frombuffer(self._sets.read(int(self.sizes[entry]) * 4), np.uint32)


def neighbours(run: Index) -> Iterator[tuple[int, int]]:
    """The pairs of a run that are worth comparing: all of a small one, those near in size of a crowd."""
    entries = run.tolist()
    for place, first in enumerate(entries):
        for second in entries[place + 1 : place + CROWD]:
            yield first, second
