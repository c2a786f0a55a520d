"""learning by demonstration"""

from __future__ import annotations

from torch import Tensor


def nll_loss(
    log_probs: Tensor,  # [B, T] nats
    weights: Tensor,  # [B, T]
) -> Tensor:  # [B, T]
    """Weighted negative log-likelihood, one value per decision; minimise its sum over the sum of the weights."""
    return -log_probs * weights
