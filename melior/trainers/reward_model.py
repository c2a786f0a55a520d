"""learning a reward: from preferences, from ratings on a scale, from yes and no, from ordered grades

    steps = Comparisons(model, preferences); objective = bradley_terry()
    steps = Ratings(model, rated);           objective = squared_error(), logistic() or ordinal()

Where a model has several heads, a row's item names the one it teaches: `item["head"]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from melior.errors import ConfigError, DataError
from melior.losses.reward import bradley_terry_loss, centring_loss, logistic_loss, squared_error_loss
from melior.metrics import auc
from melior.policies.base import Batch, Scored, Want
from melior.policies.reward_model import VALUES, RewardModel
from melior.trainers.pairs import Pairs, Sides, encode_pairs
from melior.trainers.steps import Step, Term
from melior.trainers.supervised import Examples
from melior.types import Preference, Rated

ScaleName = Literal["number", "yes_no", "grades"]
CENTRING = 0.01  # the weight that Eisenstein et al. 2023 use


class Comparisons:
    """Steps over preferences: `batch_size` pairs each, every pair once per epoch, in a new order each epoch."""

    def __init__(
        self, model: RewardModel, rows: Sequence[Preference], *, batch_size: int = 16, epochs: int = 1, seed: int = 0
    ) -> None:
        """Raises DataError if no pair has two sides to compare, or a row's head is none of the model's."""
        self.pairs = Pairs(model, rows, batch_size=batch_size, epochs=epochs, seed=seed)
        self.heads = model.heads.of(rows)
        self.model, self.seed = model, seed

    @property
    def total(self) -> int:
        return self.pairs.total

    @property
    def per_epoch(self) -> int:
        return self.pairs.per_epoch

    @property
    def dropped(self) -> int:
        """Pairs of which a side has nothing to read within the context."""
        return self.pairs.dropped

    def __call__(self, index: int) -> Step:
        step = self.pairs(index)
        batch = step.batch.with_columns(heads=self.heads[step.batch.groups])
        return replace(step, batch=self.model.perturb(batch, (self.seed, index)))

    def fingerprint(self) -> str:
        return f"comparisons-{self.pairs.fingerprint()}"


class Ratings:
    """Steps over rated outputs: `batch_size` rows each, every row once per epoch, in a new order each epoch."""

    def __init__(
        self, model: RewardModel, rows: Sequence[Rated], *, batch_size: int = 16, epochs: int = 1, seed: int = 0
    ) -> None:
        """Raises DataError if a rating is not finite, nothing can be read, or a row's head is none of the model's."""
        self.ratings = _ratings(rows)
        self.heads = model.heads.of(rows)
        examples: Any = rows
        self.examples = Examples(model, examples, batch_size=batch_size, epochs=epochs, seed=seed)

    @property
    def total(self) -> int:
        return self.examples.total

    @property
    def per_epoch(self) -> int:
        return self.examples.per_epoch

    @property
    def dropped(self) -> int:
        """Rows of which nothing can be read within the context."""
        return self.examples.dropped

    def __call__(self, index: int) -> Step:
        step = self.examples(index)
        owners = step.batch.columns["examples"]
        return step.with_columns(ratings=self.ratings[owners], heads=self.heads[owners])

    def fingerprint(self) -> str:
        return f"ratings-{self.examples.fingerprint()}"


# ---------------------------------------------------------------------- objectives


@dataclass(frozen=True, kw_only=True)
class BradleyTerry:
    """Rewards whose differences are the log-odds of people's preferences, with soft labels and margins."""

    centring: float = 0.0  # weight of the squared sum of a pair's rewards; .01 keeps rewards around 0

    def __post_init__(self) -> None:
        if not (self.centring >= 0 and math.isfinite(self.centring)):
            raise ConfigError(f"centring is a weight of 0 or more, got {self.centring}; {CENTRING} is usual")

    @property
    def want(self) -> frozenset[Want]:
        return VALUES

    def prepare(self, step: Step, policy: Any) -> Step:
        return step

    def counts(self, batch: Batch) -> Mapping[str, float]:
        """Pairs by weight; each has two rows."""
        weights = batch.columns["weight"]
        pairs, decided = float(weights.sum()) / 2, float((weights * _decided(batch)).sum()) / 2
        return {"preference": pairs, "centring": pairs, "preference/accuracy": decided}

    def active(self, batch: Batch) -> list[int]:
        return (batch.columns["weight"] > 0).nonzero()[:, 0].tolist()

    def loss(self, scored: Scored, batch: Batch) -> list[Term]:
        chosen, rejected, labels = compared(head_values(scored, batch), batch)
        weight = labels["weight"]
        losses = bradley_terry_loss(chosen, rejected, probability=labels["probability"], margin=labels["margin"])
        watched = _watched(chosen.detach(), rejected.detach(), labels)
        terms = [Term("preference", (weight * losses).sum(), metrics=watched)]
        if self.centring:
            centred = weight * centring_loss(chosen, rejected)
            terms.append(Term("centring", centred.sum(), weight=self.centring))
        return terms


