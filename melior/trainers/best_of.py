"""learning from one's own best outputs: best-of-n, RAFT, rejection sampling, advantage-weighted

    steps = BestOf(Rollouts(policy, tasks, grader, Sampling(n=8)), keep=1)
    fit(policy, steps, supervised(), FitConfig(steps=100))

The sampled decisions themselves are imitated; nothing is tokenised again. In a mixture with `Rollouts` and
`Reinforcement`, best-of-n and the policy gradient take turns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from melior.errors import ConfigError
from melior.trainers.ratings import AdvantageWeighted, advantage_weighted
from melior.trainers.rollouts import Rollouts
from melior.trainers.steps import Step, digest
from melior.types import Rated


class BestOf:
    """Steps of the policy's own outputs as demonstrations: of each task's the `keep` best, if they are good enough.

    | method                              | keep | at_least                   | weighted               |
    | ----------------------------------- | ---- | -------------------------- | ---------------------- |
    | RAFT, best-of-n                     | 1    | —                          | —                      |
    | rejection sampling, STaR            | None | the reward of a right one  | —                      |
    | advantage-weighted (AWR)            | None | —                          | `AdvantageWeighted()`  |

    Of equal outputs the first is kept. One that nobody could grade is never kept. Where all graded outputs of a task
    are equally good, `keep` says nothing of quality: with `contrast=True` such tasks are left out.

    Source: Dong et al. 2023, arXiv:2304.06767, algorithm 1; Zelikman et al. 2022, arXiv:2203.14465; Peng et al. 2019,
    arXiv:1910.00177.
    """

    def __init__(
        self,
        rollouts: Rollouts,
        *,
        keep: int | None = 1,  # None: all of them
        at_least: float | None = None,  # reward
        weighted: AdvantageWeighted | None = None,
        contrast: bool = False,
    ) -> None:
        """Raises ConfigError if every output would be imitated alike."""
        if keep is not None and keep < 1:
            raise ConfigError(f"keep is how many outputs of a task are imitated, at least 1; got {keep}")
        if at_least is not None and not math.isfinite(at_least):
            raise ConfigError(f"at_least is a reward, got {at_least}")
        if (keep is None or keep >= rollouts.sampling.n) and at_least is None and weighted is None:
            raise ConfigError(
                f"all {rollouts.sampling.n} outputs of a task would be imitated alike, which teaches nothing; keep "
                "fewer, set at_least, or weigh them"
            )
        self.rollouts, self.keep, self.at_least = rollouts, keep, at_least
        self.weighted, self.contrast = weighted, contrast

    @property
    def total(self) -> int | None:
        return self.rollouts.total

    def __call__(self, index: int) -> Step:
        step = self.rollouts(index)
        rewards, groups = step.batch.columns["rewards"], step.batch.groups
        rows = best_rows(rewards, groups, keep=self.keep, at_least=self.at_least, contrast=self.contrast)
        batch = step.batch.select(rows)
        if self.weighted is not None and rows:
            batch = replace(batch, weights=batch.weights * self._weights(rewards[rows], groups[rows])[:, None])
        told = {"kept": len(rows) / max(1, len(step.batch)), "decisions": float(batch.mask.sum())}
        if rows:
            told["kept_reward"] = float(rewards[rows].mean())
        return replace(step, batch=batch).with_metrics(**told)

    def fingerprint(self) -> str:
        weighted = None if self.weighted is None else asdict(self.weighted)
        return digest("best of", self.rollouts.fingerprint(), self.keep, self.at_least, weighted, self.contrast)

    def _weights(self, rewards: Tensor, groups: Tensor) -> Tensor:  # [B], [B] -> [B]
        rated = [Rated(group, None, reward) for group, reward in zip(groups.tolist(), rewards.tolist(), strict=True)]
        weights = [row.weight for row in advantage_weighted(rated, self.weighted)]
        return torch.tensor(weights, dtype=torch.float64)


def best_rows(
    rewards: Tensor,  # [B], NaN where excluded
    groups: Tensor,  # [B] int
    *,
    keep: int | None = 1,
    at_least: float | None = None,
    contrast: bool = False,
) -> list[int]:
    """The `keep` rows of the highest reward of each group, in order; of equal ones the first."""
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups.tolist()):
        if not math.isnan(rewards[row]):
            members.setdefault(group, []).append(row)
    kept: list[int] = []
    for rows in members.values():
        found = {row: float(rewards[row]) for row in rows}
        if contrast and len(set(found.values())) < 2:
            continue
        kept += _best(found, keep if keep is not None else len(found), at_least)
    return sorted(kept)


def _best(rewards: dict[int, float], keep: int, at_least: float | None) -> Sequence[int]:
    ranked = sorted(rewards, key=lambda row: -rewards[row])  # stable, so of equal ones the first
    return [row for row in ranked[:keep] if at_least is None or rewards[row] >= at_least]
