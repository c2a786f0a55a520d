"""a script written for OpenAI's API trains here: uploads, jobs, events, checkpoints, result files, names of models"""

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

from melior.errors import DatabaseAway
from melior.registry import Registry

SAY = [{"role": "user", "content": "say it"}]
GOOD, BAD = [{"role": "assistant", "content": "the cat"}], [{"role": "assistant", "content": "a dog"}]
SUPERVISED = {"messages": [*SAY, *GOOD]}
PREFERENCE = {"input": {"messages": SAY}, "preferred_output": GOOD, "non_preferred_output": BAD}
TASK = {"messages": SAY, "word": "cat"}
GRADER = {
    "type": "string_check",
    "name": "cat",
    "operation": "ilike",
    "input": "{{sample.output_text}}",
    "reference": "{{item.word}}",
}


def lines(row: dict[str, Any], count: int = 40) -> bytes:
    rows = [{**row, "number": number} for number in range(count)]
    for number, each in enumerate(rows):
        text = json.dumps(each).replace("say it", f"say it {number} times")
        rows[number] = json.loads(text)
    return "".join(json.dumps(each) + "\n" for each in rows).encode()


@pytest.fixture
def working(live: Callable[..., Live], folder_of: Callable[..., Path]) -> Live:
    """A server that trains, and has a tiny model called tiny@prod."""
    made = live(work=True)
    registry = Registry(made.service.store)
    version = registry.register("tiny", folder_of("llama", "chatml"), method="none", base_model="tiny")
    registry.promote(version.id, force=True, reason="the only one")
    return made


def upload(client: OpenAI, row: dict[str, Any]) -> str:
    return client.files.create(file=("rows.jsonl", lines(row)), purpose="fine-tune").id


def done(client: OpenAI, job: str, seconds: float = 200) -> Any:
    until = time.monotonic() + seconds
    while (found := client.fine_tuning.jobs.retrieve(job)).status not in ("succeeded", "failed", "cancelled"):
        assert time.monotonic() < until, found
        time.sleep(0.2)
    return found


def test_a_supervised_job_from_upload_to_its_model(working: Live) -> None:
    client = working.client()
    rows = upload(client, SUPERVISED)
    made = client.fine_tuning.jobs.create(
        model="tiny@prod",
        training_file=rows,
        suffix="cats",
        seed=7,
        metadata={"team": "pets"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}},
    )
    assert made.status == "queued" and made.fine_tuned_model is None and made.seed == 7
    client.files.delete(rows)  # what was asked for is learnt all the same
    job = done(client, made.id)
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model == f"ft:tiny@prod:cats:{job.id}" and job.trained_tokens and job.finished_at
    assert made.hyperparameters.n_epochs == 2 and made.hyperparameters.learning_rate_multiplier == "auto"
    assert job.hyperparameters.n_epochs == 2 and job.hyperparameters.learning_rate_multiplier == 1
    assert job.method and job.method.supervised and job.method.supervised.hyperparameters
    assert job.method.supervised.hyperparameters.to_dict() == job.hyperparameters.to_dict()
    events = [*client.fine_tuning.jobs.list_events(job.id, limit=5)]
    told = [event.message for event in events]
    assert told[0] == "The job has successfully completed" and told[-1] == "The job is in the queue"
    steps = [event.data["step"] for event in events if event.type == "metrics"]
    assert steps == list(range(len(steps), 0, -1)) and len(steps) == 18
    last, first = client.fine_tuning.jobs.checkpoints.list(job.id)  # one of each epoch
    assert (last.step_number, first.step_number) == (18, 9) and first.id != last.id
    assert last.fine_tuned_model_checkpoint == job.fine_tuned_model
    assert first.fine_tuned_model_checkpoint == f"{job.fine_tuned_model}:ckpt-step-9"
    assert first.metrics.step == 9 and first.metrics.train_loss != last.metrics.train_loss
    for metrics in (first.metrics, last.metrics):
        assert 0 <= metrics.train_mean_token_accuracy <= 1 and 0 <= metrics.valid_mean_token_accuracy <= 1
        assert metrics.valid_loss is not None and metrics.valid_loss > 0
    said = [client.chat.completions.create(model=name, messages=SAY, max_tokens=4)  # type: ignore[arg-type]
            for name in (job.fine_tuned_model, first.fine_tuned_model_checkpoint)]  # fmt: skip
    answered = working.service.store.decisions([answer.id for answer in said])
    assert len({decision.record.policy_version for decision in answered}) == 2
    assert len(working.service.voices.loaded) == 1, "both over the model they were trained from, held once"
    with pytest.raises(openai.NotFoundError, match="keeps no model of step 3") as unknown:
        client.models.retrieve(f"{job.fine_tuned_model}:ckpt-step-3")
    assert unknown.value.code == "model_not_found"
    results = client.files.content(job.result_files[0]).text.splitlines()
    assert results[0].startswith("step,train_loss") and len(results) == 19
    assert client.models.retrieve(job.fine_tuned_model).owned_by == "cats"
    assert [found.id for found in client.fine_tuning.jobs.list(metadata={"team": "pets"})] == [job.id]
    assert not [*client.fine_tuning.jobs.list(metadata={"team": "others"})]


