"""how many labels it takes: contestants trained on nested subsets over several seeds, with intervals

Subsets of one seed are nested and the same for all contestants, and every contestant is measured on the same held-out
items, so contestants are compared item by item and seed by seed. An interval speaks of new items, new draws of the
subset and new starts at once: the variances over seeds and over items are added, each with its own degrees of freedom,
so three seeds give honest, wide intervals and one seed gives none.

Source: Owen 2007, Annals of Applied Statistics 1, arXiv:0712.1111 (the variance of a mean over crossed factors);
Satterthwaite 1946, Biometrics Bulletin 2 (degrees of freedom of a sum of variances).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from melior.durable import write_file
from melior.errors import DataError
from melior.statistics import LEVEL, Bounds, Interval, difference_bounds, mean_interval

Floats = NDArray[np.float64]
Train = Callable[[Sequence[Any], int], Mapping[str, float]]  # rows, seed → held-out item → its value
Progress = Callable[[int, int], None]

UNIT: Bounds = (0.0, 1.0)  # of values that all lie there, as shares do
EQUAL = 1e-24  # a variance that is rounding


@dataclass(frozen=True)
class Contestant:
    """One way to learn: trains from nothing but the rows and the seed, and says how it did on each held-out item."""

    name: str
    train: Train
    settings: Mapping[str, Any] = field(default_factory=dict)  # results are kept as long as these do not change


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two contestants at every size, and in a sentence."""

    first: str
    second: str
    differences: Mapping[int, Interval]  # size → first − second
    indistinguishable_from: int | None  # the size from which on no interval leaves out 0; None if the last one does
    sentence: str


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """What each contestant reached with how many labels."""

    metric: str
    heldout: int  # items
    seeds: tuple[int, ...]
    points: Mapping[str, Mapping[int, Interval]]  # contestant → size → mean over items and seeds
    comparisons: tuple[Comparison, ...]  # of the first contestant with each other one
    seconds: Mapping[str, Mapping[int, float]] = field(default_factory=dict)  # mean training time

    def to_json(self) -> dict[str, Any]:
        """As the section of a report reads it."""
        return {
            "metric": self.metric,
            "heldout": self.heldout,
            "seeds": list(self.seeds),
            "lines": [{"name": name, "points": _points(found)} for name, found in self.points.items()],
            "comparisons": [
                {
                    "first": one.first,
                    "second": one.second,
                    "points": _points(one.differences),
                    "indistinguishable_from": one.indistinguishable_from,
                    "sentence": one.sentence,
                }
                for one in self.comparisons
            ],
            "seconds": {name: {str(size): value for size, value in by.items()} for name, by in self.seconds.items()},
        }


def learning_curve(
    contestants: Sequence[Contestant],
    rows: Sequence[Any],
    sizes: Sequence[int],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    metric: str = "accuracy",
    label_of: Callable[[Any], str]
    | None = None,  # subsets keep the shares of labels, and hold each as soon as they can
    path: str | Path | None = None,  # results so far; a stopped run goes on from them
    progress: Progress | None = None,
) -> LearningCurve:
    """Every contestant trained on the first `size` rows of every seed's order, and what that came to.

    Values are read as the higher, the better.

    Raises:
        DataError: if a size is larger than there are rows, names or sizes repeat, seeds are fewer than two, contestants
            were measured on different items, or the file holds results of other rows.
    """
    _check(contestants, rows, sizes, seeds)
    results = _Results(path, rows, metric)
    orders = {seed: nested_order(rows, seed, label_of) for seed in seeds}
    jobs = [(size, seed, one) for size in sorted(sizes) for seed in seeds for one in contestants]
    for done, (size, seed, one) in enumerate(jobs):
        if not results.has(one, size, seed):
            started = time.monotonic()
            values = one.train([rows[index] for index in orders[seed][:size]], seed)
            results.add(one, size, seed, values, time.monotonic() - started)
        if progress:
            progress(done + 1, len(jobs))
    return summary(results.values(contestants, sizes, seeds), metric, seeds, results.seconds(contestants, sizes, seeds))


