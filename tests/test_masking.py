"""a masked entry leaves no trace, in the value or in the gradient"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from melior.errors import ShapeError
from melior.masking import count_decisions, mean_decisions, padded, select, sum_decisions

rows = st.integers(1, 5).flatmap(
    lambda width: st.lists(
        st.lists(st.tuples(st.floats(-9, 9), st.booleans()), min_size=width, max_size=width), min_size=1
    )
)


def tensors(table: list[list[tuple[float, bool]]]) -> tuple[Tensor, Tensor]:
    values = torch.tensor([[value for value, _ in row] for row in table], dtype=torch.float64)
    return values, torch.tensor([[kept for _, kept in row] for row in table])


@given(rows)
def test_sum_and_mean_are_those_of_the_chosen(table: list[list[tuple[float, bool]]]) -> None:
    values, mask = tensors(table)
    for row, total, mean in zip(table, sum_decisions(values, mask), mean_decisions(values, mask), strict=True):
        chosen = [value for value, kept in row if kept]
        assert float(total) == pytest.approx(math.fsum(chosen), abs=1e-9)
        assert float(mean) == pytest.approx(math.fsum(chosen) / max(1, len(chosen)), abs=1e-9)
    assert int(count_decisions(mask)) == sum(kept for row in table for _, kept in row)


@pytest.mark.parametrize("reduce", [select, sum_decisions, mean_decisions])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_what_is_masked_leaves_no_trace(reduce: object, poison: float) -> None:
    clean = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    results = []
    for filling in (0.0, poison):
        values = clean.masked_fill(~mask, filling).requires_grad_()
        total = reduce(values, mask).sum()  # type: ignore[operator]
        (gradient,) = torch.autograd.grad(total, [values])
        results.append((total.detach(), gradient))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert bool(results[1][1][~mask].eq(0).all())


def test_a_masked_logarithm_of_zero_has_a_zero_gradient() -> None:
    """The classic leak: 0 times the infinite slope of a masked log is NaN."""
    inputs = torch.tensor([[0.5, 0.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        sum_decisions(
            torch.log(select(inputs, torch.tensor([[True, False]]), fill=1.0)), torch.tensor([[True, False]])
        ).sum(),
        [inputs],
    )
    assert gradient.tolist() == [[2.0, 0.0]]


def test_extra_padding_columns_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 6, generator=generator) < 0.5
    wider = torch.nn.functional.pad(values, (0, 3), value=math.nan)
    covered = torch.nn.functional.pad(mask, (0, 3))
    assert (mean_decisions(values, mask) - mean_decisions(wider, covered)).abs().max() <= 1e-15


def test_the_fill_stands_where_nothing_was_chosen() -> None:
    assert select(torch.tensor([[1.0, 2.0]]), torch.tensor([[True, False]]), fill=-7.0).tolist() == [[1.0, -7.0]]


def test_rows_of_several_lengths_are_padded_with_zeros_or_refused() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    assert padded([(1.0, 2.0), [3.0], ()], mask).tolist() == [[1, 2, 0], [3, 0, 0], [0, 0, 0]]
    with pytest.raises(ShapeError, match="row 1 of 3 has 2 values for 1 decisions"):
        padded([(1.0, 2.0), (3.0, 4.0), ()], mask)
    with pytest.raises(ShapeError, match="2 rows"):
        padded([(1.0, 2.0), (3.0,)], mask)
