"""what reads one kind of input: rows are encoded once and become features as often as asked

Everything random (augmentation, dropout, masking) is a function of one seed per row, and the seeds stand in the batch:
with the same seeds come the same features, and without seeds nothing is random, whatever the mode of the module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from melior.data.formats.rows import ColumnKind

SEEDS = "seeds"  # the batch's column of them [B]; -1 is none, where some rows of a batch have seeds and others have not
SHUFFLES = (-4658895280553007687, -7723592293110705685)  # 0xBF58476D1CE4E5B9 and 0x94D049BB133111EB, as signed numbers
GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15: streams of neighbouring numbers share nothing


class Inputs(Protocol):
    """Turns inputs of one kind into features; a torch module, so that its parameters are the policy's."""

    kind: str  # table, image or text
    noticed: Counter[str]  # what was passed over, and how often

    @property
    def width(self) -> int:
        """How many features (D)."""
        ...

    @property
    def columns(self) -> Mapping[str, ColumnKind]:
        """What each column of a table's row is read as; none for pictures and texts."""
        ...

    @property
    def pretrained(self) -> bool:
        """Whether its weights knew something before training: then they learn more slowly."""
        ...

    @property
    def random(self) -> bool:
        """Whether seeds change the features."""
        ...

    def encode(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """One cheap handle per input, checked; opaque to everybody else.

        Raises:
            DataError: for an input that cannot be read, saying which and why.
        """
        ...

    def __call__(self, rows: Sequence[Any], seeds: Tensor | None = None) -> Tensor:  # [B, D]
        """Features of encoded rows, each without regard to its batch mates; `seeds` [B] int64 is plain SFT's noise."""
        ...

    def cost(self, row: Any) -> int:
        """What a row counts in a micro-batch."""
        ...

    @property
    def budget(self) -> int:
        """How much a micro-batch holds where nobody says."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Everything but the weights, as `from_json` of the same class reads it."""
        ...

    def write_files(self, folder: Path) -> None:
        """Files beside policy.json and the weights, where JSON is not enough (a tokenizer)."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]: ...


def read_each(read: Callable[[Sequence[Any], Tensor | None], Tensor], rows: Sequence[Any], seeds: Tensor) -> Tensor:
    """Features [B, D] of rows of which some have seeds, and others (-1) are read as they are."""
    known = seeds >= 0
    if bool(known.all()):
        return read(rows, seeds)
    noisy, plain = known.nonzero()[:, 0], (~known).nonzero()[:, 0]
    found = [read([rows[row] for row in plain.tolist()], None)]
    if len(noisy):
        found.append(read([rows[row] for row in noisy.tolist()], seeds[noisy]))
    order = torch.argsort(torch.cat([plain, noisy]))
    return torch.cat(found)[order.to(found[0].device)]


def uniforms(seeds: Tensor, count: int, stream: int = 0) -> Tensor:  # [B, count] float64 in [0, 1)
    """Numbers that are a function of (seed, place, stream) alone; `seeds` [B] int64.

    Source: Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195, SplitMix64, counted instead of stepped.
    """
    places = torch.arange(1, count + 1, device=seeds.device)
    origin = torch.tensor(stream + 1, device=seeds.device) * GOLDEN  # a tensor's product wraps around
    mixed = _mix(_mix(seeds + origin)[:, None] + GOLDEN * places)
    return _shift(mixed, 11).double() * 2.0**-53


def drop(features: Tensor, rate: float, seeds: Tensor | None, stream: int = 0) -> Tensor:
    """Features [B, D] with a share `rate` of them zero and the others scaled up; untouched without seeds."""
    if seeds is None or rate == 0:
        return features
    kept = uniforms(seeds.to(features.device), features.shape[1], stream) >= rate
    return torch.where(kept, features / (1 - rate), 0.0)


def _mix(numbers: Tensor) -> Tensor:
    """A bijection of 64 bits after which neighbours have nothing in common; products wrap around."""
    numbers = (numbers ^ _shift(numbers, 30)) * SHUFFLES[0]
    numbers = (numbers ^ _shift(numbers, 27)) * SHUFFLES[1]
    return numbers ^ _shift(numbers, 31)


def _shift(numbers: Tensor, bits: int) -> Tensor:
    """To the right, filled up with zeros: torch's own keeps the sign."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)
