"""what a policy is: records become batches, batches become log-probs

    score(batch) -> log-probs [B, T] in nats, with a mask [B, T] that is True where the policy chose

A decision is one token, one position of a slate, one label, one control step. Row `b` of a batch holds the
decisions of one output in order, from the left: `mask[b]` is True for the first n_b columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from melior.types import Record, Sampling


class Want(Enum):
    """What one forward pass should return."""

    LOG_PROBS = "log_probs"
    ENTROPY = "entropy"
    # log-probs of what could have been decided: at the ids that the batch's column "candidate_ids" names, else of
    # everything, where that is a short list
    CANDIDATES = "candidates"
    VALUES = "values"  # what is still to be earned at each decision's place, or a reward model's rewards of outputs
    STATES = "states"  # what was read before each decision and behind the last: value functions and rewards read it


LOG_PROBS = frozenset({Want.LOG_PROBS})
CANDIDATE_IDS = "candidate_ids"  # the column [B, T, K] that says where candidates are wanted; -1 is none


@dataclass(frozen=True)
class Batch:
    """Rows of decisions. Only the policy that encoded it looks inside `inputs` and `outputs`."""

    inputs: Sequence[Any]  # opaque, one entry per row
    outputs: Sequence[Any]  # opaque, one entry per row
    mask: Tensor  # [B, T] bool, True where the policy chose
    weights: Tensor  # [B, T] float, per-decision weight
    groups: Tensor  # [B] int, which input (or pair) a row belongs to
    columns: Mapping[str, Tensor] = field(default_factory=dict)  # [B], [B, T] or [B, T, …], what `prepare` adds
    whole: bool = False  # a group is compared within, as the two sides of a pair are: `cut` may not part it

    def __len__(self) -> int:
        return len(self.inputs)

    def select(self, rows: Sequence[int]) -> Batch:
        """The given rows, with trailing columns no row uses cut off."""
        index = torch.as_tensor(list(rows), dtype=torch.long)
        mask = self.mask[index]
        width = int(mask.sum(1).max()) if mask.numel() else 0

        def cut(column: Tensor) -> Tensor:
            return column[index][:, :width] if column.dim() > 1 else column[index]

        return Batch(
            inputs=[self.inputs[row] for row in rows],
            outputs=[self.outputs[row] for row in rows],
            mask=mask[:, :width],
            weights=cut(self.weights),
            groups=self.groups[index],
            columns={name: cut(column) for name, column in self.columns.items()},
            whole=self.whole,
        )

    def with_columns(self, **columns: Tensor) -> Batch:
        """The same rows with columns added or replaced."""
        return replace(self, columns={**self.columns, **columns})

    @classmethod
    def join(cls, parts: Sequence[Batch]) -> Batch:
        """Rows of several batches of one policy, part after part; no group holds rows of two parts.

        A column that a part lacks is 0 (or False) for its rows. Groups stay whole where those of any part do.
        """
        width = max(part.mask.shape[1] for part in parts)
        names = dict.fromkeys(name for part in parts for name in part.columns)
        groups: list[Tensor] = []
        for part in parts:
            first = int(groups[-1].max()) + 1 if groups and len(groups[-1]) else 0
            groups.append(torch.unique(part.groups, return_inverse=True)[1] + first)
        return cls(
            inputs=[given for part in parts for given in part.inputs],
            outputs=[given for part in parts for given in part.outputs],
            mask=torch.cat([_widened(part.mask, width) for part in parts]),
            weights=torch.cat([_widened(part.weights, width) for part in parts]),
            groups=torch.cat(groups),
            columns={name: _joined(parts, name, width) for name in names},
            whole=any(part.whole for part in parts),
        )


def _widened(column: Tensor, width: int) -> Tensor:  # [B, T, …] -> [B, width, …]
    """The column with empty places behind it."""
    empty = column.new_zeros(len(column), width - column.shape[1], *column.shape[2:])
    return torch.cat([column, empty], dim=1)


def _joined(parts: Sequence[Batch], name: str, width: int) -> Tensor:
    known = next(part.columns[name] for part in parts if name in part.columns)
    found = []
    for part in parts:
        shape = (len(part), *part.mask.shape[1:2], *known.shape[2:]) if known.dim() > 1 else (len(part),)
        column = part.columns.get(name, known.new_zeros(shape))
        found.append(_widened(column, width) if known.dim() > 1 else column)
    return torch.cat(found)


@dataclass(frozen=True)
class Scored:
    """One forward pass, several outputs; what was not wanted is absent, or 0 where log-probs were not."""

    log_probs: Tensor  # [B, T] nats, 0 where the mask is False
    entropy: Tensor | None = None  # [B, T] nats
    values: Tensor | None = None  # [B, T + 1], places as in `states`; of a reward model [B, H], one per head
    candidates: Tensor | None = None  # [B, T, K] nats, -inf where a candidate may not be decided
    # [B, T + 1, D]: what was read before decision t, and behind a row's last of n decisions at n; 0 behind that
    states: Tensor | None = None


@dataclass(frozen=True)
class Rates:
    """Learning rates by parameter name: the first pattern found in a name decides its factor; 0 freezes it."""

    learning_rate: float
    weight_decay: float = 0.0
    factors: Mapping[str, float] = field(default_factory=dict)  # regular expression → factor of the learning rate


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate and a weight decay."""

    names: tuple[str, ...]
    parameters: tuple[Tensor, ...]
    learning_rate: float
    weight_decay: float


State = Mapping[str, Tensor]  # trainable tensors by name