def nested_order(rows: Sequence[Any], seed: int, label_of: Callable[[Any], str] | None = None) -> list[int]:
    """An order of the rows whose every beginning is a fair sample.

    With labels, one row of each comes first and every beginning keeps their shares.
    """
    chance = np.random.default_rng(seed)
    shuffled: list[int] = chance.permutation(len(rows)).tolist()
    if label_of is None:
        return shuffled
    by_label: dict[str, list[int]] = {}
    for index in shuffled:
        by_label.setdefault(label_of(rows[index]), []).append(index)
    firsts = [found[0] for found in by_label.values()]
    places = {
        index: (place + chance.random()) / len(found)
        for found in by_label.values()
        for place, index in enumerate(found)
    }
    return firsts + sorted(set(shuffled) - set(firsts), key=lambda index: places[index])


def crossed_interval(
    values: Floats,  # [S, M] seeds by items
    *,
    bounds: Bounds | None = None,  # of the values
    level: float = LEVEL,
) -> Interval:
    """The mean over seeds and items, for new seeds and new items.

    Where all values are equal, the interval follows from the bounds and the number of items, as in `statistics`.

    Raises:
        DataError: if there are fewer than two seeds or two items.
    """
    seeds, items = values.shape
    if seeds < 2 or items < 2:
        raise DataError(f"{seeds} seeds and {items} items have no spread over both; give two or more of each")
    variances = values.mean(1).var(ddof=1) / seeds, values.mean(0).var(ddof=1) / items
    total, mean = sum(variances), float(values.mean())
    if total <= EQUAL:
        return mean_interval(values.mean(0), bounds=bounds, level=level)
    freedom = total**2 / (variances[0] ** 2 / (seeds - 1) + variances[1] ** 2 / (items - 1))
    reach = float(stdtrit(freedom, (1 + level) / 2)) * math.sqrt(total)
    floor, ceiling = bounds or (-math.inf, math.inf)
    return Interval(mean, max(floor, mean - reach), min(ceiling, mean + reach), level)


def summary(
    values: Mapping[str, Mapping[int, Floats]],  # contestant → size → [S, M]
    metric: str,
    seeds: Sequence[int],
    seconds: Mapping[str, Mapping[int, float]],
) -> LearningCurve:
    """Points and comparisons of the first contestant with every other one."""
    within = all(0 <= each.min() <= each.max() <= 1 for by in values.values() for each in by.values())
    bounds = UNIT if within else None
    points = {
        name: {size: crossed_interval(each, bounds=bounds) for size, each in by.items()} for name, by in values.items()
    }
    first, *others = values
    comparisons = []
    for other in others:
        differences = {
            size: crossed_interval(each - values[other][size], bounds=bounds and difference_bounds(bounds))
            for size, each in values[first].items()
        }
        told = _indistinguishable_from(differences)
        sentence = _sentence(first, other, metric, differences, points)
        comparisons.append(
            Comparison(
                first=first,
                second=other,
                differences=differences,
                indistinguishable_from=told,
                sentence=sentence,
            )
        )
    heldout = next(iter(values[first].values())).shape[1]
    return LearningCurve(
        metric=metric,
        heldout=heldout,
        seeds=tuple(seeds),
        points=points,
        comparisons=tuple(comparisons),
        seconds=seconds,
    )


def _indistinguishable_from(differences: Mapping[int, Interval]) -> int | None:
    found = None
    for size in sorted(differences, reverse=True):
        if not differences[size].low <= 0 <= differences[size].high:
            break
        found = size
    return found


def _sentence(
    first: str,
    other: str,
    metric: str,
    differences: Mapping[int, Interval],
    points: Mapping[str, Mapping[int, Interval]],
) -> str:
    """From how many labels on nothing tells the two apart, or how far apart they are at the last size."""
    sizes = sorted(differences)
    start, last = _indistinguishable_from(differences), sizes[-1]
    worth = _worth(points[first], points[other])
    labels = f" {sizes[0]:,} labels with {first} reach what {other} reaches with {worth}." if worth else ""
    if start is None:
        ahead, behind = (first, other) if differences[last].estimate > 0 else (other, first)
        gap = differences[last] if ahead == first else -differences[last]
        return (
            f"{ahead} is ahead of {behind} in {metric} by {gap} at {last:,} labels, the most that were tried.{labels}"
        )
    if start == sizes[0]:
        return (
            f"Nothing tells {first} and {other} apart in {metric} at any size; at {last:,} labels they differ by "
            f"{differences[last]}."
        )
    return (
        f"From {start:,} labels on nothing tells {first} and {other} apart in {metric}: they differ by "
        f"{differences[start]} there, and by {differences[sizes[0]]} at {sizes[0]:,} labels.{labels}"
    )


