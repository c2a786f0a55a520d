"""learning from preferences between two outputs of one input"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from melior.errors import ShapeError


def dpo_loss(
    chosen: Tensor,  # [P] nats, log-prob of each pair's chosen output
    rejected: Tensor,  # [P]
    ref_chosen: Tensor,  # [P] the same under the reference
    ref_rejected: Tensor,  # [P]
    *,
    beta: float = 0.1,
    probability: Tensor | float = 1.0,  # [P] that people prefer the chosen one; a tie is 0.5
    margin: Tensor | float = 0.0,  # [P] by which the chosen reward should exceed the rejected
) -> Tensor:  # [P]
    """Direct preference optimisation, one value per pair; minimise its mean. ln 2 where policy and reference agree.

    The reward is implicit, beta × log(policy / reference), and the loss is the cross-entropy of `probability` with
    what a Bradley–Terry model of these rewards, less `margin`, says.

    Raises:
        ShapeError: if the four log-probs differ in shape.

    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; soft labels: Mitchell 2023, "A note on DPO with noisy
    preferences"; margin: Touvron et al. 2023, arXiv:2307.09288, eq. 2.
    """
    difference = implicit_reward(chosen, ref_chosen, beta=beta) - implicit_reward(rejected, ref_rejected, beta=beta)
    if difference.shape != chosen.shape:
        raise ShapeError(f"chosen {tuple(chosen.shape)} and rejected {tuple(rejected.shape)} must share one shape [P]")
    odds = difference - margin
    return -(probability * logsigmoid(odds) + (1 - probability) * logsigmoid(-odds))


def implicit_reward(
    log_probs: Tensor,  # [P] nats, of whole outputs
    ref_log_probs: Tensor,  # [P]
    *,
    beta: float,
) -> Tensor:  # [P]
    """The reward that a policy trained by `dpo_loss` stands for, up to a number per input.

    Raises:
        ShapeError: if the two differ in shape.

    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 5.
    """
    if log_probs.shape != ref_log_probs.shape:
        shapes = f"{tuple(log_probs.shape)} and {tuple(ref_log_probs.shape)}"
        raise ShapeError(f"log-probs of policy and reference must share one shape [P], got {shapes}")
    return beta * (log_probs - ref_log_probs)
