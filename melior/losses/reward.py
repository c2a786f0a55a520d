"""learning rewards: from pairs, from ratings on a scale, from yes and no, from ordered grades"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from melior.errors import ShapeError


def bradley_terry_loss(
    chosen: Tensor,  # [P] reward of each pair's chosen output
    rejected: Tensor,  # [P]
    *,
    probability: Tensor | float = 1.0,  # [P] that people prefer the chosen one; a tie is 0.5
    margin: Tensor | float = 0.0,  # [P] by which the chosen reward should exceed the rejected
) -> Tensor:  # [P]
    """Cross-entropy of preferences with a Bradley–Terry model of the rewards; minimise its mean. ln 2 for equal ones.

    Raises:
        ShapeError: if the two rewards differ in shape.

    Source: Bradley and Terry 1952, doi:10.2307/2334029; Christiano et al. 2017, arXiv:1706.03741, eq. 1; margin:
    Touvron et al. 2023, arXiv:2307.09288, eq. 2.
    """
    _same_shape(chosen, rejected)
    odds = chosen - rejected - margin
    return -(probability * logsigmoid(odds) + (1 - probability) * logsigmoid(-odds))


def centring_loss(
    chosen: Tensor,  # [P]
    rejected: Tensor,  # [P]
) -> Tensor:  # [P]
    """The squared sum of a pair's rewards, which preferences leave free; with a small weight it keeps them near 0.

    Raises:
        ShapeError: if the two rewards differ in shape.

    Source: Eisenstein et al. 2023, arXiv:2312.09244, §2 (regularised reward model).
    """
    _same_shape(chosen, rejected)
    return (chosen + rejected) ** 2


def squared_error_loss(
    values: Tensor,  # [B]
    ratings: Tensor,  # [B], in the unit of the values
) -> Tensor:  # [B]
    """Half the squared difference; minimise its mean, and a value is the mean rating.

    Raises:
        ShapeError: if the two differ in shape.

    Source: Gauss 1809, Theoria motus, §§ 175–179 (least squares).
    """
    _same_shape(values, ratings)
    return (values - ratings) ** 2 / 2


def logistic_loss(
    values: Tensor,  # [B] log-odds that an output is good
    ratings: Tensor,  # [B] 1 for good, 0 for bad, or the share of people who call it good
) -> Tensor:  # [B]
    """Cross-entropy of good and bad with the values' sigmoid; minimise its mean.

    Raises:
        ShapeError: if the two differ in shape.

    Source: Cox 1958, doi:10.1111/j.2517-6161.1958.tb00292.x.
    """
    _same_shape(values, ratings)
    return -(ratings * logsigmoid(values) + (1 - ratings) * logsigmoid(-values))


def ordinal_log_probs(
    values: Tensor,  # [..]
    thresholds: Tensor,  # [.., K - 1] rising along the last dimension
) -> Tensor:  # [.., K] nats
    """Log-probs of K ordered grades: the grade is at most k with the log-odds `thresholds[k] - value`.

    Minimise the negative log-prob of the grade that was given. Moving all thresholds and values alike changes nothing.

    Source: McCullagh 1980, doi:10.1111/j.2517-6161.1980.tb01109.x, §2 (proportional odds).
    """
    odds = thresholds - values[..., None]
    below, above = odds[..., :1], odds[..., -1:]
    # log(sigmoid(a) - sigmoid(b)) for a > b, without the difference of two numbers near 1
    gaps = torch.log(-torch.expm1(odds[..., :-1] - odds[..., 1:]))
    between = logsigmoid(odds[..., 1:]) + logsigmoid(-odds[..., :-1]) + gaps
    return torch.cat([logsigmoid(below), between, logsigmoid(-above)], -1)


def _same_shape(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ShapeError(f"Two tensors must share one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
