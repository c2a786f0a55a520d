"""labels and the decisions that stand for them"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from melior.errors import ConfigError, DataError
from melior.types import Demonstration, Preference, Rated, Record


@dataclass(frozen=True)
class Labels:
    """What a classifier can answer: one of these names, or where `several`, any set of them."""

    names: tuple[str, ...]
    several: bool = False

    def __post_init__(self) -> None:
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise ConfigError(f"Label {twice[0]!r} stands twice in labels; name each once")
        if len(self.names) < (1 if self.several else 2):
            told = ", ".join(map(repr, self.names)) or "none"
            raise ConfigError(
                f"A classifier needs 2 labels at least, got {len(self.names)}: {told}; add rows, or name labels"
            )

    @classmethod
    def of(cls, rows: Sequence[Any], *, given: Sequence[str] = (), several: bool = False) -> Labels:
        """The labels given, or else those of the rows, sorted.

        Raises:
            ConfigError: for fewer than two.
            DataError: for an output that is no label.
        """
        if given:
            return cls(tuple(given), several)
        found = {name for row in rows for output in _outputs(row) for name in _names(output, several, row)}
        return cls(tuple(sorted(found)), several)

    @property
    def width(self) -> int:
        """Decisions of one input (T)."""
        return len(self.names) if self.several else 1

    @property
    def choices(self) -> int:
        """What can be decided each time (K)."""
        return 2 if self.several else len(self.names)

    @property
    def outputs(self) -> int:
        """Numbers the head gives."""
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """Of the labels and their order: what decision ids mean."""
        return hashlib.sha256(json.dumps([self.names, self.several]).encode()).hexdigest()[:16]

    def decisions(self, example: Any) -> tuple[int, ...]:
        """The ids of an example's output.

        Raises:
            DataError: for a label there is not, an example with two outputs or none, or a record of other labels.
        """
        if isinstance(example, Record) and example.decisions is not None:
            if example.fingerprint not in (None, self.fingerprint):
                raise DataError(
                    f"A record was made with labels {example.fingerprint}, this classifier has {self.fingerprint}; "
                    "its ids mean other labels here"
                )
            ids = example.decisions
            if len(ids) != self.width or not all(0 <= decided < self.choices for decided in ids):
                told = f"{self.width} of 0 to {self.choices - 1}"
                raise DataError(f"A record has decisions {ids}, this classifier decides {told}; leave the record out")
            return example.decisions
        if isinstance(example, Preference):
            raise DataError("A Preference has two outputs; encode its chosen and its rejected side as Demonstrations")
        chosen = [self._number(name, example) for name in _names(example.output, self.several, example)]
        return tuple(int(place in chosen) for place in range(len(self.names))) if self.several else (chosen[0],)

    def output(self, decisions: Sequence[int]) -> str | tuple[str, ...]:
        """The label, or the tuple of labels, that decisions stand for."""
        if not self.several:
            return self.names[decisions[0]]
        return tuple(name for name, applies in zip(self.names, decisions, strict=True) if applies)

    def prior(self, rows: Sequence[Any]) -> list[float]:
        """How common each label is among demonstrations, as a logit; 0 for all where there are none.

        Each label counts as seen once more than it was, so none is impossible.
        """
        shown = [row for row in rows if isinstance(row, Demonstration)]
        if not shown:
            return [0.0] * len(self.names)
        counts = Counter(name for row in shown for name in _names(row.output, self.several, row))
        if self.several:
            return [math.log((counts[name] + 1) / (len(shown) - counts[name] + 1)) for name in self.names]
        return [math.log((counts[name] + 1) / (len(shown) + len(self.names))) for name in self.names]

    def notice(self, rows: Sequence[Any], noticed: Counter[str]) -> None:
        """Counts labels that hardly any of the rows has: nothing can be learnt, or told, of them."""
        counts = Counter(name for row in rows for out in _outputs(row) for name in _names(out, self.several, row))
        if not counts:
            return
        for name in self.names:
            if counts[name] < 2:
                noticed[f"label {name!r} has {counts[name]} rows"] += 1

    def _number(self, name: str, example: Any) -> int:
        if name not in self.names:
            near = difflib.get_close_matches(name, self.names, n=1)
            guess = f", did you mean {near[0]!r}?" if near else ""
            known = ", ".join(self.names[:8]) + (" …" if len(self.names) > 8 else "")
            raise DataError(f"{_where(example)} has label {name!r}{guess}; this classifier has {known}")
        return self.names.index(name)


def _outputs(row: Any) -> list[Any]:
    """What a row shows of outputs; a task shows none."""
    if isinstance(row, Preference):
        return [row.chosen, row.rejected]
    return [row.output] if isinstance(row, Demonstration | Rated | Record) else []


def _names(output: Any, several: bool, row: Any) -> tuple[str, ...]:
    """The labels of one output; whole numbers and truth values are read as their text."""
    if isinstance(output, str) or (isinstance(output, int) and not several):
        return (str(output),)
    if several and isinstance(output, list | tuple | set | frozenset):
        return tuple(str(name) for name in output)
    wanted = "a tuple of labels" if several else "a label"
    raise DataError(f"{_where(row)} has {output!r} where {wanted} is expected")


def _where(example: Any) -> str:
    return getattr(example, "id", "") or f"A {type(example).__name__}"
