"""where a version comes from, and what came from it

base model ── version ── version ── this version ── descendants
                 │ each with its run, data set, evaluations, gates and promotions
"""

from __future__ import annotations

from dataclasses import dataclass

from melior.store import Store
from melior.store.rows import AliasEvent, Dataset, Evaluation, Gate, Run, Version


@dataclass(frozen=True, kw_only=True)
class Link:
    """One version and everything known of how it came to be, and how it fared."""

    version: Version
    run: Run | None
    dataset: Dataset | None
    evaluations: tuple[Evaluation, ...]
    gates: tuple[Gate, ...]  # in which it was the candidate
    promotions: tuple[AliasEvent, ...]  # promotions and rollbacks that brought it, and those that took it away
    aliases: tuple[str, ...]  # `name@alias` that point to it now


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """A version's ancestors and descendants."""

    chain: tuple[Link, ...]  # the version itself first, then its parent, up to the first trained from the base model
    base_model: str
    descendants: tuple[Version, ...]  # nearest first


def trace(store: Store, version: Version) -> Lineage:
    """The version's line up to its base model and down to everything trained from it."""
    chain = [version]
    while chain[-1].parent_id is not None:
        chain.append(store.version(chain[-1].parent_id))
    descendants: list[Version] = []
    nearest = [version]
    while nearest:
        nearest = [child for parent in nearest for child in store.versions(parent_id=parent.id, deleted=True)]
        descendants += nearest
    links = tuple(_link(store, one) for one in chain)
    return Lineage(chain=links, base_model=chain[-1].base_model, descendants=tuple(descendants))


def _link(store: Store, version: Version) -> Link:
    run = None if version.run_id is None else store.run(version.run_id)
    dataset_id = version.dataset_id or (run.dataset_id if run is not None else None)
    log = store.alias_events(name=version.name)
    return Link(
        version=version,
        run=run,
        dataset=None if dataset_id is None else store.dataset(dataset_id),
        evaluations=tuple(store.evaluations(version_id=version.id)),
        gates=tuple(store.gates(candidate_id=version.id)),
        promotions=tuple(event for event in log if version.id in (event.version_id, event.previous_id)),
        aliases=tuple(f"{held.name}@{held.alias}" for held in store.aliases(version_id=version.id)),
    )
