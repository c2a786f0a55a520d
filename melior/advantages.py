"""how much better than expected: group_relative, leave_one_out, whiten, gae

The first two see one reward per output and the group it belongs to; a row whose reward is NaN is one that no grader
could score: it gets advantage 0 and counts in nobody's mean. `gae` sees a reward and a value at every decision.
"""

from __future__ import annotations

import torch
from torch import Tensor

from melior.masking import select


def group_relative(
    rewards: Tensor,  # [B], NaN where excluded
    groups: Tensor,  # [B] int
    *,
    divide_by_std: bool = False,
    epsilon: float = 1e-4,
) -> Tensor:  # [B]
    """Reward minus the mean of its group; with `divide_by_std`, over the group's sample standard deviation.

    Dividing (GRPO) gives groups of nearly equal rewards as much say as informative ones; not dividing is Dr.GRPO, the
    default. A group of one, or of equal rewards, has advantage exactly 0.

    Source: Shao et al. 2024, arXiv:2402.03300, §4.1.2; Liu et al. 2025, arXiv:2503.20783, eq. 3.
    """
    valid, index, counts = _groups(rewards, groups)
    mean = _group_sum(rewards, valid, index, counts) / counts  # NaN where nothing is valid, and nobody reads it
    centred = torch.where(valid, rewards - mean[index], 0.0)
    centred = torch.where(_constant(rewards, valid, index, counts)[index], 0.0, centred)
    if not divide_by_std:
        return centred
    variance = _group_sum(centred**2, valid, index, counts) / (counts - 1).clamp(min=1)
    return centred / (variance.sqrt()[index] + epsilon)


def leave_one_out(
    rewards: Tensor,  # [B], NaN where excluded
    groups: Tensor,  # [B] int
) -> Tensor:  # [B]
    """Reward minus the mean of the others in its group: an unbiased baseline.

    Source: Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740, eq. 6.
    """
    _valid, index, counts = _groups(rewards, groups)
    size = counts[index]
    return group_relative(rewards, groups) * size / (size - 1).clamp(min=1)


def whiten(
    values: Tensor,  # of any shape
    mask: Tensor | None = None,  # of the same shape, bool
    *,
    centre: bool = True,
    epsilon: float = 1e-8,
) -> Tensor:
    """Values shifted to mean 0 and scaled to standard deviation 1; all equal gives 0; unselected entries are 0.

    Without `centre` they are scaled alone: signs stay, and so do values that are all equal.
    """
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    chosen = values[mask]
    result = torch.zeros_like(values)
    if bool((chosen != chosen[:1]).any()):
        centred = chosen - chosen.mean()
        result[mask] = (centred if centre else chosen) / (centred.square().mean().sqrt() + epsilon)
    elif not centre:
        result[mask] = chosen
    return result


def gae(
    rewards: Tensor,  # [B, T]
    values: Tensor,  # [B, T + 1], a row's value behind its last of n decisions at n
    mask: Tensor,  # [B, T] bool, True in the first n columns of a row
    truncated: Tensor,  # [B] bool, cut short: what would have come is worth its last value; else nothing comes
    *,
    discount: float = 1.0,
    trace: float = 0.95,
) -> Tensor:  # [B, T]
    """Generalised advantages, 0 where the mask is False; with the values they add up to returns.

    `trace` is λ: 0 believes the next value, 1 only the rewards (and, where truncated, the last value).

    Source: Schulman et al. 2015, arXiv:1506.02438, eq. 16; truncation: Pardo et al. 2017, arXiv:1712.00378.
    """
    lengths = mask.sum(1, keepdim=True)
    places = torch.arange(values.shape[1], device=mask.device)
    known = (places < lengths) | ((places == lengths) & truncated[:, None])
    values = select(values, known)
    errors = select(rewards + discount * values[:, 1:] - values[:, :-1], mask)
    result, behind = torch.empty_like(errors), errors.new_zeros(len(errors))
    for place in reversed(range(errors.shape[1])):
        behind = errors[:, place] + discount * trace * behind
        result[:, place] = behind
    return result


def informative(
    rewards: Tensor,  # [B], NaN where excluded
    groups: Tensor,  # [B] int
) -> Tensor:  # [B] bool
    """Which rows belong to a group whose rewards differ: the others have no gradient.

    Source: dynamic sampling keeps only these, Yu et al. 2025, arXiv:2503.14476, eq. 11.
    """
    valid, index, counts = _groups(rewards, groups)
    return valid & ~_constant(rewards, valid, index, counts)[index]


def _groups(rewards: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(valid [B] bool, index [B] into groups, counts [n_groups] of valid rows)."""
    valid = ~torch.isnan(rewards)
    names, index = torch.unique(groups, return_inverse=True)
    counts = rewards.new_zeros(len(names)).index_add_(0, index, valid.to(rewards.dtype))
    return valid, index, counts


def _group_sum(values: Tensor, valid: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    return torch.zeros_like(counts).index_add_(0, index, torch.where(valid, values, 0.0))


def _constant(rewards: Tensor, valid: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    """Which groups hold one reward only; compared exactly, since a mean of equal floats need not equal them."""
    high = torch.full_like(counts, -torch.inf).scatter_reduce_(
        0, index, torch.where(valid, rewards, -torch.inf), "amax"
    )
    low = torch.full_like(counts, torch.inf).scatter_reduce_(0, index, torch.where(valid, rewards, torch.inf), "amin")
    return ~(high > low)
