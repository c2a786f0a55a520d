"""what each alias means here: followed one by one, never back, and nothing slow under the lock that requests take"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from melior.policies.classifier import Classifier, ClassifierPolicy
from melior.registry import Registry
from melior.serving import aliases as module
from melior.serving.aliases import Aliases
from melior.serving.deciders import Decider, Deciders
from melior.serving.loaded import Voices
from melior.store import Store
from melior.store.rows import Version
from melior.types import Demonstration

ROWS = [Demonstration({"height": float(i % 7)}, ("no", "yes")[i % 2]) for i in range(20)]
WAIT_S = 60.0  # a loaded machine


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "melior.db") as opened:
        yield opened


@pytest.fixture
def aliases(store: Store) -> Aliases:
    """Nobody looks but the tests."""
    return Aliases(store, Voices(), Deciders())


def version(store: Store, folder: Path, name: str) -> Version:
    """The next version of a name, of a folder of its own."""
    place = folder / f"{name}-{len(store.versions())}"
    ClassifierPolicy.make(Classifier(labels=("no", "yes")), ROWS).save(place)
    return Registry(store).register(name, place, method="sft", base_model="none")


def promote(store: Store, made: Version) -> None:
    Registry(store).promote(made.id, force=True, reason="test")


def asked(aliases: Aliases, name: str) -> str:
    """Which version answers, loaded as a request would have it."""
    found = aliases.of(name)
    aliases.deciders.of(found)
    return found.id


def test_an_alias_whose_version_fails_oddly_keeps_no_other_from_moving(
    aliases: Aliases, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {name: version(store, tmp_path, name) for name in ("first", "second")}
    for name, made in old.items():
        promote(store, made)
        assert asked(aliases, name) == made.id
    new = {name: version(store, tmp_path, name) for name in old}
    for made in new.values():
        promote(store, made)
    load, failing, tried = Deciders.of, {new["first"].id}, list[str]()

    def of(self: Deciders, wanted: Version) -> Decider:
        tried.append(wanted.id)
        if wanted.id in failing:
            raise RuntimeError("out of memory")
        return load(self, wanted)

    monkeypatch.setattr(Deciders, "of", of)
    aliases.look()
    assert (aliases.of("first").id, aliases.of("second").id) == (old["first"].id, new["second"].id)
    assert aliases.deciders.held(old["second"]) is None, "what answers to nothing is freed all the same"
    aliases.look()
    assert tried.count(new["first"].id) == 1, "it is not tried at every look"
    failing.clear()
    monkeypatch.setattr(module, "AGAIN_S", 0.0)
    aliases.broken = dict.fromkeys(aliases.broken, 0.0)  # its time is over
    aliases.look()
    assert aliases.of("first").id == new["first"].id


def test_a_version_is_freed_while_requests_go_on(aliases: Aliases, store: Store, tmp_path: Path) -> None:
    promote(store, version(store, tmp_path, "label"))
    asked(aliases, "label")
    promote(store, newer := version(store, tmp_path, "label"))
    freeing, go_on = threading.Event(), threading.Event()

    def slow(_: Version) -> bool:
        freeing.set()
        assert go_on.wait(WAIT_S)
        return True

    aliases._free = slow  # type: ignore[method-assign]
    looking = threading.Thread(target=aliases.look)
    looking.start()
    assert freeing.wait(WAIT_S)
    answered = list[str]()
    asking = threading.Thread(target=lambda: answered.append(aliases.of("label").id))
    asking.start()
    asking.join(WAIT_S)
    go_on.set()
    looking.join()
    assert answered == [newer.id]


def test_who_read_before_a_promotion_does_not_take_the_alias_back(
    aliases: Aliases, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(store, version(store, tmp_path, "label"))
    asked(aliases, "label")
    newer = version(store, tmp_path, "label")
    get = Registry.get

    def late(self: Registry, reference: str, **more: bool) -> Version:
        found = get(self, reference, **more)
        monkeypatch.setattr(Registry, "get", get)
        promote(store, newer)  # and the others see it while this one is on its way
        aliases.look()
        return found

    aliases.seen.clear()
    monkeypatch.setattr(Registry, "get", late)
    assert aliases.of("label").id == newer.id
    assert aliases.meant["label@prod"].id == newer.id