@dataclass(frozen=True, kw_only=True)
class OnRatings:
    """Rewards that foretell ratings of single outputs, averaged over rows by their weights."""

    scale: ScaleName = "number"  # what a rating is: least squares, logistic, ordinal

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ConfigError(f"A rating is one of {', '.join(SCALES)}, got {self.scale!r}")

    @property
    def want(self) -> frozenset[Want]:
        return SCALES[self.scale].want

    def prepare(self, step: Step, policy: Any) -> Step:
        """Ratings become what the values are compared with."""
        targets = SCALES[self.scale].targets(policy, step.batch.columns["ratings"], step.batch.columns["heads"])
        return step.with_columns(targets=targets)

    def counts(self, batch: Batch) -> Mapping[str, float]:
        return {"rating": float(_weights(batch).sum())}

    def active(self, batch: Batch) -> list[int]:
        return (_weights(batch) != 0).nonzero()[:, 0].tolist()

    def loss(self, scored: Scored, batch: Batch) -> list[Term]:
        losses = SCALES[self.scale].losses(scored, batch)
        return [Term("rating", (losses * _weights(batch).to(losses)).sum())]


class Scale(NamedTuple):
    """What one kind of rating asks of a forward pass, and how it is compared with what came out."""

    want: frozenset[Want]
    targets: Callable[[RewardModel, Tensor, Tensor], Tensor]  # of ratings [B] of heads [B]
    losses: Callable[[Scored, Batch], Tensor]  # [B]


def _standardised(model: RewardModel, ratings: Tensor, heads: Tensor) -> Tensor:
    """In the units that `RewardModel.standardise` took."""
    location, spread = model.heads.location.double().cpu(), model.heads.spread.double().cpu()
    return (ratings - location[heads]) / spread[heads]


def _shares(model: RewardModel, ratings: Tensor, heads: Tensor) -> Tensor:
    """Ratings as they are.

    Raises:
        DataError: for one outside [0, 1].
    """
    if odd := int(((ratings < 0) | (ratings > 1)).sum()):
        raise DataError(f"{odd} of {len(ratings)} ratings are no yes (1), no (0) or a share between; use squared_error")
    return ratings


def _places(model: RewardModel, ratings: Tensor, heads: Tensor) -> Tensor:
    """Which of its head's levels each rating is.

    Raises:
        DataError: for a head without levels, or a rating that is none of them.
    """
    found = torch.zeros(len(ratings), dtype=torch.long)
    for head in heads.unique().tolist():
        name = model.heads.names[head]
        if name not in model.heads.levels:
            raise DataError(f"Head {name!r} has no levels; make the reward model with levels={{{name!r}: (1, 2, 3)}}")
        scale = torch.tensor(model.heads.levels[name], dtype=torch.float64)
        equal = (ratings[heads == head][:, None] - scale).abs() < 1e-9 * scale.abs().max().clamp(min=1)
        if odd := int((~equal.any(1)).sum()):
            raise DataError(f"{odd} ratings of head {name!r} are none of its levels {scale.tolist()}; add them")
        found[heads == head] = equal.long().argmax(1)
    return found


