"""rows of a table become numbers and codes

A column is numeric or categorical, decided from the training rows or declared. Nothing is refused that a later row may
hold honestly: what is missing is NaN or code 0, a category that training never saw is code 0, and both are counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from melior.errors import DataError

Row = Mapping[str, Any]  # column → number, text or None

KNOTS = 49  # quantiles kept of a numeric column: 48 bins, of 50 that Gorishniy et al. 2022 find enough
UNKNOWN = 0  # code of a category that is missing, or that training never saw


@dataclass(frozen=True)
class Columns:
    """How the rows of a table are read: which columns, as what, and what was known of them in the training rows."""

    numeric: Mapping[str, tuple[float, ...]]  # column → distinct quantiles of its training values, rising
    categorical: Mapping[str, tuple[str, ...]]  # column → its categories; the code of the first is 1
    left_out: Mapping[str, str]  # column → why it is not read

    @classmethod
    def of(
        cls,
        rows: Sequence[Row],
        *,
        categorical: Sequence[str] = (),
        numeric: Sequence[str] = (),
        drop: Sequence[str] = (),
        fewest: int = 1,  # rows a category must stand in; rarer ones are read as unknown
    ) -> Columns:
        """The columns of training rows, in the order in which they first appear.

        Undeclared columns of nothing but numbers are numeric, those with a text or a truth value categorical. A column
        without a single value is left out.

        Raises:
            DataError: if no column is left, a declared one is absent or declared twice, or a cell is not one value.
        """
        names = list(dict.fromkeys(name for row in rows for name in row))
        _check_declared(names, {"categorical": categorical, "numeric": numeric, "drop": drop})
        numbers: dict[str, tuple[float, ...]] = {}
        categories: dict[str, tuple[str, ...]] = {}
        left_out = {name: "dropped" for name in names if name in drop}
        for name in (name for name in names if name not in left_out):
            cells = [row.get(name) for row in rows]
            known = [cell for cell in cells if not _missing(cell)]
            if not known:
                left_out[name] = "without a value"
            elif name in numeric or (name not in categorical and not any(isinstance(c, (str, bool)) for c in known)):
                numbers[name] = _quantiles(_numbers(name, cells))
            else:
                counts = Counter(_category(name, cell) for cell in known)
                categories[name] = tuple(sorted(value for value, count in counts.items() if count >= fewest))
        if not numbers and not categories:
            raise DataError(f"None of the {len(names)} columns of {len(rows)} rows has a value to learn from")
        return cls(numbers, categories, left_out)

    def encode(self, rows: Sequence[Row], noticed: Counter[str] | None = None) -> tuple[Tensor, Tensor]:
        """Numbers [B, N] float64, NaN where missing, and codes [B, C] int64, 0 where missing or unknown.

        `noticed` counts categories that training never saw, and rows that lack a column or have one nobody reads.

        Raises:
            DataError: for an infinite number, a text in a numeric column that is no number, or a cell of many values.
        """
        seen: Counter[str] = Counter() if noticed is None else noticed
        numbers = torch.full((len(rows), len(self.numeric)), torch.nan, dtype=torch.float64)
        codes = torch.zeros((len(rows), len(self.categorical)), dtype=torch.long)
        for place, name in enumerate(self.numeric):
            numbers[:, place] = torch.from_numpy(_numbers(name, [row.get(name) for row in rows]))
        for place, (name, categories) in enumerate(self.categorical.items()):
            code = {category: number for number, category in enumerate(categories, start=1)}
            cells = [row.get(name) for row in rows]
            texts = [None if _missing(cell) else _category(name, cell) for cell in cells]
            found = [UNKNOWN if text is None else code.get(text, UNKNOWN) for text in texts]
            codes[:, place] = torch.tensor(found, dtype=torch.long)
            if unknown := sum(text is not None and not value for text, value in zip(texts, found, strict=True)):
                seen[f"unknown category in column {name}"] += unknown
        self._notice_columns(rows, seen)
        return numbers, codes

    def _notice_columns(self, rows: Sequence[Row], noticed: Counter[str]) -> None:
        """Counts rows that lack a column, or hold one that training did not have."""
        read = {**self.numeric, **self.categorical}.keys()
        for row in rows:
            if row.keys() == read:
                continue
            for name in sorted(read - row.keys()):
                noticed[f"no column {name}"] += 1
            for name in sorted(row.keys() - read - self.left_out.keys()):
                noticed[f"unread column {name}"] += 1

    def to_json(self) -> dict[str, Any]:
        """Plain lists and mappings; `from_json` reads them back."""
        return {
            "numeric": {name: list(quantiles) for name, quantiles in self.numeric.items()},
            "categorical": {name: list(categories) for name, categories in self.categorical.items()},
            "left_out": dict(self.left_out),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Columns:
        """The columns that `to_json` wrote."""
        return cls(
            numeric={name: tuple(quantiles) for name, quantiles in fields["numeric"].items()},
            categorical={name: tuple(categories) for name, categories in fields["categorical"].items()},
            left_out=dict(fields["left_out"]),
        )


def _check_declared(names: Sequence[str], declared: Mapping[str, Sequence[str]]) -> None:
    """Every declared column exists, and is declared once."""
    seen: dict[str, str] = {}
    for role, columns in declared.items():
        for name in columns:
            if name not in names:
                raise DataError(f"{role} names column {name!r}, which is none of the {len(names)}: {', '.join(names)}")
            if name in seen:
                raise DataError(f"Column {name!r} is declared twice, as {seen[name]} and {role}; keep one")
            seen[name] = role


def _missing(cell: Any) -> bool:
    """Whether a cell holds no value: None, NaN or an empty text."""
    return cell is None or cell == "" or (isinstance(cell, (float, np.floating)) and math.isnan(cell))


def _category(name: str, cell: Any) -> str:
    """One text per category: 3, 3.0 and "3" are the same."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, (bool, np.bool_)):
        return "true" if cell else "false"
    if isinstance(cell, (int, float, np.integer, np.floating)):
        number = float(cell)
        if not math.isfinite(number):
            raise DataError(f"Column {name!r} holds {cell}; a category is a text or a finite number")
        return str(int(number)) if number.is_integer() else repr(number)
    raise DataError(f"Column {name!r} holds a {type(cell).__name__}; a cell is a number, a text or None")


