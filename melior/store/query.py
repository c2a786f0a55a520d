"""frozen rows in and out of tables: insert, fetch, find by the beginning of an id"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, Literal, TypeVar, get_args

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    Table,
    Text,
    and_,
    exists,
    func,
    insert,
    or_,
    select,
    type_coerce,
)

from melior.errors import NotFound, StoreError
from melior.store import schema
from melior.store.database import Database
from melior.store.rows import (
    Alias,
    AliasEvent,
    Completion,
    Dataset,
    DatasetRow,
    Decision,
    Delivery,
    Eval,
    Evaluation,
    Feedback,
    File,
    Gate,
    Grade,
    Job,
    JobEvent,
    Key,
    Measure,
    Run,
    Version,
    Webhook,
)
from melior.types import Record, Sampling, Score

Kind = TypeVar("Kind")
Order = Literal["asc", "desc"]  # of arrival

TABLES: Mapping[type, Table] = {
    Dataset: schema.datasets,
    Run: schema.runs,
    Decision: schema.records,
    Grade: schema.scores,
    Feedback: schema.feedback,
    Evaluation: schema.evaluations,
    Gate: schema.gates,
    Version: schema.versions,
    Alias: schema.aliases,
    AliasEvent: schema.alias_events,
    File: schema.files,
    Job: schema.jobs,
    JobEvent: schema.job_events,
    Key: schema.keys,
    Completion: schema.completions,
    Measure: schema.measures,
    DatasetRow: schema.dataset_rows,
    Eval: schema.evals,
    Webhook: schema.webhooks,
    Delivery: schema.deliveries,
}
CHUNK = 500  # values in one IN (…); SQLite before 3.32 takes 999 in all


def new_id(prefix: str) -> str:
    """A fresh public id, e.g. `run_` and 24 hexadecimal digits."""
    return f"{prefix}_{secrets.token_hex(12)}"


def now() -> str:
    """The time in UTC, as the store writes it."""
    return later(0)


def later(seconds: float) -> str:
    """The time so many seconds from now, as the store writes it."""
    then = datetime.now(UTC) + timedelta(seconds=seconds)
    return then.isoformat(timespec="microseconds").replace("+00:00", "Z")


def add(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows, after looking that what they point to is there.

    Raises:
        StoreError: if a row points to nothing, with the table and the first id that is missing.
    """
    if not rows:
        return
    for column in table.columns:
        for key in column.foreign_keys:
            wanted = sorted({row[column.name] for row in rows if row[column.name] is not None})
            missing = _missing(connection, key.column, wanted)
            if missing:
                raise NotFound(
                    f"{len(missing)} of {len(wanted)} ids in {column.name} are not in {key.column.table.name}, "
                    f"the first is {missing[0]!r}; add it first"
                )
    connection.execute(insert(table), list(rows))


def add_row(connection: Connection, row: Kind) -> Kind:
    """Insert one frozen row whose fields are its table's columns."""
    add(connection, TABLES[type(row)], [vars(row)])
    return row


def _missing(connection: Connection, column: ColumnElement[str], wanted: Sequence[str]) -> list[str]:
    known: set[str] = set()
    for chunk in chunks(wanted):
        known.update(connection.scalars(select(column).where(column.in_(chunk))))
    return [one for one in wanted if one not in known]


def fetch(
    connection: Connection, kind: type[Kind], /, *where: ColumnElement[bool], limit: int | None = None, **equal: Any
) -> list[Kind]:
    """Rows in order of arrival; a keyword that is None does not filter."""
    table = TABLES[kind]
    query = select(table).where(*where).limit(limit)
    for name, value in equal.items():
        if value is not None:
            query = query.where(table.c[name] == value)
    return _read(connection, kind, query.order_by(*_arrival(table)))


@dataclass(frozen=True)
class Page(Generic[Kind]):
    """Some rows of a list, and whether there are more behind them."""

    rows: list[Kind]
    more: bool


