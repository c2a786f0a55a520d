"""evaluations of versions, and the gates that compared them"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from melior.errors import StoreError
from melior.store import schema
from melior.store.query import Rows, add, add_row, new_id, now, one_of
from melior.store.rows import Evaluation, Gate, Verdict
from melior.types import Sampling


class Verdicts(Rows):
    """How good a version is, and whether it may replace another."""

    def add_evaluation(
        self,
        *,
        grader: str,
        values: Mapping[str, Sequence[float | None]],
        summary: Mapping[str, Any],
        version_id: str | None = None,
        base_model: str | None = None,
        dataset_id: str | None = None,
        sampling: Sampling | Mapping[str, Any] | None = None,
    ) -> Evaluation:
        """What a grader said of a version or of a base model; `values` holds one value per sample by item id."""
        if (version_id is None) == (base_model is None):
            raise StoreError("an evaluation is of one policy; give version_id or base_model, not both and not neither")
        row = Evaluation(
            id=new_id("eval"),
            version_id=version_id,
            base_model=base_model,
            dataset_id=dataset_id,
            grader=grader,
            sampling=asdict(sampling) if isinstance(sampling, Sampling) else sampling,
            values={item: list(numbers) for item, numbers in values.items()},
            summary=dict(summary),
            created=now(),
        )
        with self.database.write() as connection:
            return add_row(connection, row)

    def evaluation(self, reference: str) -> Evaluation:
        """One evaluation."""
        return self._find(Evaluation, reference)

    def evaluations(self, *, version_id: str | None = None, base_model: str | None = None) -> list[Evaluation]:
        """Evaluations of a version or of a base model, or all."""
        return self._list(Evaluation, version_id=version_id, base_model=base_model)

    def add_gate(
        self,
        candidate_id: str,
        baseline_id: str | None,
        verdict: Verdict,
        *,
        evaluation_ids: Sequence[str] = (),
        details: Mapping[str, Any] | None = None,
    ) -> Gate:
        """A gate's verdict on a candidate; no baseline means it was compared with the base model."""
        row = Gate(
            id=new_id("gate"),
            candidate_id=candidate_id,
            baseline_id=baseline_id,
            verdict=one_of(Verdict, verdict),
            evaluation_ids=tuple(evaluation_ids),
            details=dict(details or {}),
            created=now(),
        )
        links = [
            {"gate_id": row.id, "position": position, "evaluation_id": one}
            for position, one in enumerate(row.evaluation_ids)
        ]
        with self.database.write() as connection:
            columns = {name: value for name, value in vars(row).items() if name != "evaluation_ids"}
            add(connection, schema.gates, [columns])
            add(connection, schema.gate_evaluations, links)
        return row

    def gate(self, reference: str) -> Gate:
        """One gate."""
        return self._find(Gate, reference)

    def gates(self, *, candidate_id: str | None = None, baseline_id: str | None = None) -> list[Gate]:
        """Gates of a candidate, or against a baseline, or all; the newest is last."""
        return self._list(Gate, candidate_id=candidate_id, baseline_id=baseline_id)
