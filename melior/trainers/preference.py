"""objectives over pairs of outputs (RLHF without a reward model): DPO and its kin

What they share stands in `Pairwise`; what sets one apart is its loss of a pair and the reward that it implies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from melior.errors import ConfigError, NeedsProbabilities
from melior.losses.preference import (
    dpo_loss,
    implicit_reward,
    ipo_loss,
    odds_ratio_loss,
    robust_dpo_loss,
    simpo_loss,
    smoothed,
)
from melior.policies.base import LOG_PROBS, Batch, Scored, Want
from melior.trainers.pairs import HeldoutPairs, Pairs, Sides, encode_pairs
from melior.trainers.steps import Step, Term

__all__ = [
    "Dpo",
    "HeldoutPairs",
    "Ipo",
    "Orpo",
    "Pairs",
    "Pairwise",
    "SimPo",
    "dpo",
    "encode_pairs",
    "ipo",
    "orpo",
    "simpo",
]

ROUNDING = 32  # units in the last place by which a log-prob may change with the rows that stand beside it
WATCHED = ("accuracy", "margin", "chosen", "rejected")  # means over pairs, by weight


@dataclass(frozen=True)
class Compared:
    """The pairs of a micro-batch, as an objective's loss reads them; log-probs are sums or means over decisions."""

    chosen: Tensor  # [P] nats
    rejected: Tensor  # [P]
    ref_chosen: Tensor  # [P] 0 for objectives without a reference
    ref_rejected: Tensor  # [P]
    probability: Tensor  # [P] as labelled
    margin: Tensor  # [P]
    weight: Tensor  # [P]

    @property
    def log_probs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Those of both sides, policy and reference."""
        return self.chosen, self.rejected, self.ref_chosen, self.ref_rejected


@dataclass(frozen=True, kw_only=True)
class Pairwise:
    """What all objectives over pairs do: a weighted mean over pairs, soft labels, margins, and what is watched.

    `label_smoothing` is the chance that a label is wrong; every label is as much less certain (conservative DPO). With
    `nll` the chosen output is imitated too, by a mean over decisions, which keeps its likelihood from falling beside
    the rejected one's. Where a label is soft, both sides are imitated in its proportion.

    Source: of nll: Pang et al. 2024, arXiv:2404.19733, eq. 1.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    nll: float = 0.0  # weight of the negative log-likelihood of what was chosen

    referenced: ClassVar[bool] = True  # whether a reference is asked for

    def __post_init__(self) -> None:
        if not (self.beta > 0 and math.isfinite(self.beta)):
            raise ConfigError(f"beta must be above 0, got {self.beta}")
        if not (self.nll >= 0 and math.isfinite(self.nll)):
            raise ConfigError(f"nll is a weight from 0 on, got {self.nll}")
        smoothed(1.0, self.label_smoothing)

    # ------------------------------------------------------------------ what sets an objective apart

    @property
    def averaged(self) -> bool:
        """Whether an output's log-prob is the mean over its decisions, not their sum."""
        return False

    @property
    def share(self) -> float:
        """Weight of the pairs' term in the loss."""
        return 1.0

    def losses(self, pairs: Compared) -> Tensor:  # [P]
        """The loss of each pair."""
        raise NotImplementedError

    def rewards(self, pairs: Compared) -> tuple[Tensor, Tensor]:  # [P], [P]
        """The implied reward of each pair's chosen and rejected output."""
        chosen = implicit_reward(pairs.chosen, pairs.ref_chosen, beta=self.beta)
        return chosen, implicit_reward(pairs.rejected, pairs.ref_rejected, beta=self.beta)

    def believed(self, pairs: Compared) -> Any:  # [P]
        """The labels, as certain as `label_smoothing` leaves them."""
        return smoothed(pairs.probability, self.label_smoothing)

    # ------------------------------------------------------------------ what the loop asks for

    @property
    def want(self) -> frozenset[Want]:
        return LOG_PROBS

    def prepare(self, step: Step, policy: Any) -> Step:
        return step.with_reference(policy) if self.referenced else step

    def counts(self, batch: Batch) -> Mapping[str, float]:
        """Pairs by weight, and decisions that are imitated by theirs."""
        pairs = torch.unique(batch.groups, return_inverse=True)[1]
        weights = torch.zeros(len(batch), dtype=torch.float64)
        weights[pairs] = batch.columns["weight"].double()
        imitated = (_shares(batch) * batch.mask.sum(1)).sum()
        return {"preference": float(weights.sum()), "nll": float(imitated)}

    def active(self, batch: Batch) -> list[int]:
        return (batch.columns["weight"] > 0).nonzero()[:, 0].tolist()

    def loss(self, scored: Scored, batch: Batch) -> list[Term]:
        log_probs = scored.log_probs
        pairs = self._compared(log_probs, batch)
        total = (pairs.weight * self.losses(pairs)).sum()
        terms = [Term("preference", total, self.share, metrics=self._watched(pairs))]
        if self.nll:
            shares = _shares(batch).to(log_probs)[:, None]
            imitated = torch.where(batch.mask.to(log_probs.device), shares * log_probs, 0.0)
            terms.append(Term("nll", -imitated.sum(), self.nll))
        return terms

    def _compared(self, log_probs: Tensor, batch: Batch) -> Compared:
        sides = Sides.of(batch)
        reduce = sides.means if self.averaged else sides.sums
        chosen, rejected = reduce(log_probs, batch.mask)
        references = torch.zeros_like(chosen), torch.zeros_like(rejected)
        if self.referenced:
            references = reduce(batch.columns["ref_log_probs"].to(log_probs), batch.mask)
        labels = (batch.columns[name][sides.first].to(chosen) for name in ("probability", "margin", "weight"))
        return Compared(chosen, rejected, *references, *labels)

    @torch.no_grad()
    def _watched(self, pairs: Compared) -> dict[str, Tensor]:
        """Weighted sums over pairs: of rewards, and of pairs whose rewards stand as people said; undecided is half."""
        chosen, rejected = self.rewards(pairs)
        least = self.beta * ROUNDING * torch.finfo(chosen.dtype).eps * (pairs.chosen.abs() + pairs.rejected.abs())
        gap = torch.where((chosen - rejected).abs() > least, chosen - rejected, 0.0)
        agreed = torch.sign(gap) * torch.sign(pairs.probability - 0.5)
        told = {"accuracy": (1 + agreed) / 2, "margin": chosen - rejected, "chosen": chosen, "rejected": rejected}
        return {name: (pairs.weight * told[name]).sum() for name in WATCHED}


