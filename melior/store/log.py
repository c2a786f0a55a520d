"""the append-only log: what was decided, what graders said of it, what people said of it"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.exc import IntegrityError

from melior.errors import StoreError
from melior.store import schema
from melior.store.declared import Declared
from melior.store.feedback import Heard
from melior.store.query import add, fetch, find, new_id, now, record_columns, score_columns
from melior.store.rows import Decision, Grade
from melior.types import Record, Score


@dataclass(frozen=True)
class Decided:
    """What was decided at one time, under ids of its own."""

    ids: Sequence[str]
    records: Sequence[Record]
    alias: str | None = None
    episode_id: str | None = None
    propensities: Sequence[Any] = ()  # any JSON per record, or none at all
    run_id: str | None = None

    def rows(self) -> list[dict[str, Any]]:
        """As rows of the log.

        Raises:
            StoreError: if a sequence has another length.
        """
        chances = self.propensities or [None] * len(self.records)
        if not len(self.ids) == len(chances) == len(self.records):
            told = f"{len(self.records)} records came with {len(self.ids)} ids and {len(chances)} propensities"
            raise StoreError(told)
        shared = {"run_id": self.run_id, "alias": self.alias, "episode_id": self.episode_id, "created": now()}
        return [
            {"id": name, "propensities": chance, **record_columns(record), **shared}
            for name, chance, record in zip(self.ids, chances, self.records, strict=True)
        ]


class Log(Heard, Declared):
    """Decisions, scores, feedback, and what it may be."""

    def add_records(
        self,
        records: Sequence[Record],
        *,
        ids: Sequence[str] | None = None,
        run_id: str | None = None,
        alias: str | None = None,
        episode_id: str | None = None,
        propensities: Sequence[Any] | None = None,
    ) -> list[str]:
        """Decision ids, one per record in order; all records are stored or none.

        `inputs`, `output` and `item` must be JSON values (a tuple comes back as a list); ids and log-probs come
        back exactly. `ids` are for callers whose answers have ids already; `propensities` is any JSON per record.

        Raises:
            StoreError: if an id is taken, a value is not JSON, or a sequence has another length.
        """
        names = list(ids) if ids is not None else [new_id("dec") for _ in records]
        chances = list(propensities) if propensities is not None else [None] * len(records)
        self.add_decided([Decided(names, records, alias, episode_id, chances, run_id)])
        return names

    def add_decided(self, decided: Sequence[Decided]) -> None:
        """Stores what many decided, all of it or nothing, in one transaction.

        Raises:
            StoreError: if an id is taken, a value is not JSON, or a sequence has another length.
        """
        rows = [row for one in decided for row in one.rows()]
        with self.database.write() as connection:
            try:
                add(connection, schema.records, rows)
            except IntegrityError as error:
                raise StoreError(
                    f"a decision id is taken ({error.orig}); every decision needs an id of its own"
                ) from error

    def decisions(
        self,
        ids: Sequence[str] | None = None,
        *,
        run_id: str | None = None,
        policy_version: str | None = None,
        alias: str | None = None,
        episode_id: str | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> list[Decision]:
        """Decisions in the order of `ids`, or else all that fit in order of arrival, `limit` of them after one.

        Raises:
            StoreError: if one of `ids` is not in the log.
        """
        table = schema.records
        equal = {"run_id": run_id, "policy_version": policy_version, "alias": alias, "episode_id": episode_id}
        if ids is None:
            with self.database.read() as connection:
                where: list[ColumnElement[bool]] = []
                if after is not None:
                    here = select(table.c.sequence).where(table.c.id == find(connection, Decision, after).id)
                    where = [table.c.sequence > here.scalar_subquery()]
                return fetch(connection, Decision, *where, limit=limit, **equal)
        found = self.known_decisions(ids, **equal)
        missing = [one for one in ids if one not in found]
        if missing:
            raise StoreError(f"{len(missing)} of {len(ids)} decisions are not in the log, the first is {missing[0]!r}")
        return [found[one] for one in ids][:limit]

    def known_decisions(self, ids: Sequence[str], **equal: str | None) -> dict[str, Decision]:
        """Those of `ids` that are in the log, by id; a keyword that is not None must be equal."""
        return {decision.id: decision for decision in self._among(Decision, schema.records.c.id, ids, **equal)}

    def records(
        self,
        ids: Sequence[str] | None = None,
        *,
        run_id: str | None = None,
        policy_version: str | None = None,
        alias: str | None = None,
        limit: int | None = None,
    ) -> list[Record]:
        """The records of `decisions`."""
        found = self.decisions(ids, run_id=run_id, policy_version=policy_version, alias=alias, limit=limit)
        return [decision.record for decision in found]

    def add_scores(self, decision_ids: Sequence[str], scores: Sequence[Score]) -> list[str]:
        """Score ids, one per decision in order; all scores are stored or none.

        Raises:
            StoreError: if a decision is unknown, a value is not finite, or the lengths differ.
        """
        if len(decision_ids) != len(scores):
            raise StoreError(f"{len(scores)} scores came for {len(decision_ids)} decisions; give one for each")
        wild = [score for score in scores if score.value is not None and not math.isfinite(score.value)]
        if wild:
            raise StoreError(
                f"{len(wild)} of {len(scores)} scores are not finite, the first is {wild[0].value} by "
                f"{wild[0].name!r}; a failed call has value None and an error"
            )
        created = now()
        rows = [
            {"id": new_id("sco"), "decision_id": decision, "created": created, **score_columns(score)}
            for decision, score in zip(decision_ids, scores, strict=True)
        ]
        with self.database.write() as connection:
            add(connection, schema.scores, rows)
        return [row["id"] for row in rows]

    def scores(self, decision_ids: Sequence[str] | None = None, *, name: str | None = None) -> list[Grade]:
        """What graders said, of the given decisions or of all."""
        if decision_ids is None:
            return self._list(Grade, name=name)
        return self._among(Grade, schema.scores.c.decision_id, decision_ids, name=name)
