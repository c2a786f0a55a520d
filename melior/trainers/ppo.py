"""learning from rewards with a value function: PPO, credit for each decision by generalised advantages"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from melior.advantages import gae, whiten
from melior.errors import ConfigError
from melior.losses.policy_gradient import clipped_surrogate_loss
from melior.losses.value import clipped_value_loss, explained_variance, value_loss
from melior.masking import select, sum_decisions
from melior.policies.base import LOG_PROBS, Batch, Scored, Want
from melior.policies.values import values_of
from melior.trainers.ratios import check_target, column, divergence, held, old_log_probs, watched
from melior.trainers.steps import Step, Term

Truncated = Literal["graded", "bootstrap", "drop"]


@dataclass(frozen=True, kw_only=True)
class Ppo:
    """Proximal policy optimisation on `Rollouts` of an `ActorCritic`; updates per step are `FitConfig`'s minibatches
    times its passes.

    A decision's reward is what `Score.decisions` says it earned; where scores do not tell, the last decision of an
    output earns all of it. `beta` times the divergence of what was sampled from the reference is taken from each
    decision's reward; `kl_target` steers it, in nats per output.

    `truncated` says what becomes of outputs cut by max_tokens:

    | truncated   | its grade      | what would have come | right where                                     |
    | ----------- | -------------- | -------------------- | ----------------------------------------------- |
    | "graded"    | counts         | nothing              | the limit is part of the task                   |
    | "bootstrap" | does not count | the last value       | the limit is ours, and a grade judges the whole |
    | "drop"      | does not count | the output neither   | a cut output says nothing                       |

    Rewards that decisions earned on their own count wherever the output does.

    Source: Schulman et al. 2017, arXiv:1707.06347; Ouyang et al. 2022, arXiv:2203.02155; Huang et al. 2022, "The 37
    implementation details of proximal policy optimization".
    """

    clip_low: float = 0.2  # of the ratio, arXiv:1707.06347 §6.1
    clip_high: float = 0.2
    value_weight: float = 0.5  # of the value loss; the coefficient of Huang et al., for a shared trunk
    value_clip: float | None = 0.2  # how far a value may go in one step; None does not clip. Fits rewards of about 1
    beta: float = 0.0  # weight of KL(policy ‖ reference), taken from the reward
    kl_target: float | None = None  # nats per output that beta is steered to; None leaves beta as it is
    entropy: float = 0.0  # weight of the entropy bonus
    discount: float = 1.0  # γ of one decision: an output's last word matters as much as its first
    trace: float = 0.95  # λ of generalised advantages
    whiten: bool = True  # advantages of a step to mean 0 and standard deviation 1, over all its decisions
    truncated: Truncated = "graded"

    def __post_init__(self) -> None:
        check_target(self.beta, self.kl_target)
        if not (0 <= self.discount <= 1 and 0 <= self.trace <= 1):
            raise ConfigError(f"discount and trace are within [0, 1]; got {self.discount} and {self.trace}")
        if self.value_clip is not None and not self.value_clip > 0:
            raise ConfigError(f"value_clip is above 0, or null for none; got {self.value_clip}")

    @property
    def want(self) -> frozenset[Want]:
        return LOG_PROBS | {Want.VALUES} | ({Want.ENTROPY} if self.entropy else set())

    def prepare(self, step: Step, policy: Any) -> Step:
        batch = step.batch
        cut = batch.columns["truncated"]
        kept = ~torch.isnan(batch.columns["rewards"])
        step = step.with_metrics(**{f"truncated/{self.truncated}": float((cut & kept).sum())})  # how many outputs
        kept = kept & ~cut if self.truncated == "drop" else kept
        batch = batch.select(kept.nonzero()[:, 0].tolist())
        batch = batch.with_columns(old_log_probs=old_log_probs(batch, policy))
        step, beta = held(replace(step, batch=batch), policy, beta=self.beta, target=self.kl_target)
        rewards = self._rewards(step.batch)
        if beta:
            rewards = rewards - beta * divergence(step.batch)
        return self._credited(step, rewards, values_of(policy, batch))

    def _rewards(self, batch: Batch) -> Tensor:  # [B, T]
        """What each decision earned; of an output that bootstraps, without the grade of the whole."""
        if "decision_rewards" in batch.columns:
            return batch.columns["decision_rewards"]
        grades = batch.columns["rewards"]
        if self.truncated == "bootstrap":
            grades = grades.masked_fill(batch.columns["truncated"], 0.0)
        places = torch.arange(batch.mask.shape[1])
        last = places == batch.mask.sum(1, keepdim=True) - 1
        return select(grades[:, None].expand(batch.mask.shape), last)

    def _credited(self, step: Step, rewards: Tensor, values: Tensor) -> Step:
        """The step with advantages, returns and old values [B, T]."""
        batch, mask = step.batch, step.batch.mask
        going_on = batch.columns["truncated"] & (self.truncated == "bootstrap")
        advantages = gae(rewards, values, mask, going_on, discount=self.discount, trace=self.trace)
        old_values = select(values[:, :-1], mask)
        returns = advantages + old_values
        step = step.with_metrics(
            explained_variance=explained_variance(old_values, returns, mask),
            value=float(old_values[mask].mean()) if bool(mask.any()) else 0.0,
            penalised_reward=float(sum_decisions(rewards, mask).mean()) if len(batch) else 0.0,
        )
        if self.whiten:
            advantages = whiten(advantages, mask)
        return step.with_columns(advantages=advantages, returns=returns, old_values=old_values)

    def counts(self, batch: Batch) -> Mapping[str, float]:
        decisions = float(batch.mask.sum())
        return {"policy": decisions, "value": decisions, "entropy": decisions}

    def active(self, batch: Batch) -> list[int]:
        return batch.mask.any(1).nonzero()[:, 0].tolist()

    def loss(self, scored: Scored, batch: Batch) -> list[Term]:
        assert scored.values is not None
        mask = batch.mask.to(scored.log_probs.device)
        log_probs = select(scored.log_probs, mask)
        old, advantages = column(batch, "old_log_probs", log_probs), column(batch, "advantages", log_probs)
        clips = {"clip_low": self.clip_low, "clip_high": self.clip_high}
        losses = clipped_surrogate_loss(log_probs, old, advantages, **clips)
        told, histograms = watched(log_probs, batch, clip_low=self.clip_low, clip_high=self.clip_high)
        terms = [
            Term("policy", sum_decisions(losses, mask).sum(), metrics=told, histograms=histograms),
            self._value_term(select(scored.values[:, :-1], mask), batch),
        ]
        if self.entropy:
            assert scored.entropy is not None
            terms.append(Term("entropy", sum_decisions(scored.entropy, mask).sum(), -self.entropy))
        return terms

    def _value_term(self, values: Tensor, batch: Batch) -> Term:
        returns, old = column(batch, "returns", values), column(batch, "old_values", values)
        if self.value_clip is None:
            losses = value_loss(values, returns)
        else:
            losses = clipped_value_loss(values, returns, old, clip=self.value_clip)
        clipped = (values.detach() - old).abs() > (self.value_clip or torch.inf)
        return Term("value", losses.sum(), self.value_weight, metrics={"clipped": clipped.double().sum()})


def ppo(**settings: Any) -> Ppo:
    """The objective of PPO; settings are those of `Ppo`."""
    return Ppo(**settings)
