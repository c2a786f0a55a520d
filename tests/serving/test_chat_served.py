"""chat through the official client: what the policy would say alone, streamed or whole, and all of it in the log"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from live import Live
from openai import OpenAI

from melior.policies.language import LanguagePolicy
from melior.registry import Registry
from melior.types import Sampling

SAID: Any = [{"role": "user", "content": "say something"}]


@pytest.fixture
def tiny(live: Callable[..., Live], folder_of: Callable[..., Path]) -> Live:
    """A server with a tiny model called tiny@prod."""
    made = live()
    registry = Registry(made.service.store)
    version = registry.register("tiny", folder_of("llama", "chatml"), method="none", base_model="tiny")
    registry.promote(version.id, force=True, reason="the only one")
    return made


@pytest.fixture
def client(tiny: Live) -> OpenAI:
    return tiny.client()


def ask(client: OpenAI, **more: Any) -> Any:
    asked: dict[str, Any] = {"model": "tiny@prod", "messages": SAID, "max_tokens": 12, "seed": 3}
    return client.chat.completions.create(**{**asked, **more})


def streamed(client: OpenAI, **more: Any) -> tuple[dict[int, str], dict[int, str], Any]:
    """Text and finish reason of every choice, and the last chunk."""
    texts: dict[int, str] = {}
    finish: dict[int, str] = {}
    chunk = None
    for chunk in ask(client, stream=True, **more):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                finish[choice.index] = choice.finish_reason
    return texts, finish, chunk


def policy_of(server: Live) -> LanguagePolicy:
    return LanguagePolicy.load(Registry(server.service.store).get("tiny@prod").folder)


def test_an_answer_is_what_the_policy_says_alone(tiny: Live, client: OpenAI) -> None:
    for settings in ({"temperature": 0}, {"temperature": 0.7, "top_p": 0.9}, {"n": 3}):
        answer = ask(client, **settings)
        alone = policy_of(tiny).sample([SAID], Sampling(max_tokens=12, seed=3, **settings))  # type: ignore[arg-type]
        assert [choice.message.content for choice in answer.choices] == [record.output for record in alone]
        assert [choice.finish_reason for choice in answer.choices] == [record.finish for record in alone]
        assert answer.usage.completion_tokens == sum(len(record.decisions or ()) for record in alone)
        assert answer.id.startswith("chatcmpl") and answer.model == "tiny@prod"


def test_an_answer_is_a_decision_in_the_log_that_can_be_learnt_from(tiny: Live, client: OpenAI) -> None:
    answer = ask(client, n=2, logprobs=True)
    store = tiny.service.store
    first, second = store.decisions([answer.id, f"{answer.id}:1"])
    assert [first.record.output, second.record.output] == [choice.message.content for choice in answer.choices]
    assert first.alias == "prod" and first.record.policy_version == Registry(store).get("tiny@prod").id
    by_name, by_id = (ask(client, model=model) for model in ("tiny", first.record.policy_version))
    assert [one.alias for one in store.decisions([by_name.id, by_id.id])] == ["prod", None]
    told = [token.logprob for token in answer.choices[0].logprobs.content]
    assert first.record.behavior_log_probs is not None and first.record.decisions is not None
    said = [lp for token, lp in zip(first.record.decisions, first.record.behavior_log_probs, strict=True) if token != 3]
    assert told == pytest.approx(said, abs=1e-6), "at temperature 1 both are the policy's own"
    for decision in (first, second):
        (scored,) = policy_of(tiny).log_probs([decision.record])
        assert decision.record.behavior_log_probs is not None
        recorded = torch.tensor(decision.record.behavior_log_probs)
        assert (scored.float() - recorded).abs().max() < 1e-4


@pytest.mark.parametrize("more", [{}, {"n": 3}, {"temperature": 0}, {"stop": ["e", "xyz"]}, {"max_tokens": 1}])
def test_a_stream_says_what_the_whole_answer_says(client: OpenAI, more: dict[str, Any]) -> None:
    whole = ask(client, **more)
    texts, finish, _ = streamed(client, **more)
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert finish == {choice.index: choice.finish_reason for choice in whole.choices}


def test_a_stream_tells_what_it_cost_where_that_is_asked(tiny: Live, client: OpenAI) -> None:
    _, _, last = streamed(client, stream_options={"include_usage": True})
    assert last.choices == [] and last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    assert tiny.service.store.decisions([last.id])


def test_requests_that_come_together_get_the_answers_they_would_get_alone(client: OpenAI) -> None:
    alone = [ask(client, seed=seed).choices[0].message.content for seed in range(8)]

    def again(seed: int) -> str:
        if seed % 2:
            return streamed(client, seed=seed)[0][0]
        return str(ask(client, seed=seed).choices[0].message.content)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(again, range(8))) == alone


def test_a_client_that_leaves_costs_nothing_more(tiny: Live, client: OpenAI) -> None:
    stream = ask(client, stream=True, max_tokens=400, stop=None)
    next(iter(stream))
    stream.close()
    (voice,) = tiny.service.voices.loaded.values()
    until = time.monotonic() + 20
    while voice.tickets or voice.engine.rows:
        assert time.monotonic() < until, "it is still being answered"
        time.sleep(0.02)
    assert ask(client).choices, "the others are answered as before"


def test_an_engine_that_fails_tells_its_requests_and_begins_anew(tiny: Live, client: OpenAI) -> None:
    ask(client)
    (voice,) = tiny.service.voices.loaded.values()
    whole = voice.engine.step
    voice.engine.step = lambda: 1 / 0  # type: ignore[assignment]
    with pytest.raises(openai.InternalServerError) as error:
        ask(client)
    assert "ZeroDivision" not in str(error.value) and voice.engine.step != whole
    assert ask(client).choices


def test_a_server_that_stops_finishes_what_it_says(tiny: Live, client: OpenAI) -> None:
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(streamed(client, max_tokens=60)))
    thread.start()
    until = time.monotonic() + 20
    while not any(voice.tickets for voice in tiny.service.voices.loaded.values()):
        assert time.monotonic() < until
        time.sleep(0.005)
    tiny.service.draining.set()
    with pytest.raises(openai.APIStatusError) as error:
        ask(client)
    assert error.value.status_code == 503
    thread.join()
    assert got[0][1][0] in ("stop", "length")


def test_what_is_stored_can_be_listed_labelled_read_and_deleted(client: OpenAI) -> None:
    kept = ask(client, store=True, metadata={"topic": "tea"})
    ask(client, store=True)
    ask(client)
    assert len(list(client.chat.completions.list())) == 2
    assert [found.id for found in client.chat.completions.list(metadata={"topic": "tea"})] == [kept.id]
    assert client.chat.completions.retrieve(kept.id).choices[0].message.content == kept.choices[0].message.content
    assert client.chat.completions.update(kept.id, metadata={"topic": "coffee"}).metadata == {"topic": "coffee"}
    (said,) = client.chat.completions.messages.list(kept.id)
    assert said.content == "say something" and said.role == "user"
    assert client.chat.completions.delete(kept.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(kept.id)


def test_messages_that_bring_names_of_their_own_are_paged_as_all_are(tiny: Live, client: OpenAI) -> None:
    said = [{"role": "user", "content": text, "id": "mine"} for text in ("a", "b", "c")]
    kept = ask(client, store=True, messages=said)
    (first, second, third) = tiny.service.store.completion(kept.id).request["messages"]
    assert [one["content"] for one in (first, second, third)] == ["a", "b", "c"]
    found = list(client.chat.completions.messages.list(kept.id, limit=1))
    assert [message.content for message in found] == ["a", "b", "c"] and len({message.id for message in found}) == 3


def test_feedback_finds_the_answer_it_is_about(tiny: Live, client: OpenAI) -> None:
    answer = ask(client)
    with tiny.http() as http:
        given = http.post("/v1/feedback", json={"metric_name": "thumbs", "value": True, "inference_id": answer.id})
    assert given.status_code == 200 and tiny.service.store.feedback(decision_id=answer.id)[0].value is True


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        ({"model": "gpt-4"}, 404, "there is no model 'gpt-4'"),
        ({"model": "../../etc"}, 404, "there is no model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"content": "no role"}]}, 400, "roles"),
        ({"max_tokens": 100_000}, 400, "exceed the context"),
        ({"temperature": 3}, 400, "temperature"),
        ({"frequency_penalty": 3.0}, 400, "frequency_penalty"),
        ({"tool_choice": "required", "tools": []}, 400, "tool_choice"),
    ],
)
def test_what_cannot_be_answered_is_told(client: OpenAI, change: dict[str, Any], status: int, told: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.APIStatusError) as error:
            ask(client, stream=stream, **change)
        assert error.value.status_code == status and told in str(error.value)
