"""rollouts as steps: sample groups of outputs, grade them, tell what happened"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from melior.advantages import informative
from melior.data.formats import as_json
from melior.errors import ConfigError, DataError, MissingLogProbs
from melior.masking import padded
from melior.metrics import correlation_within, repeated_share
from melior.policies.base import Batch
from melior.rewards.base import FailureLimit
from melior.rollouts.collect import Grades, Rollout, collect
from melior.trainers.steps import Histogram, Step, digest, generator
from melior.types import Sampling, Task

BINS = 16  # of a histogram of lengths or rewards


class Rollouts:
    """Steps of fresh outputs: `prompts` tasks each, `sampling.n` outputs per task, graded.

    With `resample > 0` (DAPO's dynamic sampling) groups whose rewards are all equal are replaced by up to that many
    further draws of tasks.

    Columns: "rewards" [B] (NaN where nobody could tell), "truncated" [B], "limit" [B], "behavior_log_probs" [B, T]
    unless top-k or top-p cut what was sampled from, and "decision_rewards" [B, T] where every score tells decisions
    apart.
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
        alone: bool = False,
    ) -> None:
        """Raises DataError if there are no tasks, ConfigError if a group would hold one output.

        `alone` allows groups of one, for objectives that do not compare within them (REINFORCE++, PPO).
        """
        if not tasks:
            raise DataError("There are 0 tasks to sample from; add rows")
        if sampling.n < 2 and not alone:
            raise ConfigError(f"Outputs are compared within their group, so sampling needs n ≥ 2, got {sampling.n}")
        if resample and sampling.n < 2:
            raise ConfigError(f"A group of one never varies, so resample={resample} needs sampling with n ≥ 2")
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
            fresh = self.outputs(index * (1 + self.resample) + rounds)
            drawn += fresh
            kept += fresh if not self.resample else _informative(fresh)
            if len(kept) >= self.prompts * self.sampling.n or not self.resample:
                break
        rollouts = kept[: self.prompts * self.sampling.n] or drawn[: self.prompts * self.sampling.n]
        return self._step(rollouts, drawn, rounds + 1)

    def outputs(self, number: int) -> list[Rollout]:
        """The graded outputs of draw `number`, a group after the other."""
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
        if (earned := _earned(rollouts, batch)) is not None:
            columns["decision_rewards"] = earned
        samples = [shown(rollout) for rollout in rollouts[: self.sampling.n]]
        metrics = {**measured(drawn), "rounds": float(rounds)}
        return Step(batch.with_columns(**columns), metrics, samples, histograms(drawn, self.sampling.max_tokens))


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


def _earned(rollouts: Sequence[Rollout], batch: Batch) -> Tensor | None:  # [B, T]
    """What each decision earned, if every score tells; 0 where nobody could grade."""
    lengths = batch.mask.sum(1).tolist()
    found = [
        rollout.score.decisions if rollout.score.value is not None else (0.0,) * length
        for rollout, length in zip(rollouts, lengths, strict=True)
    ]
    fits = all(len(row) == length for row, length in zip(found, lengths, strict=True))
    graded = any(rollout.score.value is not None for rollout in rollouts)
    return padded(found, batch.mask) if fits and graded else None


def measured(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """A step's metrics of what was drawn: rewards, their parts, lengths, errors of graders."""
    rewards = torch.tensor([rollout.reward for rollout in rollouts], dtype=torch.float64)
    valid = rewards[~torch.isnan(rewards)]
    lengths = [len(rollout.record.decisions or ()) for rollout in rollouts]
    parts: dict[str, list[float]] = {}
    for rollout in rollouts:
        for name, value in rollout.score.parts.items():
            parts.setdefault(f"rewards/{name}/mean", []).append(value)
    chances = [value for rollout in rollouts for value in rollout.record.behavior_log_probs or ()]
    graded = [(r.reward, length, r.record.group) for r, length in zip(rollouts, lengths) if not math.isnan(r.reward)]
    defined = {
        "completions/repetition": _mean([repeated_share(rollout.record.decisions or ()) for rollout in rollouts]),
        "completions/length_correlation": correlation_within(*zip(*graded)) if graded else math.nan,
    }
    return {
        **{name: sum(values) / len(values) for name, values in parts.items()},
        **({"sampled_entropy": -sum(chances) / len(chances)} if chances else {}),  # nats, an estimate without bias
        "reward": float(valid.mean()) if len(valid) else float("nan"),
        "reward_std": float(valid.std(unbiased=False)) if len(valid) else float("nan"),
        "grader_errors": float(sum(bool(rollout.score.error) for rollout in rollouts)),
        "grader_error_rate": sum(bool(rollout.score.error) for rollout in rollouts) / max(1, len(rollouts)),
        "completions/mean_length": sum(lengths) / max(1, len(lengths)),
        "completions/clipped_ratio": sum(r.record.finish == "length" for r in rollouts) / max(1, len(rollouts)),
        "num_tokens": float(sum(lengths)),
        **{name: value for name, value in defined.items() if not math.isnan(value)},
    }


def _mean(values: Sequence[float]) -> float:
    """The mean of what is defined, NaN where nothing is."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def shown(rollout: Rollout) -> dict[str, Any]:
    """An output as people read it."""
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


def histograms(rollouts: Sequence[Rollout], longest: int) -> dict[str, Histogram]:
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
