"""learning by demonstration (SFT)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from melior.data.formats import fingerprint
from melior.errors import ConfigError, DataError
from melior.losses.likelihood import nll_loss, smoothed_nll_loss
from melior.masking import select
from melior.policies.base import CANDIDATE_IDS, LOG_PROBS, Batch, Scored, Want
from melior.trainers.steps import Step, Term, digest, generator
from melior.types import Demonstration


class Examples:
    """Steps over demonstrations: `batch_size` rows each, every row once per epoch, in a new order each epoch.

    Rows are encoded once; `dropped` counts those whose every decision lies beyond the context.
    """

    def __init__(
        self, policy: Any, rows: Sequence[Demonstration], *, batch_size: int = 16, epochs: int = 1, seed: int = 0
    ) -> None:
        """Raises DataError if no row has anything to learn."""
        if not rows:
            raise DataError("There are 0 demonstrations to learn from; add rows")
        encoded: Batch = policy.encode(rows)
        decided = (encoded.mask & (encoded.weights != 0)).any(1)
        owners = encoded.columns["examples"][decided]
        kept = torch.unique(owners).tolist()
        self.dropped = len(rows) - len(kept)
        if not kept:
            raise DataError(f"None of {len(rows)} rows has a decision to learn within the context; shorten them")
        self.batch = encoded.select(decided.nonzero()[:, 0].tolist())
        self.turns: dict[int, list[int]] = {}
        for turn, owner in enumerate(owners.tolist()):
            self.turns.setdefault(owner, []).append(turn)
        self.kept: list[int] = kept
        self.policy, self.content = policy, fingerprint(rows)
        self.batch_size, self.epochs, self.seed = batch_size, epochs, seed

    @property
    def total(self) -> int:
        return self.epochs * self.per_epoch

    @property
    def per_epoch(self) -> int:
        """Steps that show every row once; the last one of an epoch may be smaller."""
        return -(-len(self.kept) // self.batch_size)

    def __call__(self, index: int) -> Step:
        epoch, position = divmod(index, self.per_epoch)
        order = torch.randperm(len(self.kept), generator=generator(self.seed, epoch)).tolist()
        chosen = order[position * self.batch_size : (position + 1) * self.batch_size]
        rows = [turn for row in chosen for turn in self.turns[self.kept[row]]]
        batch = self.policy.perturb(self.batch.select(rows), (self.seed, index))
        return Step(batch, {"epoch": index / self.per_epoch, "decisions": float(batch.mask.sum())})

    def fingerprint(self) -> str:
        shape = [self.batch.mask.sum().item(), self.batch.weights.sum().item()]
        return digest("examples", self.content, shape, self.batch_size, self.epochs, self.seed)


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """Maximises the likelihood of demonstrations, averaged over decisions (not over rows: long answers count more)."""

    smoothing: float = 0.0  # share of the target spread over all that could have been decided; .1 is usual for labels

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"smoothing is a share of the target from 0 to below 1, got {self.smoothing}")

    @property
    def want(self) -> frozenset[Want]:
        return LOG_PROBS | {Want.CANDIDATES} if self.smoothing else LOG_PROBS

    def prepare(self, step: Step, policy: Any) -> Step:
        return step

    def counts(self, batch: Batch) -> Mapping[str, float]:
        return {"nll": float(select(batch.weights, batch.mask).sum())}

    def active(self, batch: Batch) -> list[int]:
        return (batch.mask & (batch.weights != 0)).any(1).nonzero()[:, 0].tolist()

    def loss(self, scored: Scored, batch: Batch) -> list[Term]:
        mask = batch.mask.to(scored.log_probs.device)
        weights = batch.weights.to(scored.log_probs)
        if not self.smoothing:
            return [Term("nll", select(nll_loss(scored.log_probs, weights), mask).sum())]
        if scored.candidates is None or CANDIDATE_IDS in batch.columns:
            raise ConfigError(f"smoothing={self.smoothing} needs a policy that lists all candidates; set it to 0 here")
        smoothed = smoothed_nll_loss(scored.log_probs, scored.candidates, weights, smoothing=self.smoothing)
        return [Term("nll", select(smoothed, mask).sum())]


def supervised(**settings: Any) -> Supervised:
    """The objective of SFT; settings are those of `Supervised`."""
    return Supervised(**settings)


class HeldoutLoss:
    """An evaluation for `fit`: mean negative log-likelihood per decision of demonstrations that never train."""

    def __init__(self, policy: Any, rows: Sequence[Demonstration]) -> None:
        self.batch: Batch = policy.encode(rows)
        if not Supervised().counts(self.batch)["nll"] > 0:
            raise DataError(f"None of {len(rows)} held-out rows has a decision within the context; shorten them")

    @torch.no_grad()
    def __call__(self, policy: Any) -> Mapping[str, float]:
        objective = Supervised()
        total = 0.0
        for rows in policy.cut(self.batch):
            part = self.batch.select(rows)
            total += sum(float(term.total) for term in objective.loss(policy.score(part), part))
        return {"heldout_loss": total / objective.counts(self.batch)["nll"]}
