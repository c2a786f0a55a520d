"""held-out demonstrations and preferences as their own judges: how likely a policy finds them"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import torch

from melior.data.formats import fingerprint
from melior.errors import DataError
from melior.evaluation.evaluate import REWARD, Evaluation
from melior.masking import sum_decisions
from melior.policies.base import score_all
from melior.statistics import bootstrap_mean
from melior.trainers.preference import encode_pairs
from melior.types import Demonstration, Preference, Sampling

LIKELIHOOD = "log-prob per decision"  # what evaluations call these, in the place of a grader's name
PREFERRED = "preference accuracy"
JUDGES = {"demonstrations": LIKELIHOOD, "preferences": PREFERRED}


def measured(policy: Any, rows: Sequence[Any], of: str) -> Evaluation:
    """Held-out demonstrations, or preferences, as their own judge."""
    return preferred(policy, rows) if of == "preferences" else likelihood(policy, rows)


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


@torch.no_grad()
def preferred(policy: Any, rows: Sequence[Preference]) -> Evaluation:
    """Whether the policy moved towards what people chose, pair by pair: 1 where it did, ½ where it did not move.

    Raises:
        DataError: if no pair has two sides to compare.
    """
    started = time.monotonic()
    batch, pairs, _ = encode_pairs(policy, rows)
    gained = sum_decisions(score_all(policy, batch) - policy.reference_log_probs(batch), batch.mask)
    signed = torch.where(batch.columns["chosen"], gained, -gained)
    margins = torch.zeros(len(rows), dtype=signed.dtype).index_add_(0, batch.groups, signed).tolist()
    right = {pair: agrees(margins[pair], rows[pair].probability) for pair in pairs}
    values = {row_key(rows[pair]): (right[pair],) for pair in pairs}
    clusters = {row_key(row): row.group for row in rows if row.group}
    return Evaluation(
        sampling=Sampling(),
        grader=PREFERRED,
        items=tuple(map(row_key, rows)),
        fingerprint=fingerprint(rows),
        values={REWARD: values},
        bounds={REWARD: (0.0, 1.0)},
        clusters=clusters,
        reward=bootstrap_mean(values, bounds=(0.0, 1.0), clusters=clusters),
        missing=tuple(key for key in map(row_key, rows) if key not in values),
        graded=len(values),
        tokens=int(batch.mask.sum()),
        seconds=time.monotonic() - started,
    )


def agrees(margin: float, probability: float) -> float:
    """1 where a margin is on the side that people are for, else 0; ½ where one of them is undecided."""
    return 0.5 if margin == 0 or probability == 0.5 else float((margin > 0) == (probability > 0.5))


def row_key(row: Any) -> str:
    """A row's id, or a hash of its content: the same in every process."""
    return row.id or hashlib.sha256(fingerprint([row]).encode()).hexdigest()[:16]
