"""learning from rewards (RFT): sample groups, compare within them, follow the policy gradient"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from melior.advantages import group_relative, informative, leave_one_out, whiten
from melior.errors import ConfigError
from melior.losses.policy_gradient import (
    cispo_loss,
    clipped_surrogate_loss,
    kl_penalty,
    overlong_penalty,
    sequence_surrogate_loss,
)
from melior.masking import mean_decisions, select, sum_decisions
from melior.policies.base import LOG_PROBS, Batch, Scored, Want, score_all
from melior.trainers.ratios import (
    RATIO_EDGES,
    WATCHED,
    Correction,
    check_target,
    column,
    divergence,
    held,
    old_log_probs,
    sampler_correction,
    watched,
)
from melior.trainers.rollouts import Rollouts
from melior.trainers.steps import Step, Term

__all__ = ["METHODS", "RATIO_EDGES", "Reinforcement", "Rollouts", "reinforcement"]

Estimator = Literal["group_relative", "leave_one_out", "batch", "group_batch"]
Aggregate = Literal["decisions", "outputs", "constant"]
Surrogate = Literal["decision", "output", "cispo"]
Method = Literal["grpo", "dr_grpo", "dapo", "rloo", "reinforce++", "reinforce++_baseline", "gspo", "cispo"]

METHODS: Mapping[Method, Mapping[str, Any]] = {
    "grpo": {"divide_by_std": True, "aggregate": "outputs", "clip_high": 0.2},
    "dr_grpo": {"aggregate": "constant", "clip_high": 0.2},
    "dapo": {"divide_by_std": True, "aggregate": "decisions", "clip_high": 0.28},
    "rloo": {"estimator": "leave_one_out", "kl": "reward", "clip_high": 0.2},
    "reinforce++": {"estimator": "batch", "aggregate": "outputs", "kl": "reward", "clip_high": 0.2},
    "reinforce++_baseline": {"estimator": "group_batch", "aggregate": "outputs", "clip_high": 0.2},
    "gspo": {
        "divide_by_std": True,
        "aggregate": "outputs",
        "surrogate": "output",
        "clip_low": 3e-4,
        "clip_high": 4e-4,
    },
    "cispo": {
        "divide_by_std": True,
        "aggregate": "decisions",
        "surrogate": "cispo",
        "clip_low": 1.0,
        "clip_high": 4.0,
    },
}


@dataclass(frozen=True, kw_only=True)
class Reinforcement:
    """Policy gradient on compared rewards; the methods of this family are settings, and `METHODS` has them by name.

    | method               | estimator               | aggregate   | surrogate  | clip_low, clip_high | kl       |
    | -------------------- | ----------------------- | ----------- | ---------- | ------------------- | -------- |
    | grpo                 | group_relative, by std  | "outputs"   | "decision" | 0.2, 0.2            | "loss"   |
    | dr_grpo              | group_relative          | "constant"  | "decision" | 0.2, 0.2            | "loss"   |
    | dapo                 | group_relative, by std  | "decisions" | "decision" | 0.2, 0.28           | "loss"   |
    | rloo                 | leave_one_out           | "constant"  | "decision" | 0.2, 0.2            | "reward" |
    | reinforce++          | batch                   | "outputs"   | "decision" | 0.2, 0.2            | "reward" |
    | reinforce++_baseline | group_batch             | "outputs"   | "decision" | 0.2, 0.2            | "loss"   |
    | gspo                 | group_relative, by std  | "outputs"   | "output"   | 3e-4, 4e-4          | "loss"   |
    | cispo                | group_relative, by std  | "decisions" | "cispo"    | 1.0, 4.0            | "loss"   |

    `estimator` says what a reward is compared with: the mean of its group, of the others in its group, or of the whole
    batch; "batch" and "group_batch" divide by the batch's standard deviation, and only "batch" serves groups of one.

    `aggregate` says what a step's sum of losses is divided by: all decisions; outputs, after a mean over each one's
    decisions; or outputs times `length`, a constant, the only one whose expected gradient is that of the mean reward.

    `surrogate` says what is clipped: each decision's ratio, an output's as a whole, or a weight that never stops the
    gradient.

    `kl="loss"` holds the policy to its reference by a term of its own, "reward" by taking the divergence of what was
    sampled from the reward. With `kl_target` the weight `beta` is only the first one: it grows while outputs are
    further from the reference than so many nats, and shrinks while they are nearer.

    `correction` weighs what an inexact sampler (another engine, other precision) drew by how likely the scorer finds
    it, decision by decision or output by output, at most `correction_cap`. Per output it is unbiased but for the cap.

    Source: Shao et al. 2024, arXiv:2402.03300; Liu et al. 2025, arXiv:2503.20783; Yu et al. 2025, arXiv:2503.14476;
    Ahmadian et al. 2024, arXiv:2402.14740; Hu et al. 2025, arXiv:2501.03262; Zheng et al. 2025, arXiv:2507.18071;
    MiniMax 2025, arXiv:2506.13585; Ziegler et al. 2019, arXiv:1909.08593.
    """

    estimator: Estimator = "group_relative"
    divide_by_std: bool = False  # True gives nearly equal rewards as much say as informative ones
    aggregate: Aggregate = "constant"
    length: int = 1  # decisions that "constant" divides each output by
    surrogate: Surrogate = "decision"
    clip_low: float = 0.2
    clip_high: float = 0.28  # arXiv:2503.14476 §3.1: room for improbable decisions to grow
    beta: float = 0.0  # weight of KL(policy ‖ reference)
    kl: Literal["loss", "reward"] = "loss"  # where the KL is
    kl_target: float | None = None  # nats per output that beta is steered to; None leaves beta as it is
    entropy: float = 0.0  # weight of the entropy bonus
    correction: Correction = "none"
    correction_cap: float = 2.0  # C of Yao et al. 2025
    correction_drop: bool = False  # what is beyond the cap, on either side, has no say (IcePop, arXiv:2510.18855)
    drop_truncated: bool = False  # outputs cut by max_tokens neither learn nor count (arXiv:2503.14476 §3.4)
    overlong_margin: int = 0  # decisions before max_tokens over which the soft penalty grows to -1; 0 is off

    def __post_init__(self) -> None:
        check_target(self.beta, self.kl_target)
        if not self.correction_cap >= 1:
            raise ConfigError(f"correction_cap is the largest weight and at least 1; got {self.correction_cap}")
        if self.surrogate == "output" and self.estimator == "batch" and self.kl == "reward" and self.beta:
            raise ConfigError(
                'surrogate="output" has one advantage per output; estimator="batch" with kl="reward" has one per '
                'decision; choose kl="loss"'
            )

    @property
    def want(self) -> frozenset[Want]:
        return LOG_PROBS | {Want.ENTROPY} if self.entropy else LOG_PROBS

    def prepare(self, step: Step, policy: Any) -> Step:
        batch = step.batch
        rewards = self._rewards(batch)
        varied = batch.groups[informative(rewards, batch.groups)].unique()
        step = step.with_metrics(frac_reward_zero_std=1 - len(varied) / max(1, len(batch.groups.unique())))
        known = (~torch.isnan(rewards)).nonzero()[:, 0]
        batch, rewards = batch.select(known.tolist()), rewards[known]
        if self.correction == "none":
            batch = batch.with_columns(old_log_probs=old_log_probs(batch, policy))
        else:
            batch = batch.with_columns(old_log_probs=score_all(policy, batch))
            how: dict[str, Any] = {"per": self.correction, "cap": self.correction_cap, "drop": self.correction_drop}
            batch = batch.with_columns(correction=sampler_correction(batch, **how))
        step, beta = held(replace(step, batch=batch), policy, beta=self.beta, target=self.kl_target)
        columns = {"advantages": self._advantages(step.batch, rewards, beta)}
        if self.kl_target:
            columns["beta"] = torch.full((len(batch),), beta, dtype=torch.float64)
        return step.with_columns(**columns)

    def _rewards(self, batch: Batch) -> Tensor:  # [B]
        """What outputs earned, less the penalty for length; NaN for those that take no part."""
        rewards = batch.columns["rewards"]
        if self.overlong_margin and len(batch):
            limit = int(batch.columns["limit"][0])
            rewards = rewards + overlong_penalty(batch.mask.sum(1), limit=limit, margin=self.overlong_margin)
        return rewards.masked_fill(batch.columns["truncated"], torch.nan) if self.drop_truncated else rewards

    def _advantages(self, batch: Batch, rewards: Tensor, beta: float) -> Tensor:  # [B], or [B, T] of "batch"
        penalties = torch.zeros(batch.mask.shape, dtype=rewards.dtype)
        if beta and self.kl == "reward":
            penalties = beta * divergence(batch)
        if self.estimator == "batch":  # a decision cannot help what was sampled before it
            to_go = penalties.flip(1).cumsum(1).flip(1)
            return whiten(rewards[:, None] - to_go, batch.mask)
        rewards = rewards - penalties.sum(1)
        if self.estimator == "leave_one_out":
            return leave_one_out(rewards, batch.groups)
        compared = group_relative(rewards, batch.groups, divide_by_std=self.divide_by_std)
        # Groups have mean 0 already: another shift would only tell long outputs from short ones.
        return whiten(compared, centre=False) if self.estimator == "group_batch" else compared

    def counts(self, batch: Batch) -> Mapping[str, float]:
        decisions, outputs = float(batch.mask.sum()), float(len(batch))
        count = {"decisions": decisions, "outputs": outputs, "constant": outputs * self.length}[self.aggregate]
        computed = float(batch.mask[self.active(batch)].sum())
        return {"policy": count, "kl": count, "entropy": count, **{f"policy/{name}": computed for name in WATCHED}}

    def active(self, batch: Batch) -> list[int]:
        rows = batch.mask.any(1)
        if not (self.entropy or (self.beta and self.kl == "loss")):
            told = batch.columns["advantages"] != 0  # [B], or [B, T]
            rows = rows & (told.any(1) if told.dim() > 1 else told)
        return rows.nonzero()[:, 0].tolist()

    def loss(self, scored: Scored, batch: Batch) -> list[Term]:
        mask = batch.mask.to(scored.log_probs.device)
        log_probs = select(scored.log_probs, mask)
        old, advantages = column(batch, "old_log_probs", log_probs), column(batch, "advantages", log_probs)
        clips = {"clip_low": self.clip_low, "clip_high": self.clip_high}
        losses = SURROGATES[self.surrogate](log_probs, old, advantages, mask, **clips)
        if self.correction != "none":
            losses = losses * column(batch, "correction", log_probs)
        ratios = partial(_mean_ratio, mask=mask) if self.surrogate == "output" else torch.exp
        told, histograms = watched(log_probs, batch, **clips, ratios=ratios)
        terms = [Term("policy", self._total(losses, mask), metrics=told, histograms=histograms)]
        if self.beta and self.kl == "loss":
            penalties = kl_penalty(log_probs, column(batch, "ref_log_probs", log_probs))
            beta = float(batch.columns["beta"][0]) if self.kl_target else self.beta
            terms.append(Term("kl", self._total(penalties, mask), beta))
        if self.entropy:
            assert scored.entropy is not None
            terms.append(Term("entropy", self._total(scored.entropy, mask), -self.entropy))
        return terms

    def _total(self, values: Tensor, mask: Tensor) -> Tensor:
        per_output = mean_decisions(values, mask) if self.aggregate == "outputs" else sum_decisions(values, mask)
        return per_output.sum()


def reinforcement(method: Method | None = None, **settings: Any) -> Reinforcement:
    """The objective of RFT: a method of `METHODS` by name, and settings of `Reinforcement` that go before its own.

    Raises:
        ConfigError: for a method that there is not.
    """
    if method is not None and method not in METHODS:
        raise ConfigError(f"there is no method {method!r}; write one of {', '.join(METHODS)}")
    return Reinforcement(**{**(METHODS[method] if method else {}), **settings})


def _per_decision(log_probs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, **clips: float) -> Tensor:
    return clipped_surrogate_loss(log_probs, old, advantages, **clips)


def _per_output(log_probs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, **clips: float) -> Tensor:
    return sequence_surrogate_loss(log_probs, old, advantages[:, 0], mask, **clips)


def _weighed(log_probs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, **clips: float) -> Tensor:
    return cispo_loss(log_probs, old, advantages, **clips)


def _mean_ratio(differences: Tensor, mask: Tensor) -> Tensor:  # [B, T] -> [B, T]
    """One ratio per output, told at each of its decisions."""
    return mean_decisions(differences, mask).exp()[:, None].expand(mask.shape)


SURROGATES: Mapping[Surrogate, Callable[..., Tensor]] = {
    "decision": _per_decision,
    "output": _per_output,
    "cispo": _weighed,
}
