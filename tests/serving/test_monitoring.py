"""what Prometheus reads: the names of the contract, labels that stay few, and what other processes wrote"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from live import TOKEN, Live
from prometheus_client.parser import text_string_to_metric_families

from melior.registry import Registry
from melior.serving.metrics import Names
from melior.types import Record, Score

CONTRACT = {
    "melior_requests_total": {"model", "alias", "code"},
    "melior_request_duration_seconds_bucket": {"le"},
    "melior_time_to_first_token_seconds_bucket": {"le"},
    "melior_tokens_total": {"model", "type"},
    "melior_feedback_total": {"name", "source"},
    "melior_reward_mean": {"model", "grader"},
    "melior_grader_errors_total": {"grader", "kind"},
    "melior_jobs": {"method", "status"},
    "melior_gate_decisions_total": {"result"},
}
Series = dict[str, dict[tuple[tuple[str, str], ...], float]]


def scraped(server: Live) -> Series:
    """Every sample by its name and labels, read with Prometheus's own parser."""
    server.service.metrics.stored.until = 0.0
    with server.http() as client:
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found: Series = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def value(found: Series, metric: str, /, **labels: str) -> float:
    return found[metric].get(tuple(sorted(labels.items())), 0.0)


@pytest.fixture
def busy(live: Callable[..., Live], folder_of: Callable[..., Path]) -> Live:
    """A server that was asked, told and graded."""
    made = live()
    store, registry = made.service.store, Registry(made.service.store)
    version = registry.register("tiny", folder_of("llama", "chatml"), method="none", base_model="tiny")
    registry.promote(version.id, force=True, reason="the only one")
    client = made.client()
    said: Any = [{"role": "user", "content": "hi"}]
    answer = client.chat.completions.create(model="tiny@prod", messages=said, max_tokens=3)
    list(client.chat.completions.create(model=version.id, messages=said, max_tokens=3, stream=True))
    for number in range(3):
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model=f"invented-{number}", messages=said)
    with made.http() as http:
        http.post("/v1/feedback", json={"metric_name": "helpful", "value": True, "inference_id": answer.id})
    ids = store.add_records([Record(inputs="q", output="a", policy_version=version.id) for _ in range(4)])
    values = {"exact": (1.0, 0.5, None), "b": (0.0,)}
    scores = [
        Score(name=name, value=given, error="" if given is not None else "no")
        for name in values
        for given in values[name]
    ]
    store.add_scores(ids, scores)
    store.add_job("sft", {}, "/nowhere")
    store.add_gate(version.id, None, "promote", evaluation_ids=(), details={})
    return made


def test_every_name_of_the_contract_is_there_with_its_labels(busy: Live) -> None:
    found = scraped(busy)
    for name, labels in CONTRACT.items():
        assert name in found, name
        assert all({label for label, _ in series} == labels for series in found[name]), name


def test_what_is_told_is_what_happened(busy: Live) -> None:
    found = scraped(busy)
    assert value(found, "melior_requests_total", model="tiny", alias="prod", code="200") == 1
    assert value(found, "melior_requests_total", model="tiny", alias="", code="200") == 1
    assert value(found, "melior_requests_total", model="unknown", alias="", code="404") == 3
    assert value(found, "melior_request_duration_seconds_count") == 5
    assert value(found, "melior_time_to_first_token_seconds_count") == 1
    assert value(found, "melior_tokens_total", model="tiny", type="output") == 6
    assert value(found, "melior_feedback_total", name="helpful", source="MELIOR_TOKEN") == 1
    assert value(found, "melior_reward_mean", model="tiny", grader="exact") == 0.75
    assert value(found, "melior_grader_errors_total", grader="exact", kind="other_error") == 1
    assert value(found, "melior_jobs", method="sft", status="queued") == 1
    assert value(found, "melior_gate_decisions_total", result="promote") == 1
    assert value(found, "melior_http_requests_total", route="/v1/feedback", method="POST", code="200") == 1


def test_what_was_counted_is_not_counted_twice(busy: Live) -> None:
    scraped(busy)
    store = busy.service.store
    [decision] = store.add_records([Record(inputs="q", output="a")])
    store.add_scores([decision], [Score(name="exact", value=None, error="no")])
    with busy.http() as http:
        grader = {"type": "python", "name": "mine", "source": "def grade(sample, item):\n    raise ValueError('x')"}
        http.post("/v1/fine_tuning/alpha/graders/run", json={"grader": grader, "model_sample": "a"})
    for found in (scraped(busy), scraped(busy)):
        assert value(found, "melior_grader_errors_total", grader="exact", kind="other_error") == 2
        assert value(found, "melior_grader_errors_total", grader="mine", kind="python_grader_runtime_error") == 1


def test_nothing_that_strangers_write_makes_a_series(busy: Live) -> None:
    before = scraped(busy)
    with busy.http(token=None) as stranger, busy.http() as client:
        for number in range(5):
            stranger.get(f"/v1/files/{number}")
            client.get(f"/v1/nowhere-{number}")
            client.get(f"/v1/models/nobody-{number}")
            client.post("/v1/decisions", json={"model": f"nobody@{number}", "input": 1})
    after = scraped(busy)
    new = {(name, series) for name in after for series in after[name] if series not in before.get(name, {})}
    told = " ".join(str(series) for _, series in new)
    assert "nobody" not in told and "nowhere" not in told and TOKEN not in told
    assert len({series for name, series in new if name == "melior_requests_total"}) <= 3


def test_of_many_names_the_first_are_told_apart() -> None:
    names = Names(most=2)
    assert [names(name) for name in ("a", "b", "c", "a", "c")] == ["a", "b", "other", "a", "other"]


def test_names_of_graders_in_the_log_make_few_series(busy: Live) -> None:
    scraped(busy)  # what is known by now stays told apart
    metrics, store = busy.service.metrics, busy.service.store
    most = metrics.graders.most
    [decision] = store.decisions(limit=1)
    scores = [
        Score(name=f"criterion {n}", value=0.5 if n % 2 else None, error="" if n % 2 else "no") for n in range(600)
    ]
    for score in scores:
        store.add_scores([decision.id], [score])
    found = scraped(busy)
    told = {dict(series)["grader"] for series in found["melior_grader_errors_total"]}
    assert {"exact", "other"} <= told and len(told) <= most + 1
    counted = sum(number for _, number in found["melior_grader_errors_total"].items())
    assert counted == 301, "every error is told, under a name of its own or not"
    means = {dict(series)["grader"] for series in found["melior_reward_mean"]}
    assert {"exact", "b"} <= means and "other" not in means and len(means) <= most
    assert value(found, "melior_reward_mean", model="tiny", grader="exact") == 0.75


def test_a_database_that_is_away_is_told_as_it_was(busy: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    from melior.errors import StoreError

    def away() -> Any:
        raise StoreError("the database refused: it is away")

    before = scraped(busy)
    monkeypatch.setattr(busy.service.store, "count_jobs", away)
    assert scraped(busy)["melior_jobs"] == before["melior_jobs"]
