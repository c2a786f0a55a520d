"""texts become sets of hashed shingles and MinHash bands, many texts at a time

Short texts are cut into overlapping runs of five characters, long ones into overlapping runs of three words. MinHash
keeps, for each of many hash functions, the least hash of a set; two sets agree in one of them with a probability that
is their Jaccard index. Bands of several minima find the pairs worth comparing, and the sets themselves decide.

Everything is computed for a whole batch in a few numpy calls; memory is bounded by the batch, not by the file.

Source: Broder 1997, On the resemblance and containment of documents; multiply-shift hashing as in Dietzfelbinger et
al. 1997, A reliable randomized algorithm for the closest-pair problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Sets = NDArray[np.uint32]

CHARACTERS = 5  # of a shingle of a short text
WORDS = 3  # of a shingle of a long text
LONG_FROM, SHORT_UPTO = 40, 56  # words; texts between are cut both ways, so that no pair falls between two stools
FEWEST = 8  # shingles; what is shorter is compared exactly or not at all
PERMUTATIONS = 96  # at most; each costs one multiplication per shingle
MISSED = 0.005  # share of pairs at the threshold that the bands may overlook
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so it has an inverse modulo 2**64
_INVERSE = np.uint64(pow(int(_MULTIPLIER), -1, 1 << 64))
_SPACE = ord(" ")


@dataclass(frozen=True)
class Entries:
    """What a batch of texts gives: each entry is one way to cut one text."""

    owners: NDArray[np.int64]  # [E] index of the text
    sets: Sets  # the sorted sets of all entries, one behind the other
    sizes: NDArray[np.int64]  # [E] of the sets
    bands: Hashes  # [E, bands]


@dataclass(frozen=True)
class Shingler:
    """Cuts, hashes and bands texts so that pairs with a Jaccard index of at least `near` meet in some band."""

    near: float

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Bands and rows per band: the longest rows that miss no more than MISSED at the threshold."""
        for rows in range(16, 0, -1):
            bands = PERMUTATIONS // rows
            if (1 - self.near**rows) ** bands <= MISSED:
                return bands, rows
        return PERMUTATIONS, 1

    @cached_property
    def _functions(self) -> tuple[Hashes, Hashes]:
        bands, rows = self.shape
        drawn = np.random.default_rng(0x6D656C696F72).integers(0, 2**63, (2, bands * rows), dtype=np.uint64)
        return drawn[0] * np.uint64(2) + np.uint64(1), drawn[1]

    def entries(self, texts: Sequence[str], banded: bool = True) -> Entries:
        """The entries of normalised texts (words parted by single spaces), without bands where only sets are asked."""
        cuts = [_characters(texts), _words(texts)]
        owners = np.concatenate([owner for owner, _ in cuts])
        hashes = np.concatenate([hashed for _, hashed in cuts])
        owners, sets, sizes = _as_sets(owners, hashes, len(texts))
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])[: len(sizes)]
        bands = self._bands(sets, starts) if banded else np.zeros((len(sizes), 0), np.uint64)
        return Entries(owners, sets, sizes, bands)

    def _bands(self, sets: Sets, starts: NDArray[np.int64]) -> Hashes:
        bands, rows = self.shape
        out = np.zeros((len(starts), bands), np.uint64)
        if not len(starts):
            return out
        wide = sets.astype(np.uint64)
        factors, offsets = self._functions
        for index, (factor, offset) in enumerate(zip(factors, offsets)):
            least = np.minimum.reduceat((wide * factor + offset) >> np.uint64(32), starts)
            band = index // rows
            out[:, band] = _mixed(out[:, band] * _MULTIPLIER + least + np.uint64(1))
        return out


def jaccard(first: Sets, second: Sets) -> float:
    """The share of two sorted sets that both have."""
    both = len(np.intersect1d(first, second, assume_unique=True))
    return both / max(1, len(first) + len(second) - both)


def _mixed(values: Hashes) -> Hashes:
    """Each bit of the result depends on every bit of a value (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _points(texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The code points of all texts, a space behind each, and where each text starts."""
    joined = " ".join(texts) + " "
    points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    lengths = np.fromiter((len(text) + 1 for text in texts), np.int64, len(texts))
    return points, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _characters(texts: Sequence[str]) -> tuple[NDArray[np.int64], Hashes]:
    """Owners and hashes of the character shingles of the short texts."""
    chosen = [index for index, text in enumerate(texts) if text.count(" ") < SHORT_UPTO]
    if not chosen:
        return np.zeros(0, np.int64), np.zeros(0, np.uint64)
    points, starts = _points([texts[index] for index in chosen])
    wide = _mixed(points.astype(np.uint64) + np.uint64(1))
    count = max(0, len(wide) - CHARACTERS + 1)
    hashes = np.zeros(count, np.uint64)
    for offset in range(CHARACTERS):
        hashes = hashes * _MULTIPLIER + wide[offset : offset + count]
    owner = np.repeat(np.arange(len(chosen)), np.diff(starts))
    whole = owner[:count] == owner[CHARACTERS - 1 :][:count]  # not across two texts
    return np.asarray(chosen)[owner[:count][whole]] * 2, _mixed(hashes[whole])


def _words(texts: Sequence[str]) -> tuple[NDArray[np.int64], Hashes]:
    """Owners and hashes of the word shingles of the long texts."""
    chosen = [index for index, text in enumerate(texts) if text.count(" ") >= LONG_FROM]
    if not chosen:
        return np.zeros(0, np.int64), np.zeros(0, np.uint64)
    points, starts = _points([texts[index] for index in chosen])
    ends = np.flatnonzero(points == _SPACE)
    begins = np.concatenate([[0], ends[:-1] + 1])
    # The hash of a word is a difference of prefix sums, shifted to where it would start at 0.
    powers = np.cumprod(np.full(len(points) + 1, _MULTIPLIER), dtype=np.uint64)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum((points.astype(np.uint64) + np.uint64(1)) * powers[:-1])])
    inverses = np.cumprod(np.full(len(points) + 1, _INVERSE), dtype=np.uint64)
    words = _mixed((sums[ends] - sums[begins]) * inverses[begins])
    owner = np.searchsorted(starts, begins, side="right") - 1
    count = max(0, len(words) - WORDS + 1)
    hashes = np.zeros(count, np.uint64)
    for offset in range(WORDS):
        hashes = hashes * _MULTIPLIER + words[offset : offset + count]
    whole = owner[:count] == owner[WORDS - 1 :][:count]
    return np.asarray(chosen)[owner[:count][whole]] * 2 + 1, _mixed(hashes[whole])


def _as_sets(entry: NDArray[np.int64], hashes: Hashes, texts: int) -> tuple[NDArray[np.int64], Sets, NDArray[np.int64]]:
    """Owners, sorted sets and their sizes; sets of fewer than FEWEST are left out."""
    packed = np.sort((entry.astype(np.uint64) << np.uint64(32)) | (hashes >> np.uint64(32)))
    packed = packed[np.concatenate([[True], packed[1:] != packed[:-1]])] if len(packed) else packed
    entry = (packed >> np.uint64(32)).astype(np.int64)
    counts = np.bincount(entry, minlength=2 * texts)
    kept = counts >= FEWEST
    sets = (packed & np.uint64(0xFFFFFFFF)).astype(np.uint32)[kept[entry]] if len(entry) else np.zeros(0, np.uint32)
    named = np.flatnonzero(kept)
    return named // 2, sets, counts[named]
