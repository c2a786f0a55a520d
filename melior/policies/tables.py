"""rows of a table become features: embeddings of cells, and residual blocks over them"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn

from melior.data.formats.rows import ColumnKind
from melior.errors import DataError
from melior.policies.columns import KNOTS, UNKNOWN, Columns, Row
from melior.policies.inputs import drop, uniforms

__all__ = ["Columns", "Table", "TableFeatures", "TableInputs"]

SPREAD = 0.02  # deviation of first embeddings: what each cell says starts small, and alike for every column
ROWS = 4096  # of a micro-batch where nobody says: beyond it nothing gets faster


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Table:
    """How a table's row becomes features."""

    width: int = Field(default=128, ge=1)  # of the features, and of the hidden layers
    blocks: int = Field(default=2, ge=0)  # residual layers; 0 is a model that adds up what each column says
    embedding: int = Field(default=8, ge=1)  # numbers that stand for one cell
    bins: int = Field(default=16, ge=1, lt=KNOTS)  # pieces of a numeric column's piecewise-linear curve
    hidden: float = Field(default=0.1, ge=0, lt=1)  # share of cells plain SFT hides, so that "unknown" means something
    dropout: float = Field(default=0.3, ge=0, lt=1)  # share of hidden units plain SFT leaves out
    categorical: tuple[str, ...] = ()  # columns of numbers that are names: postcodes, codes of branches
    numeric: tuple[str, ...] = ()  # columns of texts that are numbers
    drop: tuple[str, ...] = ()  # columns not to read: identifiers, whatever is known only afterwards
    fewest: int = Field(default=1, ge=1)  # training rows a category must stand in; rarer ones count as unknown


class TableFeatures(nn.Module):
    """Features [.., D] of rows given as numbers [.., N] and codes [.., C], under any leading dimensions.

    A number is embedded piecewise linearly between quantiles of its training values (beyond them it stays at the ends),
    a category by a vector of its own; what is missing or unknown has a vector of its own too. Residual blocks follow,
    each of which begins as nothing: the model starts from the sum of what each column says and learns combinations.

    Source: Gorishniy et al. 2022, arXiv:2203.05556, §3.2 (piecewise-linear encoding); Gorishniy et al. 2021,
    arXiv:2106.11959, §3.2 (residual blocks).
    """

    lows: Tensor  # [N, Q], infinite where a column has fewer bins
    widths: Tensor  # [N, Q]
    starts: Tensor  # [C], each column's first row of the one table of categories

    def __init__(self, columns: Columns, config: Table | None = None) -> None:
        super().__init__()
        self.columns, self.config = columns, config or Table()
        size, self.width = self.config.embedding, self.config.width
        edges = [_thinned(quantiles, self.config.bins) for quantiles in columns.numeric.values()]
        bins = max((len(e) - 1 for e in edges), default=0)
        lows = torch.full((len(edges), bins), torch.inf, dtype=torch.float64)
        widths = torch.ones((len(edges), bins), dtype=torch.float64)
        for place, edge in enumerate(edges):
            exact = torch.tensor(edge, dtype=torch.float64)  # timestamps seconds apart are one number in fp32
            lows[place, : len(edge) - 1] = exact[:-1]
            widths[place, : len(edge) - 1] = exact.diff()
        self.register_buffer("lows", lows, persistent=False)
        self.register_buffer("widths", widths, persistent=False)
        self.numeric = nn.Parameter(SPREAD * torch.randn(len(edges), bins, size))
        self.missing = nn.Parameter(SPREAD * torch.randn(len(edges), size))
        self.sizes = [len(categories) + 1 for categories in columns.categorical.values()]
        starts = torch.tensor([0, *self.sizes[:-1]] if self.sizes else [], dtype=torch.long).cumsum(0)
        self.register_buffer("starts", starts, persistent=False)
        self.categories = nn.Parameter(SPREAD * torch.randn(sum(self.sizes), size))
        self.project = nn.Linear(size * (len(edges) + len(self.sizes)), self.width)
        self.blocks = nn.ModuleList(
            _Block(self.width, self.config.dropout, place) for place in range(self.config.blocks)
        )

    def forward(
        self,
        numbers: Tensor,  # [.., N], NaN where missing
        codes: Tensor,  # [.., C], 0 where missing or unknown
        seeds: Tensor | None = None,  # [..] int64, of the cells plain SFT hides and the units it drops
    ) -> Tensor:  # [.., D]
        """Features of rows; a function of these rows alone."""
        if seeds is not None and self.config.hidden:
            numbers, codes = self._hide(numbers, codes, seeds)
        cells = torch.cat([self._embed_numbers(numbers), self.categories[codes + self.starts]], dim=-2)
        features = self.project(cells.flatten(-2))
        for block in self.blocks:
            features = features + block(features, seeds)
        return features

    def _embed_numbers(self, numbers: Tensor) -> Tensor:  # [.., N, d]
        missing = torch.isnan(numbers)
        shares = (torch.nan_to_num(numbers).double()[..., None] - self.lows) / self.widths
        shares = shares.clamp(0, 1).to(self.numeric.dtype)  # [.., N, Q]
        known = (shares[..., None, :] @ self.numeric).squeeze(-2)
        return torch.where(missing[..., None], self.missing, known)

    def _hide(self, numbers: Tensor, codes: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """The same rows with a share of their cells unknown."""
        count = numbers.shape[-1]
        drawn = uniforms(seeds.flatten(), count + codes.shape[-1]).reshape(*seeds.shape, -1) < self.config.hidden
        return numbers.masked_fill(drawn[..., :count], torch.nan), codes.masked_fill(drawn[..., count:], UNKNOWN)


class _Block(nn.Module):
    """What one hidden layer adds; nothing at first."""

    def __init__(self, width: int, dropout: float, place: int) -> None:
        super().__init__()
        self.dropout, self.stream = dropout, place + 1  # stream 0 hides cells
        self.norm, self.inner, self.outer = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, features: Tensor, seeds: Tensor | None) -> Tensor:
        hidden = torch.relu(self.inner(self.norm(features)))
        if seeds is not None:
            dropped = drop(hidden.reshape(-1, hidden.shape[-1]), self.dropout, seeds.flatten(), self.stream)
            hidden = dropped.reshape(hidden.shape)
        return self.outer(hidden)


