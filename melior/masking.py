"""select, sum and mean over decisions: the only reductions

A mask selects, it never multiplies: a masked entry may hold -inf or NaN and must leave no trace, in the value or in
the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from melior.errors import ShapeError


def select(
    values: Tensor,  # [B, T]
    mask: Tensor,  # [B, T] bool
    fill: float = 0.0,
) -> Tensor:  # [B, T]
    """The values where the mask is True, `fill` elsewhere; what was not selected gets a gradient of exactly 0.

    Select before a function that may overflow, not behind it: 0 times the infinite slope of `exp` is NaN.
    """
    return torch.where(mask, values, fill)


def sum_decisions(
    values: Tensor,  # [B, T]
    mask: Tensor,  # [B, T] bool
) -> Tensor:  # [B]
    """The sum over each row's decisions: with log-probs, the log-probability of the whole output."""
    return select(values, mask).sum(dim=-1)


def mean_decisions(
    values: Tensor,  # [B, T]
    mask: Tensor,  # [B, T] bool
) -> Tensor:  # [B]
    """The mean over each row's decisions, 0 for a row without any."""
    return sum_decisions(values, mask) / mask.sum(dim=-1).clamp(min=1)


def count_decisions(mask: Tensor) -> Tensor:  # [B, T] bool -> []
    """How many decisions a batch holds."""
    return mask.sum()


def padded(
    rows: Sequence[Sequence[float]],  # one value per decision of each row
    mask: Tensor,  # [B, T] bool
) -> Tensor:  # [B, T] float64
    """Values of rows of several lengths as a column of a batch, 0 behind a row's last decision.

    Raises:
        ShapeError: if a row has another number of values than of decisions.
    """
    lengths = mask.sum(1).tolist()
    if [len(row) for row in rows] != lengths:
        odd = next((row for row, (given, due) in enumerate(zip(rows, lengths)) if len(given) != due), len(rows))
        told = f"{len(rows[odd])} values for {lengths[odd]} decisions" if odd < len(rows) else f"{len(rows)} rows"
        raise ShapeError(f"row {odd} of {len(lengths)} has {told}; give one value per decision")
    column = torch.zeros(mask.shape, dtype=torch.float64)
    column[mask.cpu()] = torch.tensor([value for row in rows for value in row], dtype=torch.float64)
    return column
