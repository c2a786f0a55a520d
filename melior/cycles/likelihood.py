"""held-out demonstrations as their own judge: how likely a policy finds them"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import torch

from melior.data.formats import fingerprint
from melior.errors import DataError
from melior.evaluation.evaluate import REWARD, Evaluation
from melior.statistics import bootstrap_mean
from melior.types import Demonstration, Sampling

LIKELIHOOD = "log-prob per decision"  # what evaluations call it, in the place of a grader's name


@torch.no_grad()
def likelihood(policy: Any, rows: Sequence[Demonstration]) -> Evaluation:
    """Mean log-prob per decision of each held-out demonstration, as its reward: what SFT improves without a grader.

    Raises:
        DataError: if no row has a decision within the context.
    """
    started = time.monotonic()
    scored = dict(zip(map(row_key, rows), policy.log_probs(rows), strict=True))
    values = {key: (float(row.double().mean()),) for key, row in scored.items() if len(row)}
    if not values:
        raise DataError(f"None of {len(rows)} held-out rows has a decision within the context; shorten them")
    clusters = {row_key(row): row.group for row in rows if row.group}
    return Evaluation(
        sampling=Sampling(),
        grader=LIKELIHOOD,
        items=tuple(scored),
        fingerprint=fingerprint(rows),
        values={REWARD: values},
        bounds={},
        clusters=clusters,
        reward=bootstrap_mean(values, clusters=clusters),
        missing=tuple(key for key in scored if key not in values),
        graded=len(values),
        tokens=sum(len(row) for row in scored.values()),
        seconds=time.monotonic() - started,
    )


def row_key(row: Any) -> str:
    """A row's id, or a hash of its content: the same in every process."""
    return row.id or hashlib.sha256(fingerprint([row]).encode()).hexdigest()[:16]