class TableInputs(nn.Module):
    """What a classifier reads a table's rows with."""

    pretrained = False
    kind = "table"

    def __init__(self, columns: Columns, config: Table | None = None) -> None:
        super().__init__()
        self.features = TableFeatures(columns, config)
        self.width = self.features.width
        self.noticed: Counter[str] = Counter()

    @property
    def columns(self) -> Mapping[str, ColumnKind]:
        """What each column is read as."""
        read = self.features.columns
        return {**dict.fromkeys(read.numeric, "number"), **dict.fromkeys(read.categorical, "text")}

    @classmethod
    def of(cls, rows: Sequence[Row], config: Table | None = None) -> TableInputs:
        """Reads rows like these, with new weights; see `Columns.of` for what it raises."""
        config = config or Table()
        declared = {"categorical": config.categorical, "numeric": config.numeric, "drop": config.drop}
        return cls(Columns.of(rows, **declared, fewest=config.fewest), config)

    @property
    def random(self) -> bool:
        return self.features.config.hidden > 0 or self.features.config.dropout > 0

    def encode(self, inputs: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
        """Numbers [N] and codes [C] of each row; `noticed` counts what was unknown.

        Raises:
            DataError: for a row that is no mapping, and as `Columns.encode` does.
        """
        for place, row in enumerate(inputs, start=1):
            if not isinstance(row, Mapping):
                raise DataError(f"Row {place} is a {type(row).__name__}; a table's row is a mapping of column to value")
        numbers, codes = self.features.columns.encode(inputs, self.noticed)
        return list(zip(numbers.unbind(), codes.unbind(), strict=True))

    def forward(self, rows: Sequence[tuple[Tensor, Tensor]], seeds: Tensor | None = None) -> Tensor:  # [B, D]
        """Features of encoded rows."""
        device = self.features.categories.device
        numbers, codes = (torch.stack(list(parts)).to(device) for parts in zip(*rows, strict=True))
        return self.features(numbers, codes, None if seeds is None else seeds.to(device))

    def cost(self, row: Any) -> int:
        """Rows cost the same."""
        return 1

    @property
    def budget(self) -> int:
        return ROWS

    def to_json(self) -> dict[str, Any]:
        """Columns and settings; the weights are saved with the policy's."""
        return {"columns": self.features.columns.to_json(), "table": asdict(self.features.config)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> TableInputs:
        """The same reader with new weights."""
        return cls(Columns.from_json(fields["columns"]), Table(**fields["table"]))

    def write_files(self, folder: Path) -> None:
        """Nothing: everything stands in JSON and weights."""


def _thinned(quantiles: Sequence[float], bins: int) -> list[float]:
    """At most `bins` + 1 of the quantiles, evenly by rank, the ends among them."""
    places = np.unique(np.linspace(0, len(quantiles) - 1, min(bins + 1, len(quantiles))).round().astype(int))
    return [quantiles[place] for place in places]
