"""run and validate answer as the OpenAI client expects, for its own examples of graders

The examples are those of the client's tests, of the API reference and of the guide to graders (openai-python 3.52;
developers.openai.com/api/docs/guides/graders), with the model's name replaced by a local one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from melior.errors import GraderError
from melior.rewards.results import DETAILS, FLAGS, run_grader, validate_grader

alpha = pytest.importorskip("openai.types.fine_tuning.alpha")
pytest.importorskip("rapidfuzz")

FAULTY = str(Path(__file__).with_name("faulty.py"))

STRING_CHECK = {
    "input": "input",
    "name": "name",
    "operation": "eq",
    "reference": "reference",
    "type": "string_check",
}
TOOL_CALLS = {
    "type": "multi",
    "graders": {
        "function_name": {
            "name": "function_name",
            "type": "string_check",
            "input": "get_acceptors",
            "reference": "{{sample.output_tools[0].function.name}}",
            "operation": "eq",
        },
        "arguments": {
            "name": "arguments",
            "type": "string_check",
            "input": '{"smiles": "{{item.smiles}}"}',
            "reference": "{{sample.output_tools[0].function.arguments}}",
            "operation": "eq",
        },
    },
    "calculate_output": "0.5 * function_name + 0.5 * arguments",
}
PERSON = {
    "type": "multi",
    "graders": {
        "name": {
            "name": "name_grader",
            "type": "text_similarity",
            "input": "{{sample.output_json.name}}",
            "reference": "{{item.name}}",
            "evaluation_metric": "fuzzy_match",
            "pass_threshold": 0.9,
        },
        "email": {
            "name": "email_grader",
            "type": "string_check",
            "input": "{{sample.output_json.email}}",
            "reference": "{{item.email}}",
            "operation": "eq",
        },
    },
    "calculate_output": "(name + email) / 2",
}
JOHN = {"name": "John Doe", "email": "john.doe@gmail.com"}
SCORE_TEXT = {
    "type": "score_model",
    "name": "Example score model grader",
    "input": [
        {
            "role": "user",
            "content": [
                {
                    "type": "input_text",
                    "text": "Score how close the reference answer is to the model answer on a 0-1 scale. Return only "
                    "the score.\n\nReference answer: {{item.reference_answer}}\n\nModel answer: {{sample.output_text}}",
                }
            ],
        }
    ],
    "sampling_params": {"temperature": 1, "top_p": 1, "seed": 42},
}
MY_SCORE = {
    "type": "score_model",
    "name": "my_score_model",
    "input": [
        {"role": "system", "content": "You are an expert grader. If the reference and model answer match, score 1."},
        {"role": "user", "content": "Reference: {{ item.reference_answer }}. Model answer: {{ sample.output_text }}"},
    ],
    "pass_threshold": 0.5,
    "range": [0, 1],
    "sampling_params": {"max_completions_tokens": 64, "top_p": 1, "reasoning_effort": "medium"},
}


def run(grader: dict[str, Any], sample: Any, item: dict[str, Any] | None = None) -> tuple[dict[str, Any], Any]:
    """The answer, and what the client makes of it; strict where there is a reward, as the client never is."""
    answer = json.loads(json.dumps(run_grader(grader, sample, item)))
    if answer["reward"] is not None:
        return answer, alpha.GraderRunResponse.model_validate(answer, strict=True)
    return answer, alpha.GraderRunResponse.construct(**answer)


def test_the_answer_has_exactly_the_fields_of_the_dialect() -> None:
    answer, parsed = run(STRING_CHECK, "model_sample")
    assert set(answer) == {"reward", "sub_rewards", "model_grader_token_usage_per_model", "metadata"}
    fields = alpha.grader_run_response
    metadata = {field.alias or name for name, field in fields.Metadata.model_fields.items()}
    assert set(answer["metadata"]) == metadata
    errors = {field.alias or name for name, field in fields.MetadataErrors.model_fields.items()}
    assert set(answer["metadata"]["errors"]) == errors == {*FLAGS, *DETAILS.values()}
    assert parsed.reward == 0.0 and parsed.metadata.name == "name" and parsed.metadata.type == "string_check"
    assert not any(answer["metadata"]["errors"].values()) and parsed.metadata.execution_time >= 0


def test_the_example_of_tool_calls() -> None:
    call = {"name": "get_acceptors", "arguments": '{"smiles": "CCO"}'}
    message = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": call}]}
    answer, parsed = run(TOOL_CALLS, message, {"smiles": "CCO"})
    assert parsed.reward == 1.0 and parsed.sub_rewards == {"function_name": 1.0, "arguments": 1.0}
    assert run(TOOL_CALLS, message, {"smiles": "C"})[1].reward == 0.5
    as_object = {**message, "tool_calls": [{"function": {"name": "get_acceptors", "arguments": {"smiles": "CCO"}}}]}
    assert run(TOOL_CALLS, as_object, {"smiles": "CCO"})[1].reward == 1.0
    talked, parsed = run(TOOL_CALLS, "I would rather talk.", {"smiles": "CCO"})
    assert parsed.reward == 0.0 and talked["metadata"]["errors"]["sample_parse_error"]
    assert answer["metadata"]["name"] == "multi"


def test_the_example_of_fields_in_json() -> None:
    assert run(PERSON, json.dumps(JOHN), JOHN)[1].reward == 1.0
    misspelt, parsed = run(PERSON, json.dumps({**JOHN, "name": "Jon Doe"}), JOHN)
    assert 0.9 < parsed.reward < 1 and misspelt["sub_rewards"]["email"] == 1.0
    assert run(PERSON, json.dumps({**JOHN, "email": "x"}), JOHN)[1].reward == 0.5
    assert run(PERSON, "John Doe", JOHN)[1].reward == 0.0


@pytest.mark.parametrize("grader", [SCORE_TEXT, MY_SCORE])
def test_the_examples_of_judges(grader: dict[str, Any], folder_of: Callable[..., Path]) -> None:
    model = str(folder_of("llama", max_position_embeddings=2048))
    answer, parsed = run({**grader, "model": model}, "0.9", {"reference_answer": 1.0})
    assert answer["metadata"]["sampled_model_name"] == model
    usage = answer["model_grader_token_usage_per_model"][model]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"] == parsed.metadata.token_usage
    errors = answer["metadata"]["errors"]
    assert (answer["reward"] is None) == errors["model_grader_parse_error"]
    assert sum(errors[flag] for flag in FLAGS) == (answer["reward"] is None)


def test_each_failure_sets_its_own_flag_and_no_reward() -> None:
    parts = {"a": STRING_CHECK}
    cases: list[tuple[dict[str, Any], str]] = [
        ({**STRING_CHECK, "input": "{{item.none}}"}, "other_error"),
        ({"type": "function", "function": f"{FAULTY}:returns"}, "python_grader_runtime_error"),
        ({"type": "function", "function": "no_such_module_here:f"}, "other_error"),
        ({"type": "multi", "graders": parts, "calculate_output": "1 / a"}, "other_error"),
    ]
    for grader, flag in cases:
        answer, parsed = run(grader, "x", {})
        errors = answer["metadata"]["errors"]
        assert answer["reward"] is None and parsed.reward is None
        assert [name for name in FLAGS if errors[name]] == [flag], grader
    details = run(cases[1][0], "x", {})[0]["metadata"]["errors"]["python_grader_runtime_error_details"]
    assert "KeyError" in details and "faulty.py" in details
    answer, _ = run({**SCORE_TEXT, "model": "gpt-5-mini"}, "x", {"reference_answer": "x"})
    errors = answer["metadata"]["errors"]
    assert errors["model_grader_server_error"] and "gpt-5-mini" in errors["model_grader_server_error_details"]


def test_a_bad_output_has_a_reward_and_a_flag() -> None:
    answer, parsed = run({**STRING_CHECK, "input": "{{sample.output_json.a}}"}, "no json")
    assert parsed.reward == 0.0 and answer["metadata"]["errors"]["sample_parse_error"]
    assert not answer["metadata"]["errors"]["other_error"]


@pytest.mark.parametrize("grader", [STRING_CHECK, TOOL_CALLS, PERSON, {**SCORE_TEXT, "model": "gpt-5-mini"}])
def test_valid_graders_come_back_with_their_name(grader: dict[str, Any]) -> None:
    answer = validate_grader(grader)
    assert answer == {"grader": {**grader, "name": answer["grader"]["name"]}} and answer["grader"]["name"]
    parsed = alpha.GraderValidateResponse.construct(**answer)
    assert parsed.grader.to_dict() == answer["grader"]


@pytest.mark.parametrize(
    ("grader", "kind", "reason"),
    [
        ({"type": "multi", "graders": {"a": STRING_CHECK}, "calculate_output": "a +"}, "formula_parse_error", "ends"),
        ({"type": "multi", "graders": {"a": STRING_CHECK}, "calculate_output": "b"}, "invalid_variable_error", "'b'"),
        ({"type": "multi", "graders": {"m": TOOL_CALLS}, "calculate_output": "m"}, "other_error", "is multi itself"),
        ({**STRING_CHECK, "operation": "equals"}, "other_error", "no operation"),
        ([STRING_CHECK], "other_error", "is an object"),
    ],
)
def test_what_is_no_grader_is_refused(grader: Any, kind: str, reason: str) -> None:
    with pytest.raises(GraderError, match=reason) as caught:
        validate_grader(grader)
    assert caught.value.kind == kind


def test_the_clients_types_of_one_grader_inside_multi() -> None:
    """The client's types have a single grader there, the guide a mapping; both are read."""
    grader = {"type": "multi", "name": "m", "graders": {**STRING_CHECK, "name": "a"}, "calculate_output": "1 - a"}
    assert run(grader, "x")[1].reward == 1.0


def test_the_client_itself_reads_what_is_answered_over_http() -> None:
    """A real client against a real server that answers with these functions."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    import openai

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            told = validate_grader(asked["grader"]) if self.path.endswith("/validate") else run_grader(**asked)
            body = json.dumps(told).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none")
        graders = client.fine_tuning.alpha.graders
        result = graders.run(grader=PERSON, model_sample=json.dumps(JOHN), item=JOHN)  # type: ignore[arg-type]
        assert result.reward == 1.0 and result.sub_rewards == {"name": 1.0, "email": 1.0}
        assert graders.run(grader=STRING_CHECK, model_sample="x").metadata.errors.other_error is False  # type: ignore[arg-type]
        validated = graders.validate(grader=STRING_CHECK)  # type: ignore[arg-type]
        assert validated.grader is not None and validated.grader.to_dict() == STRING_CHECK
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
