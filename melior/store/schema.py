"""the tables, and the four column types that keep values exact on every database

    datasets ◀─ runs ◀─ versions ◀─ evaluations ◀─ gates ◀─ alias_events ◀─ aliases
                 ▲
                 └─ records ◀─ scores, feedback
    files ◀─ jobs ◀─ job_events            keys            completions            measures
    evals ◀─ jobs                          webhooks ◀─ deliveries
    datasets ◀─ dataset_rows ─▶ records, feedback

Rows are only added; the exceptions are a run's status, the version an alias points to, who works on a job and how far
it is, a key or a webhook that is revoked, a delivery's status, and what clients of the OpenAI dialect may change or
delete: files, kept completions, evals, and models, which are then answered with no more.
`sequence` is the order of arrival, `id` what everybody else sees. Times are UTC, ISO 8601, with microseconds, so that
they sort as text.
The migrations are the law of what a database holds; a test compares them with this file.
"""

from __future__ import annotations

import json
import operator
import struct
from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator


def clean(text: str) -> str:
    """The text with what PostgreSQL cannot hold, NUL and lone surrogates, replaced by "\N{REPLACEMENT CHARACTER}"."""
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Json(TypeDecorator[Any]):
    """Any JSON value, None among them, as ASCII text: key order and every float survive, and NaN does too."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:
        return json.dumps(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


class Ids(TypeDecorator[tuple[int, ...]]):
    """Integers in order, as a JSON list that a person can read."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Iterable[int] | None, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps([operator.index(number) for number in value])

    def process_result_value(self, value: str | None, dialect: Dialect) -> tuple[int, ...] | None:
        return None if value is None else tuple(json.loads(value))


class Floats(TypeDecorator[tuple[float, ...]]):
    """Floats in order, as little-endian binary64: bit for bit, infinities and the sign of zero included."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Iterable[float] | None, dialect: Dialect) -> bytes | None:
        if value is None:
            return None
        numbers = tuple(value)
        return struct.pack(f"<{len(numbers)}d", *numbers)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> tuple[float, ...] | None:
        return None if value is None else struct.unpack(f"<{len(value) // 8}d", value)


class Words(TypeDecorator[str]):
    """What a person, a model or a traceback said; see `clean`."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else clean(value)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite counts by itself only in a column declared exactly INTEGER
_COUNTER = BigInteger().with_variant(Integer(), "sqlite")


def _log(name: str, *columns: Column[Any] | Index) -> Table:
    """A table with an order of arrival, a public id and a time."""
    return Table(
        name,
        metadata,
        Column("sequence", _COUNTER, primary_key=True, autoincrement=True),
        Column("id", Text, nullable=False, unique=True),
        Column("created", Text, nullable=False),
        *columns,
    )


def _words(name: str) -> Column[Any]:
    return Column(name, Words, nullable=False)


def _json(name: str) -> Column[Any]:
    return Column(name, Json, nullable=False)


def _to(table: str, name: str, *, nullable: bool = True) -> Column[Any]:
    return Column(name, Text, ForeignKey(f"{table}.id"), nullable=nullable, index=True)


