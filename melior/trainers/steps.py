"""what the loop and the objectives hand each other: steps, terms, the protocols, and whence randomness comes"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from melior.policies.base import Batch, Scored, Want


@dataclass(frozen=True)
class Histogram:
    """How many values fell into each bin: bin i is [edges[i], edges[i + 1]); the outer two take what lies beyond."""

    edges: tuple[float, ...]
    counts: Tensor  # [len(edges) - 1]

    @classmethod
    def of(cls, values: Tensor, edges: Sequence[float]) -> Histogram:
        """The histogram of finite values of any shape."""
        values = values.detach().flatten().double().cpu()
        inner = torch.tensor(edges[1:-1], dtype=torch.float64)
        bins = torch.bucketize(values[torch.isfinite(values)], inner, right=True)
        return cls(tuple(edges), torch.bincount(bins, minlength=len(edges) - 1))

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(self.edges, self.counts + other.counts)


@dataclass(frozen=True)
class Step:
    """Everything one update learns from, before it is cut into micro-batches."""

    batch: Batch
    metrics: Mapping[str, float] = field(default_factory=dict)  # what collecting the step measured
    samples: Sequence[Mapping[str, Any]] = ()  # a few outputs a person would like to read
    histograms: Mapping[str, Histogram] = field(default_factory=dict)  # of what was collected
    # Log-probs [B, T] under the reference, computed for an objective that asks; None: those of the policy's own start.
    reference: Callable[[Batch], Tensor] | None = None
    # What an objective's `prepare` carries to the next step's; the loop hands it on and keeps it in checkpoints.
    memory: Mapping[str, float] = field(default_factory=dict)

    def with_columns(self, **columns: Tensor) -> Step:
        """The same step with columns added to its batch."""
        return replace(self, batch=self.batch.with_columns(**columns))

    def with_metrics(self, **metrics: float) -> Step:
        """The same step with metrics added."""
        return replace(self, metrics={**self.metrics, **metrics})

    def with_reference(self, policy: Any) -> Step:
        """The same step with column "ref_log_probs" [B, T]: its own, else the step's reference's, else the policy's."""
        if "ref_log_probs" in self.batch.columns:
            return self
        found = self.reference or policy.reference_log_probs
        return self.with_columns(ref_log_probs=found(self.batch))

    def with_memory(self, **memory: float) -> Step:
        """The same step with numbers that the next step's `prepare` will find."""
        return replace(self, memory={**self.memory, **memory})


@dataclass(frozen=True)
class Term:
    """One named part of a loss, summed over a micro-batch and not yet normalised."""

    name: str
    total: Tensor  # []
    weight: float = 1.0
    metrics: Mapping[str, Tensor] = field(default_factory=dict)  # sums, divided by the same count
    histograms: Mapping[str, Histogram] = field(default_factory=dict)  # added up over micro-batches, never divided


class Objective(Protocol):
    """What is minimised. The loop divides each term once, by its count over the whole step."""

    @property
    def want(self) -> frozenset[Want]:
        """What the loss reads of a forward pass."""
        ...

    def prepare(self, step: Step, policy: Any) -> Step:
        """Sees the whole step: credit assignment, reference and old log-probs."""
        ...

    def counts(self, batch: Batch) -> Mapping[str, float]:
        """What each term is divided by; of the whole prepared step, since gradients flow before its last cut.

        A metric that rides along with a term may have a count of its own, under "term/metric".
        """
        ...

    def active(self, batch: Batch) -> list[int]:
        """Rows with a gradient. The others are never computed, and stay in the counts."""
        ...

    def loss(self, scored: Scored, batch: Batch) -> list[Term]:
        """The terms of one micro-batch."""
        ...


class Steps(Protocol):
    """Where steps come from: a function of (seed, index, policy), so that resuming needs no buffer."""

    @property
    def total(self) -> int | None: ...  # how many there are, None if they never end
    def __call__(self, index: int) -> Step: ...
    def fingerprint(self) -> str: ...


class Evaluates(Protocol):
    """Measures a policy on held-out data while it trains."""

    def __call__(self, trainable: Any, /) -> Mapping[str, float]: ...


def digest(*parts: Any) -> str:
    """A short fingerprint of JSON-able parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def generator(*key: int) -> torch.Generator:
    """A local source of randomness that is a function of its key, so a resumed run draws what it would have drawn."""
    return torch.Generator().manual_seed(int(digest(*key), 16) % (1 << 63))
