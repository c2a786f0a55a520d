"""versions of policies: register, find, promote, roll back, verify, trace

A reference is a version's id, the beginning of one (`ver_3f`), `name@alias`, or a `name`, which means `name@prod` or
else the base model of that name.
"""

from __future__ import annotations

import difflib
import getpass
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from melior.errors import NotFound, StoreError
from melior.registry.files import difference, fingerprint, hash_files
from melior.registry.lineage import Lineage, trace
from melior.store import Store
from melior.store.rows import AliasEvent, Gate, Version

PROD = "prod"
BASE = "base"  # the method of what nobody here has trained
NAME = re.compile(r"(?!ver_)[A-Za-z0-9][A-Za-z0-9._:/-]{0,199}")  # no "@", which divides name and alias


class Registry:
    """Which policy, from which data, passed which gate, and which one is in force."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def register(
        self,
        name: str,
        folder: str | Path,
        *,
        method: str,
        base_model: str | None = None,
        parent: str | None = None,
        run_id: str | None = None,
        dataset_id: str | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> Version:
        """A version of the files in a folder, trained from a parent version or straight from a base model.

        The same files registered again, under the same name and from the same run, are the version they were.

        Raises:
            StoreError: if the folder is missing or empty, the name cannot be one, or there is no base model.
        """
        _check_name(name)
        origin = None if parent is None else self.get(parent)
        base = base_model or (origin.base_model if origin else None)
        if base is None:
            raise StoreError(f"{name} needs a base model; give base_model, or the parent version it was trained from")
        if origin is not None and base != origin.base_model:
            raise StoreError(f"{base} is not the base model of {origin.id}, which is {origin.base_model}; leave it out")
        place = Path(folder).expanduser().resolve()
        files = hash_files(place)
        mark = fingerprint(files)
        parent_id = None if origin is None else origin.id
        for known in self.store.versions(name=name):
            same = (known.fingerprint, known.folder, known.parent_id, known.run_id)
            if same == (mark, str(place), parent_id, run_id):
                return known
        return self.store.add_version(
            name,
            place,
            fingerprint=mark,
            files=files,
            base_model=base,
            method=method,
            parent_id=parent_id,
            run_id=run_id,
            dataset_id=dataset_id,
            metrics=metrics,
        )

    def register_base(self, name: str, folder: str | Path) -> Version:
        """The version of a base model as its files are: one and the same, however many register it at once.

        Raises:
            StoreError: if the folder is missing or empty, or the name cannot be one or is that of a trained model.
        """
        _check_name(name)
        held = self.current(name)
        if held is not None:
            raise StoreError(f"{name}@{PROD} is {held.id}, a model of the registry; give the base model another name")
        place = Path(folder).expanduser().resolve()
        files = hash_files(place)
        mark = fingerprint(files)
        version = self.store.add_version(
            name,
            place,
            fingerprint=mark,
            files=files,
            base_model=name,
            method=BASE,
            version_id=f"ver_{hashlib.sha256(f'{BASE} {name} {mark}'.encode()).hexdigest()[:24]}",
        )
        if not Path(version.folder).is_dir():
            return self.store.move_version(version.id, place)
        return version

    def get(self, reference: str, *, deleted: bool = False) -> Version:
        """The version a reference means; one that was deleted only where that is asked for.

        Raises:
            StoreError: if it means none or several; names what it could have been.
        """
        if reference.startswith("ver_"):
            version = self.store.version(reference)
            if version.deleted is not None and not deleted:
                raise NotFound(
                    f"{version.id} was deleted on {version.deleted[:10]}; use another version of {version.name}"
                )
            return version
        name, _, alias = reference.partition("@")
        held = self.store.alias(name, alias or PROD)
        if held is not None:
            return self.store.version(held.version_id)
        bases = [] if alias else [version for version in self.store.versions(name=name) if version.method == BASE]
        if bases:
            return bases[-1]
        raise StoreError(self._unknown(name, alias or PROD))

    def current(self, name: str, alias: str = PROD) -> Version | None:
        """The version `name@alias` points to, or None."""
        held = self.store.alias(name, alias)
        return None if held is None else self.store.version(held.version_id)

    def list(self, name: str | None = None) -> tuple[Version, ...]:
        """Versions of a name, or all, the newest last."""
        return tuple(self.store.versions(name=name))

    def history(self, name: str, alias: str = PROD) -> tuple[AliasEvent, ...]:
        """Every promotion and rollback of `name@alias`, the newest last."""
        return tuple(self.store.alias_events(name=name, alias=alias))

    def promote(
        self,
        reference: str,
        alias: str = PROD,
        *,
        gate_id: str | None = None,
        reason: str = "",
        expected: str | None = None,
        force: bool = False,
        actor: str | None = None,
    ) -> AliasEvent:
        """Point `name@alias` to a version that passed a gate (the newest of its gates unless `gate_id` says which).

        The gate must have compared it with the version the alias points to now, or with `expected`, which a caller
        names who knows why another comparison will do. `force` with a reason passes over the gate, and is logged so.
        Promoting what is promoted already changes nothing and returns the event that did it.

        Raises:
            StoreError: if the gate's verdict is not "promote", the comparison is stale, files have changed, or
                somebody else moved the alias first.
        """
        version = self.verify(reference)
        held = self.store.alias(version.name, _checked_alias(alias))
        if held is not None and held.version_id == version.id:
            return self.store.alias_event(held.event_id)
        if force and not reason.strip():
            raise StoreError(f"forcing {version.id} past its gate needs a reason; say why")
        gate = self._gate(version, gate_id)
        now = None if held is None else held.version_id
        if not force:
            _check_gate(version, gate)
            _check_baseline(gate, f"{version.name}@{alias}", now, expected)
        return self.store.promote(
            version.name,
            alias,
            version.id,
            expected=expected or now,
            gate_id=None if gate is None else gate.id,
            forced=force,
            actor=_me() if actor is None else actor,
            reason=reason,
        )

    def rollback(self, name: str, alias: str = PROD, *, reason: str = "", actor: str | None = None) -> Version:
        """The version before the one in force, in force again; called again, the one before that.

        Raises:
            StoreError: if there is none before, its files have changed, or somebody else moved the alias first.
        """
        held = self.store.alias(name, alias)
        if held is None:
            raise StoreError(self._unknown(name, alias))
        before = self.store.restorable(held.event_id)
        if before is not None:  # a damaged version must not come back; refuse before anything moves
            self.verify(before.version_id)
        event = self.store.roll_back(
            name, alias, expected=held.version_id, actor=_me() if actor is None else actor, reason=reason
        )
        return self.store.version(event.version_id)

    def delete(self, reference: str) -> Version:
        """The version, which from now on is not listed, answered with, promoted or rolled back to.

        Its files stay, since others may have been trained from them; so does what it decided.

        Raises:
            StoreError: while an alias points to it, or if it is a base model.
        """
        version = self.get(reference)
        if version.method == BASE:
            raise StoreError(
                f"{version.name} is a base model, which nobody here trained; only what was trained can be deleted"
            )
        return self.store.delete_version(version.id)

    def verify(self, reference: str) -> Version:
        """The version, after hashing its files again.

        Raises:
            StoreError: if a file has changed, is missing or was added since it was registered.
        """
        version = self.get(reference)
        unlike = difference(version.files, hash_files(Path(version.folder)))
        if unlike:
            raise StoreError(f"the files of {version.id} in {version.folder} differ: {unlike}; restore them")
        return version

    def lineage(self, reference: str) -> Lineage:
        """Where a version comes from, up to the base model, and what came from it."""
        return trace(self.store, self.get(reference, deleted=True))

    def _gate(self, version: Version, gate_id: str | None) -> Gate | None:
        if gate_id is None:
            return next(iter(reversed(self.store.gates(candidate_id=version.id))), None)
        gate = self.store.gate(gate_id)
        if gate.candidate_id != version.id:
            raise StoreError(f"{gate.id} judged {gate.candidate_id}, not {version.id}; name a gate of this version")
        return gate

    def _unknown(self, name: str, alias: str) -> str:
        versions = self.store.versions(name=name)
        if versions and not all(version.method == BASE for version in versions):
            aliases = ", ".join(held.alias for held in self.store.aliases(name=name)) or "none"
            return (
                f"{name} has {len(versions)} versions but no alias {alias!r} (it has {aliases}); "
                f"promote one, or use an id such as {versions[-1].id}"
            )
        names = sorted({version.name for version in self.store.versions()})
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "list the models to see their names"
        return f"no model is called {name!r}, of {len(names)}; {hint}"


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise StoreError(
            f"{name!r} cannot name a model; use up to 200 letters, digits and . _ : / -, and do not begin with ver_"
        )


def _checked_alias(alias: str) -> str:
    if not NAME.fullmatch(alias):
        raise StoreError(f"{alias!r} cannot be an alias; use letters, digits and . _ : / -")
    return alias


def _check_gate(version: Version, gate: Gate | None) -> None:
    if gate is None:
        raise StoreError(f"{version.id} has passed no gate; evaluate and compare it first, or force it with a reason")
    if gate.verdict != "promote":
        raise StoreError(f"{gate.id} says {gate.verdict} of {version.id}; train on, or force it with a reason")


def _check_baseline(gate: Gate | None, place: str, now: str | None, expected: str | None) -> None:
    if gate is None or now is None or expected is not None or gate.baseline_id == now:
        return
    raise StoreError(
        f"{gate.id} compared with {gate.baseline_id or 'the base model'}, but {place} points to {now} by now; "
        "compare with that, or name it as expected"
    )


def _me() -> str:
    """Who is at the keyboard, as far as the system knows."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""