def _numbers(name: str, cells: Sequence[Any]) -> np.ndarray:  # [B] float64
    """A column as numbers, NaN where missing."""
    try:
        found = np.array([math.nan if cell is None or cell == "" else cell for cell in cells], dtype=np.float64)
        if found.ndim > 1:  # lists, all of one length
            raise ValueError(name)
    except (ValueError, TypeError, OverflowError):
        found = np.array([_number(name, row, cell) for row, cell in enumerate(cells, start=1)], dtype=np.float64)
    if len(infinite := np.isinf(found).nonzero()[0]):
        raise DataError(
            f"Column {name!r} is infinite in {len(infinite)} of {len(cells)} rows, first row {infinite[0] + 1}; "
            "write a finite number, or leave the cell empty where none is known"
        )
    return found


def _number(name: str, row: int, cell: Any) -> float:
    """One cell, named where it is no number."""
    if _missing(cell):
        return math.nan
    if not isinstance(cell, (str, bool, int, float, np.number)):
        raise DataError(f"Column {name!r} holds a {type(cell).__name__} in row {row}; a cell is one number, or None")
    try:
        return float(cell)
    except OverflowError:
        return math.inf
    except ValueError:
        raise DataError(
            f"Column {name!r} is numeric but holds {cell!r} in row {row}; write a number, leave it empty, or declare "
            "the column categorical"
        ) from None


def _quantiles(values: np.ndarray) -> tuple[float, ...]:
    """The distinct known values, rising, or their quantiles where they are many; two at least, so there is a width."""
    knots = np.unique(values[~np.isnan(values)])
    if len(knots) > KNOTS:
        knots = np.unique(np.quantile(values[~np.isnan(values)], np.linspace(0, 1, KNOTS)))
    if len(knots) == 1:  # a constant: any width does
        knots = np.array([knots[0], knots[0] + max(1.0, abs(knots[0]))])
    return tuple(float(knot) for knot in knots)
