"""rewards whose differences can be taken at their word: one number that divides them all

Source: Guo et al. 2017, arXiv:1706.04599, §4.2 (temperature scaling).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.optimize import minimize_scalar

from melior.errors import DataError
from melior.metrics import Floats
from melior.types import Demonstration, Preference

WIDEST = 8.0  # of the logarithm of the temperature: rewards 3,000 times too large or too small


class Rescales(Protocol):
    """A reward model or an ensemble, whose unit can be changed."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def rewards(self, examples: Sequence[Any]) -> Any:  # [N, H]
        ...

    def rescale(self, head: str, *, location: float, spread: float) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """What rewards were divided by, and the mean loss in nats over the pairs before and after."""

    head: str
    temperature: float  # above 1: the model was too sure
    before: float
    after: float
    pairs: int


def calibrate(model: Rescales, rows: Sequence[Preference], *, head: str | None = None) -> Temperature:
    """Divides a head's rewards by what makes its log-odds fit these pairs best, which it must not have trained on.

    No order of two outputs changes. One number is found from many pairs, so it flatters by little on these very rows.

    Raises:
        DataError: if no pair can be read.
    """
    name = head or model.names[0]
    gaps, probabilities, weights = pair_gaps(model, rows, name)
    found = temperature_of(gaps, probabilities, weights)
    told = Temperature(
        head=name,
        temperature=found,
        before=_loss(gaps, probabilities, weights),
        after=_loss(gaps / found, probabilities, weights),
        pairs=len(gaps),
    )
    model.rescale(name, location=0.0, spread=1 / found)
    return told


def temperature_of(gaps: Floats, probabilities: Floats, weights: Floats) -> float:
    """The divisor of gaps [P] under which preferences of these probabilities [P] are likeliest."""
    found = minimize_scalar(
        lambda logarithm: _loss(gaps / np.exp(logarithm), probabilities, weights), bounds=(-WIDEST, WIDEST)
    )
    return float(np.exp(found.x))


def pair_gaps(model: Any, rows: Sequence[Preference], head: str) -> tuple[Floats, Floats, Floats]:  # [P] each
    """Reward of chosen less rejected, probability and weight of each pair that can be read.

    Raises:
        DataError: if none can.
    """
    examples = [Demonstration(row.inputs, side) for row in rows for side in (row.chosen, row.rejected)]
    rewards = np.asarray(model.rewards(examples), dtype=np.float64)[:, model.names.index(head)] if rows else np.zeros(0)
    gaps = rewards[0::2] - rewards[1::2]
    known = np.isfinite(gaps)
    if not known.any():
        raise DataError(f"None of {len(rows)} pairs has two sides within the reward model's context; shorten them")
    probabilities = np.array([row.probability for row in rows], dtype=np.float64)
    weights = np.array([row.weight for row in rows], dtype=np.float64)
    return gaps[known], probabilities[known], weights[known]


def _loss(gaps: Floats, probabilities: Floats, weights: Floats) -> float:
    """Mean cross-entropy of preferences with the gaps' sigmoid, in nats."""
    losses = probabilities * np.logaddexp(0, -gaps) + (1 - probabilities) * np.logaddexp(0, gaps)
    return float(weights @ losses / weights.sum())
