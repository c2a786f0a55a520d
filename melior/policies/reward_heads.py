"""the heads of a reward model: named rewards that are read from one vector of features"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from melior.errors import ConfigError, DataError
from melior.losses.reward import ordinal_log_probs

DEFAULT = "reward"  # the head of a model with one, and of rows that name none
KEY = "head"  # of a row's item: which head it teaches
SPREAD = 0.01  # deviation of first weights: every output is worth about the same before anything is learnt


class Heads(nn.Module):
    """One linear reward per name; those with `levels` also tell how probable each grade of an ordered scale is.

    A reward is known up to an origin and a unit: `location` and `spread` turn a raw value into what people are told.
    """

    location: Tensor  # [H]
    spread: Tensor  # [H]

    def __init__(self, names: Sequence[str], width: int, levels: Mapping[str, Sequence[float]] | None = None) -> None:
        """Raises ConfigError for no head, one name twice, or levels that do not rise or belong to no head."""
        super().__init__()
        self.names = tuple(names)
        self.levels = {name: tuple(float(level) for level in scale) for name, scale in (levels or {}).items()}
        _check(self.names, self.levels)
        self.weight = nn.Parameter(SPREAD * torch.randn(len(self.names), width))
        self.bias = nn.Parameter(torch.zeros(len(self.names)))
        self.register_buffer("location", torch.zeros(len(self.names)))
        self.register_buffer("spread", torch.ones(len(self.names)))
        self.thresholds = nn.ParameterDict({name: _first_thresholds(len(scale)) for name, scale in self.levels.items()})

    def forward(self, features: Tensor) -> Tensor:  # [B, D] -> [B, H]
        """Raw values, in fp32 at least."""
        return features.to(self.weight.dtype) @ self.weight.T + self.bias

    def grades(self, values: Tensor) -> Tensor:  # [B, H] -> [B, H, K]
        """Log-probs of each grade; -inf where a head has fewer grades, or none."""
        most = max(map(len, self.levels.values()), default=0)
        table = values.new_full((*values.shape, most), -torch.inf)
        columns = list(table.unbind(1))
        for name, scale in self.levels.items():
            place = self.names.index(name)
            found = ordinal_log_probs(values[:, place], _rising(self.thresholds[name]))
            columns[place] = nn.functional.pad(found, (0, most - len(scale)), value=-torch.inf)
        return torch.stack(columns, 1)

    def rewards(self, values: Tensor) -> Tensor:  # [B, H]
        """What people are told: raw values in their unit, and of graded heads the expected grade."""
        told = self.location + self.spread * values
        columns = list(told.unbind(1))
        table = self.grades(values)
        for name, scale in self.levels.items():
            place = self.names.index(name)
            chances = table[:, place, : len(scale)].exp()
            columns[place] = chances @ chances.new_tensor(scale)
        return torch.stack(columns, 1)

    def index(self, name: str) -> int:
        """The number of a head.

        Raises:
            ConfigError: if there is none of that name.
        """
        if name not in self.names:
            raise ConfigError(f"There is no head {name!r}; the reward model has {', '.join(self.names)}")
        return self.names.index(name)

    def of(self, rows: Sequence[Any]) -> Tensor:  # [N] int64
        """The head that each row teaches: the one its item names, or the only one.

        Raises:
            DataError: for a row that names none where there are several, or one that there is not.
        """
        found = []
        for place, row in enumerate(rows, start=1):
            name = row.item.get(KEY, self.names[0] if len(self.names) == 1 else DEFAULT)
            if name not in self.names:
                told = f"head {name!r}" if KEY in row.item else f"no {KEY!r}"
                raise DataError(f"Row {place} of {len(rows)} has {told}; its item names one of {', '.join(self.names)}")
            found.append(self.names.index(name))
        return torch.tensor(found, dtype=torch.long)

    def to_json(self) -> dict[str, Any]:
        """Names and levels; the weights are saved beside them."""
        return {"names": list(self.names), "levels": {name: list(scale) for name, scale in self.levels.items()}}


def _first_thresholds(grades: int) -> nn.Parameter:
    """The first threshold and the logarithms of the gaps behind it, so that all grades are alike in probability."""
    shares = torch.arange(1, grades) / grades
    places = torch.logit(shares)
    return nn.Parameter(torch.cat([places[:1], places.diff().log()]))


def _rising(parameters: Tensor) -> Tensor:  # [K - 1]
    return torch.cat([parameters[:1], parameters[:1] + parameters[1:].exp().cumsum(0)])


def _check(names: Sequence[str], levels: Mapping[str, Sequence[float]]) -> None:
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"A reward model needs heads of different names, got {list(names)}")
    for name, scale in levels.items():
        if name not in names:
            raise ConfigError(f"Levels are given for head {name!r}, which is none of {', '.join(names)}")
        if len(scale) < 2 or list(scale) != sorted(set(scale)):
            raise ConfigError(f"The levels of head {name!r} are two or more rising numbers, got {list(scale)}")