@pytest.mark.parametrize(
    ("row", "method"),
    [
        (PREFERENCE, {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 1, "batch_size": "auto"}}}),
        (
            TASK,
            {"type": "reinforcement", "reinforcement": {"grader": GRADER, "hyperparameters": {"batch_size": 4}}},
        ),
    ],
)
def test_preferences_and_rewards_too(working: Live, row: dict[str, Any], method: Any) -> None:
    client = working.client()
    if method["type"] == "reinforcement":
        method["reinforcement"]["hyperparameters"] |= {
            "compute_multiplier": 0.25,
            "eval_samples": 1,
            "eval_interval": 10,
        }
    made = client.fine_tuning.jobs.create(model="tiny@prod", training_file=upload(client, row), method=method)
    job = done(client, made.id)
    assert job.status == "succeeded", job.error
    recipe = working.service.store.job(job.id).recipe
    if method["type"] == "dpo":
        assert recipe["dpo"]["beta"] == 0.2 and job.method and job.method.dpo
        assert job.method.dpo.hyperparameters.to_dict() == {
            "beta": 0.2, "n_epochs": 1, "batch_size": recipe["dpo"]["batch_size"], "learning_rate_multiplier": 1
        }  # fmt: skip
    else:
        assert recipe["grader"]["type"] == "string_check" and recipe["sampling"]["n"] == 2
        assert job.hyperparameters.to_dict()["compute_multiplier"] == 0.25
        last, first = client.fine_tuning.jobs.checkpoints.list(job.id)  # one of each measurement
        assert (last.step_number, first.step_number) == (20, 10)
        assert last.fine_tuned_model_checkpoint == job.fine_tuned_model
        for metrics in (last.metrics.to_dict(), first.metrics.to_dict()):
            assert {"train_reward_mean", "valid_reward_mean"} <= metrics.keys()


def test_a_job_is_paused_resumed_and_cancelled(working: Live) -> None:
    client = working.client()
    long = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 200, "batch_size": 4}}}
    made = client.fine_tuning.jobs.create(model="tiny@prod", training_file=upload(client, SUPERVISED), method=long)  # type: ignore[arg-type]
    waiting = client.fine_tuning.jobs.create(model="tiny@prod", training_file=upload(client, SUPERVISED))
    assert client.fine_tuning.jobs.cancel(waiting.id).status == "cancelled", "nobody had begun it"
    until = time.monotonic() + 100
    while not [event for event in client.fine_tuning.jobs.list_events(made.id) if event.type == "metrics"]:
        assert time.monotonic() < until
        time.sleep(0.2)
    client.fine_tuning.jobs.pause(made.id)
    while (job := client.fine_tuning.jobs.retrieve(made.id)).status != "paused":
        assert time.monotonic() < until, job
        time.sleep(0.2)
    assert client.fine_tuning.jobs.resume(made.id).status == "queued"
    client.fine_tuning.jobs.cancel(made.id)
    assert done(client, made.id).status == "cancelled"
    with pytest.raises(openai.ConflictError, match="has cancelled already"):
        client.fine_tuning.jobs.resume(made.id)


def test_a_request_that_is_sent_again_makes_one_job(live: Callable[..., Live]) -> None:
    server = live()
    client = server.client()
    asked: dict[str, Any] = {"model": "smollm2-135m-instruct", "training_file": upload(client, SUPERVISED)}
    again = {"extra_headers": {"Idempotency-Key": "once"}}
    ids = {client.fine_tuning.jobs.create(**asked, **again).id for _ in range(3)}
    assert len(ids) == 1 and len(server.service.store.jobs()) == 1
    with pytest.raises(openai.ConflictError, match="of another request"):
        client.fine_tuning.jobs.create(**asked, suffix="other", **again)
    client.files.delete(asked["training_file"])
    assert client.fine_tuning.jobs.create(**asked, **again).id in ids, (
        "what it made stands, whatever became of the file"
    )
    assert [folder.name for folder in server.service.jobs.iterdir()] == list(ids), "nobody would ever read the others"