def _worth(first: Mapping[int, Interval], other: Mapping[int, Interval]) -> str:
    """How many labels the second needs for what the first reaches with the fewest, read off between sizes."""
    sizes = sorted(other)
    goal = first[sizes[0]].estimate
    if other[sizes[0]].estimate >= goal:
        return ""
    for before, after in pairwise(sizes):
        low, high = other[before].estimate, other[after].estimate
        if low < goal <= high:
            share = (goal - low) / (high - low)
            told = math.exp(math.log(before) + share * (math.log(after) - math.log(before)))
            return f"about {float(f'{told:.2g}'):,.0f}"
    return f"more than {sizes[-1]:,}"


def _check(contestants: Sequence[Contestant], rows: Sequence[Any], sizes: Sequence[int], seeds: Sequence[int]) -> None:
    names = [one.name for one in contestants]
    if not names or len(set(names)) < len(names):
        raise DataError(f"{len(set(names))} different names of {len(names)} contestants; give one or more, no twins")
    if not sizes or len(set(sizes)) < len(sizes) or not 1 <= min(sizes) <= max(sizes) <= len(rows):
        raise DataError(f"sizes {list(sizes)} of {len(rows)} rows; give different ones between 1 and {len(rows)}")
    if len(set(seeds)) < max(2, len(seeds)):
        raise DataError(f"{len(set(seeds))} different seeds cannot say how far draws differ; give two or more")


class _Results:
    """Values per contestant, size and seed, kept in a file after each so that nothing is trained twice."""

    def __init__(self, path: str | Path | None, rows: Sequence[Any], metric: str) -> None:
        self.path = None if path is None else Path(path)
        head = f"{len(rows)} rows of {metric}: {hashlib.sha256(repr(list(rows)).encode()).hexdigest()[:16]}"
        self.kept: dict[str, Any] = {"of": head, "items": [], "cells": {}}
        if self.path is not None and self.path.is_file():
            try:
                found = json.loads(self.path.read_text(encoding="utf-8"))
                same = found["of"] == head
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{self.path} holds no results of a learning curve ({error}); name another") from error
            if not same:
                raise DataError(f"{self.path} holds results of {found['of']!r}, not of {head!r}; name another file")
            self.kept = found

    def has(self, one: Contestant, size: int, seed: int) -> bool:
        return _cell(one, size, seed) in self.kept["cells"]

    def add(self, one: Contestant, size: int, seed: int, values: Mapping[str, float], seconds: float) -> None:
        items = [str(item) for item in values]
        if not self.kept["items"]:
            self.kept["items"] = items
        if items != self.kept["items"]:
            raise DataError(
                f"{one.name} was measured on {len(items)} items that are not the {len(self.kept['items'])} of the "
                "others; measure all on the same, in the same order"
            )
        bad = [item for item, value in values.items() if not math.isfinite(value)]
        if bad:
            raise DataError(f"{len(bad)} of {len(items)} values of {one.name} are not finite, first of {bad[0]!r}")
        cell = {"values": [float(value) for value in values.values()], "seconds": round(seconds, 3)}
        self.kept["cells"][_cell(one, size, seed)] = cell
        if self.path is not None:
            write_file(self.path, json.dumps(self.kept))

    def values(
        self, contestants: Sequence[Contestant], sizes: Sequence[int], seeds: Sequence[int]
    ) -> dict[str, dict[int, Floats]]:
        cells = self.kept["cells"]
        return {
            one.name: {
                size: np.array([cells[_cell(one, size, seed)]["values"] for seed in seeds]) for size in sorted(sizes)
            }
            for one in contestants
        }

    def seconds(
        self, contestants: Sequence[Contestant], sizes: Sequence[int], seeds: Sequence[int]
    ) -> dict[str, dict[int, float]]:
        cells = self.kept["cells"]
        return {
            one.name: {
                size: math.fsum(cells[_cell(one, size, seed)]["seconds"] for seed in seeds) / len(seeds)
                for size in sorted(sizes)
            }
            for one in contestants
        }


def _cell(one: Contestant, size: int, seed: int) -> str:
    return json.dumps([one.name, dict(one.settings), size, seed], sort_keys=True, default=str)


def _points(found: Mapping[int, Interval]) -> list[dict[str, Any]]:
    return [{"x": size, **interval.to_json()} for size, interval in found.items()]
