"""corrections and measures of feedback, what rows of datasets are made of, evals, webhooks"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Columns first: without foreign keys, which SQLite cannot add to a table without copying it."""
    linked = ("feedback", "replaces_id"), ("feedback", "made_from_id"), ("files", "dataset_id"), ("jobs", "eval_id")
    for table, column in linked:
        op.add_column(table, sa.Column(column, sa.Text))
        if column != "replaces_id":
            op.create_index(f"ix_{table}_{column}", table, [column])
    op.create_index("uq_feedback_replaces_id", "feedback", ["replaces_id"], unique=True)
    op.add_column("feedback", sa.Column("given_by", sa.Text, nullable=False, server_default=""))
    for table, column in (("versions", "deleted"), ("jobs", "deleted"), ("scores", "usage"), ("datasets", "details")):
        op.add_column(table, sa.Column(column, sa.Text))
    limits = [sa.Column(name, sa.Float(53)) for name in ("low", "high")]
    _log("measures", [*_text("name", "type", "description"), *limits], indexed=["name"])
    _log("evals", [*_text("name", "asked", "labels", "updated"), *_maybe("deleted")])
    _log("webhooks", [*_text("name", "url", "events", "secret"), *_maybe("former", "former_until", "revoked")])
    sent = [
        *_text("webhook_id", "type", "body", "status", "error"),
        *_maybe("due"),
        sa.Column("attempts", sa.Integer, nullable=False),
    ]
    _log("deliveries", sent, to={"webhook_id": "webhooks"}, indexed=["status"])
    links = {"dataset_id": "datasets", "decision_id": "records", "feedback_id": "feedback"}
    counter = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "dataset_rows",
        sa.Column("sequence", counter, autoincrement=True, nullable=False),
        *_text("dataset_id"),
        sa.Column("position", sa.Integer, nullable=False),
        *_maybe("decision_id", "feedback_id"),
        sa.PrimaryKeyConstraint("sequence", name="pk_dataset_rows"),
        *_foreign("dataset_rows", links),
    )
    for column in links:
        op.create_index(f"ix_dataset_rows_{column}", "dataset_rows", [column])


def _text(*names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _maybe(*names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.Text) for name in names]


def _foreign(name: str, links: dict[str, str]) -> list[sa.ForeignKeyConstraint]:
    return [sa.ForeignKeyConstraint([own], [f"{other}.id"], name=f"fk_{name}_{own}") for own, other in links.items()]


def _log(
    name: str, columns: Sequence[sa.Column[Any]], *, to: dict[str, str] | None = None, indexed: Sequence[str] = ()
) -> None:
    """A table with an order of arrival, a public id and a time; every foreign key has an index."""
    counter = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        name,
        sa.Column("sequence", counter, autoincrement=True, nullable=False),
        *_text("id", "created"),
        *columns,
        sa.PrimaryKeyConstraint("sequence", name=f"pk_{name}"),
        sa.UniqueConstraint("id", name=f"uq_{name}_id"),
        *_foreign(name, to or {}),
    )
    for column in (*indexed, *(to or {})):
        op.create_index(f"ix_{name}_{column}", name, [column])
