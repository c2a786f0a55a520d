"""learning from preferences between two outputs of one input, and from outputs called good or bad

Losses take log-probs of whole outputs, one number per output: the sum over its decisions, or where the docstring says
so the mean. `probability` is a soft label, p(chosen > rejected): a label that is believed to be wrong with chance e is
`probability = 1 - e` (conservative), and a tie is 0.5. `margin` is by how much more than the loss asks for anyway the
chosen reward should exceed the rejected one. Exchanging the sides changes no loss where the probability is turned round
and the margin's sign with it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from melior.errors import ConfigError, ShapeError


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
    what a Bradley–Terry model of these rewards, less `margin`, says. Of mean log-probs it is length-normalised DPO.

    Raises:
        ShapeError: if the four log-probs differ in shape.

    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; soft labels: Mitchell 2023, "A note on DPO with noisy
    preferences"; margin: Touvron et al. 2023, arXiv:2307.09288, eq. 2; mean log-probs: Lambert et al. 2024,
    arXiv:2411.15124, §5.
    """
    return _cross_entropy(_reward_gap(chosen, rejected, ref_chosen, ref_rejected, beta) - margin, probability)


def robust_dpo_loss(
    chosen: Tensor,  # [P] nats, log-prob of each pair's chosen output
    rejected: Tensor,  # [P]
    ref_chosen: Tensor,  # [P] the same under the reference
    ref_rejected: Tensor,  # [P]
    *,
    beta: float = 0.1,
    label_smoothing: float,  # chance that a label was flipped, below 0.5
    probability: Tensor | float = 1.0,  # [P]
    margin: Tensor | float = 0.0,  # [P]
) -> Tensor:  # [P]
    """DPO whose mean over randomly flipped labels is DPO's over the true ones; it may be negative.

    Raises:
        ShapeError: if the four log-probs differ in shape.
        ConfigError: if `label_smoothing` is not in [0, 0.5).

    Source: Chowdhury et al. 2024, arXiv:2403.00409, §3.
    """
    true = unflipped(probability, label_smoothing)
    return dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=beta, probability=true, margin=margin)


def ipo_loss(
    chosen: Tensor,  # [P] nats, log-prob of each pair's chosen output
    rejected: Tensor,  # [P]
    ref_chosen: Tensor,  # [P] the same under the reference
    ref_rejected: Tensor,  # [P]
    *,
    beta: float = 0.1,  # the paper's tau
    probability: Tensor | float = 1.0,  # [P]
    margin: Tensor | float = 0.0,  # [P]
) -> Tensor:  # [P]
    """Identity preference optimisation: the log-ratios' difference is drawn to 1 / (2 beta), never beyond.

    A soft label draws it to (2 probability - 1) / (2 beta), so certain labels do not drive the policy ever farther from
    the reference. The paper's log-probs are sums over decisions; TRL gives this loss their means, since the target does
    not grow with the output, and says that the paper's authors did. Both work here, the caller reduces.

    Raises:
        ShapeError: if the four log-probs differ in shape.

    Source: Azar et al. 2023, arXiv:2310.12036, eq. 17; margin in units of the reward, as in `dpo_loss`.
    """
    gap = _reward_gap(chosen, rejected, ref_chosen, ref_rejected, beta) - margin
    towards, away = (gap - 0.5) ** 2, (gap + 0.5) ** 2
    return (probability * towards + (1 - probability) * away) / beta**2


def simpo_loss(
    chosen: Tensor,  # [P] nats, mean log-prob of the decisions of each pair's chosen output
    rejected: Tensor,  # [P]
    *,
    beta: float = 2.0,
    gamma: float = 1.0,  # target margin of the reward
    probability: Tensor | float = 1.0,  # [P]
    margin: Tensor | float = 0.0,  # [P] on top of gamma
) -> Tensor:  # [P]
    """Simple preference optimisation: no reference; the reward is beta × mean log-prob, and gamma is its least margin.

    Raises:
        ShapeError: if the two log-probs differ in shape.

    Source: Meng et al. 2024, arXiv:2405.14734, eq. 6.
    """
    _check(chosen, rejected)
    gap = beta * (chosen - rejected)
    # With a soft label each side is asked for the margin when it is the better one.
    better, worse = logsigmoid(gap - margin - gamma), logsigmoid(margin - gap - gamma)
    return -(probability * better + (1 - probability) * worse)


