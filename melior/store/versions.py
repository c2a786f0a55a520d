"""versions, and the aliases that move from one to the next

`melior.registry` is how these are meant to be used: it hashes files and asks the gate first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, select, update
from sqlalchemy.exc import IntegrityError

from melior.errors import NotFound, StoreError
from melior.store import schema
from melior.store.query import Rows, add_row, fetch, find, new_id, now
from melior.store.rows import Alias, AliasEvent, Version
from melior.store.webhooks import announce


class Versions(Rows):
    """Policies in folders, and which of them is in force."""

    def add_version(
        self,
        name: str,
        folder: str | Path,
        *,
        fingerprint: str,
        files: Mapping[str, str],
        base_model: str,
        method: str,
        parent_id: str | None = None,
        run_id: str | None = None,
        dataset_id: str | None = None,
        metrics: Mapping[str, Any] | None = None,
        version_id: str | None = None,
    ) -> Version:
        """A version of a policy, as its files are now; of two who add the same `version_id`, both get the first's."""
        row = Version(
            id=version_id or new_id("ver"),
            name=name,
            folder=str(folder),
            fingerprint=fingerprint,
            files=dict(files),
            base_model=base_model,
            parent_id=parent_id,
            run_id=run_id,
            dataset_id=dataset_id,
            method=method,
            metrics=dict(metrics or {}),
            created=now(),
        )
        with self.database.write() as connection:
            known = fetch(connection, Version, id=version_id) if version_id else []
            if known:
                return known[0]
            try:
                with connection.begin_nested():
                    return add_row(connection, row)
            except IntegrityError:  # PostgreSQL: somebody added it since we looked
                return find(connection, Version, row.id)

    def version(self, reference: str) -> Version:
        """One version, by its id or the beginning of it; a deleted one too."""
        return self._find(Version, reference)

    def versions(
        self,
        *,
        name: str | None = None,
        parent_id: str | None = None,
        run_id: str | None = None,
        within: str = "",
        deleted: bool = False,
    ) -> list[Version]:
        """Versions of a name, of a parent, of a run, with files in a folder, or all; the newest is last.

        Those that were deleted only where that is asked for.
        """
        table = schema.versions
        wanted: list[ColumnElement[bool]] = [] if deleted else [table.c.deleted.is_(None)]
        if within:
            wanted.append(table.c.folder.startswith(within, autoescape=True))
        with self.database.read() as connection:
            return fetch(connection, Version, *wanted, name=name, parent_id=parent_id, run_id=run_id)

    def move_version(self, version_id: str, folder: str | Path) -> Version:
        """The version, whose files are elsewhere now."""
        table = schema.versions
        with self.database.write() as connection:
            connection.execute(update(table).where(table.c.id == version_id).values(folder=str(folder)))
            return find(connection, Version, version_id)

    def delete_version(self, version_id: str) -> Version:
        """The version, that no alias may point to any more; what it decided stays.

        Raises:
            NotFound: if it was deleted before.
            StoreError: while an alias points to it.
        """
        table = schema.versions
        with self.database.write() as connection:
            here = table.c.id == version_id
            connection.execute(select(table.c.id).where(here).with_for_update())  # whoever promotes it waits
            _check_live(find(connection, Version, version_id))
            held = fetch(connection, Alias, version_id=version_id)
            if held:
                names = ", ".join(f"{alias.name}@{alias.alias}" for alias in held)
                raise StoreError(f"{version_id} is what {names} points to; promote another first, or roll back")
            connection.execute(update(table).where(here).values(deleted=now()))
            return find(connection, Version, version_id)

    def restorable(self, event_id: str) -> AliasEvent | None:
        """What a rollback of a promotion restores: the last one before it whose version is still there."""
        with self.database.read() as connection:
            return _restorable(connection, find(connection, AliasEvent, event_id))

    def alias(self, name: str, alias: str) -> Alias | None:
        """Where `name@alias` points now, or None."""
        found = self._list(Alias, name=name, alias=alias)
        return found[0] if found else None

    def aliases(self, *, name: str | None = None, version_id: str | None = None) -> list[Alias]:
        """Aliases of a name, those that point to a version, or all."""
        return self._list(Alias, name=name, version_id=version_id)

    def alias_event(self, reference: str) -> AliasEvent:
        """One promotion or rollback."""
        return self._find(AliasEvent, reference)

    def alias_events(
        self, *, name: str | None = None, alias: str | None = None, version_id: str | None = None
    ) -> list[AliasEvent]:
        """Promotions and rollbacks, the newest last; of a version, those that brought it."""
        return self._list(AliasEvent, name=name, alias=alias, version_id=version_id)

    def promote(
        self,
        name: str,
        alias: str,
        version_id: str,
        *,
        expected: str | None,
        gate_id: str | None = None,
        forced: bool = False,
        actor: str = "",
        reason: str = "",
    ) -> AliasEvent:
        """Point `name@alias` to a version if it still points to the version `expected` (None: to nothing).

        Raises:
            StoreError: if it points elsewhere by now, so that of two who expect the same only one succeeds.
        """
        with self.database.write() as connection:
            held = _hold(connection, name, alias, expected)
            table = schema.versions
            connection.execute(select(table.c.id).where(table.c.id == version_id).with_for_update(read=True))
            _check_live(find(connection, Version, version_id))
            event = AliasEvent(
                id=new_id("ae"),
                name=name,
                alias=alias,
                action="promote",
                version_id=version_id,
                previous_id=expected,
                undo_id=None if held is None else held.event_id,
                gate_id=gate_id,
                forced=forced,
                actor=actor,
                reason=reason,
                created=now(),
            )
            return _move(connection, held, event)

    def roll_back(self, name: str, alias: str, *, expected: str, actor: str = "", reason: str = "") -> AliasEvent:
        """Undo the promotion that brought the version `expected`; called again, undo the one before it.

        Raises:
            StoreError: if the alias points elsewhere by now, or there is no earlier version.
        """
        with self.database.write() as connection:
            held = _hold(connection, name, alias, expected)
            if held is None:
                raise StoreError(f"{name}@{alias} points to nothing, so there is nothing to roll back")
            restored = _restorable(connection, find(connection, AliasEvent, held.event_id))
            if restored is None:
                raise StoreError(f"{name}@{alias} has had no version before {held.version_id}; promote another instead")
            table = schema.versions
            connection.execute(select(table.c.id).where(table.c.id == restored.version_id).with_for_update(read=True))
            _check_live(find(connection, Version, restored.version_id))
            event = AliasEvent(
                id=new_id("ae"),
                name=name,
                alias=alias,
                action="rollback",
                version_id=restored.version_id,
                previous_id=held.version_id,
                undo_id=restored.undo_id,
                gate_id=restored.gate_id,
                forced=False,
                actor=actor,
                reason=reason,
                created=now(),
            )
            return _move(connection, held, event)


