"""what a cycle writes into the store: each evaluation and verdict once, however often the cycle is resumed"""

from __future__ import annotations

from typing import Any

from melior.evaluation.evaluate import REWARD, Evaluation
from melior.evaluation.gates import Verdict
from melior.store import Store, rows


def record_evaluation(
    store: Store,
    evaluation: Evaluation,
    *,
    version_id: str | None = None,
    base_model: str | None = None,
    dataset_id: str | None = None,
) -> rows.Evaluation:
    """The store's row of an evaluation of a version, or of a base model; added if it is not there."""
    values = {item: list(found) for item, found in evaluation.values[REWARD].items()}
    for row in store.evaluations(version_id=version_id, base_model=base_model):
        if row.grader == evaluation.grader and row.dataset_id == dataset_id and row.values == values:
            return row
    summary: dict[str, Any] = evaluation.to_json()
    for bulky in ("values", "items", "clusters", "sampling"):
        summary.pop(bulky)
    return store.add_evaluation(
        grader=evaluation.grader,
        values=values,
        summary=summary,
        version_id=version_id,
        base_model=base_model,
        dataset_id=dataset_id,
        sampling=evaluation.sampling,
    )


def record_gate(
    store: Store,
    verdict: Verdict,
    *,
    candidate: rows.Evaluation,
    baseline: rows.Evaluation,
) -> rows.Gate:
    """The store's row of a verdict on one evaluated version against another, or a base model; added if not there."""
    assert candidate.version_id is not None  # only a version can be promoted
    pair = (candidate.id, baseline.id)
    for row in store.gates(candidate_id=candidate.version_id):
        if row.evaluation_ids == pair and row.details == verdict.to_json():
            return row
    return store.add_gate(
        candidate.version_id, baseline.version_id, verdict.result, evaluation_ids=pair, details=verdict.to_json()
    )
