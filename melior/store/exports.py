"""training rows out of the log: every row names the feedback it comes from

Feedback called `demonstration` is a better output, `preference` is `{"chosen", "rejected"}` with an optional
`"tie": true`, anything else that is a boolean or a number is a rating. Rows that share an input share a group, so a
split never cuts them apart; feedback on whole episodes is not of one output and is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from melior.errors import StoreError
from melior.store.rows import Decision, Feedback
from melior.store.store import Store
from melior.types import Demonstration, Preference, Rated

DEMONSTRATION = "demonstration"
PREFERENCE = "preference"


def demonstrations(store: Store) -> list[Demonstration]:
    """Better outputs people wrote, as examples to imitate."""
    return [
        Demonstration(inputs=decision.record.inputs, output=said.value, **_origin(said, decision))
        for said, decision in _said(store, DEMONSTRATION)
    ]


def preferences(store: Store) -> list[Preference]:
    """Pairs people chose between, and each better output over the one it was written for.

    Raises:
        StoreError: if a preference does not say what was chosen and what was rejected.
    """
    pairs = [_pair(said, decision) for said, decision in _said(store, PREFERENCE)]
    edits = [
        Preference(decision.record.inputs, said.value, decision.record.output, **_origin(said, decision))
        for said, decision in _said(store, DEMONSTRATION)
        if said.value != decision.record.output
    ]
    return pairs + edits


def ratings(store: Store, metric: str) -> list[Rated]:
    """Outputs with what was said of them under one metric, true as 1.0 and false as 0.0.

    Raises:
        StoreError: if something under this metric is neither a boolean nor a number.
    """
    return [
        Rated(decision.record.inputs, decision.record.output, _number(said), **_origin(said, decision))
        for said, decision in _said(store, metric)
    ]


def _said(store: Store, metric: str) -> Iterator[tuple[Feedback, Decision]]:
    said = [one for one in store.feedback(metric=metric) if one.decision_id is not None]
    return zip(said, store.decisions([one.decision_id for one in said if one.decision_id is not None]), strict=True)


def _origin(said: Feedback, decision: Decision) -> dict[str, Any]:
    return {"id": said.id, "group": decision.record.group or decision.id, "item": decision.record.item}


def _pair(said: Feedback, decision: Decision) -> Preference:
    if not isinstance(said.value, Mapping) or not {"chosen", "rejected"} <= set(said.value):
        raise StoreError(f"feedback {said.id!r} is a preference without chosen and rejected; give both")
    probability = 0.5 if said.value.get("tie") else 1.0
    chosen, rejected = said.value["chosen"], said.value["rejected"]
    return Preference(decision.record.inputs, chosen, rejected, probability, **_origin(said, decision))


def _number(said: Feedback) -> float:
    if not isinstance(said.value, int | float):
        raise StoreError(f"feedback {said.id!r} is {said.value!r}, which is no rating; export another metric")
    return float(said.value)
