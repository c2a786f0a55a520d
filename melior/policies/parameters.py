"""what every policy does with its parameters: name them, freeze them, group them by rate, copy them"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from melior.errors import ConfigError, ModelError
from melior.policies.base import ParameterGroup, Rates, State
from melior.policies.freezing import Share, factor_for, matches

Named = Iterable[tuple[str, torch.nn.Parameter]]


def trainable(named: Named) -> dict[str, torch.nn.Parameter]:
    """Those that train, by name."""
    return {name: parameter for name, parameter in named if parameter.requires_grad}


def state_of(named: Named) -> State:
    """Tensors of those that train, by name; views, not copies."""
    return {name: parameter.detach() for name, parameter in trainable(named).items()}


def digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """A fingerprint of weights, the frozen ones too where they are given."""
    found = hashlib.sha256()
    for name, tensor in named:
        found.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def load_state(named: Named, state: State) -> None:
    """Overwrites those that train, in place.

    Raises:
        ModelError: if names or shapes differ.
    """
    mine = trainable(named)
    if mine.keys() != state.keys():
        odd = sorted(mine.keys() ^ state.keys())
        raise ModelError(f"The state does not fit: {len(odd)} tensor names differ, first {odd[0]}")
    for name, parameter in mine.items():
        if parameter.shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)}, the model has {tuple(parameter.shape)}"
            raise ModelError(f"The state does not fit: {name} has shape {shapes}")
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(state[name])


def freeze(named: Named, factors: Mapping[str, float]) -> dict[str, float]:
    """Takes out of training whatever the factors give 0, and returns the factors that still have a say.

    A frozen tensor has no gradient and is in no checkpoint.

    Raises:
        ConfigError: for a pattern that is no regular expression or matches no parameter.
    """
    every = list(named)
    for pattern in factors:
        if not any(matches(pattern, name) for name, _ in every):
            raise ConfigError(f"Learning-rate pattern {pattern!r} matches no trainable parameter")
    for name, parameter in every:
        parameter.requires_grad_(factor_for(name, factors) > 0)
    left = list(trainable(every))
    return {pattern: f for pattern, f in factors.items() if f > 0 and any(matches(pattern, name) for name in left)}


def share(every: Iterable[Tensor]) -> Share:
    """How many of all parameters train."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in every]
    return Share(sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes))


def parameter_groups(named: Named, rates: Rates) -> list[ParameterGroup]:
    """Those that train by learning rate and weight decay; vectors (norms, biases) never decay.

    Raises:
        ConfigError: for a pattern that is no regular expression, or matches no trainable parameter.
    """
    groups: dict[tuple[float, float], list[tuple[str, Tensor]]] = {}
    unused = set(rates.factors)
    for name, parameter in trainable(named).items():
        found = [pattern for pattern in rates.factors if matches(pattern, name)]
        unused.difference_update(found)
        rate = rates.learning_rate * (rates.factors[found[0]] if found else 1.0)
        if rate > 0:
            decay = rates.weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((rate, decay), []).append((name, parameter))
    if unused:
        raise ConfigError(f"Learning-rate pattern {sorted(unused)[0]!r} matches no trainable parameter")
    return [
        ParameterGroup(tuple(n for n, _ in members), tuple(p for _, p in members), rate, decay)
        for (rate, decay), members in groups.items()
    ]