datasets = _log(
    "datasets",
    Column("fingerprint", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("details", Json),  # of an export: what was asked for and what was left out
    Index("uq_datasets_fingerprint_kind", "fingerprint", "kind", unique=True),
)

runs = _log(
    "runs",
    Column("method", Text, nullable=False),
    _json("config"),
    Column("status", Text, nullable=False, index=True),
    Column("folder", Text, nullable=False),
    Column("base_model", Text),
    Column("base_version", Text, index=True),  # a version's id; no foreign key, since versions point to runs
    _to("datasets", "dataset_id"),
    Column("finished", Text),
    _json("metrics"),
    _words("error"),
)

records = _log(
    "records",
    _json("inputs"),
    _json("output"),
    _json("item"),
    Column("input_group", Text, nullable=False),  # `group` is a reserved word of SQL
    Column("context", Ids),
    Column("decisions", Ids),
    Column("behavior_log_probs", Floats),
    _json("sampling"),
    Column("policy_version", Text, index=True),
    Column("fingerprint", Text),
    Column("finish", Text, nullable=False),
    _to("runs", "run_id"),
    Column("alias", Text),
    Column("episode_id", Text, index=True),
    _json("propensities"),
)

scores = _log(
    "scores",
    _to("records", "decision_id", nullable=False),
    Column("name", Text, nullable=False),
    Column("value", Float(53)),
    _words("reason"),
    _words("error"),
    _words("traceback"),
    _json("parts"),
    Column("seconds", Float(53), nullable=False),
    Column("decisions", Floats),  # NULL where the grader does not tell them apart
    Column("usage", Json),  # judge model → tokens; NULL in rows of before
)

feedback = _log(
    "feedback",
    Column("metric", Text, nullable=False, index=True),
    _json("value"),
    _to("records", "decision_id"),
    Column("episode_id", Text, index=True),
    Column("source", Text, nullable=False),
    _words("comment"),
    _json("tags"),
    # no foreign keys on what came later to a table: SQLite cannot add one without copying all rows
    Column("replaces_id", Text),  # what the same source said before, and takes back with this
    Column("made_from_id", Text, index=True),  # the feedback that a person turned into this
    Column("given_by", Text, nullable=False, server_default=""),  # the name of the key that brought it
    Index("uq_feedback_replaces_id", "replaces_id", unique=True),  # of two corrections of one thing the first stands
)

measures = _log(
    "measures",
    Column("name", Text, nullable=False, index=True),  # of a metric; its newest row is in force
    Column("type", Text, nullable=False),
    Column("low", Float(53)),
    Column("high", Float(53)),
    _words("description"),
)

dataset_rows = Table(
    "dataset_rows",
    metadata,
    Column("sequence", _COUNTER, primary_key=True, autoincrement=True),
    _to("datasets", "dataset_id", nullable=False),
    Column("position", Integer, nullable=False),  # of the row in the dataset, from 0
    _to("records", "decision_id"),
    _to("feedback", "feedback_id"),  # one entry for each feedback that a row was made of
)

versions = _log(
    "versions",
    Column("name", Text, nullable=False, index=True),
    Column("folder", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    _json("files"),
    Column("base_model", Text, nullable=False),
    _to("versions", "parent_id"),
    _to("runs", "run_id"),
    _to("datasets", "dataset_id"),
    Column("method", Text, nullable=False),
    _json("metrics"),
    Column("deleted", Text),  # when; no longer answered with, and what it decided stays in the log
)

evaluations = _log(
    "evaluations",
    _to("versions", "version_id"),
    Column("base_model", Text),
    _to("datasets", "dataset_id"),
    Column("grader", Text, nullable=False),
    _json("sampling"),
    _json("values"),
    _json("summary"),
)

gates = _log(
    "gates",
    _to("versions", "candidate_id", nullable=False),
    _to("versions", "baseline_id"),
    Column("verdict", Text, nullable=False),
    _json("details"),
)

gate_evaluations = Table(
    "gate_evaluations",
    metadata,
    Column("gate_id", Text, ForeignKey("gates.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    _to("evaluations", "evaluation_id", nullable=False),
)

alias_events = _log(
    "alias_events",
    Column("name", Text, nullable=False),
    Column("alias", Text, nullable=False),
    Column("action", Text, nullable=False),
    _to("versions", "version_id", nullable=False),
    _to("versions", "previous_id"),
    _to("alias_events", "undo_id"),  # the event whose state a rollback of this one restores
    _to("gates", "gate_id"),
    Column("forced", Boolean, nullable=False),
    Column("actor", Text, nullable=False),
    _words("reason"),
    Index("ix_alias_events_name_alias", "name", "alias"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("alias", Text, primary_key=True),
    _to("versions", "version_id", nullable=False),
    _to("alias_events", "event_id", nullable=False),
)

files = _log(
    "files",
    _words("filename"),
    Column("purpose", Text, nullable=False, index=True),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("status", Text, nullable=False),
    _words("details"),
    Column("expires", Text),
    Column("deleted", Text),  # when; the bytes are gone, what was learnt from them still has its source
    Column("dataset_id", Text, index=True),  # what the rows of an export are known by
)

evals = _log(
    "evals",
    _words("name"),
    _json("asked"),
    _json("labels"),
    Column("updated", Text, nullable=False),
    Column("deleted", Text),
)

jobs = _log(
    "jobs",
    Column("method", Text, nullable=False),
    _json("asked"),  # what the client sent
    _json("recipe"),
    Column("folder", Text, nullable=False),
    Column("status", Text, nullable=False, index=True),
    Column("wanted", Text, nullable=False),  # "", "cancel" or "pause": asked of whoever runs it
    Column("owner", Text, nullable=False),  # the worker that holds the lease; "" where none does
    Column("lease", Text),  # until when
    Column("fence", Integer, nullable=False),  # counts leases: who holds an older one may write nothing more
    Column("attempts", Integer, nullable=False),  # processes that were lost over it
    _to("files", "training_file"),
    _to("files", "validation_file"),
    _to("runs", "run_id"),
    _json("result"),
    _json("error"),
    _json("labels"),  # the client's own metadata
    Column("finished", Text),
    Column("request_key", Text, unique=True),  # of the request that made it, where it had one
    Column("eval_id", Text, index=True),  # what it is a run of, where it evaluates
    Column("deleted", Text),
)

job_events = _log(
    "job_events",
    _to("jobs", "job_id", nullable=False),
    Column("level", Text, nullable=False),
    Column("type", Text, nullable=False),
    _words("message"),
    _json("data"),
)

keys = _log(
    "keys",
    _words("name"),
    Column("hash", Text, nullable=False, unique=True),  # sha256 of the token, which nobody keeps
    _json("scopes"),
    Column("revoked", Text),
)

completions = _log(
    "completions",
    Column("model", Text, nullable=False, index=True),
    _json("request"),
    _json("response"),
    _json("labels"),
    Column("deleted", Text),
)

webhooks = _log(
    "webhooks",
    _words("name"),
    _words("url"),
    _json("events"),
    Column("secret", Text, nullable=False),  # signs what is sent: both sides must have it, so no hash will do
    Column("former", Text),  # the secret before it, which signs too until then
    Column("former_until", Text),
    Column("revoked", Text),
)

deliveries = _log(
    "deliveries",
    _to("webhooks", "webhook_id", nullable=False),
    Column("type", Text, nullable=False),
    _json("body"),
    Column("status", Text, nullable=False, index=True),
    Column("attempts", Integer, nullable=False),
    Column("due", Text),  # when it is tried next
    _words("error"),
)
