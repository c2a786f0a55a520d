"""findings as they come in: every row's number is kept, and a few examples to look at"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from melior.data.cleaning.codes import BY_NAME
from melior.data.cleaning.report import excerpt
from melior.data.cleaning.rows import Hit

EXAMPLES = 10  # per code
MOST_DETAILS = 200  # different details per code that are counted


class Collected:
    """Findings by code, as numbers of rows."""

    def __init__(self, ignore: frozenset[str]) -> None:
        self.ignore = ignore
        self.rows: dict[str, array[int]] = defaultdict(lambda: array("q"))
        self.others: dict[str, dict[int, int]] = defaultdict(dict)  # row → the row it is like
        self.details: dict[str, Counter[str]] = defaultdict(Counter)
        self.examples: dict[str, dict[int, tuple[str, str]]] = defaultdict(dict)  # row → detail and excerpt
        self.whole: dict[str, str] = {}  # what there is to say of the file as a whole

    def hit(self, row: int, hit: Hit) -> None:
        """Notes what a row shows on its own."""
        if hit.code in self.ignore:
            return
        if len(self.examples[hit.code]) < EXAMPLES:
            self.examples[hit.code].setdefault(row, (hit.detail, excerpt(hit.text, hit.piece)))
        self._note(hit.code, row, hit.detail)

    def rows_with(self, code: str, rows: Iterable[int], detail: str = "") -> None:
        """Notes what rows show beside the others; their excerpts are filled in later."""
        if code in self.ignore:
            return
        for row in rows:
            if len(self.examples[code]) < EXAMPLES:
                self.examples[code].setdefault(int(row), (detail, ""))
            self._note(code, int(row), detail)

    def relation(self, code: str, row: int, other: int, detail: str) -> None:
        """Notes that a row is like another one."""
        self.rows_with(code, [row], detail)
        if code not in self.ignore:
            self.others[code].setdefault(row, other)

    def file(self, code: str, detail: str, rows: Iterable[int]) -> None:
        """Notes what the file shows as a whole, if there is anything to say."""
        if detail and code not in self.ignore:
            self.whole[code] = detail
            self.rows_with(code, rows)

    def removed(self, rows: int, codes: Iterable[str]) -> NDArray[np.bool_]:
        """Which rows a fix takes away for one of some codes."""
        gone = np.zeros(rows, bool)
        for code in codes:
            if code in self.rows and BY_NAME[code].action == "remove":
                gone[np.frombuffer(self.rows[code], np.int64)] = True
        return gone

    def _note(self, code: str, row: int, detail: str) -> None:
        rows = self.rows[code]
        if not rows or rows[-1] != row:
            rows.append(row)
        counted = self.details[code]
        if detail and (detail in counted or len(counted) < MOST_DETAILS):
            counted[detail] += 1