@pytest.mark.parametrize(
    ("change", "param", "told"),
    [
        ({"model": "gpt-4"}, "model", "there is no model 'gpt-4'"),
        ({"model": "/etc"}, "model", "there is no model '/etc'"),
        ({"training_file": "file_none"}, "training_file", "there is no file 'file_none'"),
        ({"training_file": "../../x"}, "training_file", "pattern"),
        ({"method": {"type": "magic"}}, "method", "supervised, dpo and reinforcement"),
        ({"method": {"type": "supervised", "supervised": {"hyperparameters": {"epochs": 3}}}}, "method", "n_epochs"),
        ({"method": {"type": "reinforcement", "reinforcement": {}}}, "method", "write grader"),
        ({"suffix": "a b"}, "suffix", "pattern"),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": -1}}}}, "method", "beta is -1"),
        (
            {"method": {"type": "reinforcement", "reinforcement": {"grader": {"type": "nope"}}}},
            "method.reinforcement.grader.type",
            "'nope' is not served",
        ),
        ({"validation_file": "file_none"}, "validation_file", "there is no file 'file_none'"),
    ],
)
def test_what_cannot_be_asked_for(live: Callable[..., Live], change: dict[str, Any], param: str, told: str) -> None:
    server = live()
    client = server.client()
    asked = {"model": "smollm2-135m-instruct", "training_file": upload(client, SUPERVISED), **change}
    with pytest.raises(openai.BadRequestError) as error:
        client.fine_tuning.jobs.create(**asked)
    body: Any = error.value.body
    assert told in body["message"] and body["param"] == param and not server.service.store.jobs()
    assert not list(server.service.jobs.glob("*"))


def test_a_job_whose_fate_is_unknown_keeps_its_files(
    live: Callable[..., Live], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = live()
    store, client = server.service.store, server.client()
    asked: dict[str, Any] = {"model": "smollm2-135m-instruct", "training_file": upload(client, SUPERVISED)}
    asked["extra_headers"] = {"Idempotency-Key": "once"}
    add_job = store.add_job

    def lost(*job: Any, **more: Any) -> Any:
        add_job(*job, **more)
        raise DatabaseAway("the connection was lost before the database said that it was sure")

    monkeypatch.setattr(store, "add_job", lost)
    with pytest.raises(openai.InternalServerError):
        client.fine_tuning.jobs.create(**asked)
    monkeypatch.setattr(store, "add_job", add_job)
    made = client.fine_tuning.jobs.create(**asked)
    assert (server.service.jobs / made.id / "training_file.jsonl").exists()
    assert len(list(server.service.jobs.iterdir())) == 1


def test_a_file_that_went_meanwhile_is_not_found(live: Callable[..., Live]) -> None:
    server = live()
    client = server.client()
    gone = upload(client, SUPERVISED)
    (server.service.files / gone).unlink()  # as it is while another request deletes it
    with pytest.raises(openai.BadRequestError, match="there is no file"):
        client.fine_tuning.jobs.create(model="smollm2-135m-instruct", training_file=gone)


def test_a_file_for_something_else_is_refused(live: Callable[..., Live]) -> None:
    client = live().client()
    other = client.files.create(file=("rows.jsonl", lines(SUPERVISED)), purpose="evals").id
    with pytest.raises(openai.BadRequestError, match="was uploaded for evals"):
        client.fine_tuning.jobs.create(model="smollm2-135m-instruct", training_file=other)


def test_a_file_that_cannot_be_learnt_from_fails_with_its_line(working: Live) -> None:
    client = working.client()
    broken = client.files.create(file=("rows.jsonl", lines(SUPERVISED) + b'{"messages": 3}\n'), purpose="fine-tune").id
    job = done(client, client.fine_tuning.jobs.create(model="tiny@prod", training_file=broken).id)
    assert job.status == "failed" and job.error.code == "invalid_training_file"
    assert "training_file.jsonl:41: messages must be a list" in job.error.message
    events = client.fine_tuning.jobs.list_events(job.id)
    assert str(working.service.jobs) not in job.error.message + "".join(event.message for event in events)