def fetch_page(
    connection: Connection,
    kind: type[Kind],
    /,
    *where: ColumnElement[bool],
    after: str | None = None,
    limit: int = 20,
    order: Order = "desc",
    **equal: Any,
) -> Page[Kind]:
    """Up to `limit` rows behind the one with the id `after`; a keyword that is None does not filter.

    The database reads no more than it hands out, and what arrives meanwhile shifts no page. `after` itself may fit no
    longer: what was deleted since the page before still says where that page ended.

    Raises:
        NotFound: if nothing has the id `after`.
    """
    table = TABLES[kind]
    query = select(table).where(*where)
    for name, value in equal.items():
        if value is not None:
            query = query.where(table.c[name] == value)
    if after is not None:
        place = connection.scalar(select(table.c.sequence).where(table.c.id == after))
        if place is None:
            raise NotFound(f"there is no {after!r} in this list to go on after")
        query = query.where(table.c.sequence > place if order == "asc" else table.c.sequence < place)
    ordered = query.order_by(table.c.sequence if order == "asc" else table.c.sequence.desc())
    rows = _read(connection, kind, ordered.limit(limit + 1))
    return Page(rows[:limit], len(rows) > limit)


def labelled(column: ColumnElement[Any], labels: Mapping[str, str]) -> list[ColumnElement[bool]]:
    """Conditions that a column of labels holds all of these; plain text, so that both databases read it alike."""
    text = type_coerce(column, Text)
    pairs = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in labels.items()]
    return [
        or_(func.substr(text, 1, len(pair) + 1) == f"{{{pair}", func.replace(text, f", {pair}", "") != text)
        for pair in pairs
    ]


def find(connection: Connection, kind: type[Kind], reference: str) -> Kind:
    """The row with this id, or the only one whose id begins so.

    Raises:
        StoreError: if there is none, or more than one.
    """
    table = TABLES[kind]
    begins = func.substr(table.c.id, 1, len(reference)) == reference
    shortest_first = select(table).where(begins).order_by(func.length(table.c.id), table.c.id).limit(2)
    found = _read(connection, kind, select(table).where(table.c.id == reference))  # which an index serves
    found = found or _read(connection, kind, shortest_first)
    noun = kind.__name__.lower()
    if not found or not reference:
        raise NotFound(f"there is no {noun} {reference!r} among {_count(connection, table)}; list them to see the ids")
    if len(found) > 1:
        ids = [row.id for row in found]
        raise StoreError(f"{reference!r} begins several ids, {ids[0]} and {ids[1]} among them; write more of it")
    return found[0]


def in_force() -> ColumnElement[bool]:
    """Whether a row of feedback counts: nothing replaces it, and it is no taking back itself."""
    table, later = schema.feedback, schema.feedback.alias("later")
    taken_back = and_(table.c.replaces_id.is_not(None), type_coerce(table.c.value, Text) == "null")
    return and_(~exists().where(later.c.replaces_id == table.c.id), ~taken_back)


def among(connection: Connection, kind: type[Kind], column: ColumnElement[str], ids: Collection[str]) -> list[Kind]:
    """Rows that have one of these in a column, however many these are."""
    return [row for chunk in chunks(sorted(ids)) for row in fetch(connection, kind, column.in_(chunk))]


