"""laws of reading a table: what is decided from the rows, what is missing, unknown, refused"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from melior.errors import DataError
from melior.policies.columns import KNOTS, UNKNOWN, Columns

ROWS: list[dict[str, Any]] = [
    {"age": 30, "purpose": "car", "owner": True, "income": None},
    {"age": 41.5, "purpose": "radio", "owner": False, "income": 2000},
    {"age": None, "purpose": None, "owner": True, "income": 3000},
]


def test_columns_of_numbers_are_numeric_and_columns_with_texts_or_truth_values_are_categories() -> None:
    columns = Columns.of(ROWS)
    assert list(columns.numeric) == ["age", "income"]
    assert dict(columns.categorical) == {"purpose": ("car", "radio"), "owner": ("false", "true")}
    mixed = Columns.of([{"code": 3}, {"code": "B"}, {"code": 3.0}])
    assert dict(mixed.categorical) == {"code": ("3", "B")}


def test_declared_columns_are_read_as_declared() -> None:
    rows = [{"branch": 101, "amount": "12.5", "id": 7}, {"branch": 102, "amount": "", "id": 8}]
    columns = Columns.of(rows, categorical=["branch"], numeric=["amount"], drop=["id"])
    assert dict(columns.categorical) == {"branch": ("101", "102")}
    assert dict(columns.left_out) == {"id": "dropped"}
    numbers, codes = columns.encode(rows)
    assert numbers[0].item() == 12.5 and math.isnan(numbers[1].item())
    assert codes[:, 0].tolist() == [1, 2]


@pytest.mark.parametrize(
    "declared, message",
    [
        ({"categorical": ["agee"]}, "agee"),
        ({"numeric": ["age"], "drop": ["age"]}, "declared twice"),
        ({"numeric": ["purpose"]}, "'car' in row 1"),
        ({"drop": ["age", "purpose", "owner", "income"]}, "None of the 4 columns"),
    ],
)
def test_a_wrong_declaration_is_an_error_that_names_the_column(declared: dict[str, list[str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Columns.of(ROWS, **declared)


def test_a_column_without_a_value_is_left_out_and_says_so() -> None:
    columns = Columns.of([{"age": 1, "note": None}, {"age": 2, "note": math.nan}])
    assert dict(columns.left_out) == {"note": "without a value"}
    assert columns.encode([{"age": 1, "note": "late"}], seen := Counter())[0].tolist() == [[1.0]] and not seen


def test_missing_is_nan_or_code_zero_and_an_unseen_category_is_counted() -> None:
    columns, noticed = Columns.of(ROWS), Counter[str]()
    row = {"age": math.nan, "purpose": "boat", "owner": None, "income": ""}
    numbers, codes = columns.encode([*ROWS, row, row], noticed)
    assert torch.isnan(numbers).tolist() == [[False, True], [False, False], [True, False], [True, True], [True, True]]
    assert codes.tolist() == [[1, 2], [2, 1], [0, 2], [UNKNOWN, 0], [UNKNOWN, 0]]
    assert noticed == {"unknown category in column purpose": 2}


def test_absent_and_unread_columns_are_counted() -> None:
    noticed = Counter[str]()
    Columns.of(ROWS).encode([{"age": 1, "purpose": "car", "owner": True, "incomes": 3}], noticed)
    assert noticed == {"no column income": 1, "unread column incomes": 1}


def test_rare_categories_count_as_unknown() -> None:
    rows = [{"shop": name} for name in "aaabbc"]
    columns = Columns.of(rows, fewest=2)
    assert dict(columns.categorical) == {"shop": ("a", "b")}
    assert columns.encode(rows)[1][:, 0].tolist() == [1, 1, 1, 2, 2, UNKNOWN]


@pytest.mark.parametrize("infinite", [math.inf, -math.inf, "inf", 10**400, np.float64("inf")])
def test_an_infinite_number_is_an_error_that_names_column_and_row(infinite: Any) -> None:
    with pytest.raises(DataError, match=r"'age' is infinite in 1 of 2 rows, first row 2"):
        Columns.of(ROWS).encode([ROWS[0], {**ROWS[0], "age": infinite}])


@pytest.mark.parametrize("cell", [[1, 2], {"a": 1}, object()])
@pytest.mark.parametrize("column", ["age", "purpose"])
def test_a_cell_of_many_values_is_an_error_that_names_the_column(column: str, cell: Any) -> None:
    with pytest.raises(DataError, match=column):
        Columns.of(ROWS).encode([{**ROWS[0], column: cell}])


def test_a_text_in_a_numeric_column_is_read_where_it_is_a_number() -> None:
    columns = Columns.of(ROWS)
    assert columns.encode([{**ROWS[0], "age": " 35 "}])[0][0, 0] == 35
    with pytest.raises(DataError, match="'age' is numeric but holds 'old' in row 1"):
        columns.encode([{**ROWS[0], "age": "old"}])


def test_no_rows_are_no_rows() -> None:
    numbers, codes = Columns.of(ROWS).encode([])
    assert numbers.shape == (0, 2) and codes.shape == (0, 2)


cells = st.one_of(st.none(), st.integers(-1000, 1000), st.floats(-1e6, 1e6), st.text(max_size=4), st.booleans())


@given(st.lists(st.fixed_dictionaries({"a": cells, "b": cells, "c": st.integers()}), min_size=1, max_size=12))
def test_columns_survive_json_and_encode_row_by_row(rows: list[dict[str, Any]]) -> None:
    columns = Columns.of(rows)
    again = Columns.from_json(json.loads(json.dumps(columns.to_json())))
    assert again == columns
    noticed = Counter[str]()
    numbers, codes = again.encode(rows, noticed)
    assert not noticed  # nothing of the training rows is unknown
    alone = [columns.encode([row]) for row in rows]
    assert torch.equal(codes, torch.cat([part for _, part in alone]))
    torch.testing.assert_close(numbers, torch.cat([part for part, _ in alone]), rtol=0, atol=0, equal_nan=True)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=200))
def test_quantiles_rise_and_reach_from_the_least_value_to_the_greatest(values: list[float]) -> None:
    (quantiles,) = Columns.of([{"x": value} for value in values]).numeric.values()
    assert 2 <= len(quantiles) <= KNOTS
    assert all(low < high for low, high in itertools.pairwise(quantiles))
    assert quantiles[0] == min(values)
    assert quantiles[-1] == max(values) or min(values) == max(values)
