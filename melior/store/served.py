"""what clients of the server leave there: files, keys, and completions they asked to keep"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, update

from melior.errors import NotFound
from melior.store import schema
from melior.store.query import TABLES, Order, Page, Rows, add_row, fetch, find, labelled, new_id, now
from melior.store.rows import Completion, File, Key


class Served(Rows):
    """Files, keys and kept completions. What is deleted is no longer found, and its row stays for those who trace."""

    # ------------------------------------------------------------------ files

    def add_file(
        self,
        filename: str,
        purpose: str,
        *,
        size: int,
        sha256: str,
        file_id: str | None = None,
        expires: str | None = None,
        status: str = "processed",
        details: str = "",
        dataset_id: str | None = None,
    ) -> File:
        """A file whose bytes are kept elsewhere, under its id; `dataset_id` is of an export."""
        row = File(
            id=file_id or new_id("file"),
            filename=schema.clean(filename),
            purpose=purpose,
            bytes=size,
            sha256=sha256,
            status=status,  # type: ignore[arg-type]
            details=schema.clean(details),
            expires=expires,
            deleted=None,
            created=now(),
            dataset_id=dataset_id,
        )
        with self.database.write() as connection:
            return add_row(connection, row)

    def file(self, file_id: str, *, deleted: bool = False) -> File:
        """One file; one that was deleted only where that is asked for.

        Raises:
            NotFound: if there is none.
        """
        return self._kept(File, file_id, deleted)

    def files(self, *, purpose: str | None = None) -> list[File]:
        """The files there are, the oldest first."""
        with self.database.read() as connection:
            return fetch(connection, File, schema.files.c.deleted.is_(None), purpose=purpose)

    def files_of(self, dataset_ids: Sequence[str]) -> list[File]:
        """The files that hold these exports, the oldest first."""
        found = self._among(File, schema.files.c.dataset_id, dataset_ids)
        return sorted((row for row in found if row.deleted is None), key=lambda row: row.created)

    def file_page(
        self, *, purpose: str | None = None, after: str | None = None, limit: int = 20, order: Order = "desc"
    ) -> Page[File]:
        """The files there are that have not expired."""
        table = schema.files
        there = table.c.deleted.is_(None) & (table.c.expires.is_(None) | (table.c.expires > now()))
        return self._page(File, there, after=after, limit=limit, order=order, purpose=purpose)

    def delete_file(self, file_id: str) -> File:
        """The file, no longer found."""
        return self._delete(File, file_id)

    # ------------------------------------------------------------------ keys

    def add_key(self, name: str, hash: str, scopes: Sequence[str]) -> Key:
        """A key by the sha256 of its token."""
        row = Key(
            id=new_id("key"), name=schema.clean(name), hash=hash, scopes=tuple(scopes), revoked=None, created=now()
        )
        with self.database.write() as connection:
            return add_row(connection, row)

    def keys(self) -> list[Key]:
        """Every key, revoked ones too."""
        return self._list(Key)

    def key_of(self, hash: str) -> Key | None:
        """The key with this hash, unless it is revoked."""
        with self.database.read() as connection:
            found = fetch(connection, Key, schema.keys.c.revoked.is_(None), hash=hash)
        return found[0] if found else None

    def revoke_key(self, reference: str) -> Key:
        """The key, worth nothing from now on."""
        with self.database.write() as connection:
            key = find(connection, Key, reference)
            connection.execute(update(schema.keys).where(schema.keys.c.id == key.id).values(revoked=now()))
            return find(connection, Key, key.id)

    # ------------------------------------------------------------------ completions

    def add_completion(
        self, completion_id: str, model: str, request: Mapping[str, Any], response: Mapping[str, Any]
    ) -> Completion:
        """A chat completion as it was asked for and answered."""
        labels = dict(request.get("metadata") or {})
        row = Completion(
            id=completion_id,
            model=model,
            request=dict(request),
            response=dict(response),
            labels=labels,
            deleted=None,
            created=now(),
        )
        with self.database.write() as connection:
            return add_row(connection, row)

    def completion(self, completion_id: str) -> Completion:
        """One kept completion.

        Raises:
            NotFound: if there is none.
        """
        return self._kept(Completion, completion_id, False)

    def completions(self, *, model: str | None = None) -> list[Completion]:
        """The completions there are, the oldest first."""
        with self.database.read() as connection:
            return fetch(connection, Completion, schema.completions.c.deleted.is_(None), model=model)

    def completion_page(
        self,
        *,
        model: str | None = None,
        labels: Mapping[str, str] | None = None,
        after: str | None = None,
        limit: int = 20,
        order: Order = "asc",
    ) -> Page[Completion]:
        """The completions there are, with all of these labels."""
        table = schema.completions
        there = [table.c.deleted.is_(None), *labelled(table.c.labels, labels or {})]
        return self._page(Completion, *there, after=after, limit=limit, order=order, model=model)

    def label_completion(self, completion_id: str, labels: Mapping[str, str]) -> Completion:
        """The completion with other labels."""
        with self.database.write() as connection:
            found = _exact(connection, Completion, completion_id)
            table = schema.completions
            connection.execute(update(table).where(table.c.id == found.id).values(labels=dict(labels)))
            return find(connection, Completion, found.id)

    def delete_completion(self, completion_id: str) -> Completion:
        """The completion, no longer found."""
        return self._delete(Completion, completion_id)

    def _kept(self, kind: type[Any], row_id: str, deleted: bool) -> Any:
        with self.database.read() as connection:
            return _exact(connection, kind, row_id, deleted=deleted)

    def _delete(self, kind: type[Any], row_id: str) -> Any:
        table = TABLES[kind]
        with self.database.write() as connection:
            found = _exact(connection, kind, row_id)
            connection.execute(update(table).where(table.c.id == found.id).values(deleted=now()))
            return find(connection, kind, found.id)


def _exact(connection: Connection, kind: type[Any], row_id: str, *, deleted: bool = False) -> Any:
    """The row with the whole of this id: a client's ids are never shortened."""
    table = TABLES[kind]
    where: list[ColumnElement[bool]] = [] if deleted else [table.c.deleted.is_(None)]
    found = fetch(connection, kind, *where, id=row_id)
    if not found:
        raise NotFound(f"there is no {kind.__name__.lower()} {row_id!r}")
    return found[0]
