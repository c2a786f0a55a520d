"""learning from preferences (RLHF without a reward model): DPO over pairs of outputs"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from melior.data.formats import fingerprint
from melior.errors import ConfigError, DataError, ShapeError
from melior.losses.preference import dpo_loss, implicit_reward
from melior.masking import sum_decisions
from melior.policies.base import LOG_PROBS, Batch, Scored, Want, score_all
from melior.trainers.steps import Step, Term, digest, generator
from melior.types import Demonstration, Preference

WATCHED = ("accuracy", "margin", "chosen", "rejected")  # means over pairs


class Pairs:
    """Steps over preferences: `batch_size` pairs each, every pair once per epoch, in a new order each epoch.

    `dropped` counts pairs of which a side has nothing decided within the context. `reference` is a policy that encodes
    as this one does; without it the policy speaks for what it was when it was made or loaded.
    """

    def __init__(
        self,
        policy: Any,
        rows: Sequence[Preference],
        *,
        batch_size: int = 16,
        epochs: int = 1,
        seed: int = 0,
        reference: Any = None,
    ) -> None:
        """Raises DataError if no pair has two sides to compare."""
        self.batch, self.pairs, self.dropped = encode_pairs(policy, rows)
        self.reference, self.content = reference, fingerprint(rows)
        self.batch_size, self.epochs, self.seed = batch_size, epochs, seed
        self.members: dict[int, list[int]] = {}
        for row, pair in enumerate(self.batch.groups.tolist()):
            self.members.setdefault(pair, []).append(row)

    @property
    def total(self) -> int:
        return self.epochs * self.per_epoch

    @property
    def per_epoch(self) -> int:
        """Steps that show every pair once; the last one of an epoch may be smaller."""
        return -(-len(self.pairs) // self.batch_size)

    def __call__(self, index: int) -> Step:
        epoch, position = divmod(index, self.per_epoch)
        order = torch.randperm(len(self.pairs), generator=generator(self.seed, epoch)).tolist()
        chosen = order[position * self.batch_size : (position + 1) * self.batch_size]
        batch = self.batch.select([row for pair in chosen for row in self.members[self.pairs[pair]]])
        if self.reference is not None:
            batch = batch.with_columns(ref_log_probs=score_all(self.reference, batch))
        return Step(
            batch, {"epoch": index / self.per_epoch, "decisions": float(batch.mask.sum()), "pairs": float(len(chosen))}
        )

    def fingerprint(self) -> str:
        reference = "" if self.reference is None else self.reference.fingerprint()
        shape = [int(self.batch.mask.sum()), len(self.pairs)]
        return digest("pairs", self.content, shape, self.batch_size, self.epochs, self.seed, reference)


@dataclass(frozen=True, kw_only=True)
class Dpo:
    """Makes what people preferred likelier, and the other less likely, than the reference has them.

    Source: Rafailov et al. 2023, arXiv:2305.18290.
    """

    beta: float = 0.1  # how dear it is to leave the reference; .1 … .5 in the paper

    def __post_init__(self) -> None:
        if not (self.beta > 0 and math.isfinite(self.beta)):
            raise ConfigError(f"beta must be above 0, got {self.beta}")

    @property
    def want(self) -> frozenset[Want]:
        return LOG_PROBS

    def prepare(self, step: Step, policy: Any) -> Step:
        if "ref_log_probs" in step.batch.columns:
            return step
        return step.with_columns(ref_log_probs=policy.reference_log_probs(step.batch))

    def counts(self, batch: Batch) -> Mapping[str, float]:
        return {"preference": float(len(batch.groups.unique()))}

    def active(self, batch: Batch) -> list[int]:
        return list(range(len(batch)))

    def loss(self, scored: Scored, batch: Batch) -> list[Term]:
        sides = _sides(scored.log_probs, batch)
        references = _sides(batch.columns["ref_log_probs"].to(scored.log_probs), batch)
        first = _first_rows(batch)
        losses = dpo_loss(
            *sides,
            *references,
            beta=self.beta,
            probability=batch.columns["probability"][first].to(sides[0]),
            margin=batch.columns["margin"][first].to(sides[0]),
        )
        return [Term("preference", losses.sum(), metrics=self._watched(sides, references))]

    def _watched(self, sides: tuple[Tensor, Tensor], references: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Sums over pairs: of implicit rewards, and of pairs where the chosen output's is the higher."""
        with torch.no_grad():
            chosen = implicit_reward(sides[0], references[0], beta=self.beta)
            rejected = implicit_reward(sides[1], references[1], beta=self.beta)
            right = (chosen > rejected).double() + 0.5 * (chosen == rejected).double()
            told = {"accuracy": right, "margin": chosen - rejected, "chosen": chosen, "rejected": rejected}
            return {name: told[name].sum() for name in WATCHED}