@dataclass(frozen=True, kw_only=True)
class Dpo(Pairwise):
    """Makes what people preferred likelier, and the other less likely, than the reference has them.

    `robust` corrects for flipped labels without bias; without it `label_smoothing` only makes labels less certain.
    `length_normalised` compares means over decisions instead of sums, so that long outputs have no more say than short
    ones; its rewards are smaller, so beta is larger (5 in the paper).

    Source: Rafailov et al. 2023, arXiv:2305.18290; robust: Chowdhury et al. 2024, arXiv:2403.00409; length-normalised:
    Lambert et al. 2024, arXiv:2411.15124, §5.
    """

    beta: float = 0.1  # how dear it is to leave the reference; .1 … .5 in the paper
    robust: bool = False
    length_normalised: bool = False

    @property
    def averaged(self) -> bool:
        return self.length_normalised

    def losses(self, pairs: Compared) -> Tensor:
        if self.robust:
            flipped, how = self.label_smoothing, {"probability": pairs.probability, "margin": pairs.margin}
            return robust_dpo_loss(*pairs.log_probs, beta=self.beta, label_smoothing=flipped, **how)
        return dpo_loss(*pairs.log_probs, beta=self.beta, probability=self.believed(pairs), margin=pairs.margin)


@dataclass(frozen=True, kw_only=True)
class Ipo(Pairwise):
    """As DPO, but rewards are drawn to a finite gap, so that certain labels do not drive the policy ever farther.

    `length_normalised` takes means over decisions, as TRL does and says that the paper's authors did; False takes the
    sums that the paper writes.

    Source: Azar et al. 2023, arXiv:2310.12036, eq. 17.
    """

    beta: float = 0.1  # the paper's tau: log-ratios are drawn 1 / (2 beta) apart
    length_normalised: bool = True

    @property
    def averaged(self) -> bool:
        return self.length_normalised

    def losses(self, pairs: Compared) -> Tensor:
        return ipo_loss(*pairs.log_probs, beta=self.beta, probability=self.believed(pairs), margin=pairs.margin)


