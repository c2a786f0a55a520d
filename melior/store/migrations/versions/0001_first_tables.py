"""the first tables: runs, the log of decisions, evaluations, gates, versions and aliases"""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create everything; the order follows the foreign keys."""
    _runs()
    _decisions()
    _versions()
    _aliases()


def _runs() -> None:
    _log("datasets", _text("fingerprint", "kind", "path"), sa.Column("rows", sa.Integer, nullable=False))
    op.create_index("uq_datasets_fingerprint_kind", "datasets", ["fingerprint", "kind"], unique=True)
    _log(
        "runs",
        _text("method", "config", "status", "folder", "metrics", "error"),
        _maybe("base_model", "base_version", "dataset_id", "finished"),
        to={"dataset_id": "datasets"},
        indexed=["status", "base_version"],
    )


def _decisions() -> None:
    _log(
        "records",
        _text("inputs", "output", "item", "input_group", "sampling", "finish", "propensities"),
        _maybe("context", "decisions", "policy_version", "fingerprint", "run_id", "alias", "episode_id"),
        sa.Column("behavior_log_probs", sa.LargeBinary),
        to={"run_id": "runs"},
        indexed=["policy_version", "episode_id"],
    )
    _log(
        "scores",
        _text("decision_id", "name", "reason", "error", "traceback", "parts"),
        sa.Column("value", sa.Float(53)),
        sa.Column("seconds", sa.Float(53), nullable=False),
        to={"decision_id": "records"},
    )
    _log(
        "feedback",
        _text("metric", "value", "source", "comment", "tags"),
        _maybe("decision_id", "episode_id"),
        to={"decision_id": "records"},
        indexed=["metric", "episode_id"],
    )


def _versions() -> None:
    _log(
        "versions",
        _text("name", "folder", "fingerprint", "files", "base_model", "method", "metrics"),
        _maybe("parent_id", "run_id", "dataset_id"),
        to={"parent_id": "versions", "run_id": "runs", "dataset_id": "datasets"},
        indexed=["name"],
    )
    _log(
        "evaluations",
        _text("grader", "sampling", "values", "summary"),
        _maybe("version_id", "base_model", "dataset_id"),
        to={"version_id": "versions", "dataset_id": "datasets"},
    )
    _log(
        "gates",
        _text("candidate_id", "verdict", "details"),
        _maybe("baseline_id"),
        to={"candidate_id": "versions", "baseline_id": "versions"},
    )
    _table(
        "gate_evaluations",
        [*_text("gate_id", "evaluation_id"), sa.Column("position", sa.Integer, nullable=False)],
        key=["gate_id", "position"],
        to={"gate_id": "gates", "evaluation_id": "evaluations"},
        indexed=["evaluation_id"],
    )


def _aliases() -> None:
    versions_and_gates = {"version_id": "versions", "previous_id": "versions", "gate_id": "gates"}
    _log(
        "alias_events",
        _text("name", "alias", "action", "version_id", "actor", "reason"),
        _maybe("previous_id", "undo_id", "gate_id"),
        sa.Column("forced", sa.Boolean, nullable=False),
        to={**versions_and_gates, "undo_id": "alias_events"},
    )
    op.create_index("ix_alias_events_name_alias", "alias_events", ["name", "alias"])
    _table(
        "aliases",
        _text("name", "alias", "version_id", "event_id"),
        key=["name", "alias"],
        to={"version_id": "versions", "event_id": "alias_events"},
        indexed=["version_id", "event_id"],
    )


def _text(*names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _maybe(*names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.Text) for name in names]


def _log(
    name: str,
    *columns: sa.Column[Any] | list[sa.Column[Any]],
    to: Mapping[str, str] | None = None,
    indexed: Sequence[str] = (),
) -> None:
    """A table with an order of arrival, a public id and a time; every foreign key has an index."""
    counter = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    flat = [column for entry in columns for column in (entry if isinstance(entry, list) else [entry])]
    first = [sa.Column("sequence", counter, autoincrement=True, nullable=False), *_text("id", "created")]
    _table(name, [*first, *flat], key=["sequence"], unique=["id"], to=to or {}, indexed=[*indexed, *(to or {})])


def _table(
    name: str,
    columns: Sequence[sa.Column[Any]],
    *,
    key: Sequence[str],
    to: Mapping[str, str],
    indexed: Sequence[str],
    unique: Sequence[str] = (),
) -> None:
    op.create_table(
        name,
        *columns,
        sa.PrimaryKeyConstraint(*key, name=f"pk_{name}"),
        *(sa.UniqueConstraint(column, name=f"uq_{name}_{column}") for column in unique),
        *(sa.ForeignKeyConstraint([own], [f"{other}.id"], name=f"fk_{name}_{own}") for own, other in to.items()),
    )
    for column in indexed:
        op.create_index(f"ix_{name}_{column}", name, [column])


def downgrade() -> None:
    """Refuse: dropping the first tables would drop everything anybody decided or said."""
    raise RuntimeError("revision 0001 has nothing below it; delete the database file instead")
