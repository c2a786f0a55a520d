"""laws of rewards over HTTP: a fault costs the outputs it happened to, and nothing is ever scored 0 for it"""

from __future__ import annotations

import json
import random
import re
import socket
import threading
import time
from typing import Any

import pytest
from local_server import Request, Server, answer, closed_port, hang_up, serving

from melior.errors import GraderError
from melior.outbound import Rules
from melior.rewards.base import BatchGrader, FailureLimit
from melior.rewards.endpoints import http_grader
from melior.rewards.graders import load_grader
from melior.rewards.workers import GraderPool
from melior.types import Record, Score


def records(count: int, **item: Any) -> list[Record]:
    rows = range(count)
    return [Record(inputs=f"question {n}", output=f"answer {n}", item={"reference_answer": n, **item}) for n in rows]


def truth(request: Request) -> list[dict[str, Any]]:
    """What an honest server answers: the number at the end of the question."""
    return [
        {"id": event["id"], "aggregate_reward_score": float(event["messages"][0]["content"].split()[-1])}
        for event in request.json
    ]


def honest(request: Request, connection: socket.socket, server: Server) -> None:
    answer(connection, truth(request))


def graded(spec: dict[str, Any], rows: list[Record]) -> list[Score]:
    quick = {"type": "http", "timeout_s": 2, "attempts": 1}
    with GraderPool({**quick, **spec}) as pool:
        return pool.grade(rows)


def scored(play: Any, count: int = 10, **spec: Any) -> list[Score]:
    """Scores where the server answers with what `play` makes of the honest answer."""
    with serving(lambda request, connection, server: answer(connection, play(truth(request)))) as server:
        return graded({"url": server.url, "batch_size": count, **spec}, records(count))


def test_the_event_is_the_one_aws_sends() -> None:
    row = Record(
        inputs=[{"role": "system", "content": "be brief"}, {"role": "user", "content": "2 + 2?", "weight": 1}],
        output="4",
        item={"reference_answer": {"value": 4}, "difficulty": "easy"},
    )
    with serving(lambda request, connection, server: answer(connection, [])) as server:
        graded({"url": server.url}, [row, row])
    (request,) = server.requests
    first, second = request.json
    assert first["id"] != second["id"]  # equal outputs are still two
    assert {key: value for key, value in first.items() if key != "id"} == {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "2 + 2?"},
            {"role": "assistant", "content": "4"},
        ],
        "metadata": {"reference_answer": {"value": 4}, "difficulty": "easy"},
        "reference_answer": {"value": 4},
    }
    assert request.headers["content-type"] == "application/json" and request.line.startswith("POST /score ")


def test_other_forms_of_the_event() -> None:
    row = Record(inputs="q", output={"role": "assistant", "content": "a", "tool_calls": []}, item={"answer": 7})
    spec = {"assistant_role": "nova_assistant", "content_parts": True, "reference_column": "answer"}
    with serving(lambda request, connection, server: answer(connection, [])) as server:
        graded({"url": server.url, **spec}, [row])
    (event,) = server.requests[0].json
    assert event["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
        {"role": "nova_assistant", "content": [{"type": "text", "text": "a"}], "tool_calls": []},
    ]
    assert event["metadata"] == {"answer": 7, "reference_answer": 7} and event["reference_answer"] == 7


def test_a_step_takes_a_few_calls() -> None:
    busy, most, lock = [0], [0], threading.Lock()

    def slow(request: Request, connection: socket.socket, server: Server) -> None:
        with lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        time.sleep(0.1)
        with lock:
            busy[0] -= 1
        honest(request, connection, server)

    with serving(slow) as server:
        scores = graded({"url": server.url, "batch_size": 8, "concurrency": 3, "timeout_s": 20}, records(64))
    assert [score.value for score in scores] == list(range(64))
    assert len(server.requests) == 8 and 1 < most[0] <= 3
    assert {request.connection for request in server.requests} <= {1, 2, 3}


def test_answers_are_matched_by_id_in_any_order() -> None:
    def shuffled(rows: list[Any]) -> list[Any]:
        random.Random(1).shuffle(rows)
        return rows

    assert [score.value for score in scored(shuffled)] == list(range(10))


def test_extra_keys_and_metrics() -> None:
    metrics = [{"name": "a", "value": 0.5, "type": "Reward"}, {"name": "b", "value": "x"}, {"value": 1}, 7]
    scores = scored(lambda rows: [{**row, "metrics_list": metrics, "trace": {"deep": []}} for row in rows])
    assert all(score.parts == {"a": 0.5} and score.error == "" for score in scores)
    assert [score.value for score in scores] == list(range(10))


