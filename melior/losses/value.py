"""learning what is to be expected: squared errors of a value function"""

from __future__ import annotations

import torch
from torch import Tensor

from melior.errors import ShapeError


def value_loss(
    values: Tensor,  # [B, T]
    returns: Tensor,  # [B, T]
) -> Tensor:  # [B, T]
    """Half the squared error of each value; minimise its masked mean.

    Raises:
        ShapeError: if the two differ in shape.
    """
    _same_shape(values, returns)
    return (values - returns).square() / 2


def clipped_value_loss(
    values: Tensor,  # [B, T]
    returns: Tensor,  # [B, T]
    old_values: Tensor,  # [B, T] at the start of the update
    *,
    clip: float,
) -> Tensor:  # [B, T]
    """`value_loss`, or that of the value at most `clip` away from the old one, whichever is larger.

    A value that has gone further than `clip` towards its return has no gradient left. At the old values it is
    `value_loss`.

    Raises:
        ShapeError: if the three tensors differ in shape.

    Source: Schulman et al. 2017, arXiv:1707.06347 (its implementation, PPO2); Huang et al. 2022, "The 37
    implementation details of proximal policy optimization", no. 9.
    """
    _same_shape(values, returns, old_values)
    near = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum(value_loss(values, returns), value_loss(near, returns))


def explained_variance(
    values: Tensor,  # [B, T]
    returns: Tensor,  # [B, T]
    mask: Tensor,  # [B, T] bool
) -> float:
    """The share of the returns' variance that values explain: 1 at best, 0 for a constant, less if misleading.

    NaN where the returns do not vary.
    """
    errors, found = (returns - values)[mask], returns[mask]
    spread = float(found.var(unbiased=False)) if len(found) else float("nan")
    return 1 - float(errors.var(unbiased=False)) / spread if spread > 0 else float("nan")


def _same_shape(*tensors: Tensor) -> None:
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise ShapeError(f"values and returns must share one shape [B, T], got {sorted(shapes)}")
