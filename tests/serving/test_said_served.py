"""what a chat can say: JSON that fits its schema, calls of tools, and how likely every token was"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jsonschema
import openai
import pytest
import torch
from live import TOKEN, Live
from openai import OpenAI
from pydantic import BaseModel, Field
from tiny import VOCABULARY

from melior.policies.language import LanguagePolicy
from melior.policies.weights import resolve
from melior.registry import Registry
from melior.types import Record

SAID: Any = [{"role": "user", "content": "say something"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "a sum",
        "parameters": {
            "type": "object",
            "properties": {"a": {"enum": [1, 2, 3]}, "word": {"type": "string", "maxLength": 4}},
            "required": ["a", "word"],
            "additionalProperties": False,
        },
    },
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
OTHER: Any = {"type": "function", "function": {"name": "stop", "parameters": NOTHING}}


class Ticket(BaseModel):
    topic: Literal["parcel", "invoice", "other"]
    urgent: bool
    lines: list[int] = Field(max_length=2)
    note: str = Field(max_length=5)


@pytest.fixture
def tiny(live: Callable[..., Live], folder_of: Callable[..., Path]) -> Live:
    """A server with a tiny model called tiny@prod, whose template shows tools, and one called plain@prod."""
    made = live()
    registry = Registry(made.service.store)
    for name, template in (("tiny", "hermes"), ("plain", "chatml")):
        version = registry.register(
            name, folder_of("llama", template, max_position_embeddings=2048), method="none", base_model=name
        )
        registry.promote(version.id, force=True, reason="the only one")
    return made


@pytest.fixture
def client(tiny: Live) -> OpenAI:
    return tiny.client()


def ask(client: OpenAI, **more: Any) -> Any:
    asked: dict[str, Any] = {"model": "tiny@prod", "messages": SAID, "max_tokens": 150, "seed": 3}
    return client.chat.completions.create(**{**asked, **more})


def deep(levels: int) -> Any:
    schema: Any = {"type": "object"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def fits(name: str, schema: Any, **more: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, **more}}


# ---------------------------------------------------------------------- structured output


def test_an_answer_parses_as_the_model_it_was_asked_for(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="tiny@prod", messages=SAID, response_format=Ticket, max_tokens=200, seed=1, n=3
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop" and isinstance(choice.message.parsed, Ticket)
    assert len({choice.message.content for choice in answer.choices}) > 1


def test_a_stream_parses_too_and_says_the_same(client: OpenAI) -> None:
    how: Any = {"model": "tiny@prod", "messages": SAID, "response_format": Ticket, "max_tokens": 200, "seed": 5}
    with client.chat.completions.stream(**how) as stream:
        deltas = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion().choices[0].message
    assert final.parsed == client.chat.completions.parse(**how).choices[0].message.parsed and final.content == deltas


def test_json_object_is_an_object_and_a_cut_is_told(client: OpenAI) -> None:
    answers = [ask(client, response_format={"type": "json_object"}, seed=seed).choices[0] for seed in range(3)]
    for choice in answers:
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)
    assert "stop" in {choice.finish_reason for choice in answers}
    cut = ask(client, response_format=fits("t", Ticket.model_json_schema()), max_tokens=6)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 6
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="tiny@prod", messages=SAID, response_format=Ticket, max_tokens=6)


def test_constrained_and_free_requests_share_a_batch_and_change_nothing_for_each_other(client: OpenAI) -> None:
    schema = fits("t", Ticket.model_json_schema())

    def one(seed: int) -> tuple[str, str]:
        more: dict[str, Any] = {"response_format": schema} if seed % 2 else {"max_tokens": 20}
        (choice,) = ask(client, seed=seed, **more).choices
        return choice.message.content, choice.finish_reason

    alone = [one(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(one, range(6))) == alone
    for text, finish in alone[1::2]:
        if finish == "stop":
            jsonschema.validate(json.loads(text), Ticket.model_json_schema())


def test_a_constrained_answer_is_logged_as_what_it_was_drawn_from(tiny: Live, client: OpenAI) -> None:
    answer = ask(client, response_format=fits("x", {"enum": ["parcel"]}), logprobs=True)
    (decision,) = tiny.service.store.decisions([answer.id])
    assert decision.record.sampling is not None and decision.record.sampling.truncated
    assert '"parcel"' in decision.record.sampling.constraint and decision.record.output == '"parcel"'
    assert decision.record.behavior_log_probs is not None and decision.record.behavior_log_probs[-1] == 0.0
    own = [token.logprob for token in answer.choices[0].logprobs.content]
    assert sum(own) < sum(decision.record.behavior_log_probs), "the policy itself found it less likely"


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (fits("x", {"type": "object", "not": {}}), "not"),
        (fits("x", {"type": "array", "uniqueItems": True}), "uniqueItems"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "json_schema.schema"),
        ({"type": "xml"}, "xml"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused_by_name(client: OpenAI, asked: Any, named: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as error:
            ask(client, response_format=asked, stream=stream)
        assert named in error.value.message and error.value.code == "unsupported_value"


def test_a_job_is_not_trained_under_a_response_format(client: OpenAI) -> None:
    grader = {"type": "string_check", "name": "g", "operation": "eq", "input": "a", "reference": "a"}
    method: Any = {"type": "reinforcement", "reinforcement": {"grader": grader, "response_format": fits("x", NOTHING)}}
    with pytest.raises(openai.BadRequestError) as error:
        client.fine_tuning.jobs.create(model="tiny@prod", training_file="file_x", method=method)
    assert error.value.param == "method.reinforcement.response_format"


# ---------------------------------------------------------------------- tools


def test_a_call_that_is_required_is_made_and_its_result_is_read(tiny: Live, client: OpenAI) -> None:
    answer = ask(client, tools=[TOOL, OTHER], tool_choice="required", n=4)
    for choice in answer.choices:
        (call,) = choice.message.tool_calls
        tool = {"add": TOOL, "stop": OTHER}[call.function.name]
        jsonschema.validate(json.loads(call.function.arguments), tool["function"]["parameters"])
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        assert call.id.startswith("call_") and call.type == "function"
    assert len({choice.message.tool_calls[0].id for choice in answer.choices}) == 4
    (decision,) = tiny.service.store.decisions([answer.id])
    assert str(decision.record.output).startswith("<tool_call>\n{") and decision.record.inputs["tools"] == [TOOL, OTHER]
    said = answer.choices[0].message
    result = {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": [{"type": "text", "text": "3"}]}
    then = ask(client, messages=[*SAID, said, result], tools=[TOOL, OTHER], max_tokens=5)
    context = tiny.service.store.decisions([then.id])[0].record.context
    shown = LanguagePolicy.load(Registry(tiny.service.store).get("tiny@prod").folder).renderer.text(context)
    arguments = json.loads(said.tool_calls[0].function.arguments)
    assert f'"arguments": {json.dumps(arguments, ensure_ascii=False)}' in shown and "tool\n3<|im_end|>" in shown


def test_a_named_function_is_called_and_a_stream_tells_it_whole(client: OpenAI) -> None:
    how: Any = {"tools": [TOOL, OTHER], "tool_choice": {"type": "function", "function": {"name": "add"}}}
    whole = ask(client, **how).choices[0]
    assert whole.message.tool_calls[0].function.name == "add"
    calls: list[Any] = []
    finish, text = None, ""
    for chunk in ask(client, stream=True, **how):
        text += chunk.choices[0].delta.content or ""
        calls += chunk.choices[0].delta.tool_calls or []
        finish = chunk.choices[0].finish_reason or finish
    assert [(call.index, call.function.name, call.function.arguments) for call in calls] == [
        (0, "add", whole.message.tool_calls[0].function.arguments)
    ]
    assert finish == "tool_calls" and text == ""


def test_a_model_that_may_call_a_tool_or_answer_in_json_does_one_of_them(tiny: Live, client: OpenAI) -> None:
    policy = LanguagePolicy.load(Registry(tiny.service.store).get("tiny@prod").folder)
    (begins_a_call,) = policy.renderer.tokenizer("<", add_special_tokens=False)["input_ids"]
    for bias, finish in ((-50, "stop"), (50, "tool_calls")):
        likely = {str(begins_a_call): bias}
        (choice,) = ask(client, tools=[OTHER], response_format=fits("x", {"enum": ["a"]}), logit_bias=likely).choices
        assert choice.finish_reason == finish
        if finish == "stop":
            assert json.loads(choice.message.content) == "a" and choice.message.tool_calls is None
        else:
            assert choice.message.tool_calls[0].function.name == "stop" and choice.message.content is None


def test_what_a_model_says_freely_stays_text_where_it_calls_nothing(client: OpenAI) -> None:
    whole = ask(client, tools=[TOOL], n=3, max_tokens=20)
    texts: dict[int, str] = {}
    for chunk in ask(client, tools=[TOOL], n=3, max_tokens=20, stream=True):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert all(choice.message.tool_calls is None for choice in whole.choices)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "plain@prod", "tools": [TOOL]}, "does not show tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "nobody"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0]"),
        ({"tool_choice": "required"}, "no tools"),
        ({"tools": [TOOL], "tool_choice": "perhaps"}, "perhaps"),
        ({"functions": [{"name": "old"}]}, "functions"),
        ({"top_logprobs": 3}, "logprobs: true"),
        ({"logit_bias": {"x": 1}}, "token ids"),
        ({"logit_bias": {"99999": 1}}, "99999"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "parts"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "robot"),
        ({"response_format": {"type": "json_schema", "json_schema": [1]}}, "json_schema.schema"),
        ({"response_format": fits("x", deep(450))}, "nested too deeply"),
    ],
)
def test_what_cannot_be_said_or_read_is_told(client: OpenAI, change: dict[str, Any], told: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as error:
            ask(client, stream=stream, **change)
        assert told in str(error.value)


def test_half_a_character_is_no_text(tiny: Live) -> None:
    half = {
        "model": "tiny@prod",
        "max_tokens": 2,
        "messages": [{"role": "user", "content": "\ud800"}],
        "prompt": "\ud800",
    }
    with tiny.http() as http:
        for path in ("chat/completions", "completions"):
            got = http.post(f"/v1/{path}", content=json.dumps(half), headers={"content-type": "application/json"})
            assert got.status_code == 400 and "half of a character" in got.json()["error"]["message"]


# ---------------------------------------------------------------------- log-probs and biases


def test_log_probs_are_the_policys_own_with_true_bytes(tiny: Live, client: OpenAI) -> None:
    for more in ({}, {"temperature": 0}, {"temperature": 0.4, "top_p": 0.8}):
        answer = ask(client, logprobs=True, top_logprobs=4, max_tokens=30, seed=8, **more)
        content = answer.choices[0].logprobs.content
        (decision,) = tiny.service.store.decisions([answer.id])
        policy = LanguagePolicy.load(Registry(tiny.service.store).get("tiny@prod").folder)
        with torch.no_grad():
            record = Record(inputs="", output="", context=decision.record.context, decisions=decision.record.decisions)
            (own,) = policy.log_probs([record])
        assert [token.logprob for token in content] == pytest.approx(own.tolist()[: len(content)], abs=1e-4)
        text = policy.renderer.text([token for token in decision.record.decisions if token < VOCABULARY])
        assert b"".join(bytes(token.bytes) for token in content).decode("utf-8", "replace") == text
        for token in (token for token in content if token.bytes):  # the model has more rows than tokens
            assert (len(token.top_logprobs) == 4 and token.token.encode() == bytes(token.bytes)) or "\\x" in token.token
            assert token.top_logprobs[0].logprob >= token.logprob - 1e-6
        if more.get("temperature") == 0:
            assert all(token.top_logprobs[0].token == token.token for token in content)


@pytest.mark.parametrize("more", [{}, {"n": 2}, {"stop": ["e", "xyz"]}, {"temperature": 0}])
def test_a_stream_tells_the_log_probs_of_what_it_says(client: OpenAI, more: dict[str, Any]) -> None:
    how: dict[str, Any] = {"logprobs": True, "top_logprobs": 1, "max_tokens": 25, "seed": 8, **more}
    whole = ask(client, **how)
    told: dict[int, list[Any]] = {}
    for chunk in ask(client, stream=True, **how):
        for choice in chunk.choices:
            if choice.logprobs:
                told.setdefault(choice.index, []).extend(choice.logprobs.content)
    for choice in whole.choices:
        assert [token.bytes for token in told.get(choice.index, [])] == [t.bytes for t in choice.logprobs.content]


def test_biases_make_tokens_certain_or_impossible(tiny: Live, client: OpenAI) -> None:
    policy = LanguagePolicy.load(Registry(tiny.service.store).get("tiny@prod").folder)
    (letter,) = policy.renderer.tokenizer("x", add_special_tokens=False)["input_ids"]
    assert ask(client, logit_bias={str(letter): 100}, max_tokens=5).choices[0].message.content == "xxxxx"
    varied = ask(client, presence_penalty=2, frequency_penalty=2, logit_bias={str(letter): 6}, max_tokens=40)
    assert varied.choices[0].message.content.count("x") < 10


# ---------------------------------------------------------------------- clients that leave, errors that come


def wait(until: Callable[[], Any], seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (found := until()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("stream", [True, False])
def test_a_connection_that_breaks_ends_its_rows_and_what_was_said_is_no_whole_answer(
    tiny: Live, client: OpenAI, stream: bool
) -> None:
    ask(client, max_tokens=1)
    (voice,) = tiny.service.voices.loaded.values()
    body = json.dumps({"model": "tiny@prod", "messages": SAID, "max_tokens": 400, "n": 2, "stream": stream,
                       "logit_bias": {str(voice.engine.renderer.stop_id): -100}}).encode()  # fmt: skip
    host, port = tiny.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw, ThreadPoolExecutor(1) as thread:
        heads = [
            "POST /v1/chat/completions HTTP/1.1",
            "host: 127.0.0.1",
            f"authorization: Bearer {TOKEN}",
            "content-type: application/json",
            f"content-length: {len(body)}",
        ]
        raw.sendall("\r\n".join([*heads, "", ""]).encode() + body)
        wait(lambda: any(len(row.decisions) > 3 for row in list(voice.engine.rows)))
        other = thread.submit(ask, client, max_tokens=60, seed=4)
        raw.close()
        assert (
            other.result().choices[0].message.content == ask(client, max_tokens=60, seed=4).choices[0].message.content
        )
    wait(lambda: not voice.tickets and not voice.engine.rows)
    left = wait(lambda: [d for d in tiny.service.store.decisions() if d.record.finish == "cancelled"])
    assert len(left) == 2 and all(0 < len(decision.record.decisions or ()) < 400 for decision in left)


def test_an_engine_that_fails_within_a_stream_is_told_as_an_event(tiny: Live, client: OpenAI) -> None:
    ask(client, max_tokens=1)
    (voice,) = tiny.service.voices.loaded.values()
    whole, steps = voice.engine.step, iter(range(100))
    voice.engine.step = lambda: whole() if next(steps) < 3 else 1 / 0  # type: ignore[assignment, return-value]
    with pytest.raises(openai.APIError, match="failed"):
        for _ in ask(client, stream=True):
            pass
    assert ask(client, max_tokens=2).choices


# ---------------------------------------------------------------------- a real model


@pytest.mark.slow
def test_a_small_instruct_model_answers_in_json_that_fits(live: Callable[..., Live]) -> None:
    made = live()
    registry = Registry(made.service.store)
    folder = resolve("smollm2-135m-instruct")
    version = registry.register("small", folder, method="none", base_model="smollm2-135m-instruct")
    registry.promote(version.id, force=True, reason="the only one")
    asked = "My parcel 17 came broken, I need a new one today! Which kind of ticket is it? Answer in JSON."
    answer = made.client().chat.completions.parse(
        model="small@prod",
        messages=[{"role": "user", "content": asked}],
        response_format=Ticket,
        max_tokens=80,
        seed=1,
        n=2,
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop" and choice.message.parsed is not None
