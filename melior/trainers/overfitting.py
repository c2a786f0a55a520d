"""over-fitting, seen while it happens: the loss of rows that train beside the loss of rows that never do

    gap = how far training rows have come − how far held-out rows have come, both since before the first step

Each row is compared with itself, so it does not matter which side holds the easier rows; the gap is 0 before training
and stays there while what is learnt is general. Its interval joins the two sides' by the recovered variances.

Source: Zou and Donner 2008, Statistics in Medicine 27 (the interval of a difference from two separate intervals).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from melior.errors import DataError
from melior.statistics import Interval, mean_interval, separate_difference
from melior.trainers.supervised import HeldoutLoss
from melior.types import Demonstration

PROBE = 64  # training rows measured beside the held-out ones: a gap of a third of a deviation shows


class FittingGap:
    """An evaluation for `fit`: heldout_loss, probe_loss of some training rows, and their gap with its interval.

    Make it before `fit`, from the policy as it starts: the gap counts from there, in a resumed run as well.
    """

    def __init__(
        self, policy: Any, train: Sequence[Demonstration], heldout: Sequence[Demonstration], *, probe: int = PROBE
    ) -> None:
        """Raises DataError if one of the sides has no decision within the context."""
        self.train, self.heldout = _sample(train, min(probe, max(2, len(heldout)))), list(heldout)
        self.loss = HeldoutLoss(policy, self.heldout)
        self.before = [_row_losses(policy, rows) for rows in (self.train, self.heldout)]
        if not all(self.before):
            raise DataError(f"None of {len(self.train)} training rows has a decision within the context; shorten them")
        self.probe = HeldoutLoss(policy, self.train)

    def __call__(self, policy: Any) -> Mapping[str, float]:
        now = [_row_losses(policy, rows) for rows in (self.train, self.heldout)]
        gap = fitting_gap(*([now[s][row] - self.before[s][row] for row in now[s]] for s in (0, 1)))
        return {
            **self.loss(policy),
            "probe_loss": self.probe(policy)["heldout_loss"],  # over decisions, as the other side's
            "fitting_gap": gap.estimate,
            "fitting_gap_low": gap.low,
            "fitting_gap_high": gap.high,
        }


def fitting_gap(train: Sequence[float], heldout: Sequence[float]) -> Interval:
    """How much more the loss of training rows fell than that of held-out rows, from each row's change in loss, nats."""
    return separate_difference(mean_interval(heldout), mean_interval(train))


def _sample(rows: Sequence[Demonstration], count: int) -> list[Demonstration]:
    """Some of the rows, the same ones in whatever order they stand."""

    def rank(row: Demonstration) -> str:
        return hashlib.sha256(repr((row.inputs, row.output)).encode()).hexdigest()

    return sorted(rows, key=rank)[:count]


@torch.no_grad()
def _row_losses(policy: Any, rows: Sequence[Demonstration]) -> dict[int, float]:
    """Mean negative log-likelihood per decision of each row that has one."""
    found = policy.log_probs(rows)
    return {index: -float(values.double().mean()) for index, values in enumerate(found) if len(values)}
