"""what the columns of a table show: nothing, too little, a name for every row, or the label itself"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from melior.data.cleaning.views import key_of
from melior.data.formats import RowError
from melior.data.formats.labels import labels_of
from melior.data.formats.tables import Survey, cell

MOST_VALUES = 100_000  # different values that are counted of a column; 64 bits each
FEW_VALUES = 200  # of a column that is compared with the label value by value
ENOUGH_ROWS = 20  # to say anything of a column
MISSING_SHARE = 0.5  # from which a column is said to be mostly empty
UNIQUE_SHARE = 0.99  # of the rows with a value of their own, from which texts and whole numbers are names of rows
ROWS_PER_VALUE = 5  # on average, from which a column that always agrees with the label is no accident


@dataclass
class ColumnSurvey(Survey):
    """A survey that also counts, of every column, what is missing and how often values and labels meet."""

    missing: Counter[str] = field(default_factory=Counter)
    values: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    fractions: set[str] = field(default_factory=set)  # columns with numbers that are not whole
    agreeing: dict[str, dict[Any, str]] = field(default_factory=lambda: defaultdict(dict))  # column → value → label
    apart: set[str] = field(default_factory=set)  # columns of which a value has two labels, or too many values

    def add(self, row: Mapping[str, Any]) -> None:
        """Takes a row into account."""
        super().add(row)
        try:
            label = repr(labels_of(row.get(self.reading.label), self.reading.label, self.reading))
        except RowError:
            label = ""
        for name, value in row.items():
            try:
                held = cell(value, name, "text", self.reading.missing)
            except RowError:  # told of the row
                continue
            if held is None:
                self.missing[name] += 1
                continue
            if len(self.values[name]) < MOST_VALUES:
                self.values[name].add(key_of(str(held)))
            if "." in str(held):
                self.fractions.add(name)
            if name not in self.apart and label:
                known = self.agreeing[name]
                if known.setdefault(held, label) != label or len(known) > FEW_VALUES:
                    self.apart.add(name)
                    known.clear()

    def findings(self) -> Iterator[tuple[str, str]]:
        """Code and what to say, of the file as a whole."""
        if self.rows < ENOUGH_ROWS:
            return
        own = {*self.reading.drop, self.reading.group or "group"}
        names = [name for name in self.kinds if name not in own]
        told = {
            "constant-column": [name for name in names if len(self.values[name]) <= 1 and not self.missing[name]],
            "missing-values": [name for name in names if self._absent(name) >= MISSING_SHARE],
            "identifier-column": [name for name in names if name != self.reading.label and self._names_rows(name)],
            "tells-label": [name for name in names if name != self.reading.label and self._tells(name)],
        }
        for code, found in told.items():
            if found:
                shares = [f"{name} ({self._absent(name):.0%})" for name in found]
                yield code, ", ".join(shares if code == "missing-values" else found)

    def _absent(self, name: str) -> float:
        return self.missing[name] / self.rows

    def _names_rows(self, name: str) -> bool:
        seen = self.rows - self.missing[name]
        return name not in self.fractions and seen >= ENOUGH_ROWS and len(self.values[name]) >= UNIQUE_SHARE * seen

    def _tells(self, name: str) -> bool:
        known, seen = self.agreeing[name], self.rows - self.missing[name]
        return name not in self.apart and len(set(known.values())) > 1 and seen >= ROWS_PER_VALUE * len(known)
