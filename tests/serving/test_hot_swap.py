"""an alias moves while it is asked: nobody waits or fails, and every answer is wholly one version's"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from live import Live
from openai import OpenAI
from promoter import Promote, promoting

from melior.policies.adapters import LoRA
from melior.policies.language import LanguagePolicy
from melior.registry import Registry
from melior.store import Store
from melior.store.rows import Version
from melior.types import Sampling

SAID: Any = [{"role": "user", "content": "say something"}]
SEEDS = 4
WITHIN_S = 20.0  # a loaded machine; alone it takes less than one


@pytest.fixture
def server(live: Callable[..., Live]) -> Live:
    return live()


@pytest.fixture
def versions(server: Live, folder_of: Callable[..., Path], tmp_path: Path) -> list[Version]:
    """Two adapters over one model, and another model, all called support; the first is support@prod."""
    registry = Registry(server.service.store)
    made = []
    for seed in (1, 2):
        policy = LanguagePolicy.load(folder_of("llama"), adapter=LoRA(r=4, seed=seed))
        generator = torch.Generator().manual_seed(seed)
        for _, parameter in policy.candidates():
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
        policy.save(tmp_path / f"adapter {seed}")
        made.append(registry.register("support", tmp_path / f"adapter {seed}", method="sft", base_model="little"))
    made.append(registry.register("support", folder_of("qwen3"), method="sft", base_model="little"))
    registry.promote(made[0].id, force=True, reason="test")
    return made


def said(version: Version) -> list[str]:
    """What a version says alone, by seed."""
    policy = LanguagePolicy.load(version.folder)
    return [policy.sample([SAID], Sampling(max_tokens=12, seed=seed))[0].output for seed in range(SEEDS)]


class Asking:
    """Clients that ask support@prod again and again, and what they heard."""

    def __init__(self, server: Live, clients: int = 4) -> None:
        self.server, self.heard, self.failed = server, [], []  # type: ignore[var-annotated]
        self.enough = threading.Event()
        self.threads = [threading.Thread(target=self._ask, args=(server.client(),)) for _ in range(clients)]

    def __enter__(self) -> Asking:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.enough.set()
        for thread in self.threads:
            thread.join()

    def _ask(self, client: OpenAI) -> None:
        seed = 0
        while not self.enough.is_set():
            seed = (seed + 1) % SEEDS
            try:
                answer = client.chat.completions.create(
                    model="support@prod", messages=SAID, seed=seed, max_tokens=12, stream=seed == 0
                )
                parts = list(answer) if seed == 0 else [answer]
                text = "".join((c.delta if seed == 0 else c.message).content or "" for p in parts for c in p.choices)
                self.heard.append((parts[0].id, seed, text))
            except Exception as error:
                self.failed.append(error)

    def versions(self) -> list[tuple[str, int, str]]:
        """By which version each answer was, with which seed, and what it said."""
        ids = [name for name, _, _ in self.heard]
        by = {decision.id: decision.record.policy_version for decision in self.server.service.store.decisions(ids)}
        return [(str(by[name]), seed, text) for name, seed, text in list(self.heard) if name in by]

    def wait_for(self, version: Version) -> None:
        """Until somebody has heard a version."""
        until, begun = time.monotonic() + WITHIN_S, len(self.heard)
        while not any(by == version.id for by, _, _ in self.versions()[begun:]):
            assert time.monotonic() < until, f"nobody heard {version.id}: {self.failed[:1]}"
            time.sleep(0.05)


def test_no_request_fails_while_an_alias_moves(server: Live, versions: list[Version]) -> None:
    expected = {version.id: said(version) for version in versions}
    first, second, other = versions
    with Asking(server) as clients, Store.open(server.service.settings.database) as elsewhere:
        registry = Registry(elsewhere)  # whoever promotes need not be the server
        clients.wait_for(first)
        registry.promote(second.id, force=True, reason="an adapter over the same model")
        clients.wait_for(second)
        registry.promote(other.id, force=True, reason="another model")
        clients.wait_for(other)
        registry.rollback("support")
        clients.wait_for(second)
    assert clients.failed == []
    heard = clients.versions()
    assert len(heard) == len(clients.heard) and {by for by, _, _ in heard} == expected.keys()
    assert [text for _, _, text in heard] == [expected[by][seed] for by, seed, _ in heard], "wholly from one version"
    until, voices = time.monotonic() + WITHIN_S, server.service.voices
    while True:
        held = {name for voice in voices.loaded.values() for name in voice.adapters}
        if held == {second.id} and str(Path(other.folder)) not in voices.loaded:
            break
        assert time.monotonic() < until, f"what answers to nothing is still held: {held}, {list(voices.loaded)}"
        time.sleep(0.05)


def test_the_old_version_answers_until_the_new_one_is_loaded(server: Live, versions: list[Version]) -> None:
    first, _, other = versions
    voices, client = server.service.voices, server.client()

    def by() -> str:
        answer = client.chat.completions.create(model="support@prod", messages=SAID, max_tokens=4)
        return str(server.service.store.decisions([answer.id])[0].record.policy_version)

    assert by() == first.id
    with voices.changed:
        voices.coming.add(str(Path(other.folder)))  # as if it took long to load
    Registry(server.service.store).promote(other.id, force=True, reason="test")
    time.sleep(1.2)  # two looks
    assert Counter(by() for _ in range(5)) == {first.id: 5}
    with voices.changed:
        voices.coming.clear()
        voices.changed.notify_all()
    until = time.monotonic() + WITHIN_S
    while by() != other.id:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_version_that_cannot_be_loaded_never_takes_over(server: Live, versions: list[Version]) -> None:
    first, second, _ = versions
    client, store = server.client(), server.service.store

    def by(model: str = "support@prod") -> str:
        answer = client.chat.completions.create(model=model, messages=SAID, max_tokens=4)
        return str(store.decisions([answer.id])[0].record.policy_version)

    assert by() == first.id
    weights = Path(second.folder) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    store.promote("support", "prod", second.id, expected=first.id)  # past the check that would have seen it
    until = time.monotonic() + WITHIN_S
    while second.id not in server.service.aliases.broken:
        assert by() == first.id and time.monotonic() < until
    assert by() == first.id and by("support") == first.id
    with pytest.raises(openai.InternalServerError, match="log says why") as error:
        by(second.id)
    assert str(second.folder) not in str(error.value)
    voices = server.service.voices
    with voices.changed:  # as if others had needed the room
        assert all([voice.stop_if_idle() for voice in voices.loaded.values()])
        voices.loaded.clear()
    assert by() == first.id
    with voices.changed:
        assert all([voice.stop_if_idle() for voice in voices.loaded.values()])
        voices.loaded.clear()
    server.service.aliases.broken.clear()  # as a server that has not tried it yet
    server.service.aliases.seen.clear()
    assert by() == first.id and second.id in server.service.aliases.broken
    Registry(store).rollback("support")
    assert by() == first.id


@pytest.fixture
def promoted(server: Live) -> Iterator[Promote]:
    with promoting(server.service.settings.database) as promote:
        yield promote


def test_a_promotion_that_is_killed_leaves_the_whole_old_or_the_whole_new_version(
    server: Live, versions: list[Version], promoted: Promote
) -> None:
    first, second, _ = versions
    client, store = server.client(), server.service.store
    registry = Registry(store)
    expected = {version.id: said(version)[1] for version in (first, second)}
    outcomes: list[tuple[bool, bool]] = []
    for at in range(200):
        done = promoted(at, second, first)
        held = store.alias("support", "prod")
        assert held is not None and store.alias_event(held.event_id).version_id == held.version_id
        moved = held.version_id == second.id
        answer = client.chat.completions.create(model="support@prod", messages=SAID, seed=1, max_tokens=12)
        by = str(store.decisions([answer.id])[0].record.policy_version)
        assert by in expected and answer.choices[0].message.content == expected[by]
        outcomes.append((done, moved))
        if moved:
            assert registry.rollback("support").id == first.id
        assert registry.get("support@prod").id == first.id
        if done:
            break
    assert outcomes[-1] == (True, True) and (False, False) in outcomes and (False, True) in outcomes
    moves = [moved for _, moved in outcomes]
    assert moves == sorted(moves) and len(moves) > 10, "killed early it is the old one, killed late the new one"
