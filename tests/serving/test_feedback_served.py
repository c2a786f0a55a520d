"""feedback over HTTP: typed values, corrections, words that are found, pages, and clicks that become rewards"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import Live

from melior.policies.slate import SlatePolicy
from melior.policies.slate_network import Slate
from melior.registry import Registry
from melior.rewards.graders import load_grader
from melior.serving.security import hash_of
from melior.store.exports import LeftOut, Wanted, rows_of
from melior.types import Item, Record, SlateRequest


@pytest.fixture
def answer(server: Live) -> str:
    return server.service.store.add_records([Record(inputs="2+2", output="5")], episode_id="chat-1")[0]


@pytest.fixture
def http(server: Live) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


def say(http: httpx.Client, **said: Any) -> str:
    answer = http.post("/v1/feedback", json=said)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["feedback_id"])


def refused(http: httpx.Client, **said: Any) -> tuple[int, str]:
    answer = http.post("/v1/feedback", json=said)
    return answer.status_code, answer.json()["error"]["message"]


def test_a_metric_is_declared_listed_and_held_to(http: httpx.Client, answer: str) -> None:
    asked = {"type": "rating", "low": 1, "high": 5, "description": "how clear it is"}
    made = http.put("/v1/feedback/metrics/clarity", json=asked).json()
    assert made == http.put("/v1/feedback/metrics/clarity", json=asked).json()
    assert {name: made[name] for name in asked} == asked and made["object"] == "feedback.metric"
    listed = http.get("/v1/feedback/metrics").json()
    told = {metric["name"]: metric["type"] for metric in listed["data"]}
    assert told == {
        "comment": "comment", "demonstration": "demonstration", "preference": "preference", "click": "event",
        "purchase": "event", "clarity": "rating",
    }  # fmt: skip
    say(http, metric_name="clarity", value=4, inference_id=answer)
    about = {"metric_name": "clarity", "inference_id": answer}
    assert refused(http, **about, value=7) == (400, "clarity is a whole number from 1 to 5, not 7")
    code, message = refused(http, **about, value=None)
    assert code == 400 and "null is for taking back" in message
    changed = http.put("/v1/feedback/metrics/clarity", json={"type": "boolean"})
    assert changed.status_code == 400 and "1 values kept as clarity" in changed.json()["error"]["message"]
    assert http.put("/v1/feedback/metrics/click", json={"type": "boolean"}).status_code == 400
    assert http.put("/v1/feedback/metrics/x", json={"type": "stars"}).status_code == 400


def test_numbers_that_are_none_and_values_too_deep_are_told(http: httpx.Client, answer: str) -> None:
    head = f'{{"metric_name": "n", "inference_id": "{answer}", "value": '
    json_type = {"content-type": "application/json"}
    for value in ("NaN", "Infinity", "1e999", "[" * 40 + "]" * 40, "{}", '"' + "x" * (1 << 20) + '"'):
        told = http.post("/v1/feedback", content=head + value + "}", headers=json_type)
        assert told.status_code == 400 and told.json()["error"]["message"], value[:20]
    assert http.post("/v1/feedback", content=head + "[" * 100_000, headers=json_type).status_code == 400
    assert http.get("/v1/feedback").json()["data"] == []


def test_a_correction_replaces_and_both_are_told(server: Live, http: httpx.Client, answer: str) -> None:
    for name, scopes in (("shop", ["feedback", "read"]), ("other", ["feedback"])):
        server.service.store.add_key(name, hash_of(name), scopes)
    with server.http(token="shop") as shop, server.http(token="other") as other:
        first = say(shop, metric_name="stars", value=2, inference_id=answer, source="ann")
        assert refused(other, replaces=first, value=5, source="ann")[0] == 403
        assert refused(shop, replaces=first, value=5, source="bob")[0] == 403
        second = say(shop, replaces=first, value=4, source="ann")
        code, message = refused(shop, replaces=first, value=5, source="ann")
        assert code == 409 and second in message
        third = say(http, replaces=second, value=None)  # an admin takes it back
        assert refused(shop, replaces="fb_none", value=1)[0] == 404
        old, new, gone = (shop.get(f"/v1/feedback/{id}").json() for id in (first, second, third))
    assert (old["replaced_by"], new["replaces"], new["replaced_by"]) == (second, first, third)
    assert [row["in_force"] for row in (old, new, gone)] == [False, False, False] and gone["value"] is None
    assert (new["metric_name"], new["decision_id"], new["source"], new["given_by"]) == ("stars", answer, "ann", "shop")
    listed = {flag: http.get("/v1/feedback", params={"in_force": flag}).json()["data"] for flag in ("true", "false")}
    assert listed["true"] == [] and [row["id"] for row in listed["false"]] == [third, second, first]
    assert http.get("/v1/feedback/fb_none").status_code == 404
    assert http.get(f"/v1/feedback/{first[:-1]}").status_code == 404


def test_words_are_found_and_turned_into_rows(http: httpx.Client, answer: str) -> None:
    words = say(http, metric_name="comment", value="It is FOUR, 100% sure", inference_id=answer)
    say(http, metric_name="comment", value="thanks", inference_id=answer)
    for search in ("four", "100%", "SURE"):
        found = http.get("/v1/feedback", params={"search": search, "metric_name": "comment"}).json()["data"]
        assert [row["id"] for row in found] == [words], search
    better = say(http, metric_name="demonstration", value="4", made_from=words, source="editor")
    (row,) = http.get("/v1/feedback", params={"made_from": words}).json()["data"]
    assert (row["id"], row["decision_id"], row["source"], row["made_from"]) == (better, answer, "editor", words)
    assert refused(http, metric_name="helpful", value=True, made_from=words)[0] == 400


def test_what_is_not_known_yet_is_to_be_sent_again(http: httpx.Client, answer: str) -> None:
    say(http, metric_name="happy", value=True, episode_id="chat-1")
    for about in ({"episode_id": "chat-2"}, {"inference_id": "chatcmpl_x"}, {"made_from": "fb_x"}):
        code, message = refused(http, metric_name="comment", value="x", **about)
        assert code == 404 and "send this again later" in message


def test_pages_are_read_in_both_orders_and_end(http: httpx.Client, answer: str) -> None:
    given = [say(http, metric_name="n", value=number, inference_id=answer) for number in range(5)]
    for order, wanted in (("asc", given), ("desc", given[::-1])):
        seen: list[str] = []
        more = True
        while more:
            asked = {"limit": 2, "order": order, **({"after": seen[-1]} if seen else {})}
            page = http.get("/v1/feedback", params=asked).json()
            seen += [row["id"] for row in page["data"]]
            assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], seen[-1])
            more = page["has_more"]
        assert seen == wanted
    assert http.get("/v1/feedback", params={"after": "fb_none"}).status_code == 404
    assert http.get("/v1/feedback", params={"order": "up"}).status_code == 400
    assert http.get("/v1/feedback", params={"search": "a\0b"}).status_code == 200


# ---------------------------------------------------------------------- clicks and purchases


@pytest.fixture
def banner(live: Callable[..., Live], tmp_path: Path) -> Live:
    made = live()
    items = [Item(f"item {i}", {"price": float(i)}) for i in range(6)]
    policy = SlatePolicy.make(Slate(positions=3, width=8), items, [SlateRequest({"hour": 3.0})])
    policy.save(tmp_path / "banner")
    registry = Registry(made.service.store)
    version = registry.register("banner", tmp_path / "banner", method="sft", base_model="none")
    registry.promote(version.id, force=True, reason="first")
    return made


def test_what_was_clicked_and_bought_becomes_rewards_of_what_was_shown(banner: Live, tmp_path: Path) -> None:
    from melior.policies.kinds import load_policy
    from melior.trainers.logged import Logged, OffPolicy
    from melior.trainers.loop import FitConfig, fit

    asked = {"model": "banner@prod", "input": {"context": {"hour": 3.0}}, "candidates": [f"item {i}" for i in range(5)]}
    with banner.http() as http:
        shown = [http.post("/v1/decisions", json={**asked, "seed": seed}).json() for seed in range(8)]
        clicked, bought = shown[1], shown[2]
        event = {"metric_name": "click", "decision_id": clicked["decision_id"], "feedback_id": "click-1"}
        for _ in range(2):  # at least once: the second time it is the same one
            say(http, **event, value={"position": 1, "item": clicked["output"][1], "time": "2026-11-21T10:00:00Z"})
        say(http, metric_name="purchase", decision_id=bought["decision_id"], value={"item": bought["output"][0]})
        mistake = say(http, metric_name="click", decision_id=shown[3]["decision_id"], value=True)
        say(http, replaces=mistake, value=None)
        code, message = refused(http, metric_name="click", decision_id=bought["decision_id"], value={"item": "item 9"})
        assert code == 400 and "did not show it" in message
    store = banner.service.store
    with store.database.read() as connection:
        rows = list(rows_of(connection, Wanted(kind="decisions"), LeftOut()))
    log = [row.example for row in rows]
    assert [list(record.output) for record in log] == [each["output"] for each in shown]
    grader = load_grader({"type": "events", "points": {"click": 1, "purchase": 10}})
    scores = grader.grade_many(log)
    assert [score.value for score in scores] == [0, 1, 10, 0, 0, 0, 0, 0]
    assert scores[1].decisions == (0, 1, 0) and scores[2].decisions == (10, 0, 0)
    policy: Any = load_policy(tmp_path / "banner")
    before = policy.log_probs([log[2]])[0].sum()
    steps = Logged(policy, log, scores, batch_size=8, epochs=2)
    fit(policy, steps, OffPolicy(), FitConfig(learning_rate=1e-2))
    assert policy.log_probs([log[2]])[0].sum() > before, "what was bought is shown more often"