@dataclass(frozen=True, kw_only=True)
class SimPo(Pairwise):
    """Makes the mean log-prob of what people preferred exceed the other's by a margin; there is no reference.

    So nothing holds the policy where it was but a small learning rate and, where wanted, `nll`.

    Source: Meng et al. 2024, arXiv:2405.14734.
    """

    beta: float = 2.0  # 2 … 2.5 in the paper: means over decisions are small numbers
    gamma: float = 1.0  # least margin of the rewards; 0.3 … 1.6 in the paper. TRL calls it simpo_gamma

    referenced: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.gamma >= 0 and math.isfinite(self.gamma)):
            raise ConfigError(f"gamma is a margin from 0 on, got {self.gamma}")

    @property
    def averaged(self) -> bool:
        return True

    def losses(self, pairs: Compared) -> Tensor:
        labels = {"probability": self.believed(pairs), "margin": pairs.margin}
        return simpo_loss(pairs.chosen, pairs.rejected, beta=self.beta, gamma=self.gamma, **labels)


@dataclass(frozen=True, kw_only=True)
class Orpo(Pairwise):
    """Imitates what people preferred and sets its odds above the other's, in one stage and without a reference.

    Source: Hong et al. 2024, arXiv:2403.07691, eq. 6.
    """

    beta: float = 0.1  # weight of the odds ratio's term, the paper's lambda
    nll: float = 1.0

    referenced: ClassVar[bool] = False

    @property
    def share(self) -> float:
        """Weight of the odds ratio's term."""
        return self.beta

    @property
    def averaged(self) -> bool:
        return True

    def prepare(self, step: Step, policy: Any) -> Step:
        """Raises NeedsProbabilities where decisions have densities, which have no odds."""
        if not policy.discrete:
            raise NeedsProbabilities("ORPO compares odds, and this policy gives densities; train it with dpo()")
        return step

    def losses(self, pairs: Compared) -> Tensor:
        labels = {"probability": self.believed(pairs), "margin": pairs.margin}
        return odds_ratio_loss(pairs.chosen, pairs.rejected, **labels)


def dpo(**settings: Any) -> Dpo:
    """The objective of DPO; settings are those of `Dpo`."""
    return Dpo(**settings)


def ipo(**settings: Any) -> Ipo:
    """The objective of IPO; settings are those of `Ipo`."""
    return Ipo(**settings)


def simpo(**settings: Any) -> SimPo:
    """The objective of SimPO; settings are those of `SimPo`."""
    return SimPo(**settings)


def orpo(**settings: Any) -> Orpo:
    """The objective of ORPO; settings are those of `Orpo`."""
    return Orpo(**settings)


def _shares(batch: Batch) -> Tensor:  # [B] float64
    """How much each row is imitated: its pair's weight times the chance that its side is the better one."""
    probability = batch.columns["probability"].double()
    side = torch.where(batch.columns["chosen"], probability, 1 - probability)
    return batch.columns["weight"].double() * side