SPOILT = {
    "missing": (lambda row: None, "none to this id"),
    "unknown id": (lambda row: {**row, "id": "who?"}, "to ids nobody sent"),
    "number as id": (lambda row: {**row, "id": 3}, "none to this id"),
    "no id": (lambda row: {"aggregate_reward_score": 1}, "none to this id"),
    "no score": (lambda row: {"id": row["id"]}, "gave None as aggregate_reward_score"),
    "null": (lambda row: {**row, "aggregate_reward_score": None}, "gave None"),
    "text": (lambda row: {**row, "aggregate_reward_score": "0.5"}, "gave '0.5'"),
    "boolean": (lambda row: {**row, "aggregate_reward_score": True}, "gave True"),
    "list": (lambda row: {**row, "aggregate_reward_score": [1]}, r"gave \[1\]"),
    "NaN": (lambda row: {**row, "aggregate_reward_score": float("nan")}, "nan"),
    "infinity": (lambda row: {**row, "aggregate_reward_score": float("inf")}, "inf"),
    "huge": (lambda row: {**row, "aggregate_reward_score": 10**400}, "finite"),
    "own error": (lambda row: {"id": row["id"], "errorMessage": "no rubric", "errorType": "KeyE"}, "KeyE: no rubric"),
    "no object": (lambda row: "row", "none to this id"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_spoilt_answer_costs_its_own_output(fault: str) -> None:
    spoil, told = SPOILT[fault]

    def play(rows: list[Any]) -> list[Any]:
        rows[3] = spoil(rows[3])
        return [row for row in rows if row is not None]

    scores = scored(play)
    assert [score.value for score in scores] == [0, 1, 2, None, 4, 5, 6, 7, 8, 9]
    assert [index for index, score in enumerate(scores) if score.error] == [3]
    assert re.search(told, scores[3].error), scores[3].error


def test_two_answers_to_one_id_are_none() -> None:
    scores = scored(lambda rows: [*rows, {**rows[2], "aggregate_reward_score": 0.9}])
    assert [score.value for score in scores] == [0, 1, None, 3, 4, 5, 6, 7, 8, 9] and "2 answers" in scores[2].error


WHOLE = {
    "no JSON": (b"<html>busy</html>", "not JSON"),
    "cut JSON": (b'[{"id": "', "not JSON"),
    "deep JSON": (b"[" * 100_000, "not JSON"),
    "no UTF-8": (b"\xff\xfe[", "not JSON"),
    "empty": (b"", "not JSON"),
    "null": (b"null", "no list but NoneType"),
    "number": (b"7", "no list but int"),
    "object": (b'{"scores": []}', "no list but dict"),
    "error of Lambda": (b'{"errorMessage": "boom", "errorType": "ValueError"}', "ValueError: boom"),
    "status": (b'{"statusCode": 500, "body": "boom"}', "status 500: boom"),
    "body that is no JSON": (b'{"statusCode": 200, "body": "oops"}', "not JSON"),
}


@pytest.mark.parametrize("fault", WHOLE)
def test_a_garbled_answer_costs_its_batch(fault: str) -> None:
    garbled, told = WHOLE[fault]

    def play(request: Request, connection: socket.socket, server: Server) -> None:
        spoilt = any(event["messages"][0]["content"] == "question 3" for event in request.json)
        answer(connection, garbled if spoilt else truth(request))

    with serving(play) as server:
        scores = graded({"url": server.url, "batch_size": 2}, records(8))
    assert [score.value for score in scores] == [0, 1, None, None, 4, 5, 6, 7]
    assert told in scores[2].error and told in scores[3].error


def test_a_status_with_a_body_is_unwrapped() -> None:
    scores = scored(lambda rows: {"statusCode": 200, "headers": {}, "body": json.dumps(rows)})
    assert [score.value for score in scores] == list(range(10))


def test_a_server_that_is_down_stops_the_run_by_name() -> None:
    spec = {"url": f"http://127.0.0.1:{closed_port()}/", "name": "remote", "attempts": 2}
    scores = graded(spec, records(16))
    assert all(score.value is None and "cannot be reached" in score.error for score in scores)
    with pytest.raises(GraderError, match=r"grader remote failed on 16 of 16 calls"):
        FailureLimit("remote").add(scores)


def test_faults_in_a_tenth_of_the_calls_do_not_stop_a_run() -> None:
    def shaky(request: Request, connection: socket.socket, server: Server) -> None:
        if request.number % 10 == 7:
            hang_up(connection)
        honest(request, connection, server)

    with serving(shaky) as server:
        scores = graded({"url": server.url, "batch_size": 1, "concurrency": 1}, records(100))
    assert sum(bool(score.error) for score in scores) == 10
    assert all(score.value == index for index, score in enumerate(scores) if not score.error)
    FailureLimit("http").add(scores)  # excluded and counted, and the run goes on


def test_what_cannot_be_sent_costs_its_own_output() -> None:
    rows = records(4)
    rows[1] = Record(inputs="question 1", output="a", item={"when": float("nan")})
    rows[2] = Record(inputs="question 2", output="a", item={"what": object()})
    with serving(honest) as server:
        scores = graded({"url": server.url}, rows)
    assert [score.value for score in scores] == [0, None, None, 3]
    assert all("JSON values" in scores[index].error for index in (1, 2))


def test_a_row_without_the_reference_that_was_asked_for_fails_alone() -> None:
    rows = records(3)
    rows[1] = Record(inputs="question 1", output="a", item={"answr": 1})
    rows[0], rows[2] = (Record(inputs=row.inputs, output="a", item={"answer": 1}) for row in (rows[0], rows[2]))
    with serving(honest) as server:
        scores = graded({"url": server.url, "reference_column": "answer"}, rows)
    assert [score.value for score in scores] == [0, None, 2]
    assert "has no column 'answer' to send as reference_answer; it has answr" in scores[1].error
    assert [len(request.json) for request in server.requests] == [2]


def test_a_row_that_is_no_conversation_fails_alone() -> None:
    rows = [Record(inputs=inputs, output="a") for inputs in ("question 0", {"features": [1, 2]}, "question 2")]
    with serving(honest) as server:
        scores = graded({"url": server.url}, rows)
    assert [score.value for score in scores] == [0, None, 2] and "list of messages" in scores[1].error


def test_headers_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"type": "http", "headers_env": {"Authorization": "REWARD_TOKEN"}}
    with serving(honest) as server:
        with pytest.raises(GraderError, match="REWARD_TOKEN, which is not set"):
            GraderPool({**spec, "url": server.url})
        monkeypatch.setenv("REWARD_TOKEN", "Bearer hush")
        grader = load_grader({**spec, "url": server.url})
        with GraderPool(grader) as pool:
            assert pool.grade(records(1))[0].value == 0
        monkeypatch.setenv("REWARD_TOKEN", "two\r\nlines")
        with pytest.raises(GraderError, match="not printable"):
            GraderPool({**spec, "url": server.url})
    assert server.requests[0].headers["authorization"] == "Bearer hush"
    assert "hush" not in repr(grader) and "hush" not in json.dumps(grader.spec)


def test_it_runs_in_batches_and_is_rebuilt_from_its_spec() -> None:
    grader = load_grader({"type": "http", "name": "far", "url": "http://a.example/", "batch_size": 3, "timeout_s": 7})
    assert isinstance(grader, BatchGrader)
    again = load_grader(json.loads(json.dumps(grader.spec)))
    assert again == grader and again.name == "far"


def test_as_a_part_of_a_sum() -> None:
    local = {"type": "string_check", "operation": "like", "input": "{{sample.output_text}}", "reference": "3"}
    with serving(honest) as server:
        parts = {"far": {"type": "http", "url": server.url}, "near": local}
        with GraderPool({"type": "multi", "graders": parts, "calculate_output": "far + 10 * near"}) as pool:
            scores = pool.grade(records(5))
    assert [score.value for score in scores] == [0, 1, 2, 13, 4] and len(server.requests) == 1


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"url": "ftp://a.example"}, "http:// or https://"),
        ({"url": 7}, "a string as 'url'"),
        ({"url": "http://u:p@a.example"}, "headers_env"),
        ({"url": "http://a.example", "headers_env": {"X": "a value"}}, "not its value"),
        ({"url": "http://a.example", "headers_env": {"X:": "A"}}, "cannot send a header"),
        ({"url": "http://a.example", "headers_env": {"host": "A"}}, "writes the header host itself"),
        ({"url": "http://a.example", "headers_env": ["X"]}, "mapping"),
        ({"url": "http://a.example", "batch_size": 0}, "positive whole number as 'batch_size'"),
        ({"url": "http://a.example", "timeout_s": True}, "positive number as 'timeout_s'"),
        ({"url": "http://a.example", "content_parts": "yes"}, "true or false"),
        ({"url": "http://a.example", "timeout": 3}, "did you mean 'timeout_s'"),
        ({}, "needs the key 'url'"),
    ],
)
def test_settings_that_cannot_be_used(spec: dict[str, Any], told: str) -> None:
    with pytest.raises(GraderError, match=told):
        load_grader({"type": "http", **spec})


def test_what_a_stranger_wrote_reads_no_environment_and_stays_away_from_home() -> None:
    stranger = Rules(loopback=False)
    with pytest.raises(GraderError, match="only its operator's"):
        http_grader({"url": "http://a.example", "headers_env": {"X": "AWS_SECRET_ACCESS_KEY"}}, None, rules=stranger)
    with serving(honest) as server:
        score = http_grader({"url": server.url}, None, rules=stranger).grade(records(1)[0])
    assert score.value is None and "not public" in score.error and not server.requests
