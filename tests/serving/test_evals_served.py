"""scripts written for OpenAI's evals work here: evals, runs of models and of outputs that are there, output items"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from live import Live
from openai import OpenAI

from melior.errors import ModelError
from melior.jobs.worker import Worker
from melior.policies.weights import resolve
from melior.registry import Registry

SCHEMA = {
    "type": "object",
    "properties": {"word": {"type": "string"}, "say": {"type": "string"}},
    "required": ["word"],
}
CONFIG: Any = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
HAS: Any = {
    "type": "string_check",
    "name": "has the word",
    "operation": "ilike",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.word }}",
}
LONG: Any = {
    "type": "python",
    "name": "long",
    "source": "def grade(sample, item):\n    return len(sample['output_text'])",
    "pass_threshold": 6,
}
KIND: Any = {
    "type": "label_model",
    "name": "kind",
    "model": "judge",
    "input": [{"role": "user", "content": "Is this kind? {{sample.output_text}}"}],
    "labels": ["kind", "rude"],
    "passing_labels": ["kind"],
}
LIKE: Any = {
    "type": "text_similarity",
    "name": "alike",
    "input": "{{sample.output_text}}",
    "reference": "{{item.word}}",
    "evaluation_metric": "fuzzy_match",
    "pass_threshold": 0.9,
}
ASK: Any = {
    "type": "template",
    "template": [
        {"role": "developer", "content": "Say the word."},
        {"role": "user", "content": {"type": "input_text", "text": "{{ item.say }} {{item.word}}"}},
    ],
}
WORDS = ("cat", "hat", "mat", "e", "a", "the")


def rows(count: int = 6) -> list[Any]:
    return [{"item": {"word": WORDS[n % len(WORDS)], "say": f"say {n}"}} for n in range(count)]


def given(*outputs: str) -> list[Any]:
    return [{"item": {"word": "cat"}, "sample": {"output_text": output}} for output in outputs]


@pytest.fixture
def working(live: Callable[..., Live], folder_of: Callable[..., Path]) -> Live:
    """A server with a tiny model called tiny@prod, whose jobs are done when a test says so."""
    made = live(work=False)
    registry = Registry(made.service.store)
    for name in ("tiny", "judge"):
        version = registry.register(name, folder_of("llama", "chatml"), method="none", base_model="tiny")
        registry.promote(version.id, force=True, reason="the only one")
    return made


@pytest.fixture
def client(working: Live) -> OpenAI:
    return working.client()


def work(server: Live) -> None:
    """Does all jobs that wait."""
    service = server.service
    Worker(service.store, service.settings.database, beat_s=0.1).work(service.draining, once=True)


def created(client: OpenAI, *criteria: Any, **more: Any) -> Any:
    asked = {"name": "words", "data_source_config": CONFIG, "testing_criteria": list(criteria or (HAS,)), **more}
    return client.evals.create(**asked)


def asking(content: list[Any], **more: Any) -> Any:
    source = {"type": "file_content", "content": content}
    made = {"type": "completions", "source": source, "input_messages": ASK, "model": "tiny@prod"}
    return {**made, "sampling_params": {"max_completion_tokens": 8, "seed": 5}, **more}


def jsonl(content: list[Any]) -> Any:
    return {"type": "jsonl", "source": {"type": "file_content", "content": content}}


# ---------------------------------------------------------------------- evals


def test_evals_are_made_found_changed_listed_and_deleted(client: OpenAI) -> None:
    first, second = created(client, metadata={"team": "desk"}), created(client, HAS, LONG, name="other")
    assert first.object == "eval" and first.metadata == {"team": "desk"} and first.name == "words"
    schema = first.data_source_config.schema_
    assert schema["properties"]["item"] == SCHEMA and schema["required"] == ["item", "sample"]
    assert client.evals.retrieve(second.id).testing_criteria[1].to_dict() == LONG
    changed = client.evals.update(first.id, name="new", metadata={})
    assert (changed.name, changed.metadata) == ("new", {}) and client.evals.retrieve(first.id).name == "new"
    assert [found.id for found in client.evals.list(limit=1)] == [first.id, second.id], "pages follow each other"
    assert [found.id for found in client.evals.list(order="desc")] == [second.id, first.id]
    assert [found.id for found in client.evals.list(order_by="updated_at")] == [second.id, first.id]
    gone = client.evals.delete(first.id)
    assert (gone.deleted, gone.eval_id, gone.object) == (True, first.id, "eval.deleted")
    for call in (client.evals.retrieve, client.evals.delete, client.evals.runs.list):
        with pytest.raises(openai.NotFoundError, match="there is no eval"):
            call(first.id)


def without(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key != name}


@pytest.mark.parametrize(
    ("change", "param", "told"),
    [
        (
            {"data_source_config": {**CONFIG, "item_schema": {"type": "strin"}}},
            "data_source_config.item_schema",
            "no JSON",
        ),
        (
            {"data_source_config": {**CONFIG, "item_schema": {"$ref": "http://127.0.0.1:1/s.json"}}},
            "data_source_config.item_schema",
            "nothing is fetched",
        ),
        ({"data_source_config": {"type": "magic"}}, "data_source_config", "custom"),
        ({"testing_criteria": []}, "testing_criteria", "at least 1"),
        (
            {"testing_criteria": [{**HAS, "reference": "{{item.wrod}}"}]},
            "testing_criteria.0.reference",
            "names 'wrod', and the schema of items has word, say",
        ),
        ({"testing_criteria": [HAS, {**HAS, "input": "{{sample.text}}"}]}, "testing_criteria.1", "output_text"),
        ({"testing_criteria": [{**HAS, "operation": "is"}]}, "testing_criteria.0", "no operation 'is'"),
        (
            {"testing_criteria": [{"type": "function", "function": "os:system"}]},
            "testing_criteria.0.type",
            "not served",
        ),
        ({"testing_criteria": [without("pass_threshold", LIKE)]}, "testing_criteria.0", "give pass_threshold"),
        (
            {"data_source_config": {"type": "custom", "item_schema": SCHEMA}},
            "testing_criteria.0.input",
            "set include_sample_schema",
        ),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata", "16"),
    ],
)
def test_what_no_eval_can_be(client: OpenAI, change: dict[str, Any], param: str, told: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        created(client, **change)
    body: Any = error.value.body
    assert told in body["message"] and body["param"].startswith(param), body


# ---------------------------------------------------------------------- runs


def test_a_model_is_asked_and_graded(working: Live, client: OpenAI) -> None:
    made = created(client, HAS, {**LONG, "pass_threshold": 1}, KIND)
    run = client.evals.runs.create(made.id, name="first", data_source=asking(rows(6)), metadata={"try": "1"})
    assert (run.status, run.object, run.model, run.name) == ("queued", "eval.run", "tiny@prod", "first")
    assert run.result_counts.total == 0 and run.error is None and run.report_url.endswith(f"{made.id}/runs/{run.id}")
    assert not [*client.fine_tuning.jobs.list()], "it is no training"
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve(run.id)
    work(working)
    done = client.evals.runs.retrieve(run.id, eval_id=made.id)
    assert done.status == "completed", done.error
    counts = done.result_counts
    assert counts.total == 6 and counts.passed + counts.failed == 6 and counts.errored == 0
    assert [one.testing_criteria for one in done.per_testing_criteria_results] == ["has the word", "long", "kind"]
    assert done.data_source.to_dict()["source"]["content"] == rows(6)  # type: ignore[union-attr]
    usage, judged = done.per_model_usage
    assert usage.run_model_name == "tiny@prod" and usage.invocation_count == 6
    assert judged.run_model_name == "judge" and judged.invocation_count == 6 and judged.prompt_tokens > 0
    items = [*client.evals.runs.output_items.list(run.id, eval_id=made.id, limit=4)]
    assert [one.datasource_item_id for one in items] == list(range(6)), "pages follow each other"
    assert sum(one.sample.usage.completion_tokens for one in items) == usage.completion_tokens
    first = items[0]
    assert first.datasource_item == rows(1)[0]["item"] and first.sample.seed == 5
    assert [(each.role, each.content) for each in first.sample.input] == [
        ("system", "Say the word."),
        ("user", "say 0 cat"),
    ]
    answer = first.sample.output[0].content or ""
    has, long, kind = first.results
    assert [has.score, long.score] == [float("cat" in answer.lower()), float(len(answer))]
    label = str((kind.sample or {})["reason"]).split()[0]
    assert (kind.score, kind.passed) == (float(label == "kind"), label == "kind") and label in KIND["labels"]
    again = client.evals.runs.output_items.retrieve(first.id, eval_id=made.id, run_id=run.id)
    assert again.to_dict() == first.to_dict()
    passed = [*client.evals.runs.output_items.list(run.id, eval_id=made.id, status="pass")]
    assert len(passed) == counts.passed and all(each.passed for one in passed for each in one.results)
    feedback = working.http().post(
        "/v1/feedback", json={"metric_name": "good", "value": True, "inference_id": first.id}
    )
    assert feedback.status_code == 200, "an output item is a decision like any other"


def test_outputs_in_a_file_are_graded_and_runs_compared(working: Live, client: OpenAI) -> None:
    made = created(client, HAS, LONG)
    words = [f"word{number}" for number in range(40)]

    def run(right: int) -> Any:
        lines = [
            {"item": {"word": word}, "sample": {"output_text": f"it is {word if number < right else 'nothing'}"}}
            for number, word in enumerate(words)
        ]
        content = "\r\n".join(json.dumps(line) for line in lines).encode()
        file = client.files.create(file=("rows.jsonl", content), purpose="evals")
        source: Any = {"type": "jsonl", "source": {"type": "file_id", "id": file.id}}
        found = client.evals.runs.create(made.id, data_source=source)
        client.files.delete(file.id)  # what was asked for is graded all the same
        return found

    before, after, same = run(10), run(30), run(10)
    work(working)
    assert client.evals.runs.retrieve(after.id, eval_id=made.id).result_counts.passed == 30
    http = working.http()
    path = f"/v1/evals/{made.id}/compare"
    told = http.get(path, params={"baseline": before.id, "candidate": after.id}).json()
    passed, has, long = told["results"]
    assert (passed["baseline"], passed["candidate"], passed["difference"]["estimate"]) == (0.25, 0.75, 0.5)
    assert 0 < passed["difference"]["low"] < 0.5 < passed["difference"]["high"] and told["items"] == 40
    assert told["result"] == "promote" and "passed changed by" in told["sentence"], told["sentence"]
    assert has["name"] == "has the word" and long["name"] == "long"
    longer = sum(len(f"it is {word}") - len("it is nothing") for word in words[10:30]) / 40
    assert long["difference"]["estimate"] == pytest.approx(longer)
    back = http.get(path, params={"baseline": after.id, "candidate": before.id}).json()
    assert back["result"] == "reject"
    equal = http.get(path, params={"baseline": before.id, "candidate": same.id}).json()
    assert equal["result"] == "inconclusive" and equal["results"][0]["difference"]["estimate"] == 0


def test_rows_whose_items_have_all_that_is_graded(working: Live, client: OpenAI) -> None:
    same: Any = {**HAS, "operation": "eq", "input": "{{item.said}}"}
    schema = {"type": "object", "properties": {"word": {}, "said": {}}}
    made = created(client, same, data_source_config={"type": "custom", "item_schema": schema})
    content = [{"item": {"word": "cat", "said": said}} for said in ("cat", "dog")]
    run = client.evals.runs.create(made.id, data_source=jsonl(content))
    work(working)
    done = client.evals.runs.retrieve(run.id, eval_id=made.id)
    assert (done.result_counts.passed, done.result_counts.failed) == (1, 1), done.error


def test_runs_of_other_rows_and_runs_that_go_on_are_not_compared(working: Live, client: OpenAI) -> None:
    made = created(client)
    one, other = (
        client.evals.runs.create(made.id, data_source=jsonl(given(*said))) for said in (["cat"], ["cat", "a"])
    )
    path = f"/v1/evals/{made.id}/compare"
    early = working.http().get(path, params={"baseline": one.id, "candidate": other.id})
    assert early.status_code == 409 and "compare runs that are completed" in early.json()["error"]["message"]
    work(working)
    late = working.http().get(path, params={"baseline": one.id, "candidate": other.id})
    assert late.status_code == 400 and "evaluate both on the same items" in late.json()["error"]["message"]


def test_kept_completions_are_graded_as_they_are_and_asked_again(working: Live, client: OpenAI) -> None:
    for number in range(3):
        client.chat.completions.create(
            model="tiny@prod",
            messages=[{"role": "user", "content": f"say {number}"}],
            max_completion_tokens=6,
            store=True,
            metadata={"use": "words" if number else "other"},
        )
    config: Any = {"type": "logs", "metadata": {"use": "words"}}
    long: Any = {**LONG, "pass_threshold": 0}
    asks: Any = {**HAS, "input": "{{item.input[0].content}}", "reference": "say"}
    made = created(client, long, asks, data_source_config=config)
    source: Any = {"type": "stored_completions"}
    kept = client.evals.runs.create(made.id, data_source={"type": "completions", "source": source})
    form: Any = {"type": "object", "properties": {"word": {"enum": ["cat"]}}, "required": ["word"]}
    form["additionalProperties"] = False
    held: Any = {"type": "json_schema", "json_schema": {"name": "word", "schema": form}}
    asking_again: Any = {"type": "completions", "source": {**source, "limit": 1}, "model": "tiny@prod"}
    asking_again["sampling_params"] = {"response_format": held}
    new = client.evals.runs.create(made.id, data_source=asking_again)
    work(working)
    done = client.evals.runs.retrieve(kept.id, eval_id=made.id)
    assert done.status == "completed" and done.result_counts.passed == 2 and done.per_model_usage == []
    answers = {row.response["choices"][0]["message"]["content"] for row in working.service.store.completions()}
    items = [*client.evals.runs.output_items.list(kept.id, eval_id=made.id)]
    assert {item.sample.output[0].content for item in items} <= answers
    (version,) = {decision.record.policy_version for decision in working.service.store.decisions(run_id=kept.id)}
    assert items[0].sample.model == version and version is not None
    assert len(working.service.store.evaluations(version_id=version)) == 2, "what a version said is its own"
    again = client.evals.runs.retrieve(new.id, eval_id=made.id)
    assert again.result_counts.total == 1 and again.per_model_usage[0].run_model_name == "tiny@prod"
    (item,) = client.evals.runs.output_items.list(new.id, eval_id=made.id)
    assert json.loads(item.sample.output[0].content or "") == {"word": "cat"}, "answers are held to their form"
    with pytest.raises(openai.BadRequestError, match="there are no rows"):
        none: Any = {"type": "completions", "source": {**source, "metadata": {"use": "nothing"}}}
        client.evals.runs.create(made.id, data_source=none)


def test_a_run_is_cancelled_listed_and_deleted(working: Live, client: OpenAI) -> None:
    made = created(client)
    first, second = (client.evals.runs.create(made.id, data_source=jsonl(given("cat"))) for _ in range(2))
    assert client.evals.runs.cancel(first.id, eval_id=made.id).status == "canceled"
    with pytest.raises(openai.ConflictError, match="has cancelled already"):
        client.evals.runs.cancel(first.id, eval_id=made.id)
    for delete in (lambda: client.evals.runs.delete(second.id, eval_id=made.id), lambda: client.evals.delete(made.id)):
        with pytest.raises(openai.ConflictError, match="cancel"):
            delete()
    assert [run.id for run in client.evals.runs.list(made.id, limit=1)] == [first.id, second.id]
    assert [run.id for run in client.evals.runs.list(made.id, status="queued")] == [second.id]
    gone = client.evals.runs.delete(first.id, eval_id=made.id)
    assert (gone.deleted, gone.run_id, gone.object) == (True, first.id, "eval.run.deleted")
    with pytest.raises(openai.NotFoundError):
        client.evals.runs.retrieve(first.id, eval_id=made.id)
    with pytest.raises(openai.NotFoundError):
        client.evals.runs.output_items.retrieve("outputitem_x_0", eval_id=made.id, run_id=second.id)


def test_a_run_that_is_asked_for_again_is_one(working: Live, client: OpenAI) -> None:
    made = created(client)
    again = {"extra_headers": {"Idempotency-Key": "once"}}
    ids = {client.evals.runs.create(made.id, data_source=jsonl(given("cat")), **again).id for _ in range(3)}
    assert len(ids) == 1 and len(list(working.service.jobs.iterdir())) == 1
    with pytest.raises(openai.ConflictError, match="of another request"):
        client.evals.runs.create(made.id, data_source=jsonl(given("dog")), **again)
    other = created(client)
    with pytest.raises(openai.ConflictError, match="of another request"):
        client.evals.runs.create(other.id, data_source=jsonl(given("cat")), **again)
    assert [folder.name for folder in working.service.jobs.iterdir()] == list(ids)
    (name,) = ids
    work(working)
    client.evals.runs.delete(name, eval_id=made.id)
    with pytest.raises(openai.ConflictError, match="was deleted"):
        client.evals.runs.create(made.id, data_source=jsonl(given("cat")), **again)


BROKEN = {"item": {"word": 3}}


@pytest.mark.parametrize(
    ("source", "param", "told"),
    [
        ({"type": "responses", "source": {"type": "responses"}}, "data_source.type", "responses are not served"),
        (jsonl([]), "data_source.source", "no rows"),
        (jsonl(rows(1)), "data_source.source", "row 1: has no sample to grade"),
        (jsonl([*given("cat"), {**BROKEN, "sample": {}}]), "data_source.source", "row 2: item.word: 3 is not of type"),
        (jsonl([{"item": {"word": "a"}, "sample": {"text": "a"}}]), "data_source.source", "has none of output_text"),
        (asking(rows(1), model="gpt-4"), "data_source.model", "there is no model 'gpt-4'"),
        (asking(rows(1), model="/etc"), "data_source.model", "there is no model '/etc'"),
        (without("model", asking(rows(1))), "data_source.model", "name one"),
        (without("input_messages", asking(rows(1))), "data_source.input_messages", "asked nothing"),
        (
            asking([{"item": {"word": "cat"}}]),
            "data_source.source",
            "row 1: template variable 'item.say' stops",
        ),
        (
            asking(rows(1), input_messages={"type": "item_reference", "item_reference": "item.input"}),
            "data_source.input_messages.item_reference",
            "names 'input'",
        ),
        (
            asking(rows(1), input_messages={**ASK, "template": [{"role": "user", "content": "{{sample.choices}}"}]}),
            "data_source.input_messages.template.0.content",
            "sample",
        ),
        (
            asking(
                rows(1),
                input_messages={
                    "type": "template",
                    "template": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}],
                },
            ),
            "data_source.input_messages.template.0.content",
            "'input_image' is not served",
        ),
        (asking(rows(1), sampling_params={"temperature": 3}), "data_source.completions.sampling_params", "less than"),
        ({"type": "jsonl", "source": {"type": "file_id", "id": "file_none"}}, "data_source.source.id", "no file"),
    ],
)
def test_what_no_run_can_be(working: Live, client: OpenAI, source: Any, param: str, told: str) -> None:
    made = created(client)
    with pytest.raises(openai.BadRequestError) as error:
        client.evals.runs.create(made.id, data_source=source)
    body: Any = error.value.body
    assert told in body["message"] and body["param"].startswith(param), body
    assert not [*client.evals.runs.list(made.id)] and not working.service.jobs.exists()


@pytest.mark.parametrize(
    ("content", "purpose", "told"),
    [
        (b'{"item": {"word": "a"}, "sample": {"output_text": "a"}}\n\n{"item": ', "evals", "line 3: is no JSON"),
        (b'{"item": {"word": NaN}}', "evals", "line 1: is no JSON"),
        (b'{"messages": []}', "fine-tune", 'line 1: needs {"item"'),
        (b"\xff\xfe", "evals", "line 1: is no JSON"),
        (b'{"item": {"word": "a"}}', "batch", "was uploaded for batch"),
    ],
)
def test_files_that_cannot_be_graded(client: OpenAI, content: bytes, purpose: Any, told: str) -> None:
    file = client.files.create(file=("rows.jsonl", content), purpose=purpose)
    with pytest.raises(openai.BadRequestError) as error:
        source: Any = {"type": "jsonl", "source": {"type": "file_id", "id": file.id}}
        client.evals.runs.create(created(client).id, data_source=source)
    body: Any = error.value.body
    assert told in body["message"], body


def test_what_is_no_number_is_no_row(working: Live, client: OpenAI) -> None:
    body = json.dumps({"data_source": jsonl([{"item": {"word": "a", "n": float("inf")}, "sample": {}}])})
    headers = {"content-type": "application/json"}
    answer = working.http().post(f"/v1/evals/{created(client).id}/runs", content=body, headers=headers)
    assert answer.status_code == 400 and "not JSON" in answer.json()["error"]["message"]


def test_patterns_that_never_end_do(working: Live, client: OpenAI) -> None:
    """Strangers' patterns are matched in a time that grows with the text alone."""
    schema = {"type": "object", "properties": {"word": {"type": "string", "pattern": "^(a+)+$"}}}
    made = created(client, data_source_config={**CONFIG, "item_schema": schema})
    began = time.monotonic()
    with pytest.raises(openai.BadRequestError, match="does not match"):
        row = {"item": {"word": "a" * 5_000 + "!"}, "sample": {"output_text": "a"}}
        client.evals.runs.create(made.id, data_source=jsonl([row]))
    assert time.monotonic() - began < 20