def _squared_errors(scored: Scored, batch: Batch) -> Tensor:
    values = head_values(scored, batch)
    return squared_error_loss(values, batch.columns["targets"].to(values))


def _cross_entropies(scored: Scored, batch: Batch) -> Tensor:
    values = head_values(scored, batch)
    return logistic_loss(values, batch.columns["targets"].to(values))


def _grade_losses(scored: Scored, batch: Batch) -> Tensor:
    assert scored.candidates is not None
    table = scored.candidates[torch.arange(len(batch)), batch.columns["heads"]]  # [B, K]
    return -table.gather(1, batch.columns["targets"].to(table.device)[:, None])[:, 0]


SCALES: Mapping[str, Scale] = {
    "number": Scale(VALUES, _standardised, _squared_errors),
    "yes_no": Scale(VALUES, _shares, _cross_entropies),
    "grades": Scale(VALUES | {Want.CANDIDATES}, _places, _grade_losses),
}


def bradley_terry(**settings: Any) -> BradleyTerry:
    """The objective of preferences; settings are those of `BradleyTerry`."""
    return BradleyTerry(**settings)


def squared_error() -> OnRatings:
    """The objective of ratings that are numbers; call `RewardModel.standardise` first."""
    return OnRatings(scale="number")


def logistic() -> OnRatings:
    """The objective of yes (1) and no (0), or of the share of people who said yes."""
    return OnRatings(scale="yes_no")


def ordinal() -> OnRatings:
    """The objective of ordered grades, for heads made with `levels`; how far grades lie apart is learnt."""
    return OnRatings(scale="grades")


# ---------------------------------------------------------------------- held-out rows


class HeldoutComparisons:
    """An evaluation for `fit`: loss, accuracy (ties half) and margin on pairs that never train; by head if several."""

    def __init__(self, model: RewardModel, rows: Sequence[Preference]) -> None:
        """Raises DataError if no pair has two sides to compare."""
        batch, _, self.dropped = encode_pairs(model, rows)
        self.batch = batch.with_columns(heads=model.heads.of(rows)[batch.groups])

    def __call__(self, model: RewardModel) -> Mapping[str, float]:
        values = model.values(self.batch).gather(1, self.batch.columns["heads"][:, None])[:, 0]
        chosen, rejected, labels = compared(values, self.batch)
        weight, gaps = labels["weight"], chosen - rejected
        losses = bradley_terry_loss(chosen, rejected, probability=labels["probability"], margin=labels["margin"])
        decided, right = weight * (labels["probability"] != 0.5), _right(gaps, labels["probability"])
        told = {
            "heldout_loss": _mean(losses, weight),
            "heldout_margin": _mean(gaps, weight),
            "heldout_accuracy": _mean(right, decided),
        }
        for head, name in enumerate(model.heads.names) if len(model.heads.names) > 1 else ():
            told[f"heldout_accuracy/{name}"] = _mean(right, decided * (labels["heads"] == head))
        return {name: value for name, value in told.items() if not math.isnan(value)}  # what no row can tell


class HeldoutRatings:
    """An evaluation for `fit` on ratings that never train: loss, and area under the curve or correlation, by head."""

    def __init__(self, model: RewardModel, rows: Sequence[Rated], objective: OnRatings) -> None:
        """Raises DataError if no row can be read."""
        batch = model.encode(rows)
        batch = batch.with_columns(ratings=_ratings(rows), heads=model.heads.of(rows))
        kept = batch.mask.any(1).nonzero()[:, 0].tolist()
        if not kept:
            raise DataError(f"None of {len(rows)} held-out rows has anything to read within the context; shorten them")
        self.dropped = len(rows) - len(kept)
        self.objective = objective
        self.batch = objective.prepare(Step(batch.select(kept)), model).batch

    @torch.no_grad()
    def __call__(self, model: RewardModel) -> Mapping[str, float]:
        total = 0.0
        values = np.zeros(len(self.batch))
        for rows in model.cut(self.batch):
            part = self.batch.select(rows)
            scored = model.score(part, self.objective.want)
            total += sum(float(term.total) for term in self.objective.loss(scored, part))
            values[rows] = head_values(scored, part).double().cpu().numpy()
        told = {"heldout_loss": total / self.objective.counts(self.batch)["rating"]}
        ratings, heads = self.batch.columns["ratings"].numpy(), self.batch.columns["heads"].numpy()
        for head in sorted(set(heads.tolist())):
            mine = heads == head
            suffix = f"/{model.heads.names[head]}" if len(model.heads.names) > 1 else ""
            if set(ratings[mine].tolist()) <= {0.0, 1.0}:
                told[f"heldout_auc{suffix}"] = float(auc(values[mine], ratings[mine] > 0))
            else:
                told[f"heldout_correlation{suffix}"] = _correlation(values[mine], ratings[mine])
        return told


