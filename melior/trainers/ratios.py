"""how far a policy is from the one that sampled, from its reference and from its sampler: columns and metrics"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from melior.errors import ConfigError, MissingLogProbs
from melior.losses.divergence import adaptive_beta, kl_k1, kl_k3
from melior.losses.policy_gradient import bounded_importance_weights, truncated_importance_weights
from melior.masking import select, sum_decisions
from melior.policies.base import Batch, score_all
from melior.trainers.steps import Histogram, Step

Correction = Literal["none", "decision", "output"]

# Fine about 1, where on-policy ratios lie.
RATIO_EDGES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.01, 1.05, 1.1, 1.2, 1.28, 1.5, 2.0, 4.0)
TAILS = (0.5, 2.0)  # ratios beyond which a decision is far from where it was sampled
# means over decisions
WATCHED = ("ratio", "ratio_tails", "clip_low", "clip_high", "kl_old", "kl_reference", "sampler_gap")


def column(batch: Batch, name: str, log_probs: Tensor) -> Tensor:  # [B, T]
    """A column beside the log-probs of a forward pass, 0 where the mask is False; one value per row serves them all."""
    values = batch.columns[name].to(log_probs)
    values = values if values.dim() > 1 else values[:, None].expand(log_probs.shape)
    return select(values, batch.mask.to(log_probs.device))


def old_log_probs(batch: Batch, policy: Any) -> Tensor:  # [B, T]
    """Log-probs at the start of a step: those recorded while sampling, else those of one scoring pass."""
    if "behavior_log_probs" in batch.columns:
        return batch.columns["behavior_log_probs"]
    return score_all(policy, batch)  # top-k or top-p: what was sampled from is not what is trained


def sampler_correction(
    batch: Batch,  # with old_log_probs of the scorer
    *,
    per: Correction,
    cap: float,
    drop: bool,
) -> Tensor:  # [B, T]
    """How much likelier what was sampled is for the scorer than for the sampler: at most `cap`, or 0 beyond it.

    Raises:
        MissingLogProbs: if nobody recorded what the sampler's log-probs were.

    Source: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training".
    """
    if "behavior_log_probs" not in batch.columns:
        raise MissingLogProbs(
            f"{len(batch)} rows have no behavior_log_probs to correct by; sample without top_k and top_p, or without "
            'correction (correction="none")'
        )
    mask = batch.mask
    scorer, sampler = batch.columns["old_log_probs"], batch.columns["behavior_log_probs"]
    if per == "output":
        scorer, sampler = sum_decisions(scorer, mask)[:, None], sum_decisions(sampler, mask)[:, None]
    else:
        scorer, sampler = select(scorer, mask), select(sampler, mask)
    if drop:
        weights = bounded_importance_weights(scorer, sampler, bound=cap)
    else:
        weights = truncated_importance_weights(scorer, sampler, clip=cap)
    return select(weights.expand(mask.shape), mask)


def held(step: Step, policy: Any, *, beta: float, target: float | None) -> tuple[Step, float]:
    """The step with reference log-probs and the KL's weight for it; with a target, the next weight is remembered.

    The weight is a function of what was measured so far, which stands in `Step.memory`, so a resumed run repeats it.
    """
    if not beta:
        return step, 0.0
    step = step.with_reference(policy)
    batch = step.batch
    beta = step.memory.get("beta", beta) if target else beta
    kl = float(divergence(batch).sum() / max(1, len(batch)))
    if target:
        step = step.with_memory(beta=adaptive_beta(beta, kl, target=target))
    return step.with_metrics(kl_output=kl, beta=beta), beta


def divergence(batch: Batch) -> Tensor:  # [B, T]
    """k1 of each decision between the policy that sampled and the reference."""
    old, reference = batch.columns["old_log_probs"], batch.columns["ref_log_probs"]
    return kl_k1(select(old, batch.mask), select(reference, batch.mask))


def check_target(beta: float, target: float | None) -> None:
    """Nothing, if the weight of the KL can be steered towards the target.

    Raises:
        ConfigError: if not.
    """
    if target is not None and not (target > 0 and beta > 0):
        raise ConfigError(
            f"kl_target steers beta, which it multiplies, so both must be above 0; got kl_target={target}, beta={beta}"
        )


def watched(
    log_probs: Tensor,  # [B, T], 0 where the mask is False
    batch: Batch,
    *,
    clip_low: float,
    clip_high: float,
    ratios: Callable[[Tensor], Tensor] = torch.exp,
) -> tuple[Mapping[str, Tensor], Mapping[str, Histogram]]:
    """Sums over decisions of what `WATCHED` names, and the histogram of ratios.

    `ratios` makes the ratios that are clipped, [B, T], of the differences of log-probs.
    """
    log_probs, mask = log_probs.detach(), batch.mask.to(log_probs.device)
    old, advantages = column(batch, "old_log_probs", log_probs), column(batch, "advantages", log_probs)
    ratio = ratios(log_probs - old)
    told = {
        "ratio": select(ratio, mask).sum(),
        "ratio_tails": select((ratio < TAILS[0]) | (ratio > TAILS[1]), mask).double().sum(),
        "clip_low": select((ratio < 1 - clip_low) & (advantages < 0), mask).double().sum(),
        "clip_high": select((ratio > 1 + clip_high) & (advantages > 0), mask).double().sum(),
        "kl_old": kl_k3(old, log_probs).sum(),
    }
    if "behavior_log_probs" in batch.columns:  # whether sampler and scorer agree
        told["sampler_gap"] = (log_probs - column(batch, "behavior_log_probs", log_probs)).abs().sum()
    if "ref_log_probs" in batch.columns:
        told["kl_reference"] = kl_k3(log_probs, column(batch, "ref_log_probs", log_probs)).sum()
    return told, {"ratio": Histogram.of(ratio[mask], RATIO_EDGES)}