def test_a_criterion_that_breaks_is_an_error_and_the_run_goes_on(working: Live, client: OpenAI) -> None:
    broken = {**LONG, "source": "def grade(sample, item):\n    return 1 / (len(sample['output_text']) - 1)"}
    made = created(client, HAS, {**broken, "pass_threshold": 0})
    run = client.evals.runs.create(made.id, data_source=jsonl(given("a", "cat")))
    work(working)
    done = client.evals.runs.retrieve(run.id, eval_id=made.id)
    assert done.status == "completed" and (done.result_counts.errored, done.result_counts.passed) == (1, 1)
    (item,) = client.evals.runs.output_items.list(run.id, eval_id=made.id, extra_query={"status": "error"})
    result = item.results[1].to_dict()
    assert item.status == "error" and result["score"] is None and "ZeroDivisionError" in str(result["error"])


@pytest.mark.slow
def test_a_run_of_a_small_model_says_what_its_chat_says(live: Callable[..., Live]) -> None:
    try:
        resolve("smollm2-135m-instruct")
    except ModelError as error:
        pytest.skip(str(error))
    server = live(work=False)
    client = server.client()
    schema = {"type": "object", "properties": {"country": {}, "capital": {}}}
    config = {**CONFIG, "item_schema": schema}
    made = created(client, {**HAS, "reference": "{{item.capital}}"}, data_source_config=config)
    pairs = {"France": "Paris", "Japan": "Tokyo", "Spain": "Madrid"}
    content = [{"item": {"country": country, "capital": capital}} for country, capital in pairs.items()]
    messages: Any = {**ASK, "template": [{"role": "user", "content": "What is the capital of {{item.country}}?"}]}
    greedy: Any = {"temperature": 0, "max_completion_tokens": 12}
    source = asking(content, model="smollm2-135m-instruct", input_messages=messages, sampling_params=greedy)
    run = client.evals.runs.create(made.id, data_source=source)
    work(server)
    done = client.evals.runs.retrieve(run.id, eval_id=made.id)
    assert done.status == "completed", done.error
    items = [*client.evals.runs.output_items.list(run.id, eval_id=made.id)]
    assert len(items) == len(pairs) and done.result_counts.passed == sum(item.status == "pass" for item in items)
    for item in items:
        asked = [{"role": "user", "content": f"What is the capital of {item.datasource_item['country']}?"}]
        answer = client.chat.completions.create(model="smollm2-135m-instruct", messages=asked, **greedy)  # type: ignore[arg-type]
        said = answer.choices[0].message.content or ""
        assert item.sample.output[0].content == said
        assert (item.status == "pass") == (str(item.datasource_item["capital"]).lower() in said.lower())
