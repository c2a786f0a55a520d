"""a stretch of a trajectory becomes features: a small network reads every step, and a segment is their sum"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn

from melior.errors import DataError
from melior.policies.inputs import drop

STEPS = 1 << 16  # of a micro-batch
LEAST_SPREAD = 1e-6  # a feature that never moves is divided by 1


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Segments:
    """How steps are read."""

    hidden: tuple[int, ...] = (64, 64)  # units of each hidden layer; (): the reward is linear in a step's numbers
    dropout: float = Field(default=0.1, ge=0, lt=1)  # share of hidden units left out while training


class SegmentReader(nn.Module):
    """Features of segments [T, D] of observations and actions, standardised: each step's, summed.

    A segment's reward is thus the sum of its steps' rewards, whatever its length. What is summed is a step's numbers
    and what the hidden layers make of them, over the mean length of the training segments, a matter of unit.

    Source: Christiano et al. 2017, arXiv:1706.03741, §2.2.1 and 2.2.3.
    """

    kind = "segment"
    mean: Tensor  # [D]
    deviation: Tensor  # [D]
    length: Tensor  # [1]

    def __init__(self, columns: int, config: Segments) -> None:
        super().__init__()
        self.columns, self.config = columns, config
        self.register_buffer("mean", torch.zeros(columns, dtype=torch.float64))
        self.register_buffer("deviation", torch.ones(columns, dtype=torch.float64))
        self.register_buffer("length", torch.ones(1, dtype=torch.float64))
        sizes = [columns, *config.hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.noticed: Counter[str] = Counter()

    @classmethod
    def of(cls, examples: Sequence[Any], config: Segments | None = None) -> SegmentReader:
        """A reader that standardises by the steps of these segments.

        Raises:
            DataError: as `read` does.
        """
        segments = [_numbers(example.output, place) for place, example in enumerate(examples, start=1)]
        made = cls(segments[0].shape[1], config or Segments())
        made._check(segments)
        steps = torch.cat(segments)
        made.mean.copy_(steps.mean(0))
        spread = steps.std(0, correction=0)
        made.deviation.copy_(torch.where(spread > LEAST_SPREAD, spread, 1.0))
        made.length.fill_(len(steps) / len(segments))
        return made

    @property
    def width(self) -> int:
        return self.columns + (self.config.hidden[-1] if self.config.hidden else 0)

    @property
    def random(self) -> bool:
        return self.config.dropout > 0 and bool(self.config.hidden)

    @property
    def budget(self) -> int:
        return STEPS

    @property
    def dtype(self) -> torch.dtype:
        """Of what is computed; fp32 where there is no layer."""
        return next((parameter.dtype for parameter in self.parameters()), torch.float32)

    def cost(self, row: Tensor) -> int:
        """Its steps; where the reward is linear in them, their sum counts 1."""
        return len(row)

    def read(self, examples: Sequence[Any]) -> list[Tensor]:  # [T, D] each
        """Each output's steps, standardised, of an array or a mapping of arrays such as observations and actions.

        Without a hidden layer their sum [1, D], which is all that is read of them.

        Raises:
            DataError: for what is no array of finite numbers, has no step, or other columns than the training segments.
        """
        found = [_numbers(example.output, place) for place, example in enumerate(examples, start=1)]
        self._check(found)
        mean, deviation = self.mean.cpu(), self.deviation.cpu()
        steps = [(each - mean) / deviation for each in found]
        return [each if self.layers else each.sum(0, keepdim=True) for each in steps]

    def _check(self, segments: Sequence[Tensor]) -> None:
        for place, segment in enumerate(segments, start=1):
            if segment.shape[1] != self.columns:
                raise DataError(f"Segment {place} has {segment.shape[1]} numbers a step, the others {self.columns}")

    def forward(self, rows: Sequence[Tensor], seeds: Tensor | None = None) -> Tensor:  # [B, D]
        """Sums over each segment's own steps."""
        lengths = torch.tensor([len(row) for row in rows])
        owners = torch.repeat_interleave(torch.arange(len(rows)), lengths).to(self.mean.device)
        steps = torch.cat(list(rows)).to(self.mean.device, self.dtype)
        hidden = steps
        for place, layer in enumerate(self.layers):
            hidden = torch.relu(layer(hidden))
            if seeds is not None:  # a segment's steps lose the same units
                kept = drop(hidden.new_ones(len(rows), hidden.shape[1]), self.config.dropout, seeds, place)
                hidden = hidden * kept[owners]
        features = torch.cat([steps, hidden], -1) if self.layers else steps
        sums = features.new_zeros(len(rows), features.shape[1]).index_add(0, owners, features)
        return sums / self.length.to(sums)

    def learning(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The hidden layers; a step's own numbers have their weights in the heads."""
        return self.named_parameters()

    def to_json(self) -> dict[str, Any]:
        return {"columns": self.columns, "hidden": list(self.config.hidden), "dropout": self.config.dropout}

    def write_files(self, folder: Path) -> None:
        """Nothing: everything stands in JSON and weights."""

    @classmethod
    def from_json(cls, told: Mapping[str, Any], folder: Path) -> SegmentReader:
        """The same reader, its weights still to be loaded."""
        return cls(told["columns"], Segments(hidden=tuple(told["hidden"]), dropout=told["dropout"]))


def _numbers(output: Any, place: int) -> Tensor:  # [T, D] float64
    """A segment's steps; of a mapping the columns side by side, in its order."""
    parts = list(output.values()) if isinstance(output, Mapping) else [output]
    try:
        arrays = [np.asarray(part, dtype=np.float64) for part in parts]
        found = np.concatenate(
            [array[:, None] if array.ndim == 1 and len(parts) > 1 else array for array in arrays], -1
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"Segment {place} is no array of numbers [steps, columns]: {error}") from error
    if found.ndim != 2 or not found.size or not np.isfinite(found).all():
        raise DataError(
            f"Segment {place} has shape {list(found.shape)}; give one or more steps [steps, columns] of finite numbers"
        )
    return torch.from_numpy(np.ascontiguousarray(found))