def _hold(connection: Connection, name: str, alias: str, expected: str | None) -> Alias | None:
    """The alias, locked until the transaction ends, if it points where the caller thinks."""
    table = schema.aliases
    mine = select(table.c.version_id).where(table.c.name == name, table.c.alias == alias)
    connection.execute(mine.with_for_update())  # SQLite holds its one write lock already
    held = next(iter(fetch(connection, Alias, name=name, alias=alias)), None)
    found = None if held is None else held.version_id
    if found != expected:
        raise _stale(name, alias, found, expected)
    return held


def _move(connection: Connection, held: Alias | None, event: AliasEvent) -> AliasEvent:
    add_row(connection, event)
    moved = {"id": event.version_id, "name": event.name, "alias": event.alias, "previous_id": event.previous_id}
    announce(connection, "model.promoted" if event.action == "promote" else "model.rolled_back", moved)
    if held is not None:
        table = schema.aliases
        here = (table.c.name == event.name) & (table.c.alias == event.alias) & (table.c.event_id == held.event_id)
        connection.execute(update(table).where(here).values(version_id=event.version_id, event_id=event.id))
        return event
    try:
        row = Alias(name=event.name, alias=event.alias, version_id=event.version_id, event_id=event.id)
        add_row(connection, row)
    except IntegrityError:  # PostgreSQL cannot lock a row that is not there yet
        raise _stale(event.name, event.alias, "another version", None) from None
    return event


def _check_live(version: Version) -> None:
    if version.deleted is not None:
        raise NotFound(f"{version.id} was deleted on {version.deleted[:10]}; use another version")


def _restorable(connection: Connection, undone: AliasEvent) -> AliasEvent | None:
    """The last event before one that brought another version, which has not been deleted since."""
    before = undone.undo_id
    while before is not None:
        event = find(connection, AliasEvent, before)
        if event.version_id != undone.version_id and find(connection, Version, event.version_id).deleted is None:
            return event
        before = event.undo_id
    return None


def _stale(name: str, alias: str, found: str | None, expected: str | None) -> StoreError:
    return StoreError(
        f"{name}@{alias} points to {found or 'nothing'} by now, not to {expected or 'nothing'}; "
        "compare with what it points to and promote again"
    )
