"""what a person calls a model: a folder, a name that was pulled, a hub id, or a version in the registry"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from melior.errors import ModelError
from melior.policies.weights import KNOWN
from melior.registry import BASE, Registry
from melior.store import Store
from melior.store.rows import Version

NONE = "none"  # the base model of what was made from rows
JUDGES = ("score_model", "label_model", "pair_model", "learned")  # graders that ask a model


@dataclass(frozen=True)
class Found:
    """Where a model's files are, and which version they are, if any."""

    path: str  # for load_policy; empty where the policy is made from rows
    version: Version | None = None
    name: str = ""  # of a base model that the registry knows

    @property
    def base_model(self) -> str:
        """What the registry calls the model at the root of its line."""
        return (self.name or self.path or NONE) if self.version is None else self.version.base_model


def find_model(reference: str | None, store: Store) -> Found:
    """The model a reference means; none at all where the policy is made from rows.

    A folder that is there wins; then a name that `melior pull` knows or a hub id; then `name@alias`, `ver_…` or a name
    in the registry. A version's files are hashed before they are used.

    Raises:
        ModelError: if nothing is called so.
        StoreError: if the registry has no such version, or its files have changed.
    """
    if reference is None:
        return Found("")
    registry = Registry(store)
    folder = Path(reference).expanduser()
    if folder.is_dir():
        place = folder.resolve()
        trained = (v for v in reversed(registry.list()) if v.folder == str(place) and v.method != BASE)
        return Found(str(place), next(trained, None))
    if "@" not in reference and not reference.startswith("ver_"):
        if reference in KNOWN:
            return Found(reference)
        if not any(version.name == reference for version in registry.list()):
            return _elsewhere(reference, registry)
    version = registry.verify(reference)
    return Found(version.folder, None, version.name) if version.method == BASE else Found(version.folder, version)


def with_judges(spec: Any, store: Store) -> Any:
    """A grader's setting whose judges are files: what `find_model` makes of every `model` in it.

    Raises:
        ModelError: if a judge is not to be found.
        StoreError: if the registry has no such version, or its files have changed.
    """
    if not isinstance(spec, Mapping):
        return spec
    found = dict(spec)
    if spec.get("type") in JUDGES and isinstance(spec.get("model"), str):
        found["model"] = find_model(spec["model"], store).path
    if isinstance(spec.get("graders"), Mapping):
        found["graders"] = {name: with_judges(part, store) for name, part in spec["graders"].items()}
    if isinstance(spec.get("grader"), Mapping):
        found["grader"] = with_judges(spec["grader"], store)
    return found


def _elsewhere(reference: str, registry: Registry) -> Found:
    """A hub id, if it can be one."""
    if reference.count("/") == 1 and not reference.startswith((".", "~", "/")):
        return Found(reference)
    names = sorted({version.name for version in registry.list()})
    known = f"; the registry has {', '.join(names[:5])}" if names else ""
    raise ModelError(
        f"There is no model {reference!r}: no such folder, and no version of that name{known}; give a folder, "
        f"a hub id (owner/name), name@alias, ver_…, or one of: {', '.join(KNOWN)}"
    )
