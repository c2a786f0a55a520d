"""a learning rate from the model and the rows themselves: the learning-rate range test

The rate rises exponentially while the model takes one small step after the other. The loss falls, reaches a lowest
point and explodes. Each batch's loss is compared with what the untrained model makes of that same batch, so an easy
batch does not look like learning. Afterwards every weight is put back, bitwise.

Source: Smith 2017, arXiv:1506.01186, §3.3: the largest useful rate is where the loss stops falling and turns ragged.
There it is read off by eye; `choose` takes the highest rate that still keeps most of the fall, and a fraction of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from melior.policies.base import Batch, Rates
from melior.trainers.loop import FitConfig
from melior.trainers.optimizers import AdamW
from melior.trainers.steps import Objective, Steps

LOWEST, HIGHEST = 1e-6, 1e-1  # from below any useful rate to above any
TESTS = 32  # steps of a sweep: each rate is 1.45 times the one before
SMOOTHING = 0.6  # of the exponential mean: it remembers two to three steps
EXPLODED = 0.5  # of the starting loss: so far above the lowest point, and the sweep ends
KEPT = 0.75  # of the deepest fall: the basin is flat, so its upper edge is found more surely than its lowest point
SAFE = 4.0  # the rate chosen is the edge's over this: a whole run stays at it, a sweep only passes by
CLEAR = 0.02  # of the starting loss: a fall smaller than this is noise, and nothing is chosen


@dataclass(frozen=True)
class RangeTest:
    """What a sweep measured, and the rate that follows."""

    rates: tuple[float, ...]  # of each step, rising
    changes: tuple[float, ...]  # nats: each batch's loss before its step, minus the untrained model's on that batch
    start: float  # nats, the untrained model's mean loss
    rate: float | None  # None where the loss never clearly fell
    reason: str


def range_test(
    policy: Any,
    steps: Steps,
    objective: Objective,
    config: FitConfig | None = None,
    *,
    low: float = LOWEST,
    high: float = HIGHEST,
    tests: int = TESTS,
) -> RangeTest:
    """Sweeps the learning rate over a few steps, and leaves the policy bitwise as it was.

    `config` gives what else the run will do to its weights: decay, betas, clipping, factors by name.
    """
    config = config or FitConfig()
    tests = min(tests, steps.total or tests)
    rates = [low * (high / low) ** (index / max(1, tests - 1)) for index in range(tests)]
    before = {name: tensor.clone() for name, tensor in policy.state().items()}
    groups = policy.parameter_groups(Rates(1.0, config.weight_decay, config.rates))
    optimizer = AdamW(groups, betas=config.betas, epsilon=config.epsilon)
    changes: list[float] = []
    try:
        batches = [objective.prepare(steps(index), policy).batch for index in range(tests)]
        starts = [_loss(policy, objective, batch, config.micro_batch) for batch in batches]
        start = math.fsum(starts) / len(starts)
        for rate, batch, first in zip(rates, batches, starts, strict=True):
            optimizer.zero()
            loss = _loss(policy, objective, batch, config.micro_batch, backward=True)
            changes.append(loss - first)
            norm = optimizer.clip(config.max_grad_norm)
            if not math.isfinite(loss) or not math.isfinite(norm) or _exploded(changes, start):
                break
            optimizer.step(rate)
    finally:
        optimizer.zero()
        policy.load_state(before)
    return choose(rates[: len(changes)], changes, start)


def choose(rates: Sequence[float], changes: Sequence[float], start: float) -> RangeTest:
    """The rate that a sweep's losses speak for: the highest that keeps `KEPT` of the deepest fall, over `SAFE`."""
    smooth = _smoothed([change for change in changes if math.isfinite(change)])
    fall = max([0.0, *(-value for value in smooth)])
    told: dict[str, Any] = {"rates": tuple(rates), "changes": tuple(changes), "start": start}
    if not fall > CLEAR * start:  # nor where the untrained model's loss is not finite
        why = f"the loss fell by {fall:.3f} of {start:.3f} nats at most, which is within its noise"
        return RangeTest(**told, rate=None, reason=why)
    edge = max(index for index, value in enumerate(smooth) if -value >= KEPT * fall)
    highest = rates[max(0, edge - 1)]  # the loss of a step is what the rates before it made of the weights
    rate = float(f"{highest / SAFE:.1e}")
    gained = f"{fall:.2f} of {start:.2f} nats gained"
    why = f"a range test kept learning up to {highest:.1e} ({gained}); a {SAFE:.0f}th of that"
    return RangeTest(**told, rate=rate, reason=why)


def _smoothed(values: Sequence[float]) -> list[float]:
    """The exponential mean, without the bias of its start."""
    found, mean, weight = [], 0.0, 0.0
    for value in values:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        found.append(mean / weight)
    return found


def _exploded(changes: Sequence[float], start: float) -> bool:
    smooth = _smoothed(changes)
    return smooth[-1] > min(smooth) + EXPLODED * start


def _loss(policy: Any, objective: Objective, batch: Batch, budget: int | None, *, backward: bool = False) -> float:
    """The batch's loss as the loop measures it, with its gradient where one is wanted."""
    active, counts = batch.select(objective.active(batch)), objective.counts(batch)
    total = 0.0
    for rows in policy.cut(active, budget):
        part = active.select(rows)
        with torch.set_grad_enabled(backward):
            terms = objective.loss(policy.score(part, objective.want), part)
            loss = torch.stack([term.total * (term.weight / counts[term.name]) for term in terms]).sum()
        if backward:
            loss.backward()
        total += float(loss.detach())
    return total
