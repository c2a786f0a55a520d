"""what people and systems said of decisions: kept once, corrected without a trace being lost, found again

A correction is a row of its own that names what it replaces. So what is in force is a function of the log: whatever no
later row replaces, but for rows that only take something back (`value` None).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Text, func, insert, or_, select, text, type_coerce

from melior.errors import DataError, Forbidden, MeliorError, NotFound, StoreError
from melior.store import schema
from melior.store.declared import measures_of
from melior.store.measures import BUILT_IN, built_in, check_output, check_shown, check_value
from melior.store.query import Order, Page, Rows, among, chunks, fetch, fetch_page, in_force, new_id, now
from melior.store.rows import Feedback, Measure

WRITE_LOCK = 0x66656564  # "feed", of PostgreSQL's advisory locks: batches are written one after the other
AT_ONCE = 200  # rows that are looked through at a time where a text is searched for
TURNED = ("demonstration", "preference")  # what a person makes of a comment


@dataclass(frozen=True, kw_only=True)
class Said:
    """What somebody says of a decision or an episode.

    A correction, or what is made from a comment, is about the decision of that where it names none.
    """

    metric: str = ""  # of a correction it may be left out
    value: Any = None
    decision_id: str | None = None
    episode_id: str | None = None
    source: str = ""
    comment: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    feedback_id: str | None = None  # of whoever says it, so that it is kept once however often it is said
    replaces: str | None = None
    made_from: str | None = None
    given_by: str = ""  # the name of the key that brings it
    any_source: bool = False  # whether what others said may be corrected too
    checked: bool = False  # whether the value must be one of its metric's, and events of what was shown


class Heard(Rows):
    """Feedback."""

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
        replaces: str | None = None,
        made_from: str | None = None,
    ) -> Feedback:
        """What was said. The same `feedback_id` with the same body returns the row that is there already.

        Raises:
            StoreError: if the id came with another body before, the decision is unknown, nothing is named, or what
                this replaces was replaced already.
            Forbidden: if what this replaces was said by another source.
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
            replaces=replaces,
            made_from=made_from,
        )
        (result,) = self.add_feedbacks([said])
        if isinstance(result, MeliorError):
            raise result
        return result

    def add_feedbacks(self, said: Sequence[Said]) -> list[Feedback | MeliorError]:
        """What was said, in order, made durable together; where one is refused, why, and the others are kept.

        Raises:
            StoreError: if the database refuses all of it.
        """
        with self.database.write() as connection:
            if connection.dialect.name == "postgresql":  # SQLite has one writer anyway
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": WRITE_LOCK})
            batch = _Batch.look_up(connection, said)
            results = [batch.take(one) for one in said]
            if batch.rows:
                connection.execute(insert(schema.feedback), [vars(row) for row in batch.rows])
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
        equal: dict[str, Any] = {"metric": metric, "decision_id": decision_id, "episode_id": episode_id}
        with self.database.read() as connection:
            return fetch(connection, Feedback, *_counting(in_force), **equal)

    def feedback_page(
        self,
        *,
        metric: str | None = None,
        decision_id: str | None = None,
        episode_id: str | None = None,
        source: str | None = None,
        made_from: str | None = None,
        in_force: bool = False,
        search: str = "",
        after: str | None = None,
        limit: int = 20,
        order: Order = "desc",
    ) -> Page[Feedback]:
        """Up to `limit` pieces of feedback behind `after`; `search` is a text in the comment or the value.

        Upper and lower case are one.

        Raises:
            NotFound: if nothing has the id `after`.
        """
        equal: dict[str, Any] = {"metric": metric, "decision_id": decision_id, "episode_id": episode_id}
        equal |= {"source": source, "made_from_id": made_from}
        where = _counting(in_force)
        term = schema.clean(search).lower()
        if not term:
            return self._page(Feedback, *where, after=after, limit=limit, order=order, **equal)
        found: list[Feedback] = []
        with self.database.read() as connection:
            while True:
                narrowed = [*where, _may_hold(term)]
                page = fetch_page(
                    connection, Feedback, *narrowed, after=after, limit=max(limit, AT_ONCE), order=order, **equal
                )
                found += [row for row in page.rows if _holds(row, term)]
                if len(found) > limit or not page.more:
                    return Page(found[:limit], len(found) > limit)
                after = page.rows[-1].id

    def one_feedback(self, reference: str) -> Feedback:
        """What has this id, or the only one that begins so.

        Raises:
            NotFound: if nothing has.
        """
        return self._find(Feedback, reference)

    def replacements(self, ids: Sequence[str]) -> dict[str, str]:
        """For each of these that was corrected or taken back, the id of what did so."""
        with self.database.read() as connection:
            return _replacements(connection, set(ids))