def dpo(**settings: Any) -> Dpo:
    """The objective of DPO; settings are those of `Dpo`."""
    return Dpo(**settings)


class HeldoutPairs:
    """An evaluation for `fit`: loss, accuracy and margin of the implicit reward on pairs that never train."""

    def __init__(self, policy: Any, rows: Sequence[Preference], objective: Dpo, *, reference: Any = None) -> None:
        """Raises DataError if no pair has two sides to compare."""
        batch, _, self.dropped = encode_pairs(policy, rows)
        if reference is not None:
            batch = batch.with_columns(ref_log_probs=score_all(reference, batch))
        self.objective, self.batch = objective, objective.prepare(Step(batch), policy).batch

    @torch.no_grad()
    def __call__(self, policy: Any) -> Mapping[str, float]:
        count = self.objective.counts(self.batch)["preference"]
        totals = {"heldout_loss": 0.0, "heldout_accuracy": 0.0, "heldout_margin": 0.0}
        for rows in policy.cut(self.batch):
            part = self.batch.select(rows)
            (term,) = self.objective.loss(policy.score(part), part)
            totals["heldout_loss"] += float(term.total)
            totals["heldout_accuracy"] += float(term.metrics["accuracy"])
            totals["heldout_margin"] += float(term.metrics["margin"])
        return {name: total / count for name, total in totals.items()}


def encode_pairs(policy: Any, rows: Sequence[Preference]) -> tuple[Batch, list[int], int]:
    """All pairs as one batch whose groups are pairs, the pairs in it, and how many were dropped.

    Columns: "chosen" [B] bool, "probability" [B] and "margin" [B] of each row's pair.

    Raises:
        DataError: if there are no pairs, a probability is none, or no pair has two sides to compare.
    """
    if not rows:
        raise DataError("There are 0 preferences to learn from; add rows")
    odd = sum(not (0 <= row.probability <= 1 and math.isfinite(row.margin)) for row in rows)
    if odd:
        raise DataError(f"{odd} of {len(rows)} preferences have a probability outside [0, 1] or a margin that is none")
    sides = [Demonstration(row.inputs, output) for row in rows for output in (row.chosen, row.rejected)]
    batch: Batch = policy.encode(sides)
    owners = batch.columns["examples"]
    decided = torch.zeros(len(sides), dtype=torch.long).index_add_(0, owners, batch.mask.sum(1))
    complete = (decided.reshape(-1, 2) > 0).all(1)
    pairs = complete.nonzero()[:, 0].tolist()
    if not pairs:
        raise DataError(f"None of {len(rows)} pairs has two sides with a decision within the context; shorten them")
    pair = owners // 2
    batch = replace(batch, groups=pair, whole=True).with_columns(
        chosen=owners % 2 == 0,
        probability=torch.tensor([row.probability for row in rows], dtype=torch.float64)[pair],
        margin=torch.tensor([row.margin for row in rows], dtype=torch.float64)[pair],
    )
    return batch.select(complete[pair].nonzero()[:, 0].tolist()), pairs, len(rows) - len(pairs)


def _sides(log_probs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:  # [P], [P]
    """Log-probs of each pair's chosen and rejected output; a side of several turns is their sum.

    Raises:
        ShapeError: if a pair was parted.
    """
    _, index = torch.unique(batch.groups, return_inverse=True)
    count = int(index.max()) + 1
    index, chosen = index.to(log_probs.device), batch.columns["chosen"].to(log_probs.device)
    present = torch.zeros(2 * count, dtype=torch.bool, device=log_probs.device)
    place = 2 * index + (~chosen).long()
    present[place] = True
    if not bool(present.all()):
        raise ShapeError(
            f"{int((~present).sum())} of {count} pairs lack a side in a micro-batch; `cut` must keep groups whole"
        )
    totals = sum_decisions(log_probs, batch.mask.to(log_probs.device))
    sums = torch.zeros(2 * count, dtype=totals.dtype, device=totals.device).index_add(0, place, totals)
    return sums[0::2], sums[1::2]


def _first_rows(batch: Batch) -> Tensor:  # [P]
    """A row of each pair, in the order of `_sides`."""
    pairs, index = torch.unique(batch.groups, return_inverse=True)
    rows = torch.zeros(len(pairs), dtype=torch.long)
    rows[index] = torch.arange(len(batch))
    return rows
