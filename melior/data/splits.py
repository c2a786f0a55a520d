"""training and held-out rows that have nothing in common

A split depends on the rows' content and the seed alone: not on their order, nor on which file they stood in.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TypeVar

from melior.data.conversations import conversation, learnt
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
    members: dict[int, list[int]] = defaultdict(list)
    for index, root in enumerate(_connected(rows)):
        members[root].append(index)
    sets = sorted(members.values(), key=lambda indices: _rank(rows, indices, seed))
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


def check_disjoint(train: Sequence[Any], heldout: Sequence[Any]) -> None:
    """Nothing, if no row of one side shares its input or its group with a row of the other.

    Raises:
        DataError: with how many inputs and groups are shared.
    """
    inputs = set(map(input_key, train)) & set(map(input_key, heldout))
    groups = {row.group for row in train if row.group} & {row.group for row in heldout if row.group}
    if inputs or groups:
        raise DataError(
            f"training and held-out rows share {len(inputs)} inputs and {len(groups)} groups; "
            "split() the rows together, or remove the shared ones from training"
        )


def input_key(row: Any) -> str:
    """sha256 of what the policy reads before its first decision.

    A string counts as one user message, and a conversation as what stands before its first assistant message that
    is learnt. A text without a prompt counts as itself: else all of them would share one input.
    """
    told = [row.inputs, _sides(row)] if row.inputs is None else _read(row)
    return hashlib.sha256(canonical(told).encode()).hexdigest()


def _sides(row: Any) -> list[Any]:
    """The outputs of a row."""
    return sorted(canonical(getattr(row, name, None)) for name in ("output", "chosen", "rejected"))


def _read(row: Any) -> Any:
    """What is read, as messages without weights; of other policies, whatever the inputs are."""
    try:
        told = conversation(row.inputs)
    except DataError:
        return row.inputs
    if getattr(row, "output", "") is None:
        first = next((index for index, message in enumerate(told.messages) if learnt(message)), len(told.messages))
        told = told.up_to(first)
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


def _connected(rows: Sequence[Any]) -> list[int]:
    """For each row, the first row it shares groups or inputs with, directly or through others."""
    root = list(range(len(rows)))

    def find(index: int) -> int:
        while root[index] != index:
            root[index] = root[root[index]]
            index = root[index]
        return index

    first: dict[tuple[str, str], int] = {}
    for index, row in enumerate(rows):
        for key in [("input", input_key(row)), *([("group", row.group)] if row.group else [])]:
            a, b = find(index), find(first.setdefault(key, index))
            root[max(a, b)] = min(a, b)
    return [find(index) for index in range(len(rows))]


def _rank(rows: Sequence[Any], indices: Sequence[int], seed: int) -> str:
    """A pseudo-random place in line, the same in whatever order the rows stand."""
    content = min(input_key(rows[index]) for index in indices)
    return hashlib.sha256(f"{seed}:{content}".encode()).hexdigest()