@torch.no_grad()
def rating_losses(model: RewardModel, rows: Sequence[Rated], objective: OnRatings) -> list[float]:
    """What the objective says of each row by itself; NaN for rows that cannot be read."""
    batch = model.encode(rows).with_columns(ratings=_ratings(rows), heads=model.heads.of(rows))
    batch = objective.prepare(Step(batch), model).batch
    found = torch.full((len(batch),), torch.nan, dtype=torch.float64)
    for chosen in model.cut(batch):
        part = batch.select(chosen)
        losses = SCALES[objective.scale].losses(model.score(part, objective.want), part)
        found[chosen] = losses.double().cpu()
    return torch.where(batch.mask.any(1), found, torch.nan).tolist()


# ---------------------------------------------------------------------- what both share


def head_values(scored: Scored, batch: Batch) -> Tensor:  # [B]
    """Each row's reward, of the head that it teaches."""
    assert scored.values is not None
    return scored.values.gather(1, batch.columns["heads"].to(scored.values.device)[:, None])[:, 0]


def compared(values: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The values [P] of each pair's chosen and rejected output, and the pair's labels [P], in one order.

    Raises:
        ShapeError: if a pair was parted.
    """
    found = Sides.of(batch)
    chosen, rejected = found.sums(values[:, None], torch.ones(len(batch), 1, dtype=torch.bool))
    labels = {name: batch.columns[name][found.first] for name in ("probability", "margin", "weight", "heads")}
    return chosen, rejected, {name: label.to(chosen) for name, label in labels.items()}


def _watched(chosen: Tensor, rejected: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums over pairs, by weight; ties of the people have no accuracy."""
    right = torch.where(labels["probability"] == 0.5, 0.0, _right(chosen - rejected, labels["probability"]))
    told = {"accuracy": right, "margin": chosen - rejected, "chosen": chosen, "rejected": rejected}
    return {name: (labels["weight"] * values).sum() for name, values in told.items()}


def _right(gaps: Tensor, probability: Tensor) -> Tensor:  # [P]
    """1 where the higher reward is that of the output which most prefer, whatever side it stands on; ½ where equal."""
    return (torch.sign(gaps) * torch.sign(probability - 0.5) + 1) / 2


def _decided(batch: Batch) -> Tensor:  # [B]
    """Whether people prefer one of the row's pair."""
    return batch.columns["probability"] != 0.5


def _mean(values: Tensor, weights: Tensor) -> float:
    """Weighted, NaN where nothing weighs anything."""
    return float((weights * values).sum() / weights.sum())


def _weights(batch: Batch) -> Tensor:  # [B]
    """A row's own weight, 0 where nothing can be read."""
    return torch.where(batch.mask, batch.weights, 0.0).amax(1) if batch.mask.shape[1] else torch.zeros(len(batch))


def _ratings(rows: Sequence[Rated]) -> Tensor:  # [N]
    found = torch.tensor([row.rating for row in rows], dtype=torch.float64)
    if odd := int((~torch.isfinite(found)).sum()):
        raise DataError(f"{odd} of {len(rows)} ratings are not finite; leave these rows out")
    return found


def _correlation(values: np.ndarray, ratings: np.ndarray) -> float:
    """Pearson's, NaN where one side is constant."""
    if values.std() == 0 or ratings.std() == 0:
        return math.nan
    return float(np.corrcoef(values, ratings)[0, 1])
