"""learning from rewards (RFT): sample groups, compare within them, follow the policy gradient"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from melior.advantages import group_relative, informative, leave_one_out
from melior.data.formats import as_json
from melior.errors import ConfigError, DataError, MissingLogProbs
from melior.losses.policy_gradient import clipped_surrogate_loss, kl_penalty, overlong_penalty
from melior.masking import mean_decisions, padded, select, sum_decisions
from melior.policies.base import LOG_PROBS, Batch, Scored, Want, score_all
from melior.rewards.base import FailureLimit
from melior.rollouts.collect import Grades, Rollout, collect
from melior.trainers.steps import Histogram, Step, Term, digest, generator
from melior.types import Sampling, Task

Estimator = Literal["group_relative", "leave_one_out"]
Aggregate = Literal["decisions", "outputs", "constant"]

BINS = 16  # of a histogram of lengths or rewards
# Fine about 1, where on-policy ratios lie.
RATIO_EDGES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.01, 1.05, 1.1, 1.2, 1.28, 1.5, 2.0, 4.0)
WATCHED = ("ratio", "clip_low", "clip_high", "kl_old", "kl_reference", "sampler_gap")  # means over decisions


class Rollouts:
    """Steps of fresh outputs: `prompts` tasks each, `sampling.n` outputs per task, graded.

    With `resample > 0` (DAPO's dynamic sampling) groups whose rewards are all equal are replaced by up to that many
    further draws of tasks.
    """

    def __init__(
        self,
        policy: Any,
        tasks: Sequence[Task],
        grader: Grades,
        sampling: Sampling,
        *,
        prompts: int = 16,
        seed: int = 0,
        resample: int = 0,
        failures: FailureLimit | None = None,
    ) -> None:
        """Raises DataError if there are no tasks, ConfigError if a group would hold one output."""
        if not tasks:
            raise DataError("There are 0 tasks to sample from; add rows")
        if sampling.n < 2:
            raise ConfigError(f"Outputs are compared within their group, so sampling needs n ≥ 2, got {sampling.n}")
        if sampling.temperature == 0:
            raise ConfigError("Greedy outputs of one input are all equal; sample with temperature > 0")
        self.policy, self.tasks, self.grader, self.sampling = policy, list(tasks), grader, sampling
        self.prompts, self.seed, self.resample = min(prompts, len(tasks)), seed, resample
        self.failures = failures or FailureLimit(getattr(grader, "name", "reward"))

    total = None

    def fingerprint(self) -> str:
        tasks = [[task.inputs, dict(task.item)] for task in self.tasks]
        name = getattr(self.grader, "name", type(self.grader).__name__)
        return digest("rollouts", tasks, asdict(self.sampling), self.prompts, self.seed, self.resample, name)

    def __call__(self, index: int) -> Step:
        kept: list[Rollout] = []
        drawn: list[Rollout] = []
        rounds = 0
        for rounds in range(1 + self.resample):
            fresh = self._round(index * (1 + self.resample) + rounds)
            drawn += fresh
            kept += fresh if not self.resample else _informative(fresh)
            if len(kept) >= self.prompts * self.sampling.n or not self.resample:
                break
        rollouts = kept[: self.prompts * self.sampling.n] or drawn[: self.prompts * self.sampling.n]
        return self._step(rollouts, drawn, rounds + 1)

    def _round(self, number: int) -> list[Rollout]:
        rollouts = collect(self.policy, self._draw(number), self.grader, self.sampling, step=number)
        self.failures.add([rollout.score for rollout in rollouts])
        return rollouts

    def _draw(self, number: int) -> list[Task]:
        """The tasks of round `number`: every task once before any comes again."""
        chosen: list[Task] = []
        position = number * self.prompts
        while len(chosen) < self.prompts:
            epoch, place = divmod(position, len(self.tasks))
            order = torch.randperm(len(self.tasks), generator=generator(self.seed, epoch)).tolist()
            part = order[place : place + self.prompts - len(chosen)]
            chosen += [self.tasks[row] for row in part]
            position += len(part)
        return chosen

    def _step(self, rollouts: list[Rollout], drawn: list[Rollout], rounds: int) -> Step:
        batch: Batch = self.policy.encode([rollout.record for rollout in rollouts])
        columns = {
            "rewards": torch.tensor([rollout.reward for rollout in rollouts], dtype=torch.float64),
            "truncated": torch.tensor([rollout.record.finish == "length" for rollout in rollouts]),
            "limit": torch.full((len(rollouts),), self.sampling.max_tokens),
        }
        if not self.sampling.truncated:
            columns["behavior_log_probs"] = _behavior(rollouts, batch)
        samples = [_shown(rollout) for rollout in rollouts[: self.sampling.n]]
        metrics = {**_measured(drawn), "rounds": float(rounds)}
        return Step(batch.with_columns(**columns), metrics, samples, _histograms(drawn, self.sampling.max_tokens))


@dataclass(frozen=True, kw_only=True)
class Reinforcement:
    """Policy gradient on group-compared rewards; the variants of GRPO are settings.

    | method    | divide_by_std | aggregate   | clip_high |
    | --------- | ------------- | ----------- | --------- |
    | GRPO      | True          | "outputs"   | 0.2       |
    | Dr.GRPO   | False         | "constant"  | 0.2       |
    | DAPO      | True          | "decisions" | 0.28      |
    | RLOO      | leave_one_out | "constant"  | —         |

    `aggregate` says what a step's sum of losses is divided by: all decisions; outputs, after a mean over each one's
    decisions; or outputs times `length`, a constant, the only one whose expected gradient is that of the mean reward.

    Source: Shao et al. 2024, arXiv:2402.03300; Liu et al. 2025, arXiv:2503.20783; Yu et al. 2025, arXiv:2503.14476.
    """

    estimator: Estimator = "group_relative"
    divide_by_std: bool = False  # True gives nearly equal rewards as much say as informative ones
    aggregate: Aggregate = "constant"
    length: int = 1  # decisions that "constant" divides each output by
    clip_low: float = 0.2
    clip_high: float = 0.28  # arXiv:2503.14476 §3.1: room for improbable decisions to grow
    beta: float = 0.0  # weight of KL(policy ‖ reference)
    entropy: float = 0.0  # weight of the entropy bonus
    drop_truncated: bool = False  # outputs cut by max_tokens neither learn nor count (arXiv:2503.14476 §3.4)
    overlong_margin: int = 0  # decisions before max_tokens over which the soft penalty grows to -1; 0 is off

    @property
    def want(self) -> frozenset[Want]:
        return LOG_PROBS | {Want.ENTROPY} if self.entropy else LOG_PROBS

    def prepare(self, step: Step, policy: Any) -> Step:
        batch = step.batch
        rewards = batch.columns["rewards"]
        if self.overlong_margin:
            limit = int(batch.columns["limit"][0])
            rewards = rewards + overlong_penalty(batch.mask.sum(1), limit=limit, margin=self.overlong_margin)
        if self.drop_truncated:
            rewards = rewards.masked_fill(batch.columns["truncated"], torch.nan)
        varied = batch.groups[informative(rewards, batch.groups)].unique()
        step = step.with_metrics(frac_reward_zero_std=1 - len(varied) / max(1, len(batch.groups.unique())))
        known = (~torch.isnan(rewards)).nonzero()[:, 0]
        batch, rewards = batch.select(known.tolist()), rewards[known]
        columns: dict[str, Tensor] = {"advantages": self._advantages(rewards, batch.groups)}
        if "behavior_log_probs" in batch.columns:
            columns["old_log_probs"] = batch.columns["behavior_log_probs"]
        else:  # top-k or top-p: what was sampled from is not what is trained
            columns["old_log_probs"] = score_all(policy, batch)
        if self.beta:
            columns["ref_log_probs"] = policy.reference_log_probs(batch)
        return replace(step, batch=batch.with_columns(**columns))

    def _advantages(self, rewards: Tensor, groups: Tensor) -> Tensor:
        if self.estimator == "leave_one_out":
            return leave_one_out(rewards, groups)
        return group_relative(rewards, groups, divide_by_std=self.divide_by_std)

    def counts(self, batch: Batch) -> Mapping[str, float]:
        decisions, outputs = float(batch.mask.sum()), float(len(batch))
        count = {"decisions": decisions, "outputs": outputs, "constant": outputs * self.length}[self.aggregate]
        computed = float(batch.mask[self.active(batch)].sum())
        return {"policy": count, "kl": count, "entropy": count, **{f"policy/{name}": computed for name in WATCHED}}

    def active(self, batch: Batch) -> list[int]:
        rows = batch.mask.any(1)
        if not (self.beta or self.entropy):
            rows = rows & (batch.columns["advantages"] != 0)
        return rows.nonzero()[:, 0].tolist()

    def loss(self, scored: Scored, batch: Batch) -> list[Term]:
        mask = batch.mask.to(scored.log_probs.device)
        log_probs = select(scored.log_probs, mask)

        def column(name: str) -> Tensor:
            return select(batch.columns[name].to(log_probs), mask)

        advantages = batch.columns["advantages"].to(log_probs)[:, None].expand_as(log_probs)
        old = column("old_log_probs")
        surrogate = clipped_surrogate_loss(log_probs, old, advantages, clip_low=self.clip_low, clip_high=self.clip_high)
        watched = self._watched(log_probs.detach(), old, advantages, mask)
        if "behavior_log_probs" in batch.columns:  # whether sampler and scorer agree
            watched["sampler_gap"] = (log_probs.detach() - column("behavior_log_probs")).abs().sum()
        if self.beta:
            watched["kl_reference"] = _kl(log_probs.detach() - column("ref_log_probs")).sum()
        ratios = {"ratio": Histogram.of((log_probs.detach() - old)[mask].exp(), RATIO_EDGES)}
        terms = [Term("policy", self._total(surrogate, mask), metrics=watched, histograms=ratios)]
        if self.beta:
            terms.append(Term("kl", self._total(kl_penalty(log_probs, column("ref_log_probs")), mask), self.beta))
        if self.entropy:
            assert scored.entropy is not None
            terms.append(Term("entropy", self._total(scored.entropy, mask), -self.entropy))
        return terms

    def _watched(self, log_probs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Sums over decisions: how far the policy is from the one that sampled, and which decisions are clipped."""
        ratio = torch.exp(log_probs - old)
        return {
            "ratio": select(ratio, mask).sum(),
            "clip_low": select((ratio < 1 - self.clip_low) & (advantages < 0), mask).double().sum(),
            "clip_high": select((ratio > 1 + self.clip_high) & (advantages > 0), mask).double().sum(),
            "kl_old": _kl(old - log_probs).sum(),
        }

    def _total(self, values: Tensor, mask: Tensor) -> Tensor:
        per_output = mean_decisions(values, mask) if self.aggregate == "outputs" else sum_decisions(values, mask)
        return per_output.sum()


def reinforcement(**settings: Any) -> Reinforcement:
    """The objective of RFT; settings are those of `Reinforcement`."""
    return Reinforcement(**settings)


def _informative(rollouts: Sequence[Rollout]) -> list[Rollout]:
    names = {group: index for index, group in enumerate(dict.fromkeys(r.record.group for r in rollouts))}
    groups = torch.tensor([names[rollout.record.group] for rollout in rollouts])
    rewards = torch.tensor([rollout.reward for rollout in rollouts], dtype=torch.float64)
    useful = set(groups[informative(rewards, groups)].tolist())
    return [rollout for rollout, group in zip(rollouts, groups.tolist(), strict=True) if group in useful]


def _behavior(rollouts: Sequence[Rollout], batch: Batch) -> Tensor:
    missing = sum(rollout.record.behavior_log_probs is None for rollout in rollouts)
    if missing:
        raise MissingLogProbs(
            f"{missing} of {len(rollouts)} records have no behavior_log_probs; record them when sampling"
        )
    return padded([rollout.record.behavior_log_probs or () for rollout in rollouts], batch.mask)


def _measured(rollouts: Sequence[Rollout]) -> dict[str, float]:
    rewards = torch.tensor([rollout.reward for rollout in rollouts], dtype=torch.float64)
    valid = rewards[~torch.isnan(rewards)]
    lengths = [len(rollout.record.decisions or ()) for rollout in rollouts]
    parts: dict[str, list[float]] = {}
    for rollout in rollouts:
        for name, value in rollout.score.parts.items():
            parts.setdefault(f"rewards/{name}/mean", []).append(value)
    chances = [value for rollout in rollouts for value in rollout.record.behavior_log_probs or ()]
    return {
        **{name: sum(values) / len(values) for name, values in parts.items()},
        **({"sampled_entropy": -sum(chances) / len(chances)} if chances else {}),  # nats, an estimate without bias
        "reward": float(valid.mean()) if len(valid) else float("nan"),
        "reward_std": float(valid.std(unbiased=False)) if len(valid) else float("nan"),
        "grader_errors": float(sum(bool(rollout.score.error) for rollout in rollouts)),
        "completions/mean_length": sum(lengths) / max(1, len(lengths)),
        "completions/clipped_ratio": sum(r.record.finish == "length" for r in rollouts) / max(1, len(rollouts)),
        "num_tokens": float(sum(lengths)),
    }


def _shown(rollout: Rollout) -> dict[str, Any]:
    record, score = rollout.record, rollout.score
    return {
        "inputs": as_json(record.inputs),
        "output": as_json(record.output),
        "reward": score.value,
        "error": score.error,
        "reason": score.reason,
        "parts": dict(score.parts),
        "group": record.group,
        "finish": record.finish,
        "tokens": len(record.decisions or ()),
    }


def _histograms(rollouts: Sequence[Rollout], longest: int) -> dict[str, Histogram]:
    """How lengths and rewards are distributed; ranges of rewards are round, so that steps can be compared."""
    lengths = torch.tensor([float(len(rollout.record.decisions or ())) for rollout in rollouts])
    rewards = torch.tensor([rollout.reward for rollout in rollouts], dtype=torch.float64)
    rewards = rewards[torch.isfinite(rewards)]
    found = {"length": Histogram.of(lengths, _edges(0.0, float(max(longest, 1))))}
    if len(rewards):
        low, high = min(0.0, float(rewards.min())), max(1.0, float(rewards.max()))
        found["reward"] = Histogram.of(rewards, _edges(-_round_up(-low), _round_up(high)))
    return found


def _round_up(reach: float) -> float:
    """The next of 0, 1, 2, 5, 10, 20 … that is not less, so that steps share their bins."""
    if reach <= 1:
        return 1.0 if reach > 0 else 0.0
    base = 10.0 ** math.floor(math.log10(reach))
    return next(base * factor for factor in (1, 2, 5, 10) if base * factor >= reach)


def _edges(low: float, high: float) -> tuple[float, ...]:
    return tuple(low + (high - low) * index / BINS for index in range(BINS + 1))


def _kl(log_ratio: Tensor) -> Tensor:
    """Schulman's k3 of each decision: not negative, and in expectation the KL divergence."""
    return torch.exp(-log_ratio) - 1 + log_ratio
