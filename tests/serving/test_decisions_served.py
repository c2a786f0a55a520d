"""decisions of classifiers and slates: what the log says is what was decided, with the chance it had"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live import Live

from melior.policies.classifier import Classifier, ClassifierPolicy
from melior.policies.slate import SlatePolicy
from melior.policies.slate_network import Slate
from melior.registry import Registry
from melior.serving import deciders
from melior.types import Demonstration, Item, SlateRequest

ROWS = [
    Demonstration({"height": float(i % 7), "colour": ("red", "blue")[i % 2]}, ("no", "yes")[i % 2]) for i in range(40)
]
ITEMS = [Item(f"item {i}", {"price": float(i)}) for i in range(6)]


@pytest.fixture
def server(live: Callable[..., Live], tmp_path: Path, folder_of: Callable[..., Path]) -> Live:
    """A server with a classifier, a slate policy of three places, and a language model."""
    made = live()
    ClassifierPolicy.make(Classifier(labels=("no", "yes")), ROWS).save(tmp_path / "label")
    requests = [SlateRequest({"hour": 3.0})]
    SlatePolicy.make(Slate(positions=3, width=8), ITEMS, requests).save(tmp_path / "banner")
    registry = Registry(made.service.store)
    for name, folder in (("label", tmp_path / "label"), ("banner", tmp_path / "banner"), ("talk", folder_of("llama"))):
        registry.promote(
            registry.register(name, folder, method="sft", base_model="none").id, force=True, reason="first"
        )
    return made


def decide(server: Live, **asked: Any) -> Any:
    with server.http() as client:
        content = json.dumps(asked)  # escaped: what has no bytes is sent all the same
        return client.post("/v1/decisions", content=content, headers={"content-type": "application/json"})


def test_a_label_is_decided_by_chance_and_logged_with_it(server: Live) -> None:
    asked = {"model": "label@prod", "input": {"height": 2.0, "colour": "red"}, "seed": 5, "item": {"patient": "p1"}}
    told = decide(server, **asked).json()
    again = decide(server, **asked).json()
    assert told["output"] in ("no", "yes") and told["output"] == again["output"]
    assert math.exp(told["log_prob"]) == pytest.approx(told["propensities"][0])
    (kept,) = server.service.store.decisions([told["decision_id"]])
    assert kept.record.output == told["output"] and kept.propensities == told["propensities"]
    assert kept.alias == "prod" and kept.record.item == {"patient": "p1"}
    assert kept.record.policy_version == told["policy_version"] and told["decision_id"] != again["decision_id"]


def test_chance_is_what_it_says(server: Live) -> None:
    asked = {"model": "label@prod", "input": {"height": 2.0, "colour": "red"}, "n": 64}
    drawn = [each for seed in range(8) for each in decide(server, **asked, seed=seed).json()["decisions"]]
    chance = {each["output"]: each["propensities"][0] for each in drawn}
    share = sum(each["output"] == "yes" for each in drawn) / len(drawn)
    assert abs(share - chance["yes"]) < 4 * math.sqrt(chance["yes"] * (1 - chance["yes"]) / len(drawn))
    assert sum(chance.values()) == pytest.approx(1, abs=1e-6)


def test_a_slate_is_of_the_candidates_and_events_join_it(server: Live) -> None:
    asked = {"model": "banner@prod", "input": {"context": {"hour": 3.0}}, "candidates": [f"item {i}" for i in range(4)]}
    told = decide(server, **asked, episode_id="visit-1").json()
    assert len(told["output"]) == len(set(told["output"])) == 3 and set(told["output"]) <= set(asked["candidates"])
    assert math.fsum(map(math.log, told["propensities"])) == pytest.approx(told["log_prob"])
    click = {"metric_name": "click", "value": {"position": 1, "item": told["output"][1]}}
    with server.http() as client:
        client.post("/v1/feedback", json={**click, "decision_id": told["decision_id"]})
    (said,) = server.service.store.feedback(decision_id=told["decision_id"])
    assert said.value["position"] == 1
    assert [one.id for one in server.service.store.decisions(episode_id="visit-1")] == [told["decision_id"]]


def test_the_best_is_served_without_a_chance_to_learn_from(server: Live) -> None:
    asked = {"model": "banner@prod", "input": {"context": {"hour": 3.0}}, "temperature": 0}
    told = decide(server, **asked).json()
    assert told["propensities"] is None and told["log_prob"] is None
    assert {tuple(decide(server, **asked).json()["output"]) for _ in range(3)} == {tuple(told["output"])}


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        ({"model": "none@prod"}, 404, "there is no model"),
        ({"model": "talk@prod"}, 400, "ask /v1/chat/completions"),
        ({"input": {"image": "/etc/passwd"}}, 400, "read with this server's rights"),
        ({"input": None}, 400, "inputs must be"),
        ({"input": {"height": {"deep": 1}}}, 400, "height"),
        ({"candidates": ["a"]}, 400, "has no candidates"),
        ({"n": 2, "temperature": 0}, 400, "one decision"),
        ({"n": 65}, 400, "64"),
        ({"temperature": 1e-46}, 400, "temperature of 0, or from"),
        ({"item": {"said": "half of \ud800"}}, 400, "half of a character"),
        ({"model": "banner@prod", "input": {"context": {}}, "candidates": ["\ud800"]}, 400, "half of a character"),
        ({"model": "banner@prod", "input": {"context": {}}, "candidates": []}, 400, "is empty"),
        ({"model": "banner@prod", "input": {"context": {}}, "candidates": ["item 1", "item 1"]}, 400, "item 1"),
        ({"model": "banner@prod", "input": 3}, 400, "context, viewed or history"),
    ],
)
def test_what_cannot_be_decided_is_told_and_not_logged(
    server: Live, change: dict[str, Any], status: int, told: str
) -> None:
    answer = decide(server, **{"model": "label@prod", "input": {"height": 1.0, "colour": "red"}, **change})
    assert answer.status_code == status and told in answer.json()["error"]["message"]
    assert server.service.store.decisions() == []


def test_a_language_model_is_refused_before_its_weights_are_read(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(deciders, "load_policy", load)
    answer = decide(server, model="talk", input={"height": 1.0})
    assert answer.status_code == 400 and "ask /v1/chat/completions" in answer.json()["error"]["message"]


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_policy_that_cannot_be_loaded_is_told_without_our_paths(server: Live, tmp_path: Path, damage: str) -> None:
    weights = tmp_path / "label" / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-10])
    else:
        shutil.rmtree(tmp_path / "label")
    answer = decide(server, model="label@prod", input={"height": 1.0, "colour": "red"})
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "model_not_loadable"
    assert str(tmp_path) not in answer.text and answer.headers["x-should-retry"] == "false"
