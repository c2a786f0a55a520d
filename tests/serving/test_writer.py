"""feedback of many requests: written together, told one by one, and no more waiting than can be written soon"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from melior.errors import StoreError
from melior.serving.problems import Problem
from melior.serving.writer import Writer
from melior.store import Store
from melior.store.feedback import Said
from melior.store.log import Decided
from melior.store.rows import Feedback
from melior.types import Record


def said(about: str, number: int, **more: str) -> Said:
    return Said(metric="m", value=number, decision_id=about, feedback_id=f"id-{number}", **more)


def test_what_waits_is_bounded_and_whoever_is_refused_is_told_when_to_come_again(tmp_path: Path) -> None:
    with Store.open(tmp_path / "melior.db") as store:
        about = store.add_records([Record(inputs="a", output="b")])[0]
        writer = Writer(store, most_waiting=5)

        async def ask() -> list[Feedback | BaseException]:
            asked = [asyncio.create_task(writer.write(said(about, number))) for number in range(8)]
            await asyncio.sleep(0)  # all have asked, and nobody writes yet
            writer.start()
            return await asyncio.gather(*asked, return_exceptions=True)

        results = asyncio.run(ask())
        writer.stop()
        assert [row.id for row in store.feedback()] == [f"id-{number}" for number in range(5)]
        assert [result.value for result in results[:5] if isinstance(result, Feedback)] == list(range(5))
        for refused in results[5:]:
            assert isinstance(refused, Problem) and refused.status == 503 and refused.code == "overloaded"
            assert refused.headers == {"x-should-retry": "true", "retry-after": "1"}


def test_each_is_told_what_became_of_its_own(tmp_path: Path) -> None:
    with Store.open(tmp_path / "melior.db") as store:
        about = store.add_records([Record(inputs="a", output="b")])[0]
        writer = Writer(store)

        async def ask() -> list[Feedback | BaseException]:
            asked = [writer.write(said("dec_none" if number == 2 else about, number)) for number in range(4)]
            writer.start()
            return await asyncio.gather(*asked, return_exceptions=True)

        results = asyncio.run(ask())
        writer.stop()
        assert isinstance(results[2], StoreError) and "dec_none" in str(results[2])
        assert [row.value for row in store.feedback()] == [0, 1, 3]
        with pytest.raises(Problem, match="this server is stopping"):
            asyncio.run(writer.write(said(about, 9)))


def test_whoever_left_costs_the_others_nothing(tmp_path: Path) -> None:
    with Store.open(tmp_path / "melior.db") as store:
        about = store.add_records([Record(inputs="a", output="b")])[0]
        writer = Writer(store)

        async def ask() -> Feedback:
            leaves = asyncio.create_task(writer.write(said(about, 1)))
            stays = asyncio.create_task(writer.write(said(about, 2)))
            await asyncio.sleep(0)
            leaves.cancel()
            writer.start()
            return await stays

        assert asyncio.run(ask()).value == 2
        writer.stop()
        assert {row.value for row in store.feedback()} == {1, 2}, "what was taken is kept, heard or not"


def test_what_waited_in_vain_is_not_written_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("melior.serving.writer.WAIT_S", 0.05)
    with Store.open(tmp_path / "melior.db") as store:
        about = store.add_records([Record(inputs="a", output="b")])[0]
        writer = Writer(store)
        with pytest.raises(Problem, match="nothing was kept, send it again") as late:
            asyncio.run(writer.write(Said(metric="m", value=1, decision_id=about)))  # nobody writes yet
        assert late.value.headers["x-should-retry"] == "true"
        writer.start()
        writer.stop()
        assert not store.feedback()


@pytest.mark.parametrize(
    ("what", "told", "retry"),
    [
        (Said(metric="m", value=1, episode_id="e", feedback_id="mine"), "send it again, it will be kept once", "true"),
        (Said(metric="m", value=1, episode_id="e"), "it may be kept all the same, and twice", "false"),
        (Decided(["dec_1"], [Record(inputs="a", output="b")]), "what was decided may be in the log", "false"),
    ],
)
def test_only_what_has_an_id_of_its_sender_is_sent_again_while_it_may_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: Said | Decided, told: str, retry: str
) -> None:
    monkeypatch.setattr("melior.serving.writer.WAIT_S", 0.05)
    with Store.open(tmp_path / "melior.db") as store:
        writer = Writer(store)

        async def ask() -> Any:
            asked = asyncio.ensure_future(writer.log(what) if isinstance(what, Decided) else writer.write(what))
            await asyncio.sleep(0)
            assert writer._next(), "from now on it is being written"
            return await asked

        with pytest.raises(Problem, match=told) as late:
            asyncio.run(ask())
        headers = late.value.headers
        assert headers["x-should-retry"] == retry and ("retry-after" in headers) == (retry == "true")
