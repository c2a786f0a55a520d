"""AWS reward functions run unchanged: as files, as modules, behind a URL, and deployed"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from local_server import Request, Server, answer, serving

from melior.errors import GraderError
from melior.rewards.base import call_grader
from melior.rewards.graders import load_grader
from melior.rewards.lambdas import Context
from melior.rewards.workers import GraderPool
from melior.types import Record, Score

FILES = Path(__file__).parent / "lambdas"
ARN = "arn:aws:lambda:eu-west-1:123456789012:function:reward"


def lambda_of(function: Any, **more: Any) -> dict[str, Any]:
    return {"type": "lambda", "lambda": {"function": str(function)}, **more}


def record(output: str, inputs: Any = "How many?", **item: Any) -> Record:
    return Record(inputs=inputs, output=output, item=item)


def graded(spec: Any, *rows: Record) -> list[Score]:
    with GraderPool(spec, processes=1) as pool:
        return pool.grade(rows)


def here(file: Path, row: Record, **more: Any) -> Score:
    """Graded in this process: quicker, where workers make no difference."""
    return call_grader(load_grader(lambda_of(file, **more)), row)


def written(folder: Path, body: str, name: str = "reward.py") -> Path:
    path = folder / name
    path.write_text(body)
    return path


def test_a_file_with_lambda_handler() -> None:
    right, wrong, shown = graded(
        lambda_of(FILES / "exact_answer.py"),
        record("It is 1,234", reference_answer="1234"),
        record("It is 12", reference_answer="1234"),
        record("#### 7", reference_answer=7),
    )
    assert [right.value, wrong.value, shown.value] == [0.9, 0.0, 1.0]
    assert shown.parts == {"correct": 1.0, "shown": 1.0} and shown.name == "exact_answer"


def test_a_row_without_its_reference_fails_and_is_not_scored() -> None:
    (score,) = graded(lambda_of(FILES / "exact_answer.py"), record("7"))
    assert score.value is None and "KeyError" in score.error and "reference_answer" in score.error


def test_novas_role_and_parts() -> None:
    spec = lambda_of(FILES / "nova_format.py", assistant_role="nova_assistant", content_parts=True)
    (score,) = graded(spec, record("42", reference_answer="42"))
    assert score.value == pytest.approx(0.8 + 0.2 * (1 - 2 / 400)) and score.parts["exact"] == 1.0
    assert "unexpected role assistant" in here(FILES / "nova_format.py", record("42", reference_answer="42")).error


def test_the_only_handler_of_a_file_is_found() -> None:
    score = here(FILES / "rubric_handler.py", record("Refund within days", rubric=["refund", "days", "sorry", "help"]))
    assert score.value == 0.5 and score.name == "rubric_handler"
    failed = here(FILES / "rubric_handler.py", record("Refund"))
    assert failed.value is None and "KeyError: 'rubric'" in failed.error


def test_a_handler_can_be_named() -> None:
    row = record("a b", rubric=["a", "c"])
    spec = {"type": "lambda", "function": f"{FILES / 'rubric_handler.py'}:score_answers"}  # the short form
    assert call_grader(load_grader(spec), row).value == 0.5


def test_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "def handle(event, context):\n    return [{'id': event[0]['id'], 'aggregate_reward_score': 0.25}]\n"
    written(tmp_path, body, "rewards_a.py")
    monkeypatch.syspath_prepend(tmp_path)
    assert call_grader(load_grader(lambda_of("rewards_a:handle")), record("x")).value == 0.25


def test_which_handler_is_meant_must_be_clear(tmp_path: Path) -> None:
    two = "def one(event, context): ...\ndef two(event, context): ...\n"
    with pytest.raises(GraderError, match=r"there are 2 \(one, two\); write reward\.py:name"):
        load_grader(lambda_of(written(tmp_path, two))).load()
    with pytest.raises(GraderError, match=r"there are 0 \(none\)"):
        load_grader(lambda_of(written(tmp_path, "def reward(x, y): ...\n", "other.py"))).load()
    with pytest.raises(GraderError, match="does not exist"):
        load_grader(lambda_of(tmp_path / "missing.py")).load()


ANSWERS = {
    "list": ("[{'id': i, 'aggregate_reward_score': 1}]", 1.0, ""),
    "object": ("{'id': i, 'aggregate_reward_score': 1}", 1.0, ""),
    "status and text": ("{'statusCode': 200, 'body': json.dumps([{'id': i, 'aggregate_reward_score': 1}])}", 1.0, ""),
    "status and list": ("{'statusCode': 200, 'body': [{'id': i, 'aggregate_reward_score': 1}]}", 1.0, ""),
    "tuple": ("({'id': i, 'aggregate_reward_score': 1},)", 1.0, ""),
    "error": ("{'errorMessage': 'no', 'errorType': 'Oops'}", None, "Oops: no"),
    "bad status": ("{'statusCode': 500, 'body': 'down'}", None, "status 500: down"),
    "nothing": ("None", None, "no list"),
    "text": ("'1.0'", None, "no list"),
    "no JSON": ("object()", None, "not JSON"),
    "NaN": ("[{'id': i, 'aggregate_reward_score': float('nan')}]", None, "nan"),
    "other id": ("[{'id': 'x', 'aggregate_reward_score': 1}]", None, "ids nobody sent"),
    "raises": ("1 / 0", None, "ZeroDivisionError"),
    "exits": ("exit(3)", None, "SystemExit"),
}


@pytest.mark.parametrize("form", ANSWERS)
def test_forms_of_answers(form: str, tmp_path: Path) -> None:
    answered, value, told = ANSWERS[form]
    body = f"import json\ndef lambda_handler(event, context):\n    i = event[0]['id']\n    return {answered}\n"
    score = here(written(tmp_path, body), record("x"))
    assert score.value == value and told in score.error and bool(score.error) == (value is None)


def test_a_handler_that_hangs_or_dies_costs_one_output(tmp_path: Path) -> None:
    body = (
        "import os, time\n"
        "def lambda_handler(event, context):\n"
        "    said = event[0]['messages'][-1]['content']\n"
        "    time.sleep(60) if said == 'hang' else os._exit(9) if said == 'die' else None\n"
        "    return [{'id': event[0]['id'], 'aggregate_reward_score': 1}]\n"
    )
    with GraderPool(lambda_of(written(tmp_path, body)), processes=1, timeout_s=2) as pool:
        scores = pool.grade([record(said) for said in ("fine", "hang", "fine", "die", "fine")])
    assert [score.value for score in scores] == [1, None, 1, None, 1]
    assert "within 2 s" in scores[1].error and "exit status 9" in scores[3].error


def test_what_a_handler_does_to_its_event_stays_there(tmp_path: Path) -> None:
    body = (
        "def lambda_handler(event, context):\n"
        "    event[0]['metadata']['seen'] = True; event[0]['messages'].clear()\n"
        "    return [{'id': event[0]['id'], 'aggregate_reward_score': float('seen' in event[0]['metadata'])}]\n"
    )
    item = {"reference_answer": [1]}
    row = Record(inputs=[{"role": "user", "content": "q"}], output="a", item=item)
    assert here(written(tmp_path, body), row).value == 1.0
    assert item == {"reference_answer": [1]} and len(row.inputs) == 1


def test_the_context_has_what_handlers_read() -> None:
    context = Context("reward", timeout_s=3)
    assert 0 < context.get_remaining_time_in_millis() <= 3000
    assert context.aws_request_id != Context("reward").aws_request_id
    assert context.function_name in context.invoked_function_arn and context.function_name in context.log_group_name
    assert context.memory_limit_in_mb == 128 and context.function_version == "$LATEST" and context.log_stream_name
    assert Context("reward", timeout_s=0.0001, started=0.0).get_remaining_time_in_millis() == 0


def test_a_url_is_asked_in_batches() -> None:
    def play(request: Request, connection: socket.socket, server: Server) -> None:
        answer(connection, [{"id": event["id"], "aggregate_reward_score": 1} for event in request.json])

    with serving(play) as server:
        scores = graded(lambda_of(server.url, timeout_s=2), *[record("x")] * 5)
    assert [score.value for score in scores] == [1] * 5 and len(server.requests) == 1


def test_a_spec_survives_the_way_to_a_worker() -> None:
    grader = load_grader(lambda_of(FILES / "exact_answer.py", timeout_s=3, reference_column="answer", name="mine"))
    again = load_grader(json.loads(json.dumps(grader.spec)))
    assert again == grader and again.name == "mine"
    assert call_grader(again, record("4", answer=4)).value == 0.9


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({}, "names one function"),
        ({"lambda": {"function": "a.py"}, "function": "b.py"}, "names one function"),
        ({"lambda": {"handler": "a.py"}}, "names one function"),
        ({"function": 7}, "is a string"),
        ({"function": "reward"}, "no .py file"),
        ({"function": "arn:aws:s3:::bucket"}, "no function's ARN"),
        ({"function": "a.py", "headers_env": {"X": "Y"}}, "no use for 'headers_env' with a Python file"),
        ({"function": ARN, "attempts": 3}, "no use for 'attempts' with a function in AWS"),
        ({"function": "ftp://x"}, "http:// or https://"),
        ({"function": "a.py", "timeout_s": 0}, "positive number"),
    ],
)
def test_settings_that_cannot_be_used(spec: dict[str, Any], told: str) -> None:
    with pytest.raises(GraderError, match=told):
        load_grader({"type": "lambda", **spec})


def test_without_boto3_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(GraderError, match=r"pip install 'melior\[aws\]'"):
        load_grader(lambda_of(ARN)).load()


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("boto3", reason="boto3 is not installed (extra aws)")
    for name, value in (("AWS_ACCESS_KEY_ID", "testing"), ("AWS_SECRET_ACCESS_KEY", "testing")):
        monkeypatch.setenv(name, value)
    return load_grader(lambda_of(ARN, batch_size=2, concurrency=1))


def invoked(grader: Any, rows: list[Record], *answers: dict[str, Any], sent: list[Record] | None = None) -> list[Score]:
    """The scores where AWS answers so, one answer per batch of two rows sent; the client checks every parameter."""
    from io import BytesIO

    from botocore.response import StreamingBody
    from botocore.stub import Stubber

    with Stubber(grader.client) as stub:
        for number, given in enumerate(answers):
            part = (sent or rows)[2 * number : 2 * number + 2]
            payload = json.dumps(grader.form.events(part)).encode()
            expected = {"FunctionName": ARN, "InvocationType": "RequestResponse", "Payload": payload}
            if "code" in given:
                stub.add_client_error("invoke", given["code"], "slow down", 429, expected_params=expected)
                continue
            raw = json.dumps(given.pop("answer")).encode()
            body = StreamingBody(BytesIO(raw), len(raw))
            stub.add_response("invoke", {"StatusCode": 200, "Payload": body, **given}, expected)
        scores = grader.grade_many(rows)
        stub.assert_no_pending_responses()
    return scores


def test_a_deployed_function_is_invoked_in_batches(deployed: Any) -> None:
    rows = [record(f"answer {n}", reference_answer=n) for n in range(6)]
    ids = [event["id"] for start in (0, 2, 4) for event in deployed.form.events(rows[start : start + 2])]
    scores = invoked(
        deployed,
        rows,
        {"answer": [{"id": ids[1], "aggregate_reward_score": 1}, {"id": ids[0], "aggregate_reward_score": 0}]},
        {"answer": {"errorMessage": "Task timed out", "errorType": "Sandbox.Timedout"}, "FunctionError": "Unhandled"},
        {"code": "TooManyRequestsException"},
    )
    assert [score.value for score in scores] == [0, 1, None, None, None, None]
    assert "Sandbox.Timedout: Task timed out" in scores[2].error and "slow down" in scores[4].error
    assert deployed.client.meta.region_name == "eu-west-1"


def test_what_cannot_be_sent_to_a_deployed_function_fails_alone(deployed: Any) -> None:
    rows = [record("a", n=1), record("b", n=float("nan")), record("c", n=3)]
    sent = [rows[0], rows[2]]
    ids = [event["id"] for event in deployed.form.events(sent)]
    answered = {"answer": [{"id": id, "aggregate_reward_score": number} for number, id in enumerate(ids)]}
    scores = invoked(deployed, rows, answered, sent=sent)
    assert [score.value for score in scores] == [0, None, 1] and "JSON values" in scores[1].error


def test_a_profile_that_is_not_there_is_told_at_once(deployed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # which remembers its profile
    monkeypatch.setenv("AWS_PROFILE", "nowhere")
    with pytest.raises(GraderError, match=r"grader reward cannot ask AWS: .*nowhere"):
        deployed.load()
