"""pairs of a policy's own outputs, labelled by a grader as it learns: preference learning that never goes stale

Any grader will do: a verifier, a judge, a reward model. Any objective over pairs learns from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor

from melior.errors import ConfigError
from melior.policies.base import Batch, score_all
from melior.rewards.base import FailureLimit
from melior.rollouts.collect import Grades, Rollout
from melior.trainers.pairs import paired
from melior.trainers.rollouts import Rollouts, histograms, measured, shown
from melior.trainers.steps import Step, digest
from melior.types import Record, Sampling, Task

Pairing = Literal["best_worst", "all", "soft"]


@dataclass(frozen=True)
class Labelled:
    """Two outputs of one input, the better one first where there is one."""

    chosen: Record
    rejected: Record
    probability: float = 1.0


class OnlinePairs:
    """Steps of fresh pairs: `prompts` tasks each, `sampling.n` outputs per task, graded and paired within their task.

    `pairing` is "best_worst": the best output against the worst; "all": every two whose scores differ; or "soft": every
    two, with the probability that a Bradley–Terry model of scores / `scale` gives, for which a tie is a label like any
    other. Pairs that say nothing (tied, or the same output twice) are dropped and counted as "ties"; every task that
    has a pair weighs 1. What the grader could not score is in no pair. A step without a pair changes no weights.

    What was sampled is learnt as it was sampled, decision by decision. `reference` is a policy that encodes as this one
    does; without it the policy speaks for what it was when it was made or loaded.

    Source: Guo et al. 2024, arXiv:2402.04792.
    """

    total = None

    def __init__(
        self,
        policy: Any,
        tasks: Sequence[Task],
        grader: Grades,
        sampling: Sampling,
        *,
        prompts: int = 16,
        seed: int = 0,
        pairing: Pairing = "best_worst",
        scale: float = 1.0,
        reference: Any = None,
        failures: FailureLimit | None = None,
    ) -> None:
        """Raises DataError if there are no tasks, ConfigError for one output per task or an unknown pairing.

        `scale` is the difference of scores at which "soft" prefers the better output e to 1.
        """
        if pairing not in PAIRINGS:
            raise ConfigError(f"pairing is one of {', '.join(PAIRINGS)}, got {pairing!r}")
        if not (scale > 0 and math.isfinite(scale)):
            raise ConfigError(f"scale must be above 0, got {scale}")
        self.rollouts = Rollouts(policy, tasks, grader, sampling, prompts=prompts, seed=seed, failures=failures)
        self.policy, self.sampling, self.reference = policy, sampling, reference
        self.pairing, self.scale = pairing, scale

    def fingerprint(self) -> str:
        reference = "" if self.reference is None else self.reference.fingerprint()
        return digest("online pairs", self.rollouts.fingerprint(), self.pairing, self.scale, reference)

    def __call__(self, index: int) -> Step:
        drawn = self.rollouts.outputs(index)
        groups: dict[str, list[Rollout]] = {}
        for rollout in drawn:
            groups.setdefault(rollout.record.group, []).append(rollout)
        formed: list[list[Labelled]] = []
        ties = 0
        for group in groups.values():
            pairs, tied = pairs_of(group, pairing=self.pairing, scale=self.scale)
            formed.append(pairs)
            ties += tied
        batch = self._batch(formed, drawn[0].record)
        metrics = {
            **measured(drawn),
            "pairs": float(len(batch.groups.unique())),
            "ties": float(ties),
            "frac_without_pair": sum(not pairs for pairs in formed) / len(formed),
        }
        samples = [shown(rollout) for rollout in drawn[: self.sampling.n]]
        reference = self._reference if self.reference is not None else None
        return Step(batch, metrics, samples, histograms(drawn, self.sampling.max_tokens), reference)

    def _reference(self, batch: Batch) -> Tensor:
        return score_all(self.reference, batch)

    def _batch(self, formed: Sequence[Sequence[Labelled]], any_record: Record) -> Batch:
        pairs = [pair for pairs in formed for pair in pairs]
        weights = [1 / len(pairs) for pairs in formed for _ in pairs]
        labels = {
            "probability": torch.tensor([pair.probability for pair in pairs], dtype=torch.float64),
            "margin": torch.zeros(len(pairs), dtype=torch.float64),
            "weight": torch.tensor(weights, dtype=torch.float64),
        }
        if pairs:
            return paired(self.policy, [(pair.chosen, pair.rejected) for pair in pairs], labels)[0]
        nothing = {**labels, "chosen": torch.zeros(0, dtype=torch.bool)}
        empty: Batch = self.policy.encode([any_record])
        return empty.select([]).with_columns(**nothing)


def pairs_of(
    group: Sequence[Rollout], *, pairing: Pairing = "best_worst", scale: float = 1.0
) -> tuple[list[Labelled], int]:
    """Pairs of outputs of one input by their scores, and how many were dropped because they say nothing."""
    graded = [rollout for rollout in group if not math.isnan(rollout.reward)]
    ranked = sorted(graded, key=lambda rollout: -rollout.reward)  # stable: of equals the one sampled first
    pairs = PAIRINGS[pairing](ranked, scale)
    kept = [pair for pair in pairs if pair is not None]
    return kept, len(pairs) - len(kept)


def _best_worst(ranked: Sequence[Rollout], scale: float) -> list[Labelled | None]:
    return [_certain(ranked[0], ranked[-1])] if len(ranked) > 1 else []


def _all(ranked: Sequence[Rollout], scale: float) -> list[Labelled | None]:
    return [_certain(better, worse) for better, worse in combinations(ranked, 2)]


def _soft(ranked: Sequence[Rollout], scale: float) -> list[Labelled | None]:
    return [_believed(better, worse, scale) for better, worse in combinations(ranked, 2)]


PAIRINGS: Mapping[Pairing, Callable[[Sequence[Rollout], float], list[Labelled | None]]] = {
    "best_worst": _best_worst,
    "all": _all,
    "soft": _soft,
}


def _certain(better: Rollout, worse: Rollout) -> Labelled | None:
    if better.reward == worse.reward or _same(better.record, worse.record):
        return None
    return Labelled(better.record, worse.record)


def _believed(better: Rollout, worse: Rollout, scale: float) -> Labelled | None:
    if _same(better.record, worse.record):
        return None
    # not below 0, so exp cannot overflow
    return Labelled(better.record, worse.record, 1 / (1 + math.exp(-(better.reward - worse.reward) / scale)))


def _same(one: Record, other: Record) -> bool:
    """Whether two outputs of one input are the same decisions: such a pair has no gradient."""
    if one.decisions is not None and other.decisions is not None:
        return one.decisions == other.decisions
    return bool(one.output == other.output)
