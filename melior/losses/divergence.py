"""how far two policies are apart: estimates for reports, and the weight that holds them together

Where the estimate is to be minimised, `policy_gradient.kl_penalty` has the right gradient; these have not.
"""

from __future__ import annotations

import torch
from torch import Tensor

RATE = 0.1  # K_β of arXiv:1909.08593, §2.2
LARGEST_ERROR = 0.2  # of the same: one step changes the weight by at most 2 %


def kl_k1(
    log_probs: Tensor,  # [B, T] of samples of this policy
    ref_log_probs: Tensor,  # [B, T]
) -> Tensor:  # [B, T]
    """log π - log π_ref of each decision: in expectation KL(π ‖ π_ref), of any sign.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    return log_probs - ref_log_probs


def kl_k2(
    log_probs: Tensor,  # [B, T] of samples of this policy
    ref_log_probs: Tensor,  # [B, T]
) -> Tensor:  # [B, T]
    """Half the square of k1: not negative, little variance, and the KL divergence only where policies are near.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    return (log_probs - ref_log_probs).square() / 2


def kl_k3(
    log_probs: Tensor,  # [B, T] of samples of this policy
    ref_log_probs: Tensor,  # [B, T]
) -> Tensor:  # [B, T]
    """k1 and what has expectation 0 beside it: not negative, and in expectation KL(π ‖ π_ref).

    Source: Schulman 2020, "Approximating KL divergence".
    """
    return torch.expm1(ref_log_probs - log_probs) - (ref_log_probs - log_probs)


def adaptive_beta(
    beta: float,
    kl: float,  # nats per output, as measured
    *,
    target: float,  # nats per output
) -> float:
    """The next weight of the KL penalty: larger where the policy is further away than `target`, and smaller if nearer.

    Source: Ziegler et al. 2019, arXiv:1909.08593, §2.2.
    """
    error = min(max(kl / target - 1, -LARGEST_ERROR), LARGEST_ERROR)
    return beta * (1 + RATE * error)
