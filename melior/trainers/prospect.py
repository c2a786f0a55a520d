"""learning from outputs called good or bad, one by one: KTO (prospect theory), where nobody compared two"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from melior.data.formats import canonical, fingerprint
from melior.errors import ConfigError, DataError
from melior.losses.preference import implicit_reward, kto_loss
from melior.masking import sum_decisions
from melior.policies.base import LOG_PROBS, Batch, Scored, Want, score_all
from melior.trainers.references import CONTENT, References, contents_of
from melior.trainers.steps import Step, Term, digest, generator
from melior.types import Demonstration, Preference, Rated, SlateRequest


class Judged:
    """Steps over outputs called good or bad: `batch_size` outputs each, every one once per epoch.

    An output rated above `threshold` is desirable. A preference counts as two outputs, as much as its label is certain:
    a tie says nothing, and is dropped. Every step has both kinds, in the proportion of all rows; with `balance` both
    kinds weigh the same in all, however many there are of each.

    Every output comes with a mismatched one, the output of another row behind its own input: rows without a gradient,
    from which `Kto` tells how far the policy is from the reference. `dropped` counts rows that have nothing to learn.
    `reference` and `references` are as in `Pairs`.
    """

    def __init__(
        self,
        policy: Any,
        rows: Sequence[Rated | Preference],
        *,
        threshold: float = 0.5,
        batch_size: int = 16,
        epochs: int = 1,
        seed: int = 0,
        balance: bool = True,
        reference: Any = None,
        references: References | None = None,
    ) -> None:
        """Raises DataError if there is nothing to learn, or no output of one of the two kinds."""
        self.batch, self.dropped = encode_judged(policy, rows, threshold=threshold, balance=balance)
        self.reference, self.content = reference, fingerprint(rows)
        self.references = references or References(policy, reference=reference)
        self.settings = [threshold, batch_size, epochs, seed, balance]
        self.batch_size, self.epochs, self.seed = batch_size, epochs, seed
        self.members: dict[int, list[int]] = {}  # output → its rows and those of its mismatched one
        for row, output in enumerate(self.batch.columns["examples"].tolist()):
            self.members.setdefault(output, []).append(row)
        self.desirable = {
            output: bool(self.batch.columns["desirable"][rows[0]]) for output, rows in self.members.items()
        }

    @property
    def total(self) -> int:
        return self.epochs * self.per_epoch

    @property
    def per_epoch(self) -> int:
        """Steps that show every output once; the last one of an epoch may be smaller."""
        return -(-len(self.members) // self.batch_size)

    def __call__(self, index: int) -> Step:
        epoch, position = divmod(index, self.per_epoch)
        chosen = self._order(epoch)[position * self.batch_size : (position + 1) * self.batch_size]
        batch = self.batch.select([row for output in chosen for row in self.members[output]])
        told = batch.mask[~batch.columns["mismatched"]].sum()
        good = sum(self.desirable[output] for output in chosen)
        metrics = {
            "epoch": index / self.per_epoch,
            "decisions": float(told),
            "outputs": float(len(chosen)),
            "frac_desirable": good / len(chosen),
        }
        return Step(batch, metrics, reference=self.references)

    def _order(self, epoch: int) -> list[int]:
        """Both kinds shuffled, each spread evenly over the epoch."""
        places: list[tuple[float, int]] = []
        for kind in (True, False):
            outputs = [output for output, desirable in self.desirable.items() if desirable is kind]
            source = generator(self.seed, epoch, int(kind))
            start = float(torch.rand((), generator=source))
            order = torch.randperm(len(outputs), generator=source).tolist()
            places += [((place + start) / len(outputs), outputs[row]) for place, row in enumerate(order)]
        return [output for _, output in sorted(places)]

    def fingerprint(self) -> str:
        reference = "" if self.reference is None else self.reference.fingerprint()
        shape = [int(self.batch.mask.sum()), len(self.members)]
        return digest("judged", self.content, shape, *self.settings, reference)


@dataclass(frozen=True, kw_only=True)
class Kto:
    """Makes desirable outputs likelier and undesirable ones less likely than the reference has them, up to a point.

    Gains and losses are counted from how far the policy has moved anyway: the KL divergence from the reference,
    estimated over mismatched outputs of the whole step, at least 0 and without a gradient. What is far beyond it says
    little more. Losses weigh more than gains by undesirable_weight / desirable_weight; TRL has 1 for both.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, §4.
    """

    beta: float = 0.1  # how fast a further gain comes to say less
    desirable_weight: float = 1.0
    undesirable_weight: float = 4 / 3  # the paper (§4.2) keeps the ratio of both kinds' weights within 4 / 3

    def __post_init__(self) -> None:
        for name in ("beta", "desirable_weight", "undesirable_weight"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")

    @property
    def want(self) -> frozenset[Want]:
        return LOG_PROBS

    def prepare(self, step: Step, policy: Any) -> Step:
        """Reads the reference point off the mismatched rows of the whole step, and leaves them out."""
        if "reference_point" in step.batch.columns:
            return step
        step = step.with_reference(policy)
        other = step.batch.columns["mismatched"]
        point = reference_point(policy, step.batch.select(other.nonzero()[:, 0].tolist()))
        batch = step.batch.select((~other).nonzero()[:, 0].tolist())
        batch = batch.with_columns(reference_point=torch.full((len(batch),), point, dtype=torch.float64))
        return replace(step, batch=batch).with_metrics(reference_point=point)

    def counts(self, batch: Batch) -> Mapping[str, float]:
        first = _firsts(batch)[1]
        weight, desirable = batch.columns["weight"][first], batch.columns["desirable"][first]
        return {
            "preference": float(weight.sum()),
            "preference/desirable": float(weight[desirable].sum()),
            "preference/undesirable": float(weight[~desirable].sum()),
        }

    def active(self, batch: Batch) -> list[int]:
        return (batch.columns["weight"] > 0).nonzero()[:, 0].tolist()

    def loss(self, scored: Scored, batch: Batch) -> list[Term]:
        outputs, first = _firsts(batch)
        mask = batch.mask.to(scored.log_probs.device)
        log_probs = _totals(scored.log_probs, mask, outputs)
        references = _totals(batch.columns["ref_log_probs"].to(log_probs), mask, outputs)
        weight, point = (batch.columns[name][first].to(log_probs) for name in ("weight", "reference_point"))
        desirable = batch.columns["desirable"][first].to(log_probs.device)
        losses = kto_loss(
            log_probs,
            references,
            desirable,
            point,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
        rewards = implicit_reward(log_probs.detach(), references, beta=self.beta)
        gains = torch.sign(rewards - self.beta * point) * torch.where(desirable, 1.0, -1.0)
        watched = {
            "accuracy": (weight * (1 + gains) / 2).sum(),  # outputs on their side of the reference point; on it is half
            "desirable": (weight * rewards)[desirable].sum(),
            "undesirable": (weight * rewards)[~desirable].sum(),
        }
        return [Term("preference", (weight * losses).sum(), metrics=watched)]


def kto(**settings: Any) -> Kto:
    """The objective of KTO; settings are those of `Kto`."""
    return Kto(**settings)


@torch.no_grad()
def reference_point(policy: Any, batch: Batch) -> float:
    """How far the policy is from the reference, in nats: the mean log-ratio of mismatched outputs, at least 0.

    `batch` has column "ref_log_probs"; without rows it is 0.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, §4.1.
    """
    if not len(batch):
        return 0.0
    ratios = score_all(policy, batch) - batch.columns["ref_log_probs"].double()
    return max(0.0, float(_totals(ratios, batch.mask, _firsts(batch)[0]).mean()))


def encode_judged(
    policy: Any, rows: Sequence[Rated | Preference], *, threshold: float = 0.5, balance: bool = True
) -> tuple[Batch, int]:
    """All outputs called good or bad and their mismatched ones as one batch, and how many outputs were dropped.

    Columns: "desirable", "mismatched" [B] bool; "weight" [B]; "examples" [B], which output a row is of or stands by.

    Raises:
        DataError: if there are no rows, a rating or weight is none, or no output of one kind is left.
    """
    judged = _judged(rows, threshold)
    told = [Demonstration(row.inputs, row.output) for row in judged]
    partners = [(owner, partner) for owner, partner in enumerate(_partners(told)) if partner is not None]
    other = [Demonstration(told[owner].inputs, told[partner].output) for owner, partner in partners]
    owners = torch.tensor([*range(len(told)), *(owner for owner, _ in partners)], dtype=torch.long)
    batch: Batch = policy.encode([*told, *other])
    example = batch.columns["examples"]
    desirable = torch.tensor([row.rating > threshold for row in judged])
    weight = torch.tensor([row.weight for row in judged], dtype=torch.float64)
    decided = torch.zeros(len(owners), dtype=torch.long).index_add_(0, example, batch.mask.sum(1)) > 0
    useful = decided[: len(told)] & (weight > 0)
    _check_kinds(desirable[useful], threshold)
    batch = replace(batch, groups=example, whole=True)
    batch = batch.with_columns(
        examples=owners[example],
        desirable=desirable[owners[example]],
        mismatched=example >= len(told),
        weight=(_balanced(weight, desirable, useful) if balance else weight)[owners[example]],
        **{CONTENT: contents_of([(one,) for one in [*told, *other]], batch)},
    )
    kept = useful[owners[example]] & decided[example]
    return batch.select(kept.nonzero()[:, 0].tolist()), len(judged) - int(useful.sum())


def _judged(rows: Sequence[Rated | Preference], threshold: float) -> list[Rated]:
    """Ratings as they are, and two for each preference: the better output above the threshold, the other below."""
    if not rows:
        raise DataError("There are 0 ratings to learn from; add rows")
    found: list[Rated] = []
    for row in rows:
        if isinstance(row, Rated):
            found.append(row)
            continue
        certain = 2 * row.probability - 1
        for output, sign in ((row.chosen, certain), (row.rejected, -certain)):
            found.append(Rated(row.inputs, output, threshold + sign, weight=row.weight * abs(certain)))
    odd = sum(not (math.isfinite(row.rating) and math.isfinite(row.weight) and row.weight >= 0) for row in found)
    if odd:
        raise DataError(f"{odd} of {len(found)} outputs have a rating or weight that is none; leave these rows out")
    return found


def _check_kinds(desirable: Tensor, threshold: float) -> None:
    good = int(desirable.sum())
    if not 0 < good < len(desirable):
        raise DataError(
            f"{good} of {len(desirable)} outputs with something to learn are rated above threshold={threshold}, and "
            "KTO needs both kinds; set the threshold between good and bad"
        )


def _balanced(weight: Tensor, desirable: Tensor, useful: Tensor) -> Tensor:  # [N] each
    """Weights under which both kinds have half of the whole, which stays what it was."""
    half = weight[useful].sum() / 2
    good, bad = (weight[useful & kind].sum() for kind in (desirable, ~desirable))
    return torch.where(desirable, weight * (half / good), weight * (half / bad))


def _partners(rows: Sequence[Demonstration]) -> list[int | None]:
    """For each row another whose output its input could have had, with another input wherever there are enough.

    Slates are of a request's own candidates, so requests are matched with those that have the same.
    """
    alike: dict[str, list[tuple[str, int]]] = {}
    for index, row in enumerate(rows):
        choices = row.inputs.candidates if isinstance(row.inputs, SlateRequest) else None
        inputs = hashlib.sha256(canonical(row.inputs).encode()).hexdigest()
        alike.setdefault(canonical(choices), []).append((inputs, index))
    found: list[int | None] = [None] * len(rows)
    for members in alike.values():
        if len(members) < 2:
            continue
        ordered = [index for _, index in sorted(members)]
        most = max(Counter(inputs for inputs, _ in members).values())
        shift = most if 2 * most <= len(ordered) else len(ordered) // 2
        for place, index in enumerate(ordered):
            found[index] = ordered[(place + shift) % len(ordered)]
    return found


def _firsts(batch: Batch) -> tuple[Tensor, Tensor]:  # [B], [N]
    """Which output each row is of, and a row of each output."""
    names, outputs = torch.unique(batch.groups, return_inverse=True)
    first = torch.zeros(len(names), dtype=torch.long)
    first[outputs] = torch.arange(len(batch))
    return outputs, first


def _totals(values: Tensor, mask: Tensor, outputs: Tensor) -> Tensor:  # [B, T], [B, T], [B] -> [N]
    """The sum over all decisions of each output, which may have several turns."""
    rows = sum_decisions(values, mask)
    empty = torch.zeros(int(outputs.max()) + 1 if len(outputs) else 0, dtype=rows.dtype, device=rows.device)
    return empty.index_add(0, outputs.to(rows.device), rows)
