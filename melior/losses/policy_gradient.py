"""learning from rewards: surrogates whose gradient is the policy gradient, and KL penalties whose gradient is KL's"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from melior.errors import ShapeError
from melior.masking import mean_decisions, select


def policy_gradient_loss(
    log_probs: Tensor,  # [B, T]
    advantages: Tensor,  # [B, T]
) -> Tensor:  # [B, T]
    """REINFORCE, one value per decision: with samples of the current policy its gradient is exact.

    Source: Williams 1992, doi:10.1007/BF00992696.
    """
    _same_shape(log_probs, advantages)
    return -log_probs * advantages


def truncated_importance_weights(
    log_probs: Tensor,  # [B, T], or [B] of whole outputs
    behavior_log_probs: Tensor,  # of the same shape, as recorded
    *,
    clip: float,
) -> Tensor:
    """How much likelier a decision (or an output) is now than when it was logged, at most `clip`; no gradient.

    Source: Ionides 2008, doi:10.1198/106186008X320456.
    """
    _same_shape(log_probs, behavior_log_probs)
    # Clamped before the exponential, which would overflow: a logarithm has no such limit.
    return (log_probs.detach() - behavior_log_probs).clamp(max=math.log(clip)).exp()


def bounded_importance_weights(
    log_probs: Tensor,  # [B, T], or [B] of whole outputs
    behavior_log_probs: Tensor,  # of the same shape, as recorded
    *,
    bound: float,
) -> Tensor:
    """How much likelier a decision (or an output) is than when it was sampled; 0 beyond [1 / bound, bound].

    What two computations disagree on this much is noise rather than evidence, so it has no say; no gradient.

    Source: Ling Team 2025, "Every step evolves", arXiv:2510.18855, §3.3 (IcePop), with one bound for both sides.
    """
    _same_shape(log_probs, behavior_log_probs)
    difference = log_probs.detach() - behavior_log_probs
    return torch.where(difference.abs() <= math.log(bound), difference.exp(), 0.0)


def truncated_importance_loss(
    log_probs: Tensor,  # [B, T], or [B] of whole outputs
    behavior_log_probs: Tensor,  # of the same shape, as recorded
    advantages: Tensor,  # of the same shape
    *,
    clip: float,
) -> Tensor:
    """The policy gradient of logged outputs: each weighs what it would now be sampled, but at most `clip`.

    Given whole outputs, its expected gradient under the logging policy is that of the mean reward wherever no weight
    is cut off. Given decisions, each is weighed alone: less variance, and right only while what precedes a decision is
    about as likely as it was.

    Source: Ionides 2008; Espeholt et al. 2018, arXiv:1802.01561, §4.2 (ρ̄).
    """
    weights = truncated_importance_weights(log_probs, behavior_log_probs, clip=clip)
    return policy_gradient_loss(log_probs, weights * advantages)


def clipped_surrogate_loss(
    log_probs: Tensor,  # [B, T]
    old_log_probs: Tensor,  # [B, T]
    advantages: Tensor,  # [B, T]
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Tensor:  # [B, T]
    """PPO's clipped surrogate, one value per decision; minimise its masked mean.

    `clip_high > clip_low` is DAPO's clip-higher. Where `log_probs == old_log_probs` the gradient is that of
    `policy_gradient_loss`.

    Raises:
        ShapeError: if the three tensors differ in shape.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7; Yu et al. 2025, arXiv:2503.14476, eq. 8.
    """
    _same_shape(log_probs, old_log_probs, advantages)
    ratio = torch.exp(log_probs - old_log_probs)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def sequence_surrogate_loss(
    log_probs: Tensor,  # [B, T]
    old_log_probs: Tensor,  # [B, T]
    advantages: Tensor,  # [B]
    mask: Tensor,  # [B, T] bool
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> Tensor:  # [B, T]
    """GSPO's clipped surrogate, each output's told at every one of its decisions.

    An output has one ratio, the geometric mean of its decisions', and is clipped as a whole. The mean over decisions,
    then over outputs, is the paper's; the defaults are its bounds, since a mean's logarithm moves little.

    Raises:
        ShapeError: if shapes differ.

    Source: Zheng et al. 2025, arXiv:2507.18071, eqs. 5 and 7.
    """
    _same_shape(log_probs, old_log_probs, mask)
    means = mean_decisions(log_probs, mask), mean_decisions(old_log_probs, mask)
    losses = clipped_surrogate_loss(*means, advantages, clip_low=clip_low, clip_high=clip_high)
    return select(losses[:, None].expand(mask.shape), mask)


def cispo_loss(
    log_probs: Tensor,  # [B, T]
    old_log_probs: Tensor,  # [B, T]
    advantages: Tensor,  # [B, T]
    *,
    clip_low: float = 1.0,
    clip_high: float = 4.0,
) -> Tensor:  # [B, T]
    """REINFORCE with each decision's ratio as a clipped weight: what is clipped still learns, unlike in PPO.

    `clip_low=1` is no lower bound, as in the paper, which says nothing of the upper one; a largest weight of 5 is that
    of Khatri et al.

    Raises:
        ShapeError: if the three tensors differ in shape.

    Source: MiniMax 2025, arXiv:2506.13585, eqs. 4 and 5; Khatri et al. 2025, arXiv:2510.13786.
    """
    _same_shape(log_probs, old_log_probs, advantages)
    weights = torch.exp(log_probs.detach() - old_log_probs).clamp(1 - clip_low, 1 + clip_high)
    return policy_gradient_loss(log_probs, weights * advantages)


def kl_penalty(
    log_probs: Tensor,  # [B, T] of samples of the current policy
    ref_log_probs: Tensor,  # [B, T]
) -> Tensor:  # [B, T]
    """A term per decision whose value is k1, log π - log π_ref, and whose expected gradient is that of KL(π ‖ π_ref).

    For samples of the current policy, E[∇ log π (log π - log π_ref)] = ∇KL when each row's sum of differences is
    credited to all its decisions. This function takes the row's sum from each decision on (reward-to-go form), which
    has the same expectation and less variance. The plain difference as a loss (k1) has zero-mean gradient, and k3 as a
    loss has another fixed direction: neither is the KL's.

    Rows must be left-aligned; masked decisions must hold equal log-probs in both tensors (0 in melior).

    Source: Schulman 2020, "Approximating KL divergence"; the gradient: Tang & Munos 2025, arXiv:2506.09477, §3.
    """
    _same_shape(log_probs, ref_log_probs)
    difference = (log_probs - ref_log_probs).detach()
    to_go = difference.flip(-1).cumsum(-1).flip(-1)
    surrogate = log_probs * to_go
    return surrogate - surrogate.detach() + difference


def overlong_penalty(
    lengths: Tensor,  # [B] decisions
    *,
    limit: int,
    margin: int,
) -> Tensor:  # [B]
    """DAPO's soft penalty, 0 up to `limit - margin` decisions, then falling linearly to -1 at `limit` and beyond.

    Source: Yu et al. 2025, arXiv:2503.14476, eq. 13.
    """
    over = (lengths.double() - (limit - margin)) / max(margin, 1)
    return -over.clamp(0.0, 1.0)


def _same_shape(*tensors: Tensor) -> None:
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise ShapeError(f"log-probs and advantages must share one shape [B, T], got {sorted(shapes)}")
