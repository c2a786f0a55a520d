"""pairs of outputs: as steps, as one batch whose groups are pairs, and as an evaluation on pairs that never train"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from melior.data.formats import fingerprint
from melior.errors import DataError, ShapeError
from melior.masking import sum_decisions
from melior.policies.base import Batch
from melior.trainers.references import CONTENT, References, contents_of
from melior.trainers.steps import Objective, Step, digest, generator
from melior.types import Demonstration, Preference, Record


class Pairs:
    """Steps over preferences: `batch_size` pairs each, every pair once per epoch, in a new order each epoch.

    `dropped` counts pairs of which a side has nothing decided within the context. `reference` is a policy that encodes
    as this one does; without it the policy speaks for what it was when it was made or loaded. Its log-probs of a pair
    are computed once, when an objective first asks for them, and with `references` that have a folder only once ever.
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
        references: References | None = None,
    ) -> None:
        """Raises DataError if no pair has two sides to compare."""
        self.batch, self.pairs, self.dropped = encode_pairs(policy, rows)
        self.reference, self.content = reference, fingerprint(rows)
        self.references = references or References(policy, reference=reference)
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
        metrics = {
            "epoch": index / self.per_epoch,
            "decisions": float(batch.mask.sum()),
            "pairs": float(len(chosen)),
        }
        return Step(batch, metrics, reference=self.references)

    def fingerprint(self) -> str:
        reference = "" if self.reference is None else self.reference.fingerprint()
        shape = [int(self.batch.mask.sum()), len(self.pairs)]
        return digest("pairs", self.content, shape, self.batch_size, self.epochs, self.seed, reference)


class HeldoutPairs:
    """An evaluation for `fit`: loss, accuracy and margin of the rewards on pairs that never train."""

    def __init__(
        self,
        policy: Any,
        rows: Sequence[Preference],
        objective: Objective,
        *,
        reference: Any = None,
        references: References | None = None,
    ) -> None:
        """Raises DataError if no pair has two sides to compare, or none of them weighs anything."""
        batch, _, self.dropped = encode_pairs(policy, rows)
        step = Step(batch, reference=references or References(policy, reference=reference))
        prepared = objective.prepare(step, policy).batch
        self.objective, self.batch = objective, prepared.select(objective.active(prepared))
        if not len(self.batch):
            raise DataError(f"None of {len(rows)} held-out pairs weighs anything; give some a weight above 0")

    @torch.no_grad()
    def __call__(self, policy: Any) -> Mapping[str, float]:
        counts = self.objective.counts(self.batch)
        totals = {"heldout_loss": 0.0, "heldout_accuracy": 0.0, "heldout_margin": 0.0}
        for rows in policy.cut(self.batch):
            part = self.batch.select(rows)
            for term in self.objective.loss(policy.score(part, self.objective.want), part):
                totals["heldout_loss"] += float(term.total) * term.weight / counts[term.name]
                for name in ("accuracy", "margin"):
                    if name in term.metrics:
                        totals[f"heldout_{name}"] += float(term.metrics[name]) / counts[term.name]
        return totals


def encode_pairs(policy: Any, rows: Sequence[Preference]) -> tuple[Batch, list[int], int]:
    """All pairs as one batch whose groups are pairs, the pairs in it, and how many were dropped.

    Columns: "chosen" [B] bool; "probability", "margin" and "weight" [B] of each row's pair; and "content" [B].

    Raises:
        DataError: if there are no pairs, a probability or weight is none, or no pair has two sides to compare.
    """
    if not rows:
        raise DataError("There are 0 preferences to learn from; add rows")
    odd = sum(not (0 <= row.probability <= 1 and math.isfinite(row.margin)) for row in rows)
    if odd:
        raise DataError(f"{odd} of {len(rows)} preferences have a probability outside [0, 1] or a margin that is none")
    odd = sum(not (row.weight >= 0 and math.isfinite(row.weight)) for row in rows)
    if odd:
        raise DataError(f"{odd} of {len(rows)} preferences have a weight below 0, or one that is no number")
    sides = [(Demonstration(row.inputs, row.chosen), Demonstration(row.inputs, row.rejected)) for row in rows]
    labels = {
        name: torch.tensor([getattr(row, name) for row in rows], dtype=torch.float64)
        for name in ("probability", "margin", "weight")
    }
    batch, pairs, dropped = paired(policy, sides, labels)
    if not pairs:
        raise DataError(f"None of {len(rows)} pairs has two sides with a decision within the context; shorten them")
    return batch, pairs, dropped


def paired(
    policy: Any,
    sides: Sequence[tuple[Demonstration | Record, Demonstration | Record]],  # chosen and rejected; one or more
    labels: Mapping[str, Tensor],  # [P] each: probability, margin, weight
) -> tuple[Batch, list[int], int]:
    """As `encode_pairs`, of sides that may be records, whose decisions stay as they were sampled; none need be left."""
    batch: Batch = policy.encode([side for pair in sides for side in pair])
    owners = batch.columns["examples"]
    decided = torch.zeros(2 * len(sides), dtype=torch.long).index_add_(0, owners, batch.mask.sum(1))
    complete = (decided.reshape(-1, 2) > 0).all(1)
    pairs = complete.nonzero()[:, 0].tolist()
    pair = owners // 2
    batch = replace(batch, groups=pair, whole=True)
    columns = {name: values[pair] for name, values in labels.items()}
    batch = batch.with_columns(chosen=owners % 2 == 0, **{CONTENT: contents_of(sides, batch)}, **columns)
    return batch.select(complete[pair].nonzero()[:, 0].tolist()), pairs, len(sides) - len(pairs)


@dataclass(frozen=True)
class Sides:
    """Where the rows of each pair stand: a side may have several turns, and is then their sum."""

    place: Tensor  # [B] long: twice the pair's number, plus 1 for the rejected side
    count: int  # P
    first: Tensor  # [P] a row of each pair

    @classmethod
    def of(cls, batch: Batch) -> Sides:
        """Of pairs in the order of their group numbers.

        Raises:
            ShapeError: if a pair was parted.
        """
        pairs, index = torch.unique(batch.groups, return_inverse=True)
        place = 2 * index + (~batch.columns["chosen"]).long()
        present = torch.zeros(2 * len(pairs), dtype=torch.bool)
        present[place] = True
        if not bool(present.all()):
            raise ShapeError(
                f"{int((~present).sum())} of {len(pairs)} pairs lack a side in a micro-batch; "
                "`cut` must keep groups whole"
            )
        first = torch.zeros(len(pairs), dtype=torch.long)
        first[index] = torch.arange(len(batch))
        return cls(place, len(pairs), first)

    def sums(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:  # [B, T] twice -> [P], [P]
        """The sum over all decisions of each pair's chosen and rejected side."""
        totals = sum_decisions(values, mask.to(values.device))
        sums = torch.zeros(2 * self.count, dtype=totals.dtype, device=totals.device)
        sums = sums.index_add(0, self.place.to(totals.device), totals)
        return sums[0::2], sums[1::2]

    def means(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:  # [B, T] twice -> [P], [P]
        """The mean over all decisions of each pair's chosen and rejected side."""
        chosen, rejected = self.sums(values, mask)
        lengths = self.sums(torch.ones_like(values), mask)
        return chosen / lengths[0].clamp(min=1), rejected / lengths[1].clamp(min=1)
