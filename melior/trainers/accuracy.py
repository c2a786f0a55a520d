"""how well demonstrations are known: their loss, and how often the next decision is the likeliest one"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from melior.policies.base import Batch
from melior.types import Demonstration

ROWS = 32  # of each side that are looked at: a share of their tokens is then known to about a hundredth
TIE = 1e-5  # nats: a log-prob and the largest one come from two passes, which add up in another order


class Known:
    """An evaluation for `fit`: mean_token_accuracy of some training rows, and loss and accuracy of some held-out rows.

    Measured as the policy is when it is called; what a step reports of its own rows is from before its update.
    """

    def __init__(self, policy: Any, train: Sequence[Demonstration], heldout: Sequence[Demonstration]) -> None:
        self.train, self.heldout = (policy.encode(_some(rows)) for rows in (train, heldout))

    def __call__(self, policy: Any) -> Mapping[str, float]:
        found = {}
        _, accuracy = known(policy, self.train)
        if accuracy is not None:
            found["mean_token_accuracy"] = accuracy
        loss, accuracy = known(policy, self.heldout)
        if loss is not None and accuracy is not None:
            found |= {"heldout_loss": loss, "heldout_mean_token_accuracy": accuracy}
        return found


@torch.no_grad()
def known(policy: Any, batch: Batch) -> tuple[float | None, float | None]:
    """Mean negative log-likelihood per weighted decision in nats, and the share of decisions that are the likeliest.

    None where nothing is to be learnt of any row.
    """
    loss, hits, weight, count = 0.0, 0, 0.0, 0
    for rows in policy.cut(batch) if len(batch) else ():
        part = batch.select(rows)
        log_probs = policy.score(part).log_probs.double().cpu()
        best = policy.likeliest(part, 1)[1][..., 0].double().cpu()
        learnt = part.mask & (part.weights != 0)
        weights = part.weights[learnt].double()
        loss -= float((log_probs[learnt] * weights).sum())
        hits += int((log_probs[learnt] >= best[learnt] - TIE).sum())
        weight, count = weight + float(weights.sum()), count + int(learnt.sum())
    return (loss / weight, hits / count) if count and weight > 0 else (None, None)


def _some(rows: Sequence[Demonstration]) -> list[Demonstration]:
    """At most `ROWS` of the rows, the same ones in whatever order they stand."""

    def rank(row: Demonstration) -> str:
        return hashlib.sha256(repr((row.inputs, row.output)).encode()).hexdigest()

    return sorted(rows, key=rank)[:ROWS]
