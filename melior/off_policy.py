"""what another policy would have earned, from decisions that one policy logged

Every estimator gives one contribution per row: their mean is the estimate, and an interval of that mean
(`statistics.mean_interval`, over rows or over clusters of rows) is an interval of the estimate. Self-normalised
estimators are ratios, so theirs are linearised: the mean is the ratio exactly, the spread that of the delta method.

weights     output_weights · prefix_weights · clipped · shrunk · switched
one reward  direct_method · ips · snips · doubly_robust · self_normalized_doubly_robust
slates      slate_ips · slate_snips (the weights say which assumption) · cascade_doubly_robust · pseudo_inverse_weights
trust       overlap · effective_sample_size · unsupported_share

A weight is the probability of what was decided under the policy in question, over its propensity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from melior.errors import ConfigError, DataError, ShapeError
from melior.masking import select

FEW = 100.0  # effective rows below which an estimate is mostly chance
REWARDED = 30.0  # effective rows with a reward, below which 95 % intervals held the truth in 88 to 94 % of simulations
SMALL = 0.1  # effective share of the rows below which a few of them decide
DOMINANT = 0.1  # share of the whole weight in one row
STRAY = 4.0  # standard errors that the mean weight may lie from 1
ROUNDING = 1e-4  # by which it may, whatever its error: log-probs of long outputs are sums of rounded numbers


# ------------------------------------------------------------------ weights


def output_weights(
    log_probs: Tensor,  # [B, T] nats, of the policy in question; -inf where it would never decide so
    behavior_log_probs: Tensor,  # [B, T] nats, as recorded
    mask: Tensor,  # [B, T] bool
) -> Tensor:  # [B]
    """How much likelier each whole output is under the policy in question than under the one that logged it.

    Raises:
        DataError: if a propensity is zero, above one or not a number.
    """
    return prefix_log_weights(log_probs, behavior_log_probs, mask)[:, -1].exp()


def prefix_weights(
    log_probs: Tensor,  # [B, T] nats
    behavior_log_probs: Tensor,  # [B, T] nats
    mask: Tensor,  # [B, T] bool
) -> Tensor:  # [B, T]
    """How much likelier each output is up to and with a decision; the last column is that of `output_weights`.

    Raises:
        DataError: if a propensity is zero, above one or not a number.

    Source: Precup, Sutton & Singh 2000 (per-decision); McInerney et al. 2020, arXiv:2007.12986 (slates, RIPS).
    """
    return prefix_log_weights(log_probs, behavior_log_probs, mask).exp()


def prefix_log_weights(log_probs: Tensor, behavior_log_probs: Tensor, mask: Tensor) -> Tensor:  # [B, T]
    """Logarithms of `prefix_weights`; behind a row's last decision its whole output's.

    Raises:
        DataError: if a propensity is zero, above one or not a number.
    """
    _same_shape(log_probs, behavior_log_probs, mask)
    recorded = behavior_log_probs[mask]
    # Rounding may leave a certain decision a hair above probability one.
    bad = int((~torch.isfinite(recorded) | (recorded > 1e-6)).sum())
    if bad:
        raise DataError(
            f"{bad} of {recorded.numel()} logged decisions have a propensity that is zero, above one or no number; "
            "such rows have no weight: leave them out, and record propensities as they were when deciding"
        )
    ratios = select(log_probs, mask) - select(behavior_log_probs, mask).to(log_probs)
    return ratios.cumsum(-1)


def clipped(weights: Tensor, *, limit: float) -> Tensor:
    """Weights of at most `limit`: less variance, and a bias towards too little where rewards are positive.

    Source: Ionides 2008, doi:10.1198/106186008X320456, who takes the square root of the number of rows.
    """
    return weights.clamp(max=_positive("limit", limit))


def shrunk(weights: Tensor, *, strength: float) -> Tensor:
    """λw / (w² + λ): nearly w where w² is far below λ = `strength`, and towards 0 where it is far above.

    With `doubly_robust` this is DRos; λ → ∞ is plain doubly robust, λ → 0 the direct method. With λ the number of
    rows the bias vanishes faster than the interval. A λ chosen for its least error on the same rows makes better point
    estimates and intervals that hold the truth far too rarely (docs/off-policy.md).

    Source: Su et al. 2020, arXiv:1907.09623, eq. 6 (optimistic shrinkage).
    """
    strength = _positive("strength", strength)
    return strength * weights / (weights.square() + strength)


def switched(weights: Tensor, *, limit: float) -> Tensor:
    """Weights of at most `limit` as they are, and 0 above: there the reward model alone is believed.

    Source: Wang, Agarwal & Dudík 2017, arXiv:1612.01205, §4.
    """
    return torch.where(weights <= _positive("limit", limit), weights, 0.0)


# ------------------------------------------------------------------ one reward per output


def direct_method(
    expected: Tensor,  # [B] what a reward model expects of the policy in question
) -> Tensor:  # [B]
    """The reward model's word, unweighted: no variance to speak of, and all of the model's bias.

    Source: Dudík, Langford & Li 2011, arXiv:1103.4601, §2.1.
    """
    return expected


def ips(
    rewards: Tensor,  # [B]
    weights: Tensor,  # [B]
) -> Tensor:  # [B]
    """Inverse propensity scoring: unbiased where every decision that could be made could have been logged.

    Source: Horvitz & Thompson 1952, doi:10.1080/01621459.1952.10483446.
    """
    _same_shape(rewards, weights)
    return rewards * weights


def snips(
    rewards: Tensor,  # [B]
    weights: Tensor,  # [B]
) -> Tensor:  # [B]
    """Self-normalised inverse propensity scoring: Σwr / Σw, so that adding 1 to every reward adds 1.

    Biased by the order of 1/B, and mostly far less variable than `ips`.

    Raises:
        DataError: if all weights are 0.

    Source: Swaminathan & Joachims 2015, "The self-normalized estimator for counterfactual learning".
    """
    _same_shape(rewards, weights)
    mean = _mean_weight(weights)
    estimate = (rewards * weights).mean() / mean
    return estimate + weights / mean * (rewards - estimate)


def doubly_robust(
    rewards: Tensor,  # [B]
    weights: Tensor,  # [B] as they are, or clipped, shrunk, switched
    predicted: Tensor,  # [B] what a reward model expects of the logged output
    expected: Tensor,  # [B] what it expects of the policy in question
) -> Tensor:  # [B]
    """The reward model's word, corrected by the weighted errors it makes on what was logged.

    Unbiased where weights are right or the model is. The model must not have seen the row: fit it on other rows, or
    on the other folds.

    Source: Dudík, Langford & Li 2011, arXiv:1103.4601.
    """
    _same_shape(rewards, weights, predicted, expected)
    return expected + weights * (rewards - predicted)


def self_normalized_doubly_robust(
    rewards: Tensor,  # [B]
    weights: Tensor,  # [B]
    predicted: Tensor,  # [B]
    expected: Tensor,  # [B]
) -> Tensor:  # [B]
    """`doubly_robust` with its correction self-normalised.

    Raises:
        DataError: if all weights are 0.

    Source: Thomas & Brunskill 2016, arXiv:1604.00923 (weighted doubly robust).
    """
    _same_shape(rewards, weights, predicted, expected)
    return expected + snips(rewards - predicted, weights)


# ------------------------------------------------------------------ slates


def slate_ips(
    rewards: Tensor,  # [B, T] what each position earned
    weights: Tensor,  # [B, T] one per position
    mask: Tensor,  # [B, T] bool
) -> Tensor:  # [B]
    """The sum over positions of weight times reward. The weights say what a position's reward may depend on.

    | weights                                          | a position's reward may depend on            |      |
    | ------------------------------------------------ | -------------------------------------------- | ---- |
    | `output_weights(…)[:, None].expand_as(rewards)`  | the whole slate                              | SIPS |
    | `prefix_weights(…)`                              | its own item and those before it (a cascade) | RIPS |
    | ratios of each position's marginal probabilities | its own item alone                           | IIPS |

    A marginal probability is that of the item at this position whatever stands before it, which is not what a slate
    policy scores (there, what stands before is given).

    Source: McInerney et al. 2020, arXiv:2007.12986, eq. 3–6; Li et al. 2018, arXiv:1804.10488 (independent clicks).
    """
    _same_shape(rewards, weights, mask)
    return select(rewards * weights, mask).sum(-1)


def slate_snips(
    rewards: Tensor,  # [B, T]
    weights: Tensor,  # [B, T]
    mask: Tensor,  # [B, T] bool
) -> Tensor:  # [B]
    """`slate_ips` self-normalised at each position, over the rows that have the position.

    Raises:
        DataError: if all weights of a position are 0.

    Source: McInerney et al. 2020, arXiv:2007.12986, §3.3.
    """
    _same_shape(rewards, weights, mask)
    total = torch.zeros_like(rewards[:, 0])
    for position in range(rewards.shape[1]):
        rows = mask[:, position]
        if bool(rows.any()):
            _mean_weight(weights[rows, position], f" at position {position}")
            total[rows] += snips(rewards[rows, position], weights[rows, position])
    return total


def cascade_doubly_robust(
    rewards: Tensor,  # [B, T]
    weights: Tensor,  # [B, T] of `prefix_weights`
    predicted: Tensor,  # [B, T] what a reward model expects of the logged item here, given what stands before it
    expected: Tensor,  # [B, T] what it expects of the policy in question here, given what stands before it
    mask: Tensor,  # [B, T] bool
) -> Tensor:  # [B]
    """Doubly robust position by position: unbiased under a cascade, whatever the reward model says.

    The less variable the better the model is; it may speak of the position's own reward, or of all from there on.

    Source: Kiyohara et al. 2022, arXiv:2202.01562, eq. 8.
    """
    _same_shape(rewards, weights, predicted, expected, mask)
    before = torch.cat([torch.ones_like(weights[:, :1]), weights[:, :-1]], dim=1)
    return select(before * expected + weights * (rewards - predicted), mask).sum(-1)


def pseudo_inverse_weights(
    slates: Tensor,  # [B, T] int, which of K items stands at each position
    marginals: Tensor,  # [B, T, K] of the policy in question: probability of each item at each position
    gram: Tensor,  # [T·K, T·K], or one per row [B, T·K, T·K]: of the logging policy, see `slate_gram`
) -> Tensor:  # [B]
    """Weights of whole slates that are right where a slate's reward is a sum over positions of unknown functions.

    Such weights can be negative. They need only that every item was logged at every position where it could be
    decided, not that every slate was: far less than `output_weights` need.

    Raises:
        ShapeError: if the three do not fit each other.

    Source: Swaminathan et al. 2017, arXiv:1605.04812, eq. 3.
    """
    rows, positions, items = marginals.shape
    if slates.shape != (rows, positions) or gram.shape[-2:] != (positions * items, positions * items):
        raise ShapeError(
            f"slates {tuple(slates.shape)}, marginals {tuple(marginals.shape)} and gram {tuple(gram.shape)} do not fit"
        )
    shown = torch.nn.functional.one_hot(slates, items).reshape(rows, -1).to(marginals)
    inverse = torch.linalg.pinv(gram.to(marginals), hermitian=True)
    spread = (inverse @ shown[:, :, None])[:, :, 0]
    return (marginals.reshape(rows, -1) * spread).sum(-1)


def slate_gram(
    slates: Tensor,  # [S, T] int, every slate that can be logged
    probabilities: Tensor,  # [S] theirs
    items: int,
) -> Tensor:  # [T·K, T·K]
    """How probable it is that two pairs of position and item stand in one logged slate, position by position."""
    shown = torch.nn.functional.one_hot(slates, items).reshape(len(slates), -1).to(probabilities)
    return shown.T @ (probabilities[:, None] * shown)


def uniform_gram(positions: int, items: int) -> Tensor:  # [T·K, T·K]
    """`slate_gram` of slates drawn uniformly, no item twice, in closed form."""
    if not 1 <= positions <= items:
        raise ConfigError(f"a slate without repetition has at most {items} positions here, not {positions}")
    pair = 0.0 if items == 1 else 1.0 / (items * (items - 1))
    other = torch.full((items, items), pair, dtype=torch.float64).fill_diagonal_(0.0)
    same = torch.eye(items, dtype=torch.float64) / items
    apart = torch.eye(positions, dtype=torch.float64)
    return torch.kron(apart, same) + torch.kron(1 - apart, other)


def slate_marginals(
    slates: Tensor,  # [S, T] int
    probabilities: Tensor,  # [S]
    items: int,
) -> Tensor:  # [T, K]
    """How probable each item is at each position, from all slates (or a sample of them) and their probabilities."""
    shown = torch.nn.functional.one_hot(slates, items).to(probabilities)
    return (probabilities[:, None, None] * shown).sum(0)


# ------------------------------------------------------------------ how far to trust an estimate


@dataclass(frozen=True)
class Overlap:
    """How much of what a policy would decide was logged."""

    rows: int
    effective: float  # rows of equal weight that would say as much: (Σw)² / Σw²
    mean: float  # of the weights; 1 but for chance where propensities are right and everything is supported
    error: float  # standard error of that mean
    largest: float  # weight
    dominant: float  # share of the whole weight in the heaviest row
    unused: int  # rows of weight 0
    rewarded: float = math.inf  # effective rows that carry the reward: (Σ|wr|)² / Σ(wr)²

    @property
    def missing(self) -> float:
        """An estimate of the share of what the policy decides that the log could never hold."""
        return min(1.0, max(0.0, 1.0 - self.mean))

    def warnings(self) -> list[str]:
        """What a reader of the estimate should know, one sentence each; none where all is well."""
        told = []
        if self.effective < FEW or self.effective < SMALL * self.rows:
            told.append(
                f"{self.rows} logged rows say as much as {self.effective:.0f} rows of this policy's own would; "
                "log more, or log with a policy nearer to it"
            )
        if self.dominant > DOMINANT:
            told.append(
                f"one row of {self.rows} carries {self.dominant:.0%} of the weight (its own is {self.largest:.3g}); "
                "clip or shrink weights, and expect the interval to be too narrow"
            )
        if self.rewarded < REWARDED:
            told.append(
                f"the estimate rests on what {self.rewarded:.0f} rows earned, so its interval is too narrow; rewards "
                "this rare need more rows"
            )
        if abs(self.mean - 1) > STRAY * self.error + ROUNDING:
            why = "decides what was never logged" if self.mean < 1 else "is held against propensities that are too low"
            told.append(
                f"weights have mean {self.mean:.3f} ± {self.error:.3f} where 1 is due, so this policy {why}; "
                "look at the propensities and at what the logging policy could decide"
            )
        return told


def overlap(
    weights: Tensor,  # [B]
    rewards: Tensor | None = None,  # [B]
) -> Overlap:
    """How far the weights let an estimate be trusted, and with the rewards how many rows it rests on."""
    total = float(weights.sum())
    spread = float(weights.std()) if len(weights) > 1 else 0.0
    return Overlap(
        rows=len(weights),
        effective=effective_sample_size(weights),
        mean=total / max(1, len(weights)),
        error=spread / math.sqrt(max(1, len(weights))),
        largest=float(weights.max()) if len(weights) else 0.0,
        dominant=float(weights.max()) / total if total > 0 else 0.0,
        unused=int((weights == 0).sum()),
        rewarded=math.inf if rewards is None else effective_sample_size((weights * rewards).abs()),
    )


def effective_sample_size(
    weights: Tensor,  # [B]
) -> float:
    """How many rows of equal weight would say as much: (Σw)² / Σw².

    Source: Kish 1965, Survey Sampling.
    """
    squares = float(weights.square().sum())
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def unsupported_share(
    probabilities: Tensor,  # [B, K] of the policy in question
    propensities: Tensor,  # [B, K] of the logging policy, of everything it could decide
) -> Tensor:  # [B]
    """How much of each row's probability lies on what the logging policy never decides."""
    _same_shape(probabilities, propensities)
    return torch.where(propensities > 0, 0.0, probabilities).sum(-1)


def _mean_weight(weights: Tensor, where: str = "") -> Tensor:
    mean = weights.mean()
    if not bool(mean > 0):
        raise DataError(
            f"all {len(weights)} weights{where} are 0: this policy decides nothing of what was logged; judge it at a "
            "temperature above 0, or log with a policy nearer to it"
        )
    return mean


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ConfigError(f"{name} must be above 0, got {value}")
    return value


def _same_shape(*tensors: Tensor) -> None:
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise ShapeError(f"rewards, weights and what goes with them must share one shape, got {sorted(shapes)}")
