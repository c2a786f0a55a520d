"""what a reward model reads inputs and outputs with: one vector of features per whole output"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from melior.errors import ConfigError, DataError
from melior.policies import parameters
from melior.policies.base import Batch, Policy, Want
from melior.types import Preference

WEIGHTS = "model.safetensors"


class Trunk(Protocol):
    """Turns outputs with their inputs into features."""

    kind: str  # policy, text, table or segment: recorded in the folder

    @property
    def origin(self) -> str:
        """A digest of the weights as made or loaded."""
        ...

    @property
    def width(self) -> int:
        """How many features (D)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the rewards: fp32, or fp64 where the features are."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def adapted(self) -> bool: ...

    @property
    def layout(self) -> str: ...

    @property
    def noticed(self) -> Counter[str]: ...

    @property
    def computed(self) -> Mapping[str, int]: ...

    def encode(self, examples: Sequence[Any]) -> Batch:
        """One row per example, in order; the mask of a row that cannot be read is empty."""
        ...

    def cut(self, batch: Batch, budget: int | None = None) -> Iterator[list[int]]: ...
    def cost(self, batch: Batch) -> int: ...
    def perturb(self, batch: Batch, key: Sequence[int]) -> Batch: ...

    def features(self, batch: Batch) -> Tensor:  # [B, D]
        """What the heads read of each row."""
        ...

    def candidates(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def fingerprint(self) -> str: ...
    def save(self, folder: Path) -> None: ...

    def merged(self, folder: Path) -> None:
        """Writes the trunk with any adapter folded in."""
        ...


class PolicyTrunk:
    """The state behind a policy's last decision; of language, that of the last token of the last turn."""

    kind = "policy"

    def __init__(self, policy: Policy) -> None:
        """Raises ConfigError for a policy whose states do not know what was decided."""
        if policy.kind == "classifier":
            raise ConfigError(
                "A classifier's states do not know the label; make a reward model of the table's rows with "
                "RewardModel.make, or of the texts"
            )
        self.policy: Any = policy

    @property
    def origin(self) -> str:
        return str(self.policy.origin)

    @property
    def width(self) -> int:
        return int(self.policy.state_size)

    @property
    def dtype(self) -> torch.dtype:
        found = next(self.policy.parameters()).dtype
        return torch.float64 if found == torch.float64 else torch.float32

    @property
    def device(self) -> torch.device:
        return next(iter(self.policy.parameters())).device

    @property
    def adapted(self) -> bool:
        return bool(self.policy.adapted)

    @property
    def layout(self) -> str:
        return str(self.policy.layout)

    @property
    def noticed(self) -> Counter[str]:
        return Counter(self.policy.noticed)

    @property
    def computed(self) -> Mapping[str, int]:
        return dict(self.policy.computed)

    def encode(self, examples: Sequence[Any]) -> Batch:
        """The last turn of each example.

        Raises:
            DataError: for an example without a turn, and as the policy's own `encode` does.
        """
        batch: Batch = self.policy.encode(examples)
        last = dict(zip(batch.columns["examples"].tolist(), range(len(batch)), strict=True))
        if missing := [place for place in range(len(examples)) if place not in last]:
            raise DataError(
                f"{len(missing)} of {len(examples)} rows have no output to rate, first row {missing[0] + 1}"
            )
        return batch.select([last[place] for place in range(len(examples))])

    def cut(self, batch: Batch, budget: int | None = None) -> Iterator[list[int]]:
        yield from self.policy.cut(batch, budget)

    def cost(self, batch: Batch) -> int:
        return int(self.policy.cost(batch))

    def perturb(self, batch: Batch, key: Sequence[int]) -> Batch:
        found: Batch = self.policy.perturb(batch, key)
        return found

    def features(self, batch: Batch) -> Tensor:  # [B, D]
        """States at a place that follows from the mask alone: padding, ids and batch mates have no say."""
        states: Tensor = self.policy.score(batch, frozenset({Want.STATES})).states
        ends = batch.mask.sum(1).to(states.device)
        return states[torch.arange(len(states), device=states.device), ends]

    def candidates(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.policy.candidates()

    def parameters(self) -> Iterator[nn.Parameter]:
        yield from self.policy.parameters()

    def fingerprint(self) -> str:
        return str(self.policy.fingerprint())

    def save(self, folder: Path) -> None:
        self.policy.save(folder)

    def merged(self, folder: Path) -> None:
        if not self.policy.adapted:
            return self.save(folder)
        self.policy.merged(folder)


class Reader(Protocol):
    """Reads pairs of inputs and outputs of one kind; a torch module."""

    kind: str  # text, table or segment
    noticed: Counter[str]

    @property
    def width(self) -> int: ...

    @property
    def random(self) -> bool:
        """Whether seeds change the features."""
        ...

    @property
    def budget(self) -> int:
        """How much a micro-batch holds where nobody says."""
        ...

    def read(self, examples: Sequence[Any]) -> Sequence[Any]:
        """One cheap handle per example.

        Raises:
            DataError: for one that cannot be read, saying which and why.
        """
        ...

    def cost(self, row: Any) -> int: ...
    def __call__(self, rows: Sequence[Any], seeds: Tensor | None = None) -> Tensor: ...  # [B, D]

    def learning(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What can train."""
        ...

    def to_json(self) -> dict[str, Any]: ...
    def write_files(self, folder: Path) -> None: ...
    def state_dict(self) -> dict[str, Tensor]: ...


class FeatureTrunk:
    """Features that a network reads from rows: of texts, of tables, of segments."""

    adapted = False

    def __init__(self, reader: Reader) -> None:
        assert isinstance(reader, nn.Module)
        self.reader: Any = reader
        self.kind = reader.kind
        self.origin = parameters.digest(reader.state_dict().items())
        self._computed = {"outputs": 0}

    @property
    def width(self) -> int:
        return int(self.reader.width)

    @property
    def dtype(self) -> torch.dtype:
        return next((each.dtype for each in self.reader.parameters()), torch.float32)

    @property
    def device(self) -> torch.device:
        return next(chain(self.reader.parameters(), self.reader.buffers())).device

    @property
    def layout(self) -> str:
        return "rows"

    @property
    def noticed(self) -> Counter[str]:
        return Counter(self.reader.noticed)

    @property
    def computed(self) -> Mapping[str, int]:
        return dict(self._computed)

    def encode(self, examples: Sequence[Any]) -> Batch:
        """One row per example, with one decision: the output as a whole.

        Raises:
            DataError: for an example that cannot be read.
        """
        if any(isinstance(example, Preference) for example in examples):
            raise DataError("A Preference has two outputs; encode its chosen and its rejected side as Demonstrations")
        weights = torch.tensor([getattr(example, "weight", 1.0) for example in examples])
        return Batch(
            inputs=list(self.reader.read(examples)),
            outputs=[None] * len(examples),
            mask=torch.ones(len(examples), 1, dtype=torch.bool),
            weights=weights[:, None],
            groups=torch.arange(len(examples)),
            columns={"examples": torch.arange(len(examples))},
        )

    def cut(self, batch: Batch, budget: int | None = None) -> Iterator[list[int]]:
        """Whole groups, in order, of at most `budget` where one group does not cost more."""
        budget = budget or self.reader.budget
        members: dict[int, list[int]] = {}
        for row, group in enumerate(batch.groups.tolist()):
            members.setdefault(group, []).append(row)
        rows: list[int] = []
        spent = 0
        for group in members.values():
            needed = sum(self.reader.cost(batch.inputs[row]) for row in group)
            if rows and spent + needed > budget:
                yield rows
                rows, spent = [], 0
            rows, spent = rows + group, spent + needed
        if rows:
            yield rows

    def cost(self, batch: Batch) -> int:
        return sum(map(self.reader.cost, batch.inputs))

    def perturb(self, batch: Batch, key: Sequence[int]) -> Batch:
        """The batch with a seed per row, of which dropout is a function; the same one without it."""
        if not self.reader.random:
            return batch
        source = int.from_bytes(hashlib.sha256(repr(tuple(key)).encode()).digest()[:8], "big", signed=True)
        return batch.with_columns(seeds=torch.arange(len(batch)) * 2 + source % (1 << 62))

    def features(self, batch: Batch) -> Tensor:  # [B, D]
        if torch.is_grad_enabled():
            self._computed["outputs"] += len(batch)
        found: Tensor = self.reader(batch.inputs, batch.columns.get("seeds"))
        return found

    def candidates(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.reader.learning()

    def parameters(self) -> Iterator[nn.Parameter]:
        yield from self.reader.parameters()

    def fingerprint(self) -> str:
        shapes = {name: list(parameter.shape) for name, parameter in self.candidates() if parameter.requires_grad}
        told = json.dumps([self.kind, self.reader.to_json(), shapes], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "reader.json").write_text(json.dumps(self.reader.to_json(), indent=1, ensure_ascii=False))
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.reader.state_dict().items()}
        save_file(tensors, folder / WEIGHTS)
        self.reader.write_files(folder)

    def merged(self, folder: Path) -> None:
        self.save(folder)


def load_weights(reader: nn.Module, folder: Path) -> None:
    """Puts the weights that `FeatureTrunk.save` wrote into a reader of the same settings."""
    reader.load_state_dict(load_file(folder / WEIGHTS))
