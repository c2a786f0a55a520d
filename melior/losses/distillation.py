"""learning from a teacher's log-probs: at decisions the student sampled, or at the teacher's likeliest ones"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from melior.errors import ShapeError

ROUNDING = 16  # units in the last place: a rest of probability below this many is no more than rounding


def reverse_kl_loss(
    log_probs: Tensor,  # [B, T] nats, of samples of this policy
    teacher_log_probs: Tensor,  # [B, T] nats, of the same decisions
    *,
    discount: float = 0.0,
) -> Tensor:  # [B, T]
    """A term per decision whose value is log π - log teacher, and whose gradient pulls π towards the teacher.

    With `discount=1` every decision answers for the gaps from it on, and the expected gradient of the sum is that of
    KL(π ‖ teacher) of whole outputs. With 0 a decision answers for its own gap: the gradient of each decision's KL,
    what was decided before it taken as given, which is not the sum's and varies far less. Both are 0 where π is the
    teacher.

    Rows must be left-aligned; masked decisions must hold equal log-probs in both tensors (0 in melior).

    Raises:
        ShapeError: if the two differ in shape.

    Source: Agarwal et al. 2023, arXiv:2306.13649, §3; Gu et al. 2023, arXiv:2306.08543, eq. 2 and 4.
    """
    if log_probs.shape != teacher_log_probs.shape:
        shapes = f"{tuple(log_probs.shape)} and {tuple(teacher_log_probs.shape)}"
        raise ShapeError(f"log-probs of student and teacher must share one shape [B, T], got {shapes}")
    gap = log_probs.detach() - teacher_log_probs
    surrogate = log_probs * _to_go(gap, discount)
    return surrogate - surrogate.detach() + gap


def candidate_divergence(
    candidates: Tensor,  # [B, T, K] nats, the student's
    teacher: Tensor,  # [B, T, K] nats, of the same decisions; -inf where there is no candidate
    *,
    beta: float = 0.0,
    temperature: float = 1.0,
    remainder: bool = True,
) -> Tensor:  # [B, T]
    """How far student and teacher are apart on K candidates; 0 only where they agree on all of them.

    `beta=0` is KL(teacher ‖ student), 1 is KL(student ‖ teacher), and between them the generalised Jensen–Shannon
    divergence. What all other decisions share is one more candidate with `remainder`, which keeps this a divergence of
    two distributions; without it both are normalised over the candidates, and the student may give the others anything.
    A temperature flattens both, rest included, and the result is times its square, so that gradients keep their size.

    Raises:
        ShapeError: if the two differ in shape.

    Source: Agarwal et al. 2023, arXiv:2306.13649, eq. 1; temperature: Hinton et al. 2015, arXiv:1503.02531, §2.1.
    """
    if candidates.shape != teacher.shape:
        shapes = f"{tuple(candidates.shape)} and {tuple(teacher.shape)}"
        raise ShapeError(f"log-probs of student and teacher must share one shape [B, T, K], got {shapes}")
    known = torch.isfinite(teacher)
    some = known | ~known.any(-1, keepdim=True)  # nothing is no distribution; two that are all alike differ by 0
    student, teacher = (
        torch.log_softmax(_buckets(torch.where(known, side, 0.0), some, remainder) / temperature, -1)
        for side in (candidates, teacher)
    )
    there = ~torch.isneginf(teacher)
    student, teacher = torch.where(there, student, 0.0), torch.where(there, teacher, 0.0)
    if beta == 0:
        apart = _kl(teacher, student)
    elif beta == 1:
        apart = _kl(student, teacher)
    else:
        mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
        apart = beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)
    return apart * temperature**2


def _buckets(log_probs: Tensor, known: Tensor, remainder: bool) -> Tensor:  # [B, T, K] -> [B, T, K (+ 1)]
    """Log-probs of the candidates, those that are none at -inf, and of all else."""
    log_probs = log_probs.masked_fill(~known, -torch.inf)
    if not remainder:
        return log_probs
    rounding = ROUNDING * torch.finfo(log_probs.dtype).eps
    rest = (1 - log_probs.exp().sum(-1, keepdim=True)).clamp(min=rounding)
    return torch.cat([log_probs, rest.log()], dim=-1)


def _kl(first: Tensor, second: Tensor) -> Tensor:  # [..., K] each -> [...]
    """KL(first ‖ second); where both are alike nothing is added, whatever they say."""
    return (first.exp() * (first - second)).sum(-1)


def _to_go(values: Tensor, discount: float) -> Tensor:  # [B, T] -> [B, T]
    """Each place's value and, discounted, those behind it."""
    if discount == 0:
        return values
    result, behind = torch.empty_like(values), values.new_zeros(len(values))
    for place in reversed(range(values.shape[1])):
        behind = values[:, place] + discount * behind
        result[:, place] = behind
    return result