class Trainable(Protocol):
    """What `fit` can train: policies, value functions, reward models."""

    def parameter_groups(self, rates: Rates) -> list[ParameterGroup]: ...
    def state(self) -> State: ...
    def load_state(self, state: State) -> None: ...
    def save(self, folder: Path) -> None: ...
    def fingerprint(self) -> str: ...


class Policy(Trainable, Protocol):
    """Gives a log-probability to every decision it makes."""

    kind: str  # language, classifier, slate: recorded in its folder, so that the folder says what loads it
    discrete: bool  # probabilities (True) or densities (False)

    @property
    def adapted(self) -> bool:
        """Whether an adapter trains, on weights that stay."""
        ...

    @property
    def layout(self) -> str:
        """How rows are laid out, for the run's record."""
        ...

    @property
    def state_size(self) -> int:
        """D of the states that `Want.STATES` asks for."""
        ...

    @property
    def vocabulary(self) -> str:
        """A fingerprint of what decision ids mean: two policies can teach one another where it agrees."""
        ...

    # ------------------------------------------------------------------ decisions

    def encode(self, examples: Sequence[Any]) -> Batch:
        """A whole step as one batch, not yet laid out; column "examples" [B] says which example a row came from."""
        ...

    def cut(self, batch: Batch, budget: int | None = None) -> Iterator[list[int]]:
        """Rows of micro-batches that cost at most `budget` each; a group stays together where it fits.

        Where the batch says `whole`, it stays together whatever it costs.
        """
        ...

    def cost(self, batch: Batch) -> int:
        """What `cut` holds against its budget."""
        ...

    def perturb(self, batch: Batch, key: Sequence[int]) -> Batch:
        """The batch as plain SFT shows it: inputs augmented, dropout drawn; a function of the batch and the key.

        What is random stands in the batch afterwards, so `score` stays deterministic. The same batch where the policy
        was not asked for either.
        """
        ...

    def score(self, batch: Batch, want: frozenset[Want] = LOG_PROBS) -> Scored:
        """Log-probs of the batch's decisions, deterministic whatever the mode of the model."""
        ...

    def likeliest(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        """Ids and log-probs [B, T, K] of the k likeliest decisions at each place, the likeliest first; no gradient.

        Where fewer can be decided, ids are -1 and log-probs -inf.
        """
        ...

    def log_probs(self, examples: Sequence[Any]) -> list[Tensor]:
        """One tensor [T] of nats per example, in order."""
        ...

    def reference_log_probs(self, batch: Batch, budget: int | None = None) -> Tensor:
        """Log-probs [B, T] of the policy as it was loaded or made."""
        ...

    def reference_fingerprint(self) -> str:
        """Of all that decides what `reference_log_probs` says of an example; adapters, which have no say, do not count.

        Weights, their precision, tokenizer and layout: log-probs kept under it are still right in another run.
        """
        ...

    def sample(self, inputs: Sequence[Any], settings: Sampling | Sequence[Sampling], *, step: int = 0) -> list[Record]:
        """`n` records per input, grouped by input, in order; settings are one for all, or one per input.

        A sample is a function of (seed, step, input, sample number). `temperature=0` is the one best output, which has
        no behavior log-probs: nothing was left to chance.
        """
        ...

    @property
    def noticed(self) -> Counter[str]:
        """What was passed over while rows were read, and how often: unknown categories, items nobody knows."""
        ...

    @property
    def computed(self) -> Mapping[str, int]:
        """What training passes have cost so far, for a run's metrics: name → count that only grows."""
        ...

    # ------------------------------------------------------------------ parameters

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """All of them, frozen ones and those under an adapter too."""
        ...

    def candidates(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Everything that can train, whether it does or not; names as in `parameter_groups`."""
        ...

    def freeze(self, factors: Mapping[str, float]) -> dict[str, float]:
        """Takes out of training whatever the factors give 0, and returns the factors that still have a say."""
        ...


@torch.no_grad()
def score_all(policy: Policy, batch: Batch, budget: int | None = None) -> Tensor:  # [B, T]
    """Log-probs of a whole batch without gradients, in micro-batches."""
    result = torch.zeros(batch.mask.shape, dtype=torch.float64)
    for rows in policy.cut(batch, budget):
        part = batch.select(rows)
        result[rows, : part.mask.shape[1]] = policy.score(part).log_probs.double().cpu()
    return result


def padded_states(rows: Sequence[Tensor], width: int) -> Tensor:  # of [n + 1, D] each -> [B, width + 1, D]
    """Each row's states in its first places, 0 behind them."""
    return torch.stack([torch.nn.functional.pad(row, (0, 0, 0, width + 1 - len(row))) for row in rows])


def candidates_asked(table: Tensor, batch: Batch) -> Tensor:  # [B, T, N], and the batch -> [B, T, K]
    """A list of all that can be decided, at the ids of the batch's column "candidate_ids"; whole without one."""
    if CANDIDATE_IDS not in batch.columns:
        return table
    ids = batch.columns[CANDIDATE_IDS].to(table.device)
    known = (ids >= 0) & (ids < table.shape[-1])
    return table.gather(-1, ids.masked_fill(~known, 0)).masked_fill(~known, -torch.inf)


def likeliest_of(table: Tensor, k: int) -> tuple[Tensor, Tensor]:  # [..., N] -> [..., k], [..., k]
    """Ids and log-probs of the k likeliest of a list; ids are -1 where nothing is left to decide."""
    table = torch.nn.functional.pad(table, (0, max(0, k - table.shape[-1])), value=-torch.inf)
    log_probs, ids = table.topk(k, dim=-1)
    return ids.masked_fill(torch.isneginf(log_probs), -1), log_probs
