"""what rows show only beside one another: duplicates, contradictions, leaks

Everything here is a function of the rows' content, not of their order; of rows that are the same, the first is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melior.data.cleaning.examine import UNUSABLE
from melior.data.cleaning.spool import Spool, neighbours

Facts = NDArray[Any]
Reads = NDArray[np.uint64]  # [n, 2]: row, hash of what is read before one of its decisions
COMPARED = 64  # rows kept of one cluster that each further row of it is compared with


@dataclass(frozen=True, slots=True)
class Relation:
    """One finding about a row and the one it is like."""

    code: str
    row: int
    other: int
    detail: str = ""


def groups_of(keys: NDArray[np.uint64], usable: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
    """Indices of rows with one key, two or more at a time, in order; 0 is no key."""
    chosen = np.flatnonzero(usable & (keys != 0))
    order = chosen[np.argsort(keys[chosen], kind="stable")]
    bounds = np.flatnonzero(np.diff(keys[order].astype(np.uint64))) + 1
    yield from (np.sort(part) for part in np.split(order, bounds) if len(part) > 1)


def duplicates(facts: Facts) -> Iterator[Relation]:
    """Rows that teach what an earlier one teaches, and rows that only share its id."""
    usable = facts["format"] != UNUSABLE
    again = np.zeros(len(facts), bool)
    for rows in groups_of(facts["content"], usable):
        again[rows[1:]] = True
        yield from (Relation("duplicate", int(row), int(rows[0])) for row in rows[1:])
    for rows in groups_of(facts["id"], usable & ~again):
        yield from (Relation("duplicate-id", int(row), int(rows[0])) for row in rows[1:])


def contradictions(facts: Facts, kind: str) -> Iterator[Relation]:
    """Rows that ask what another one asks and answer otherwise; every row of such a group is told."""
    usable = facts["format"] != UNUSABLE
    if kind == "tasks":
        usable = usable & (facts["reference"] == 1)
    for rows in groups_of(facts["question"], usable):
        verdicts = facts["verdict"][rows]
        if (verdicts == verdicts[0]).all():
            continue
        told = kind != "demonstrations" or (facts["label"][rows] != 0).all()
        first = int(rows[0])
        for row in rows.tolist():
            other = first if row != first else int(rows[np.argmax(verdicts != verdicts[0])])
            yield Relation("contradiction" if told else "several-answers", row, other)


def near_duplicates(facts: Facts, spool: Spool, answers: Spool, kind: str) -> Iterator[Relation]:
    """Rows near a kept one, in the whole and in the answers alone, and rows near in text whose labels differ.

    Answers count apart because one long context may have many different answers.
    """
    usable = facts["format"] != UNUSABLE
    first = np.zeros(len(facts), bool)
    first[np.unique(facts["content"][usable], return_index=True)[1]] = True
    wanted = np.zeros(len(facts), bool)
    wanted[np.flatnonzero(usable)] = first[: int(usable.sum())]  # one of each content
    clusters = _Clusters()
    differing: set[tuple[int, int]] = set()
    for run in spool.runs(wanted, facts["content"]):
        for a, b in neighbours(run):
            one, two = int(spool.owners[a]), int(spool.owners[b])
            if one == two or facts["parts"][one] != facts["parts"][two] or clusters.together(one, two):
                continue
            same = facts["label"][one] == facts["label"][two]
            if (not same and kind != "demonstrations") or _apart(facts, one, two, kind):
                continue
            pair = (min(one, two), max(one, two))
            if (same or pair not in differing) and (found := spool.similarity(a, b)) >= spool.shingler.near:
                if same and answers.of_rows(one, two) < spool.shingler.near:
                    continue
                if same:
                    clusters.join(one, two)
                elif len(differing) < len(facts):
                    differing.add(pair)
                    yield Relation("near-contradiction", pair[0], pair[1], f"{found:.2f} alike")
                    yield Relation("near-contradiction", pair[1], pair[0], f"{found:.2f} alike")
    yield from _kept(clusters, facts, spool, answers, kind)


def _apart(facts: Facts, one: int, two: int, kind: str) -> bool:
    """Whether neither row can stand for the other: tasks with other right answers, pairs preferred the other way."""
    if kind not in ("tasks", "preferences") or facts["verdict"][one] == facts["verdict"][two]:
        return False
    return kind == "tasks" or bool(facts["question"][one] == facts["question"][two])


def _kept(clusters: _Clusters, facts: Facts, spool: Spool, answers: Spool, kind: str) -> Iterator[Relation]:
    """Of each cluster the longest row is kept, and every other that is near no kept one."""
    for members in clusters.members():
        members.sort(key=lambda row: (-_size(facts[row]), int(facts["content"][row])))
        kept: list[int] = []
        for row in members:
            others = [other for other in kept if not _apart(facts, row, other, kind)]
            alike = ((min(spool.of_rows(row, other), answers.of_rows(row, other)), other) for other in others)
            found, other = max(alike, default=(0.0, -1))
            if found >= spool.shingler.near:
                yield Relation("near-duplicate", row, other, f"{found:.2f} alike")
            elif len(kept) < COMPARED:
                kept.append(row)


def _size(fact: Any) -> int:
    return int(fact["prompt_size"]) + int(fact["answer_size"])


class _Clusters:
    """Rows joined by pairs that were found near."""

    def __init__(self) -> None:
        self._root: dict[int, int] = {}

    def together(self, one: int, two: int) -> bool:
        return one in self._root and two in self._root and self._find(one) == self._find(two)

    def join(self, one: int, two: int) -> None:
        first, second = self._find(one), self._find(two)
        self._root[max(first, second)] = min(first, second)

    def members(self) -> list[list[int]]:
        found: dict[int, list[int]] = defaultdict(list)
        for row in self._root:
            found[self._find(row)].append(row)
        return list(found.values())

    def _find(self, row: int) -> int:
        self._root.setdefault(row, row)
        while self._root[row] != row:
            self._root[row] = self._root[self._root[row]]
            row = self._root[row]
        return row


def leaks(facts: Facts, heldout: Facts, reads: Reads, theirs: Reads) -> Iterator[Relation]:
    """Rows of which a decision reads what one of the held-out file reads, or whose group it has.

    A text without a prompt counts as what is read; `other` is a row of that file.
    """
    usable = facts["format"] != UNUSABLE
    rows = np.arange(len(facts), dtype=np.uint64)
    others = np.arange(len(heldout), dtype=np.uint64)
    ours_of, theirs_of = (np.stack([place, f["group"]], 1) for place, f in ((rows, facts), (others, heldout)))
    for code, ours, held in (("leak-exact", reads, theirs), ("leak-group", ours_of, theirs_of)):
        keys, places = np.unique(held[:, 1], return_index=True)
        place = np.minimum(np.searchsorted(keys, ours[:, 1]), max(0, len(keys) - 1))
        shared = usable[ours[:, 0].astype(np.int64)] & (ours[:, 1] != 0) & (keys[place] == ours[:, 1])
        told: set[int] = set()
        for at in np.flatnonzero(shared).tolist():
            row = int(ours[at, 0])
            if row not in told:
                told.add(row)
                yield Relation(code, row, int(held[places[place[at]], 0]))


def near_leaks(facts: Facts, heldout: Facts, spool: Spool) -> Iterator[Relation]:
    """Rows whose prompt is near one of the held-out file, whose rows stand in the spool behind those of `facts`."""
    both = np.concatenate([facts, heldout])
    border = len(facts)
    wanted = both["format"] != UNUSABLE
    wanted[:border] &= ~np.isin(facts["prompt"], heldout["prompt"])  # those leak exactly
    found: set[int] = set()
    for run in spool.runs(wanted, both["prompt"]):
        owners = spool.owners[run]
        theirs = run[owners >= border]
        for a in run[owners < border].tolist() if len(theirs) else ():
            row = int(spool.owners[a])
            place = int(np.searchsorted(spool.sizes[theirs], spool.sizes[a]))
            for b in theirs[max(0, place - COMPARED // 2) : place + COMPARED // 2].tolist():
                other = int(spool.owners[b])
                if row in found or both["prompt_parts"][row] != both["prompt_parts"][other]:
                    continue
                if (alike := spool.similarity(a, b)) >= spool.shingler.near:
                    found.add(row)
                    yield Relation("leak-near", row, other - border, f"{alike:.2f} alike")
