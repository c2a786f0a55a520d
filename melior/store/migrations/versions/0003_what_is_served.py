"""files, jobs and their events, keys, and completions that clients asked to keep"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create them; the order follows the foreign keys."""
    files = [*_text("filename", "purpose", "sha256", "status", "details"), *_maybe("expires", "deleted")]
    _log("files", [*files, sa.Column("bytes", sa.BigInteger, nullable=False)], indexed=["purpose"])
    jobs = [
        *_text("method", "asked", "recipe", "folder", "status", "wanted", "owner", "result", "error", "labels"),
        *_maybe("lease", "training_file", "validation_file", "run_id", "finished", "request_key"),
        *(sa.Column(name, sa.Integer, nullable=False) for name in ("fence", "attempts")),
    ]
    to = {"training_file": "files", "validation_file": "files", "run_id": "runs"}
    _log("jobs", jobs, to=to, indexed=["status"], unique=["request_key"])
    _log("job_events", _text("job_id", "level", "type", "message", "data"), to={"job_id": "jobs"})
    _log("keys", [*_text("name", "hash", "scopes"), *_maybe("revoked")], unique=["hash"])
    kept = [*_text("model", "request", "response", "labels"), *_maybe("deleted")]
    _log("completions", kept, indexed=["model"])


def _text(*names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _maybe(*names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.Text) for name in names]


def _log(
    name: str,
    columns: Sequence[sa.Column[Any]],
    *,
    to: dict[str, str] | None = None,
    indexed: Sequence[str] = (),
    unique: Sequence[str] = (),
) -> None:
    """A table with an order of arrival, a public id and a time; every foreign key has an index."""
    links = to or {}
    counter = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        name,
        sa.Column("sequence", counter, autoincrement=True, nullable=False),
        *_text("id", "created"),
        *columns,
        sa.PrimaryKeyConstraint("sequence", name=f"pk_{name}"),
        *(sa.UniqueConstraint(column, name=f"uq_{name}_{column}") for column in ("id", *unique)),
        *(sa.ForeignKeyConstraint([own], [f"{other}.id"], name=f"fk_{name}_{own}") for own, other in links.items()),
    )
    for column in (*indexed, *links):
        op.create_index(f"ix_{name}_{column}", name, [column])
