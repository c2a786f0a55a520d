"""select, sum and mean over decisions: the only reductions

A mask selects, it never multiplies: a masked entry may hold -inf or NaN and must leave no trace, in the value or in
the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
