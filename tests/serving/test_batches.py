"""what is asked together is done together, and nobody's mistake is another's"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from live import Live

from melior.policies.classifier import Classifier, ClassifierPolicy
from melior.registry import Registry
from melior.serving.batches import Batches
from melior.serving.deciders import Decider, Wanted
from melior.types import Demonstration, Sampling

ROWS = [
    Demonstration({"height": float(i % 7), "colour": ("red", "blue")[i % 2]}, ("no", "yes")[i % 2]) for i in range(40)
]
GIVEN = {"height": 2.0, "colour": "red"}


def test_what_is_asked_meanwhile_is_one_batch_and_each_gets_its_own() -> None:
    batches, gate = list[list[int]](), threading.Event()

    def work(asked: Sequence[int]) -> list[int | Exception]:
        batches.append(list(asked))
        assert gate.wait(30)
        return [ValueError("three") if number == 3 else 10 * number for number in asked]

    async def ask() -> list[Any]:
        together = Batches(work, most=4)
        asked = [asyncio.create_task(together.do(number)) for number in range(8)]
        await asyncio.sleep(0.05)
        asked[1].cancel()  # it leaves while others wait
        gate.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        return [*found, await together.do(9)]

    found = asyncio.run(ask())
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [9]]
    assert isinstance(found[1], asyncio.CancelledError) and str(found[3]) == "three"
    assert [found[place] for place in (0, 2, 4, 5, 6, 7, 8)] == [0, 20, 40, 50, 60, 70, 90]


def test_work_that_fails_fails_whoever_was_in_it_and_the_next_is_done() -> None:
    def work(asked: Sequence[int]) -> list[int | Exception]:
        if 1 in asked:
            raise RuntimeError("the whole batch")
        return list(asked)

    async def ask() -> list[Any]:
        together = Batches(work, most=4)
        return [*await asyncio.gather(*(together.do(n) for n in (1, 2)), return_exceptions=True), await together.do(3)]

    first, second, third = asyncio.run(ask())
    assert str(first) == str(second) == "the whole batch" and third == 3


@pytest.fixture
def decider() -> Decider:
    return Decider(ClassifierPolicy.make(Classifier(labels=("no", "yes")), ROWS))


def wanted(seed: int, *, given: Any = GIVEN, n: int = 8, seeded: bool = True, temperature: float = 1.0) -> Wanted:
    return Wanted(given, None, Sampling(n=n, seed=seed, temperature=temperature), seeded)


def test_a_seeded_decision_does_not_depend_on_who_else_asks(decider: Decider) -> None:
    (alone,) = decider.decide([wanted(5)])
    batch = [wanted(5, seeded=False), wanted(5), wanted(6, n=3), wanted(5, given={"height": {"deep": 1}})]
    crowd = decider.decide([*batch, wanted(5), wanted(5, temperature=0, n=1, seeded=False)])
    assert not isinstance(alone, Exception) and len({record.output for record in alone}) == 2
    assert isinstance(crowd[3], Exception) and "height" in str(crowd[3])
    sizes = [len(each) for each in crowd if not isinstance(each, Exception)]
    assert sizes == [8, 8, 3, 8, 1]
    for each in (crowd[1], crowd[4]):
        assert each == alone


def test_draws_of_one_batch_are_each_their_own(decider: Decider) -> None:
    found = decider.decide([wanted(seed, n=1, seeded=False) for seed in range(400)])
    said = [each[0] for each in found if not isinstance(each, Exception)]
    chances = {record.output: record.behavior_log_probs for record in said}
    assert len(said) == 400 and len(chances) == 2
    assert {record.behavior_log_probs for record in said} == set(chances.values())


def test_the_log_says_the_same_of_a_decision_whoever_else_asked(decider: Decider) -> None:
    (alone,) = decider.decide([wanted(1, n=2, seeded=False)])
    crowd = decider.decide([wanted(seed, n=2, seeded=False) for seed in range(3)])
    assert not isinstance(alone, Exception)
    groups = {record.group for each in crowd if not isinstance(each, Exception) for record in each}
    assert groups == {record.group for record in alone} and len(groups) == 1


def test_one_that_cannot_be_drawn_fails_alone(decider: Decider, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = decider.policy.sample

    def refusing(inputs: Sequence[Any], *more: Any) -> Any:
        if any(given["height"] > 100 for given in inputs):
            raise RuntimeError("too high")
        return sample(inputs, *more)

    monkeypatch.setattr(decider.policy, "sample", refusing)
    high = {**GIVEN, "height": 101.0}
    asked = [wanted(seed, n=seed + 1, seeded=False, given=high if seed == 1 else GIVEN) for seed in range(3)]
    first, failed, last = decider.decide(asked)
    assert isinstance(failed, RuntimeError) and not isinstance(first, Exception) and not isinstance(last, Exception)
    assert (len(first), len(last)) == (1, 3)


def test_many_ask_a_server_at_once_and_each_decision_is_in_the_log(live: Callable[..., Live], tmp_path: Path) -> None:
    server = live()
    store, registry = server.service.store, Registry(server.service.store)
    ClassifierPolicy.make(Classifier(labels=("no", "yes")), ROWS).save(tmp_path / "label")
    version = registry.register("label", tmp_path / "label", method="sft", base_model="none")
    registry.promote(version.id, force=True, reason="first")

    def decide(number: int) -> Any:
        given = {"height": {"deep": 1}} if number % 5 == 4 else {"height": float(number), "colour": "red"}
        with server.http() as client:
            return client.post("/v1/decisions", json={"model": "label@prod", "input": given, "seed": 3})

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(decide, range(40)))
    assert [answer.status_code for answer in answers] == [400 if number % 5 == 4 else 200 for number in range(40)]
    kept = {row.id: row.record for row in store.decisions()}
    good = [answer.json() for answer in answers if answer.status_code == 200]
    assert len(kept) == len(good) == 32
    numbers = [number for number in range(40) if number % 5 != 4]
    for number, told in zip(numbers, good, strict=True):
        record = kept[told["decision_id"]]
        assert record.inputs["height"] == number and record.output == told["output"]
        assert decide(number).json()["output"] == told["output"]