class Rows:
    """What every part of the store can do: list the rows of a table, find one."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def _find(self, kind: type[Kind], reference: str) -> Kind:
        with self.database.read() as connection:
            return find(connection, kind, reference)

    def _list(self, kind: type[Kind], /, **equal: Any) -> list[Kind]:
        with self.database.read() as connection:
            return fetch(connection, kind, **equal)

    def _page(
        self,
        kind: type[Kind],
        /,
        *where: ColumnElement[bool],
        after: str | None = None,
        limit: int = 20,
        order: Order = "desc",
        **equal: Any,
    ) -> Page[Kind]:
        with self.database.read() as connection:
            return fetch_page(connection, kind, *where, after=after, limit=limit, order=order, **equal)

    def _among(self, kind: type[Kind], column: ColumnElement[str], ids: Sequence[str], /, **equal: Any) -> list[Kind]:
        found: list[Kind] = []
        with self.database.read() as connection:
            for chunk in chunks(list(dict.fromkeys(ids))):
                found += fetch(connection, kind, column.in_(chunk), **equal)
        return found


def one_of(choices: Any, value: str) -> Any:
    """The value, if it is one of a Literal's."""
    if value not in get_args(choices):
        raise StoreError(f"{value!r} is not one of {', '.join(get_args(choices))}")
    return value


def chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """The ids in pieces that fit one statement."""
    return (ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK))


def _arrival(table: Table) -> list[ColumnElement[Any]]:
    return [table.c.sequence] if "sequence" in table.c else list(table.primary_key)


def _count(connection: Connection, table: Table) -> int:
    return connection.scalar(select(func.count()).select_from(table)) or 0


def _read(connection: Connection, kind: type[Any], query: Select[Any]) -> list[Any]:
    rows = connection.execute(query).mappings().all()
    if kind is Gate:
        return [_gate(connection, row) for row in rows]
    build = {Decision: _decision, Grade: _grade, Key: _key, Webhook: _webhook}.get(kind)
    if build is not None:
        return [build(row) for row in rows]
    names = [field.name for field in fields(kind)]
    return [kind(**{name: row[name] for name in names}) for row in rows]


def _gate(connection: Connection, row: RowMapping) -> Gate:
    links = schema.gate_evaluations
    order = select(links.c.evaluation_id).where(links.c.gate_id == row["id"]).order_by(links.c.position)
    names = [field.name for field in fields(Gate) if field.name != "evaluation_ids"]
    return Gate(evaluation_ids=tuple(connection.scalars(order)), **{name: row[name] for name in names})


_RECORD = [field.name for field in fields(Record) if field.name not in ("group", "sampling")]


def record_columns(record: Record) -> dict[str, Any]:
    """A record as the columns of its row."""
    sampling = None if record.sampling is None else asdict(record.sampling)
    values = {name: getattr(record, name) for name in _RECORD}
    return {**values, "item": dict(record.item), "input_group": record.group, "sampling": sampling}


def _decision(row: RowMapping) -> Decision:
    sampling = row["sampling"]
    if sampling is not None:
        sampling = Sampling(**sampling)
    record = Record(group=row["input_group"], sampling=sampling, **{name: row[name] for name in _RECORD})
    return Decision(
        id=row["id"],
        record=record,
        run_id=row["run_id"],
        alias=row["alias"],
        episode_id=row["episode_id"],
        propensities=row["propensities"],
        created=row["created"],
    )


def _key(row: RowMapping) -> Key:
    values = {field.name: row[field.name] for field in fields(Key)}
    return Key(**{**values, "scopes": tuple(values["scopes"])})


def _webhook(row: RowMapping) -> Webhook:
    values = {field.name: row[field.name] for field in fields(Webhook)}
    return Webhook(**{**values, "events": tuple(values["events"])})


_SCORE = [field.name for field in fields(Score) if field.name != "kind"]  # which is told to the caller alone


def score_columns(score: Score) -> dict[str, Any]:
    """A score as the columns of its row."""
    return {
        **{name: getattr(score, name) for name in _SCORE},
        "parts": dict(score.parts),
        "decisions": score.decisions or None,
        "usage": {model: dict(counts) for model, counts in score.usage.items()},
    }


def _grade(row: RowMapping) -> Grade:
    score = Score(
        **{**{name: row[name] for name in _SCORE}, "decisions": row["decisions"] or (), "usage": row["usage"] or {}}
    )
    return Grade(id=row["id"], decision_id=row["decision_id"], score=score, created=row["created"])
