"""the append-only log: what was decided, what graders said of it, what people said of it"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Text, and_, exists, select, type_coerce
from sqlalchemy.exc import IntegrityError

from melior.errors import StoreError
from melior.store import schema
from melior.store.query import Rows, add, add_row, fetch, find, new_id, now, record_columns, score_columns
from melior.store.rows import Decision, Feedback, Grade
from melior.types import Record, Score


@dataclass(frozen=True, kw_only=True)
class Said:
    """What somebody says of a decision or an episode."""

    metric: str
    value: Any
    decision_id: str | None = None
    episode_id: str | None = None
    source: str = ""
    comment: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    feedback_id: str | None = None  # of whoever says it, so that it is kept once however often it is said


class Log(Rows):
    """Decisions, scores and feedback."""

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
        if not len(names) == len(chances) == len(records):
            raise StoreError(f"{len(records)} records came with {len(names)} ids and {len(chances)} propensities")
        shared = {"run_id": run_id, "alias": alias, "episode_id": episode_id, "created": now()}
        rows = [
            {"id": name, "propensities": chance, **record_columns(record), **shared}
            for name, chance, record in zip(names, chances, records, strict=True)
        ]
        with self.database.write() as connection:
            try:
                add(connection, schema.records, rows)
            except IntegrityError as error:
                raise StoreError(
                    f"a decision id is taken ({error.orig}); every decision needs an id of its own"
                ) from error
        return names

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
        found = {decision.id: decision for decision in self._among(Decision, table.c.id, ids, **equal)}
        missing = [one for one in ids if one not in found]
        if missing:
            raise StoreError(f"{len(missing)} of {len(ids)} decisions are not in the log, the first is {missing[0]!r}")
        return [found[one] for one in ids][:limit]

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

    def add_feedback(
        self,
        metric: str,
        value: Any,
        *,
        decision_id: str | None = None,
        episode_id: str | None = None,
        source: str = "",
        comment: str = "",
        tags: Mapping[str, str] | None = None,
        feedback_id: str | None = None,
    ) -> Feedback:
        """What was said. The same `feedback_id` with the same body returns the row that is there already.

        Raises:
            StoreError: if the id came with another body before, the decision is unknown, or nothing is named.
        """
        said = Said(
            metric=metric,
            value=value,
            decision_id=decision_id,
            episode_id=episode_id,
            source=source,
            comment=comment,
            tags=tags or {},
            feedback_id=feedback_id,
        )
        (result,) = self.add_feedbacks([said])
        if isinstance(result, StoreError):
            raise result
        return result

    def add_feedbacks(self, said: Sequence[Said]) -> list[Feedback | StoreError]:
        """What was said, in order, made durable together; where one is refused, why, and the others are kept.

        Raises:
            StoreError: if the database refuses all of it.
        """
        rows = [_feedback(one) for one in said]
        results: list[Feedback | StoreError] = []
        with self.database.write() as connection:
            for row in rows:
                results.append(row if isinstance(row, StoreError) else _kept(connection, row))
        return results

    def feedback(
        self,
        *,
        metric: str | None = None,
        decision_id: str | None = None,
        episode_id: str | None = None,
        in_force: bool = False,
    ) -> list[Feedback]:
        """What people and systems said; `in_force` leaves out what was corrected or taken back since."""
        where = [counts()] if in_force else []
        with self.database.read() as connection:
            return fetch(connection, Feedback, *where, metric=metric, decision_id=decision_id, episode_id=episode_id)


def counts() -> ColumnElement[bool]:
    """Whether a row of feedback is in force: nothing replaces it, and it is no taking back itself."""
    table, later = schema.feedback, schema.feedback.alias("later")
    taken_back = and_(table.c.replaces_id.is_not(None), type_coerce(table.c.value, Text) == "null")
    return and_(~exists().where(later.c.replaces_id == table.c.id), ~taken_back)


def _feedback(said: Said) -> Feedback | StoreError:
    """The row that would be kept, or why there can be none."""
    if said.decision_id is None and said.episode_id is None:
        return StoreError("feedback named neither a decision nor an episode; give decision_id or episode_id")
    row = Feedback(
        id=said.feedback_id or new_id("fb"),
        metric=said.metric,
        value=said.value,
        decision_id=said.decision_id,
        episode_id=said.episode_id,
        source=said.source,
        comment=schema.clean(said.comment),
        tags=dict(said.tags),
        created=now(),
    )
    try:
        _body(row)
    except StoreError as error:
        return error
    return row


def _kept(connection: Connection, row: Feedback) -> Feedback | StoreError:
    """The row as it is kept: this one, or the one that had its id before."""
    known = fetch(connection, Feedback, id=row.id)
    if not known:
        try:
            with connection.begin_nested():
                return add_row(connection, row)
        except StoreError as error:  # the decision is not there
            return error
        except IntegrityError:  # PostgreSQL: somebody stored this id since we looked
            known = fetch(connection, Feedback, id=row.id)
            if not known:
                raise
    if _body(known[0]) != _body(row):
        return StoreError(f"feedback {row.id!r} was given before with another body; use a new id")
    return known[0]


def _body(row: Feedback) -> str:
    """Everything a client sent but the id, as text, whatever key brought it; true, 1 and 1.0 differ."""
    body = {name: value for name, value in vars(row).items() if name not in ("id", "created", "given_by")}
    try:
        return json.dumps(body, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"feedback {row.metric!r} is not a JSON value ({error}); send a finite number or text"
        ) from error