def odds_ratio_loss(
    chosen: Tensor,  # [P] nats, mean log-prob of the decisions of each pair's chosen output
    rejected: Tensor,  # [P]
    *,
    probability: Tensor | float = 1.0,  # [P]
    margin: Tensor | float = 0.0,  # [P] of the log odds
) -> Tensor:  # [P]
    """ORPO's penalty: the chosen output's odds p / (1 - p) should exceed the rejected one's; no reference.

    ORPO adds it, weighed, to the negative log-likelihood of what was chosen. Odds are defined for probabilities alone.

    Raises:
        ShapeError: if the two log-probs differ in shape.

    Source: Hong et al. 2024, arXiv:2403.07691, eq. 7.
    """
    _check(chosen, rejected)
    return _cross_entropy(log_odds(chosen) - log_odds(rejected) - margin, probability)


def kto_loss(
    log_probs: Tensor,  # [N] nats, of whole outputs
    ref_log_probs: Tensor,  # [N]
    desirable: Tensor,  # [N] bool
    reference_point: Tensor | float,  # [] or [N] nats, KL(policy ‖ reference), not below 0, without a gradient
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 4 / 3,
) -> Tensor:  # [N]
    """Kahneman–Tversky optimisation, one value per output called good or bad; minimise its mean.

    The value of an output is prospect theory's: gains and losses are counted from `reference_point`, each further one
    says less, and losses weigh more than gains where `undesirable_weight` exceeds `desirable_weight`.

    Raises:
        ShapeError: if the log-probs and `desirable` differ in shape.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, §4.1.
    """
    if desirable.shape != log_probs.shape:
        shapes = f"{tuple(log_probs.shape)} and {tuple(desirable.shape)}"
        raise ShapeError(f"log-probs and what is desirable must share one shape [N], got {shapes}")
    gain = implicit_reward(log_probs, ref_log_probs, beta=beta) - beta * reference_point
    # 1 - sigmoid(x) is sigmoid(-x), which keeps its digits where the value nears 1
    return torch.where(desirable, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain))


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


def log_odds(log_probs: Tensor) -> Tensor:  # of any shape, nats
    """Log of p / (1 - p), finite for certain decisions too; beyond what rounding can tell from 1 it has no slope.

    Source: Hong et al. 2024, arXiv:2403.07691, eq. 4.
    """
    told = log_probs.clamp(max=-torch.finfo(log_probs.dtype).eps)
    return told - torch.log(-torch.expm1(told))


def smoothed(probability: Tensor | float, label_smoothing: float) -> Tensor | float:
    """The soft label of one that is believed to be flipped with chance `label_smoothing`.

    Raises:
        ConfigError: if that is not in [0, 0.5).

    Source: Mitchell 2023, "A note on DPO with noisy preferences".
    """
    _check_smoothing(label_smoothing)
    return probability * (1 - 2 * label_smoothing) + label_smoothing


def unflipped(probability: Tensor | float, label_smoothing: float) -> Tensor | float:
    """What `smoothed` makes the given label of: losses that are linear in it lose the bias of flipped labels.

    It lies outside [0, 1] for certain labels.

    Raises:
        ConfigError: if `label_smoothing` is not in [0, 0.5).

    Source: Chowdhury et al. 2024, arXiv:2403.00409, §3.
    """
    _check_smoothing(label_smoothing)
    return (probability - label_smoothing) / (1 - 2 * label_smoothing)


def _reward_gap(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:  # [P]
    """By how much the chosen outputs' implicit rewards exceed the rejected ones'."""
    _check(chosen, rejected)
    return implicit_reward(chosen, ref_chosen, beta=beta) - implicit_reward(rejected, ref_rejected, beta=beta)


def _cross_entropy(odds: Tensor, probability: Tensor | float) -> Tensor:
    return -(probability * logsigmoid(odds) + (1 - probability) * logsigmoid(-odds))


def _check(chosen: Tensor, rejected: Tensor) -> None:
    if chosen.shape != rejected.shape:
        raise ShapeError(f"chosen {tuple(chosen.shape)} and rejected {tuple(rejected.shape)} must share one shape [P]")


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 0.5:
        raise ConfigError(
            f"label_smoothing is a chance of flipped labels, from 0 to below 0.5, got {label_smoothing}; "
            "labels flipped more often than not want their sides exchanged"
        )
