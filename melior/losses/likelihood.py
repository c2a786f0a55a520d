"""learning by demonstration"""

from __future__ import annotations

import torch
from torch import Tensor


def nll_loss(
    log_probs: Tensor,  # [B, T] nats
    weights: Tensor,  # [B, T]
) -> Tensor:  # [B, T]
    """Weighted negative log-likelihood, one value per decision; minimise its sum over the sum of the weights."""
    return -log_probs * weights


def smoothed_nll_loss(
    log_probs: Tensor,  # [B, T] nats
    candidates: Tensor,  # [B, T, K] nats, -inf where a candidate may not be decided
    weights: Tensor,  # [B, T]
    *,
    smoothing: float,
) -> Tensor:  # [B, T]
    """`nll_loss` with a share of the target spread evenly over everything that could have been decided.

    Source: Szegedy et al. 2016, arXiv:1512.00567, §7.
    """
    allowed = torch.isfinite(candidates)
    # Where nothing may be decided (behind a row's last decision) the mean is 0.
    even = torch.where(allowed, candidates, 0.0).sum(-1) / allowed.sum(-1).clamp(min=1)
    return -((1 - smoothing) * log_probs + smoothing * even) * weights
