"""AdamW, its learning-rate schedules, and its state by name"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from melior.errors import CheckpointError, ConfigError
from melior.policies.base import ParameterGroup

Schedule = Literal["constant", "linear", "cosine"]


def rate_factor(index: int, total: int, *, schedule: Schedule, warmup: int, floor: float = 0.0) -> float:
    """What the learning rate of step `index` is multiplied by: a linear warm-up, then the schedule down to `floor`.

    >>> [round(rate_factor(i, 4, schedule="linear", warmup=0), 2) for i in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    if index < warmup:
        return (index + 1) / warmup
    progress = (index - warmup) / max(1, total - warmup)
    if schedule == "constant":
        return 1.0
    shape = 1 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return floor + (1 - floor) * shape


class AdamW:
    """Decoupled weight decay, one instance per run.

    Source: Loshchilov & Hutter 2017, arXiv:1711.05101.
    """

    def __init__(self, groups: Sequence[ParameterGroup], *, betas: tuple[float, float], epsilon: float) -> None:
        """Raises ConfigError if there is nothing to train."""
        if not any(group.parameters for group in groups):
            raise ConfigError("0 parameters would be trained; unfreeze some, or add an adapter")
        self.groups = groups
        self.names = [name for group in groups for name in group.names]
        self.parameters = [parameter for group in groups for parameter in group.parameters]
        self.inner = torch.optim.AdamW(
            [{"params": list(g.parameters), "lr": g.learning_rate, "weight_decay": g.weight_decay} for g in groups],
            betas=betas,
            eps=epsilon,
            foreach=True,
        )

    def zero(self) -> None:
        """Forgets the gradients."""
        self.inner.zero_grad(set_to_none=True)

    def clip(self, limit: float) -> float:
        """The gradient's norm before it is clipped to `limit`; not finite if any gradient is not."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not gradients:
            return 0.0
        norm = torch.nn.utils.get_total_norm(gradients)
        if bool(torch.isfinite(norm)):
            torch.nn.utils.clip_grads_with_norm_(self.parameters, limit, norm)
        return float(norm)

    def step(self, factor: float) -> None:
        """One update with every group's rate times `factor`."""
        for target, group in zip(self.inner.param_groups, self.groups, strict=True):
            target["lr"] = group.learning_rate * factor
        self.inner.step()

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts by parameter name."""
        found = {}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            for key, value in self.inner.state.get(parameter, {}).items():
                found[f"{key}/{name}"] = value
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state` returned.

        Raises:
            CheckpointError: if it belongs to other parameters.
        """
        by_name = dict(zip(self.names, self.parameters, strict=True))
        for full, value in state.items():
            key, _, name = full.partition("/")
            if name not in by_name:
                raise CheckpointError(f"The optimizer state has {name}, which this run does not train; start a new run")
            held = value.clone() if key == "step" else value.clone().to(by_name[name].device)
            self.inner.state[by_name[name]][key] = held