@dataclass
class _Batch:
    """Some feedback before it is written, and what it refers to as the database has it: a few queries for all."""

    given: dict[str, Feedback]  # what has one of the ids that are named: said before, replaced, or made from
    replaced: dict[str, str]  # id → what replaces it
    episode_of: dict[str, str | None]  # decision → the episode it belongs to
    outputs: dict[str, Any]  # of decisions whose output the value must fit
    episodes: set[str]
    measures: dict[str, Measure]
    rows: list[Feedback] = field(default_factory=list)  # what is to be written

    @classmethod
    def look_up(cls, connection: Connection, said: Sequence[Said]) -> _Batch:
        """What this feedback refers to."""
        table, records = schema.feedback, schema.records
        replaced = {one.replaces for one in said if one.replaces}
        ids = replaced | {one.made_from for one in said if one.made_from}
        ids |= {one.feedback_id for one in said if one.feedback_id}
        given = {row.id: row for row in among(connection, Feedback, table.c.id, ids)}
        checked = [one for one in said if one.checked]
        names = {schema.clean(one.metric) for one in checked} | {given[id].metric for id in replaced if id in given}
        measures = measures_of(connection, names.difference(BUILT_IN, {""}))
        measures |= {name: measure for name in names if (measure := built_in(name)) is not None}
        decisions = {one.decision_id for one in said if one.decision_id}
        decisions |= {decision for row in given.values() if (decision := row.decision_id) is not None}
        fitting = cls._fitting(checked, given, measures)
        episodes = {one.episode_id for one in checked if one.episode_id}
        return cls(
            given=given,
            replaced=_replacements(connection, replaced),
            episode_of=dict(_columns(connection, records.c.id, decisions, records.c.episode_id)),
            outputs=dict(_columns(connection, records.c.id, fitting, records.c.output)),
            episodes={id for id, _ in _columns(connection, records.c.episode_id, episodes, records.c.episode_id)},
            measures=measures,
        )

    @staticmethod
    def _fitting(said: Sequence[Said], given: Mapping[str, Feedback], measures: Mapping[str, Measure]) -> set[str]:
        """Decisions whose outputs must be known."""
        found = set()
        for one in said:
            before = given.get(one.replaces or one.made_from or "")
            measure = measures.get(schema.clean(one.metric) or (before.metric if before else ""))
            decision = one.decision_id or (before.decision_id if before else None)
            if decision and measure and (measure.type in TURNED or isinstance(one.value, Mapping)):
                found.add(decision)
        return found

    def take(self, one: Said) -> Feedback | MeliorError:
        """The row as it is or will be kept, or why it cannot be."""
        try:
            row = self._row(one)
            known = self.given.get(row.id)
            if known is not None:
                if _body(known) != _body(row):
                    raise StoreError(f"feedback {row.id!r} was given before with another body; use a new id")
                return known
            self._check_named(row, one)
            if one.checked:
                self._check(row)
            else:
                _body(row)
        except MeliorError as error:
            return error
        self.given[row.id] = row
        if row.replaces_id is not None:
            self.replaced[row.replaces_id] = row.id
        self.rows.append(row)
        return row

    def _row(self, one: Said) -> Feedback:
        """What would be kept."""
        before = self._named(one.replaces) or self._named(one.made_from)
        decision, episode = one.decision_id, one.episode_id
        if decision is None and episode is None:
            if before is None:
                raise StoreError("feedback named neither a decision nor an episode; give decision_id or episode_id")
            decision, episode = before.decision_id, before.episode_id
        metric = one.metric or (before.metric if before is not None and one.replaces else "")
        if not metric:
            raise DataError("feedback has no metric_name; say what was measured")
        return Feedback(
            id=one.feedback_id or new_id("fb"),
            metric=schema.clean(metric),
            value=one.value,
            decision_id=decision,
            episode_id=episode,
            source=schema.clean(one.source),
            comment=schema.clean(one.comment),
            tags=dict(one.tags),
            created=now(),
            replaces_id=one.replaces,
            made_from_id=one.made_from,
            given_by=one.given_by,
        )

    def _named(self, id: str | None) -> Feedback | None:
        if id is None:
            return None
        if id not in self.given:
            raise NotFound(f"there is no feedback {id!r} here; if it is on its way, send this again later")
        return self.given[id]

    def _check_named(self, row: Feedback, one: Said) -> None:
        """Nothing, if what the row names is there, and may be replaced by it."""
        if row.decision_id is not None and row.decision_id not in self.episode_of:
            raise NotFound(
                f"nothing was decided here as {row.decision_id!r}; if it was just now, send this again later"
            )
        before = self._named(row.replaces_id)
        if before is None:
            return
        if before.id in self.replaced:
            raise StoreError(
                f"feedback {before.id!r} was replaced by {self.replaced[before.id]!r} already; replace that one"
            )
        if row.metric != before.metric or (row.decision_id, row.episode_id) != (before.decision_id, before.episode_id):
            raise DataError(f"feedback {before.id!r} is {before.metric} of another decision or metric; say this anew")
        if not one.any_source and (row.source, row.given_by) != (before.source, before.given_by):
            raise Forbidden(f"feedback {before.id!r} was said by {before.source!r}, who or an admin may correct it")

    def _check(self, row: Feedback) -> None:
        """Nothing, if the value is one of its metric's and fits what was decided."""
        if row.episode_id is not None:
            self._check_episode(row)
        if row.value is None:
            if row.replaces_id is None:
                raise DataError(f"{row.metric} has no value; null is for taking back what replaces names")
            return
        measure = self.measures.get(row.metric)
        check_value(row.metric, row.value, measure)
        if row.made_from_id is not None and (measure is None or measure.type not in TURNED):
            raise DataError(f"{row.metric} is made from nothing; a person turns words into {' or '.join(TURNED)}")
        if measure is None or row.decision_id not in self.outputs:
            return
        output = self.outputs[row.decision_id]
        if measure.type == "demonstration":
            check_output(row.metric, row.value, output)
        elif measure.type == "preference":
            for side in ("chosen", "rejected"):
                if row.value.get(side) is not None:
                    check_output(f"{side} of {row.metric}", row.value[side], output)
        elif measure.type == "event":
            check_shown(row.metric, row.value, output)

    def _check_episode(self, row: Feedback) -> None:
        if row.episode_id not in self.episodes and row.replaces_id is None:
            raise NotFound(
                f"no decision of an episode {row.episode_id!r} was made here; if it was just now, send this again later"
            )
        if row.decision_id is not None and self.episode_of[row.decision_id] != row.episode_id:
            raise DataError(f"{row.decision_id!r} is no decision of the episode {row.episode_id!r}; name one of them")


