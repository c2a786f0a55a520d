"""training and held-out rows that have nothing in common

A split depends on the rows' content and the seed alone: not on their order, nor on which file they stood in.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, TypeVar

from melior.data.conversations import Conversation, contexts, conversation
from melior.data.formats import canonical
from melior.errors import ConfigError, DataError

T = TypeVar("T")


def split(rows: Sequence[T], heldout: float = 0.1, seed: int = 0) -> tuple[list[T], list[T]]:
    """Training rows and held-out rows, each in the order given.

    Rows that share a group or an input stay together. `heldout` is a share below 1 or a number of rows; the held-out
    side may fall short of it by less than the smallest set of rows that belong together and were left for training.

    Raises:
        DataError: if the rows that belong together are too many to leave rows on both sides.
    """
    wanted = _wanted(heldout, len(rows))
    if wanted == 0:
        return list(rows), []
    sets = _sets(rows, seed)
    taken: set[int] = set()
    for indices in sets:
        if len(taken) + len(indices) <= wanted:
            taken.update(indices)
    if not taken:
        smallest = min(map(len, sets))
        raise DataError(
            f"{wanted} of {len(rows)} rows cannot be held out: {len(sets)} sets of rows share a group or an input, "
            f"the smallest has {smallest} rows; hold out at least {smallest}, of more groups"
        )
    train = [row for index, row in enumerate(rows) if index not in taken]
    return train, [row for index, row in enumerate(rows) if index in taken]


def folds(rows: Sequence[T], k: int = 5, seed: int = 0, *, stratify: bool = True) -> list[tuple[list[T], list[T]]]:
    """k pairs of training and held-out rows, each in the order given; every row is held out exactly once.

    Rows that share a group or an input stay together. `stratify` gives each fold its share of every label, as far as
    what stays together permits. Like a split, the folds depend on the rows' content and the seed alone.

    Raises:
        ConfigError: if k is no number of folds.
        DataError: if fewer than k sets of rows belong together.
    """
    if isinstance(k, bool) or k < 2:
        raise ConfigError(f"cross-validation needs at least 2 folds, got {k}")
    sets = _sets(rows, seed)
    if len(sets) < k:
        raise DataError(
            f"{len(rows)} rows make {len(sets)} sets that share a group or an input, too few for {k} folds; "
            f"ask for at most {len(sets)}, or collect more"
        )
    labels = [_stratum(row) if stratify else "" for row in rows]
    totals = Counter(labels)
    held: list[Counter[str]] = [Counter() for _ in range(k)]
    fold_of: dict[int, int] = {}
    for indices in sorted(sets, key=len, reverse=True):  # the largest first, while there is room everywhere
        counts = Counter(labels[index] for index in indices)
        best = min(range(k), key=lambda fold: (*_fullness(held[fold], counts, totals), fold))
        held[best].update(counts)
        fold_of.update(dict.fromkeys(indices, best))
    return [
        (
            [row for index, row in enumerate(rows) if fold_of[index] != fold],
            [row for index, row in enumerate(rows) if fold_of[index] == fold],
        )
        for fold in range(k)
    ]


def _stratum(row: Any) -> str:
    """What every fold should have its share of."""
    return canonical(getattr(row, "output", None))


def _fullness(held: Counter[str], counts: Counter[str], totals: Counter[str]) -> tuple[float, int]:
    """How much of these labels a fold has already, rare labels weighing as much as common ones; then its size."""
    return sum(count * held[label] / totals[label] for label, count in counts.items()), sum(held.values())


def check_disjoint(train: Sequence[Any], heldout: Sequence[Any]) -> None:
    """Nothing, if no row of one side shares its input or its group with a row of the other.

    Raises:
        DataError: with how many inputs and groups are shared.
    """
    inputs = {key for row in train for key in input_keys(row)} & {key for row in heldout for key in input_keys(row)}
    groups = {row.group for row in train if row.group} & {row.group for row in heldout if row.group}
    if inputs or groups:
        raise DataError(
            f"training and held-out rows share {len(inputs)} inputs and {len(groups)} groups; "
            "split() the rows together, or remove the shared ones from training"
        )


def input_keys(row: Any) -> frozenset[str]:
    """sha256 of everything the policy reads before a decision: rows that share one have an input in common.

    A string counts as one user message. A conversation has a key for each assistant message that is learnt, but for a
    short opening (see `contexts`). A text without a prompt counts as itself: else all of them would share one input.
    """
    told = [[row.inputs, _sides(row)]] if row.inputs is None else _read(row)
    return frozenset(hashlib.sha256(canonical(each).encode()).hexdigest() for each in told)


def input_key(row: Any) -> str:
    """One key for all a row reads: equal for two rows exactly where their `input_keys` are."""
    keys = sorted(input_keys(row))
    return keys[0] if len(keys) == 1 else hashlib.sha256("".join(keys).encode()).hexdigest()


def _sides(row: Any) -> list[Any]:
    """The outputs of a row."""
    return sorted(canonical(getattr(row, name, None)) for name in ("output", "chosen", "rejected"))


def _read(row: Any) -> list[Any]:
    """What is read before each decision, as messages without weights; of other policies, whatever the inputs are."""
    try:
        told = conversation(row.inputs)
    except DataError:
        return [row.inputs]
    read = contexts(told) if getattr(row, "output", "") is None else [told]
    return [_plain(each) for each in read]


def _plain(told: Conversation) -> Any:
    messages = [{key: value for key, value in message.items() if key != "weight"} for message in told.messages]
    return {"messages": messages, "tools": told.tools} if told.tools else messages


def _wanted(heldout: float, total: int) -> int:
    """How many rows to hold out."""
    if isinstance(heldout, bool) or heldout < 0 or (isinstance(heldout, float) and heldout >= 1):
        raise ConfigError(f"heldout is a share from 0 to 1 or a number of rows, got {heldout}")
    wanted = heldout if isinstance(heldout, int) else max(1, round(heldout * total)) if heldout else 0
    if wanted >= total and wanted:
        raise DataError(f"{wanted} of {total} rows cannot be held out; leave at least 1 to train on")
    return wanted


def _sets(rows: Sequence[Any], seed: int) -> list[list[int]]:
    """The places of rows that share groups or inputs, directly or through others, in a pseudo-random order.

    The order is the same in whatever order the rows stand.
    """
    keys = [input_keys(row) for row in rows]
    root = list(range(len(rows)))

    def find(index: int) -> int:
        while root[index] != index:
            root[index] = root[root[index]]
            index = root[index]
        return index

    first: dict[tuple[str, str], int] = {}
    for index, row in enumerate(rows):
        for key in [*(("input", key) for key in keys[index]), *([("group", row.group)] if row.group else [])]:
            a, b = find(index), find(first.setdefault(key, index))
            root[max(a, b)] = min(a, b)
    members: dict[int, list[int]] = defaultdict(list)
    for index in range(len(rows)):
        members[find(index)].append(index)

    def rank(indices: Sequence[int]) -> str:
        content = min(min(keys[index]) for index in indices)
        return hashlib.sha256(f"{seed}:{content}".encode()).hexdigest()

    return sorted(members.values(), key=rank)
