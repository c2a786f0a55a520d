"""what TRL and melior are given alike: tiny models, token ids, labels, rewards, and fp64 in every place

Nothing here knows of TRL or of melior, so both sides read it: tests/golden/record_trl.py in an environment of its own,
and tests/golden/test_trl.py. Numbers come from numpy's RandomState, whose stream is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from tiny import tiny_model
from torch.overrides import TorchFunctionMode

Ids = tuple[int, ...]
TINY = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "pad_token_id": 0,
}
PAD, STOP = 0, 1  # neither is inside a prompt; an output ends with STOP unless it was cut
# How far each model stands from the first one: of the old policy, ratios lie on both sides of every clip.
AWAY = {"policy": 0.0, "reference": 0.06, "old": 0.03, "teacher": 0.12}
LONGEST = 8  # the limit of an output's length
SAMPLER_NOISE = 0.4  # nats by which the sampler's log-probs are off


def model(name: str) -> Any:
    """A llama of one layer whose every weight is a function of its name and place, rounded to fp32."""
    found = tiny_model("llama", **TINY)
    with torch.no_grad():
        for place, (weight, parameter) in enumerate(sorted(found.named_parameters())):
            start = 0.35 * drawn(parameter.shape, 100 + place) + (1.0 if parameter.dim() == 1 else 0.0)
            away = AWAY[name] * drawn(parameter.shape, 1000 * (1 + list(AWAY).index(name)) + place)
            parameter.copy_(start + away)
            assert parameter.dtype == torch.float32, weight
    return found


LORA = {"r": 2, "lora_alpha": 4}


def fill_adapter(parameters: dict[str, Any]) -> None:
    """A trained adapter's weights: a fresh one has half its matrices at zero, and then half its gradients."""
    with torch.no_grad():
        for place, (_, parameter) in enumerate(sorted(parameters.items())):
            parameter.copy_((0.3 * drawn(parameter.shape, 800 + place)).float())


def drawn(shape: Any, seed: int) -> torch.Tensor:
    """Standard normal numbers, fp64."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(tuple(shape)))


def _ids(seed: int, length: int, *, stopped: bool = False) -> Ids:
    found = [int(number) for number in np.random.RandomState(seed).randint(20, 290, length)]
    return (*found[:-1], STOP) if stopped else tuple(found)


# ---------------------------------------------------------------------- pairs: prompt, chosen, rejected

_SIZES = [(3, 4, 2), (5, 1, 6), (4, 7, 7), (2, 3, 5), (6, 2, 1)]
PAIRS: list[tuple[Ids, Ids, Ids]] = [
    (_ids(10 + row, prompt), _ids(20 + row, chosen, stopped=True), _ids(30 + row, rejected, stopped=True))
    for row, (prompt, chosen, rejected) in enumerate(_SIZES)
]
PAIRS[2] = (PAIRS[2][0], PAIRS[2][1], (*PAIRS[2][1][:4], *PAIRS[2][2][4:]))  # sides that begin alike
MARGINS = [0.5, 0.0, 1.5, -0.25, 1.0]
SCORE = drawn((1, TINY["hidden_size"]), 77).float()  # the head of a reward model

# ---------------------------------------------------------------------- outputs called good or bad

JUDGED: list[tuple[Ids, Ids, bool]] = [
    (_ids(40 + row, 2 + row % 3), _ids(50 + row, length, stopped=True), row in (0, 3))
    for row, length in enumerate([3, 5, 1, 6, 2])
]
# TRL's mismatched outputs: behind each prompt the output before it in the batch.
MISMATCHED: list[tuple[Ids, Ids]] = [(row[0], JUDGED[place - 1][1]) for place, row in enumerate(JUDGED)]

# ---------------------------------------------------------------------- groups of outputs with rewards

GROUP = 4
PROMPTS: list[Ids] = [_ids(60, 4), _ids(61, 2), _ids(62, 5)]
_LENGTHS = [3, 6, 1, 8, 2, 5, 8, 4, 7, 1, 3, 2]
CUT = [place in (3, 6) for place in range(len(_LENGTHS))]  # by the limit
OUTPUTS: list[Ids] = [_ids(70 + row, length, stopped=not CUT[row]) for row, length in enumerate(_LENGTHS)]
REWARDS = [0.0, 1.0, 0.5, 0.25, 1.0, -0.5, 0.0, 2.0, 0.7, 0.7, 0.7, 0.7]
UNGRADED = [*REWARDS[:5], None, *REWARDS[6:]]  # one that nobody could grade


def owner(row: int) -> Ids:
    """The prompt of an output."""
    return PROMPTS[row // GROUP]


def sampler_noise() -> list[list[float]]:
    """By how much the sampler's log-probs differ from the old policy's."""
    return [(SAMPLER_NOISE * drawn((len(ids),), 300 + row)).tolist() for row, ids in enumerate(OUTPUTS)]


# ---------------------------------------------------------------------- what is compared


def gradient(parameters: dict[str, Any]) -> dict[str, Any]:
    """A gradient as few numbers: its norm, each tensor's product with a fixed direction, and one tensor whole."""
    slopes = {name: parameter.grad.double() for name, parameter in sorted(parameters.items())}
    return {
        "norm": float(torch.stack([slope.square().sum() for slope in slopes.values()]).sum().sqrt()),
        "along": {name: float((slope * direction(slope)).sum()) for name, slope in slopes.items()},
        "model.norm.weight": slopes["model.norm.weight"].tolist(),
    }


def weights(parameters: dict[str, Any]) -> list[float]:
    """Each tensor's product with a fixed direction, in the order of names."""
    found = [parameter.detach().double() for _, parameter in sorted(parameters.items())]
    return [float((weight * direction(weight)).sum()) for weight in found]


def direction(slope: torch.Tensor) -> torch.Tensor:
    """A unit vector of the slope's shape."""
    found = drawn(slope.shape, 500 + slope.numel())
    return found / found.norm()


class Doubled(TorchFunctionMode):
    """Inside, whoever asks for fp32 gets fp64: code that sums in fp32 whatever it is given shows its formula.

    Both sides run in it. TRL's fused head accumulates in fp32, and so do norms and rotations in transformers.
    """

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {name: _raised(value) for name, value in (kwargs or {}).items()}
        function = torch.Tensor.double if function is torch.Tensor.float else function
        return function(*(_raised(value) for value in args), **kwargs)


@contextmanager
def precision(dtype: torch.dtype) -> Iterator[None]:
    """Inside, fp64 is fp64 to the last digit. Models are made outside: their rotations are fp32 for everybody."""
    with Doubled() if dtype == torch.float64 else nullcontext():
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def _raised(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
