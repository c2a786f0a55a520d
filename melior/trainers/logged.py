"""learning from logs (off-policy): what was decided and what it earned, weighed by how likely it is now"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from melior.data.formats import fingerprint
from melior.errors import ConfigError, DataError
from melior.losses.policy_gradient import policy_gradient_loss, truncated_importance_weights
from melior.masking import select
from melior.policies.base import LOG_PROBS, Batch, Scored, Want, score_all
from melior.rollouts.logged import Expects, Incomplete, Log, earned_by, encode_log, predictions_of, usable
from melior.trainers.steps import Step, Term, digest, generator
from melior.types import Record, Score

Ratio = Literal["output", "prefix", "decision"]
Credit = Literal["output", "to_go", "own"]
Baseline = Literal["none", "mean", "model"]

WATCHED = ("weight", "weight_square", "clipped", "impossible")  # means over the outputs that were computed


class Logged:
    """Steps over logged records: `batch_size` each, every record once per epoch, in a new order each epoch.

    Records without a score are left out, and with `incomplete="drop"` those without usable propensities too;
    `excluded` counts them by reason. `expects` is the reward model of `OffPolicy(baseline="model")`; it must not have
    seen the records' own rewards.
    """

    def __init__(
        self,
        policy: Any,
        records: Sequence[Record],
        scores: Sequence[Score],
        *,
        batch_size: int = 256,
        epochs: int = 1,
        seed: int = 0,
        incomplete: Incomplete = "refuse",
        expects: Expects | None = None,
    ) -> None:
        """Raises DataError if no record is usable, MissingLogProbs if records lack propensities that are needed."""
        log, self.batch = encode_log(policy, usable(records, scores, incomplete=incomplete))
        self.excluded: Counter[str] = log.excluded
        self.batch = self.batch.with_columns(**_rewards(log, self.batch.mask))
        if expects is not None:
            predictions, predicted = predictions_of(expects, log, self.batch.mask)
            self.batch = self.batch.with_columns(predictions=predictions, predicted=predicted)
        told = [[r.record.behavior_log_probs, r.score.value, r.score.decisions] for r in log.rollouts]
        self.content = digest(fingerprint(log.records), told, expects is not None)
        self.batch_size, self.epochs, self.seed = batch_size, epochs, seed

    @property
    def total(self) -> int:
        return self.epochs * self.per_epoch

    @property
    def per_epoch(self) -> int:
        """Steps that show every record once; the last one of an epoch may be smaller."""
        return -(-len(self.batch) // self.batch_size)

    def __call__(self, index: int) -> Step:
        epoch, position = divmod(index, self.per_epoch)
        order = torch.randperm(len(self.batch), generator=generator(self.seed, epoch)).tolist()
        batch = self.batch.select(order[position * self.batch_size : (position + 1) * self.batch_size])
        reward = float(batch.columns["rewards"].mean())
        return Step(
            batch, {"epoch": index / self.per_epoch, "decisions": float(batch.mask.sum()), "logged_reward": reward}
        )

    def fingerprint(self) -> str:
        return digest("logged", self.content, self.batch_size, self.epochs, self.seed)


@dataclass(frozen=True, kw_only=True)
class OffPolicy:
    """Policy gradient on logged outputs, each weighed by how likely it is now over its propensity, at most `clip`.

    | ratio      | a decision's weight is that of           | right where                                            |
    | ---------- | ---------------------------------------- | ------------------------------------------------------ |
    | "output"   | the whole output                         | always, but for `clip`                                 |
    | "prefix"   | the output up to each reward's decision  | a reward depends on nothing decided after it (cascade) |
    | "decision" | the decision alone                       | the policy stays near the logging policy               |

    `credit="output"` gives every decision the whole reward; "to_go" the rewards of its own position and of those behind
    it, as `Score.decisions` has them: the same expectation wherever a position's reward does not depend on what is
    decided behind it, with less variance. "own" gives each decision what its own position earned: the least variance by
    far, and blind to what a decision does to other positions; what stands before it still counts.

    `baseline="mean"` subtracts the log's mean reward, which changes no expectation; "model" is doubly robust: the
    reward model of the steps speaks for every candidate, and weights correct its errors only (ratio "output" with one
    decision, or "prefix").

    `normalized=True` follows the gradient of SNIPS, whose weights sum to one over a step: an output that nobody
    liked can then not be learnt away by making all of the log improbable. It needs large steps, with ratio and credit
    "output".

    `frozen=True` weighs by the policy as it was made or loaded. Where rewards are not negative and `baseline` is
    "none", this is a weighted likelihood, a lower bound of the value that cannot collapse on few outputs: the policy
    learns to decide in proportion to what decisions earn, and is then served greedily.

    Source: Swaminathan & Joachims 2015, arXiv:1502.02362 and "The self-normalized estimator"; Precup et al. 2000;
    Dudík et al. 2011, arXiv:1103.4601; Kiyohara et al. 2022, arXiv:2202.01562; Le Roux 2016, arXiv:1612.08967 (frozen).
    """

    clip: float = 10.0  # the largest weight: one logged output never speaks for more than ten
    ratio: Ratio = "output"
    credit: Credit = "output"
    baseline: Baseline = "mean"
    normalized: bool = False
    frozen: bool = False  # weights of the policy as it was made or loaded, not of the policy under way
    beta: float = 0.0  # weight of KL(logging policy ‖ policy), which keeps to what was logged
    entropy: float = 0.0  # weight of the entropy bonus

    def __post_init__(self) -> None:
        if not self.clip >= 1:
            raise ConfigError(f"clip is the largest weight and at least 1, where policies agree; got {self.clip}")
        if self.ratio == "prefix" and self.credit != "to_go":
            raise ConfigError('ratio="prefix" weighs the reward of each position; it needs credit="to_go"')
        if self.baseline == "model" and (self.normalized or self.ratio == "decision"):
            raise ConfigError('baseline="model" needs ratio="prefix" (or "output" with one decision), not normalized')
        if self.normalized and (self.ratio, self.credit) != ("output", "output"):
            raise ConfigError('normalized=True has one weight and one reward per output: ratio and credit "output"')
        if self.frozen and (self.normalized or self.baseline == "model"):
            raise ConfigError("frozen=True weighs by the policy as it was made; it needs normalized=False and no model")

    @property
    def want(self) -> frozenset[Want]:
        entropy = {Want.ENTROPY} if self.entropy else set()
        return LOG_PROBS | entropy | ({Want.CANDIDATES} if self.baseline == "model" else set())

    def prepare(self, step: Step, policy: Any) -> Step:
        batch = step.batch
        if self.frozen:
            batch = batch.with_columns(frozen_log_probs=policy.reference_log_probs(batch))
        if self.normalized:
            log_probs = score_all(policy, batch)
            weights = self._weights(log_probs, batch.columns["behavior_log_probs"], batch.mask)[:, :1].sum(1)
            batch = batch.with_columns(importance=weights)
        return replace(step, batch=batch.with_columns(advantages=self._advantages(batch)))

    def _advantages(self, batch: Batch) -> Tensor:  # [B, T]
        """What each decision's reward exceeds the baseline by; still to be weighed."""
        if self.credit != "output" and "decision_rewards" not in batch.columns:
            raise DataError(
                f'credit="{self.credit}" needs what each decision earned (Score.decisions), which some scores lack; '
                'use a grader that tells decisions apart, or credit="output"'
            )
        columns = batch.columns
        rewards, means = columns["rewards"], columns["mean_reward"]
        if self.normalized:  # SNIPS's own estimate is the baseline of its gradient
            total = columns["importance"].sum().clamp(min=torch.finfo(torch.float64).tiny)
            means = ((columns["importance"] * rewards).sum() / total).expand_as(rewards)
        if self.credit == "output":
            advantages = (rewards - means if self.baseline == "mean" or self.normalized else rewards)[:, None]
        else:
            advantages = columns["decision_rewards"] - columns["mean_rewards"] * (self.baseline == "mean")
        if self.baseline == "model":
            advantages = advantages - self._predictions(batch)
        return select(advantages.expand(batch.mask.shape), batch.mask)

    def _predictions(self, batch: Batch) -> Tensor:  # [B, T]
        if "predictions" not in batch.columns:
            raise ConfigError('baseline="model" needs a reward model; give Logged(…, expects=…)')
        if self.ratio != "prefix" and batch.mask.shape[1] > 1:
            raise ConfigError(
                f'outputs of {batch.mask.shape[1]} decisions need baseline="model" with ratio="prefix", credit="to_go"'
            )
        return batch.columns["predicted"]

    def counts(self, batch: Batch) -> Mapping[str, float]:
        outputs, rows = float(len(batch)), float(max(1, len(self.active(batch))))
        total = float(batch.columns["importance"].sum()) if self.normalized else outputs
        told = {"policy": max(total, 1e-300), "kl_logging": outputs, "entropy": outputs, "model": outputs}
        return {**told, **{f"policy/{name}": rows for name in WATCHED}}

    def active(self, batch: Batch) -> list[int]:
        rows = batch.mask.any(1)
        if not (self.beta or self.entropy or self.baseline == "model"):
            rows = rows & (batch.columns["advantages"] != 0).any(1)
        return rows.nonzero()[:, 0].tolist()

    def loss(self, scored: Scored, batch: Batch) -> list[Term]:
        mask = batch.mask.to(scored.log_probs.device)
        behavior = select(batch.columns["behavior_log_probs"].to(scored.log_probs), mask)
        advantages = select(batch.columns["advantages"].to(scored.log_probs), mask)
        weighed = batch.columns["frozen_log_probs"].to(scored.log_probs) if self.frozen else scored.log_probs
        weights = self._weights(weighed, behavior, mask)
        # What this policy can no longer decide weighs nothing, and its logarithm has no gradient worth having.
        possible = mask & torch.isfinite(scored.log_probs)
        log_probs = select(scored.log_probs, possible)
        coefficients = self._credited(weights, advantages)
        terms = []
        if self.baseline == "model":
            expected = self._expected(scored, batch)
            before = torch.cat([torch.ones_like(weights[:, :1]), weights[:, :-1]], dim=1)
            later = select(before * expected.detach(), mask)
            coefficients = coefficients + _to_go(later) - later  # what is expected behind a decision is its doing too
            terms.append(Term("model", -select(before * expected, mask).sum()))
        surrogate = select(policy_gradient_loss(log_probs, coefficients), possible)
        terms.append(Term("policy", surrogate.sum(), metrics=self._watched(weights, possible, mask)))
        if self.beta:
            terms.append(Term("kl_logging", select(behavior - log_probs, possible).sum(), self.beta))
        if self.entropy:
            assert scored.entropy is not None
            terms.append(Term("entropy", select(scored.entropy, mask).sum(), -self.entropy))
        return terms

    def _weights(self, log_probs: Tensor, behavior: Tensor, mask: Tensor) -> Tensor:  # [B, T]
        """The weight of each decision's reward; no gradient."""
        log_probs, behavior = select(log_probs.detach(), mask), select(behavior.to(log_probs), mask)
        if self.ratio == "output":
            log_probs = log_probs.sum(1, keepdim=True).expand_as(log_probs)
            behavior = behavior.sum(1, keepdim=True).expand_as(behavior)
        elif self.ratio == "prefix":
            log_probs, behavior = log_probs.cumsum(1), behavior.cumsum(1)
        return truncated_importance_weights(log_probs, behavior, clip=self.clip)

    def _credited(self, weights: Tensor, advantages: Tensor) -> Tensor:  # [B, T]
        """What the log-prob of each decision is multiplied by."""
        if self.credit != "to_go":
            return weights * advantages
        if self.ratio == "decision":
            return weights * _to_go(advantages)
        return _to_go(weights * advantages)

    def _expected(self, scored: Scored, batch: Batch) -> Tensor:  # [B, T]
        """What the reward model expects of this policy at each position, given what was logged before it."""
        assert scored.candidates is not None
        predictions = batch.columns["predictions"].to(scored.log_probs)[:, : batch.mask.shape[1]]
        chances = scored.candidates.exp()
        if predictions.shape[-1] != chances.shape[-1]:
            raise DataError(
                f"the reward model speaks of {predictions.shape[-1]} candidates, the policy of {chances.shape[-1]}; "
                "give one expected reward per candidate, in the policy's order"
            )
        return torch.where(chances > 0, chances * predictions, 0.0).sum(-1)

    def _watched(self, weights: Tensor, possible: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Sums over outputs, of each one's last weight."""
        last = weights.gather(1, (mask.sum(1, keepdim=True) - 1).clamp(min=0))[:, 0]
        return {
            "weight": last.sum(),  # 1 in the mean where weights are right and none is clipped
            "weight_square": last.square().sum(),  # mean weight² over this is the effective share of the rows
            "clipped": (last >= self.clip * (1 - 1e-6)).double().sum(),
            "impossible": (mask & ~possible).any(1).double().sum(),
        }


def off_policy(**settings: Any) -> OffPolicy:
    """The objective of learning from logs; settings are those of `OffPolicy`."""
    return OffPolicy(**settings)


def _rewards(log: Log, mask: Tensor) -> dict[str, Tensor]:
    """Columns of what outputs earned, and decisions where every score tells them apart, with means over the log."""
    rewards = torch.tensor([rollout.reward for rollout in log.rollouts], dtype=torch.float64)
    columns = {"rewards": rewards, "mean_reward": rewards.mean().expand_as(rewards)}
    if not all(rollout.score.decisions for rollout in log.rollouts):
        return columns
    earned = earned_by(log, mask)
    means = earned.sum(0) / mask.sum(0).clamp(min=1)
    return {**columns, "decision_rewards": earned, "mean_rewards": select(means.expand_as(earned), mask)}


def _to_go(values: Tensor) -> Tensor:  # [B, T]
    """Each decision's value and all behind it."""
    return values.flip(1).cumsum(1).flip(1)