def _counting(only: bool) -> list[ColumnElement[bool]]:
    return [in_force()] if only else []


def _columns(
    connection: Connection, key: ColumnElement[Any], wanted: set[str], column: ColumnElement[Any]
) -> Iterator[tuple[Any, Any]]:
    """Key and column of the rows whose key is wanted."""
    for chunk in chunks(sorted(wanted)):
        for row in connection.execute(select(key, column).where(key.in_(chunk)).distinct()):
            yield row[0], row[1]


def _replacements(connection: Connection, ids: set[str]) -> dict[str, str]:
    table = schema.feedback
    return dict(_columns(connection, table.c.replaces_id, ids, table.c.id))


def _body(row: Feedback) -> str:
    """Everything a client sent but the id, as text, whatever key brought it; true, 1 and 1.0 differ."""
    body = {name: value for name, value in vars(row).items() if name not in ("id", "created", "given_by")}
    try:
        return json.dumps(body, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"feedback {row.metric!r} is not a JSON value ({error}); send a finite number or text"
        ) from error


# ---------------------------------------------------------------------- searching


def _may_hold(term: str) -> ColumnElement[bool]:
    """Whether a row may hold the term: all that do, and a few more; what JSON writes otherwise is left open."""
    table = schema.feedback
    plain = "".join(letter if " " <= letter <= "~" and letter not in '"\\' else "\0" for letter in term)
    escaped = plain.replace("|", "||").replace("%", "|%").replace("_", "|_").replace("\0", "%")
    pattern = f"%{escaped}%"
    columns = (table.c.comment, type_coerce(table.c.value, Text))
    return or_(*(func.lower(type_coerce(column, Text)).like(pattern, escape="|") for column in columns))


def _holds(row: Feedback, term: str) -> bool:
    return any(term in said.lower() for said in (row.comment, *_texts(row.value)))


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value, names of fields excepted."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)
