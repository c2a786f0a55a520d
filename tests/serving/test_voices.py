"""the thread that decodes: whatever fails, it goes on, and whoever asked is told"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from melior.errors import ConfigError
from melior.policies.engine import Sample
from melior.policies.language import LanguagePolicy
from melior.serving.voices import Ticket, Voice
from melior.types import Sampling

CONTEXT = (5, 6, 7)
ENDLESS = ((1, -100.0), (3, -100.0))  # never what ends an answer
SETTINGS = Sampling(max_tokens=4, logit_bias=ENDLESS)
WAIT_S = 60.0

Voices = Callable[[], Voice]


@pytest.fixture
def new_voice(shared_policy: Callable[..., LanguagePolicy]) -> Iterator[Voices]:
    """`new_voice()` has a thread of its own, over one policy."""
    made: list[Voice] = []

    def make() -> Voice:
        made.append(Voice(shared_policy("llama")))
        return made[-1]

    yield make
    for voice in made:
        voice.stop()


def ask(voice: Voice, settings: Sampling = SETTINGS) -> Ticket:
    return voice.ask(CONTEXT, settings, streams=False, loop=asyncio.get_running_loop())


async def answered(ticket: Ticket) -> Sample:
    async def last() -> Sample:
        (piece,) = [piece async for piece in ticket.read()]
        assert piece.sample is not None
        return piece.sample

    return await asyncio.wait_for(last(), WAIT_S)


def test_a_request_that_the_engine_does_not_take_fails_alone(new_voice: Voices) -> None:
    async def both() -> None:
        voice = new_voice()
        odd, good = ask(voice, Sampling(max_tokens=4, logit_bias=((99_999, 1.0),))), ask(voice)
        with pytest.raises(ConfigError, match="99999"):
            await answered(odd)
        assert (await answered(good)).finish == "length"

    asyncio.run(both())


def test_a_request_that_cannot_be_cancelled_does_not_end_the_voice(
    new_voice: Voices, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def three() -> None:
        voice = new_voice()
        step, go = voice.engine.step, threading.Event()
        monkeypatch.setattr(voice.engine, "step", lambda: go.wait(WAIT_S) and step())
        monkeypatch.setattr(voice.engine, "cancel", lambda number: 1 / 0)
        ticket = ask(voice)
        ticket.cancel()
        go.set()
        with pytest.raises(RuntimeError, match="the engine failed"):
            await answered(ticket)
        assert (await answered(ask(voice))).finish == "length"

    asyncio.run(three())


def test_an_engine_that_cannot_be_made_anew_is_tried_again(new_voice: Voices, monkeypatch: pytest.MonkeyPatch) -> None:
    async def two() -> None:
        voice = new_voice()
        monkeypatch.setattr(voice.engine, "step", lambda: 1 / 0)
        with monkeypatch.context() as patched:
            tried = threading.Event()

            def no_room() -> None:
                tried.set()
                raise RuntimeError("out of memory")

            patched.setattr(voice.policy, "engine", no_room)
            for _ in range(2):
                tried.clear()
                with pytest.raises(RuntimeError, match="the engine failed"):
                    await answered(ask(voice))
                assert await asyncio.to_thread(tried.wait, WAIT_S)
        assert (await answered(ask(voice))).finish == "length"

    asyncio.run(two())


def test_requests_of_two_voices_that_have_one_number_are_told_apart(
    new_voice: Voices, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def two() -> None:
        voices, go = (new_voice(), new_voice()), threading.Event()
        for voice in voices:
            monkeypatch.setattr(voice, "_read", lambda: go.wait(WAIT_S))
        mine, other = map(ask, voices)
        assert mine.id == other.id
        mine.cancel()
        go.set()
        assert (await answered(other)).finish == "length"
        assert (await answered(mine)).finish == "cancelled"

    asyncio.run(two())
