"""versions that are deleted, and base models that many register at once"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from melior.cycles.models import find_model
from melior.errors import NotFound, StoreError
from melior.registry import BASE, Registry
from melior.store import Store
from melior.store.rows import Version
from melior.types import Record

Make = Callable[..., Version]


@pytest.fixture
def registry(store: Store) -> Registry:
    return Registry(store)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "little"
    place.mkdir()
    (place / "config.json").write_text("{}")
    return place


@pytest.fixture
def make(registry: Registry, folder: Path) -> Make:
    def make(parent: Version | None = None, *, promote: bool = False) -> Version:
        place = folder.parent / f"model {len(registry.store.versions(deleted=True))}"
        shutil.copytree(folder, place)
        (place / "weights").write_text(place.name)
        origin = {"parent": parent.id} if parent else {"base_model": "little"}
        version = registry.register("sums", place, method="sft", **origin)  # type: ignore[arg-type]
        if promote:
            registry.promote(version.id, force=True, reason="test")
        return version

    return make


def test_a_deleted_version_is_gone_but_for_the_log(registry: Registry, make: Make) -> None:
    first = make(promote=True)
    child = make(first)
    decision = registry.store.add_records([Record(inputs="a", output="b", policy_version=child.id)])[0]
    gone = registry.delete(child.id)
    assert gone.deleted and registry.list() == (first,) and registry.list("sums") == (first,)
    for refused in (
        lambda: registry.get(child.id),
        lambda: registry.verify(child.id),
        lambda: registry.delete(child.id),
    ):
        with pytest.raises(NotFound, match=r"was deleted on \d{4}-"):
            refused()
    with pytest.raises(NotFound, match="was deleted"):
        registry.promote(child.id, force=True, reason="no")
    with pytest.raises(NotFound, match="was deleted"):
        registry.store.promote("sums", "other", child.id, expected=None)
    assert registry.store.decisions([decision])[0].record.policy_version == child.id
    assert registry.lineage(first.id).descendants == (gone,) and registry.lineage(child.id).chain[1].version == first
    assert Path(child.folder).is_dir(), "others may stand on it"


def test_what_an_alias_points_to_stays(registry: Registry, make: Make) -> None:
    version = make(promote=True)
    with pytest.raises(StoreError, match="is what sums@prod points to"):
        registry.delete("sums@prod")
    assert registry.get("sums") == version


def test_a_rollback_passes_over_what_was_deleted(registry: Registry, make: Make) -> None:
    first, second, third = (make(promote=True) for _ in range(3))
    registry.delete(second.id)
    assert registry.rollback("sums").id == first.id
    with pytest.raises(StoreError, match="no version before"):
        registry.rollback("sums")
    registry.promote(third.id, force=True, reason="again")
    assert registry.rollback("sums").id == first.id
    registry.promote(third.id, force=True, reason="again")
    registry.delete(first.id)
    with pytest.raises(StoreError, match="no version before"):
        registry.rollback("sums")
    assert registry.get("sums") == third


def test_of_one_who_deletes_and_one_who_promotes_only_one_succeeds(
    store: Store, registry: Registry, make: Make
) -> None:
    for _ in range(8):
        version = make()

        def attempt(what: Callable[[], object]) -> bool:
            try:
                what()
            except StoreError:
                return False
            return True

        alias = f"a{version.id}"
        with ThreadPoolExecutor(2) as threads:
            deleted = threads.submit(attempt, lambda v=version: registry.delete(v.id))
            promoted = threads.submit(attempt, lambda v=version, a=alias: store.promote("sums", a, v.id, expected=None))
        assert deleted.result() != promoted.result()
        assert (store.alias("sums", alias) is not None) == promoted.result()


def test_a_base_model_is_one_version_however_many_register_it(url: str, folder: Path) -> None:
    def register(_: int) -> str:
        with Store.open(url) as own:
            return Registry(own).register_base("little", folder).id

    with Store.open(url) as store:
        with ThreadPoolExecutor(4) as threads:
            ids = set(threads.map(register, range(8)))
        (version,) = store.versions()
        assert ids == {version.id} and version.method == BASE and version.base_model == "little"
        registry = Registry(store)
        assert registry.get("little") == version
        (folder / "weights").write_text("others")
        changed = registry.register_base("little", folder)
        assert changed.id != version.id and registry.get("little") == changed
        with pytest.raises(StoreError, match="a base model, which nobody here trained"):
            registry.delete("little")


def test_a_base_model_that_was_moved_is_found_where_it_is(registry: Registry, folder: Path) -> None:
    before = registry.register_base("little", folder)
    moved = folder.rename(folder.parent / "elsewhere")
    after = registry.register_base("little", moved)
    assert after.id == before.id and after.folder == str(moved) and registry.verify("little") == after


def test_a_base_model_may_not_take_the_name_of_a_trained_one(registry: Registry, folder: Path, make: Make) -> None:
    make(promote=True)
    with pytest.raises(StoreError, match="give the base model another name"):
        registry.register_base("sums", folder)


def test_training_from_a_base_model_starts_a_line(registry: Registry, store: Store, folder: Path) -> None:
    base = registry.register_base("little", folder)
    for reference in ("little", base.id):
        found = find_model(reference, store)
        assert (found.path, found.version, found.base_model) == (str(folder), None, "little")
    assert find_model(str(folder), store).base_model == str(folder), "a folder is what it was before"
