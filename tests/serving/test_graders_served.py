"""graders of strangers: they compute and judge, and reach nothing of this machine"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from live import Live

from melior.cli.serve import reward_function
from melior.errors import ConfigError
from melior.registry import Registry

CHECK = {
    "type": "string_check",
    "name": "right",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "7",
}
PYTHON = {
    "type": "python",
    "name": "long",
    "source": "def grade(sample, item):\n    return len(sample['output_text']) / 10",
}
BOTH = {
    "type": "multi",
    "name": "both",
    "graders": {"right": CHECK, "long": PYTHON},
    "calculate_output": "right + long",
}


@pytest.mark.parametrize(("grader", "reward"), [(CHECK, 1.0), (PYTHON, 0.1), (BOTH, 1.1)])
def test_a_grader_is_run_and_validated_by_the_official_client(server: Live, grader: Any, reward: float) -> None:
    graders = server.client().fine_tuning.alpha.graders
    told = graders.run(grader=grader, model_sample="7", item={})
    assert told.reward == pytest.approx(reward) and told.metadata.name == grader["name"]
    assert told.metadata.errors.other_error is False
    assert graders.validate(grader=grader).to_dict()["grader"]["type"] == grader["type"]


def test_a_judge_is_a_model_of_the_registry(server: Live, folder_of: Callable[..., Path]) -> None:
    registry = Registry(server.service.store)
    version = registry.register("judge", folder_of("llama", "chatml"), method="none", base_model="none")
    registry.promote(version.id, force=True, reason="first")
    asked: Any = {"type": "label_model", "name": "kind", "labels": ["yes", "no"], "passing_labels": ["yes"]}
    asked |= {"model": "judge@prod", "input": [{"role": "user", "content": "Is this good? {{sample.output_text}}"}]}
    told = server.client().fine_tuning.alpha.graders.run(grader=asked, model_sample="7", item={})
    assert told.reward in (0.0, 1.0)


@pytest.mark.parametrize(
    ("grader", "told"),
    [
        ({"type": "function", "function": "os:system"}, "'function' is not served"),
        (
            {"type": "lambda", "lambda": {"function": "/tmp/x.py:grade"}},
            "is no reward function of this server",
        ),
        ({"type": "http", "url": "http://127.0.0.1:1/"}, "'http' is not served"),
        ({"type": "learned", "model": "/etc"}, "there is no model '/etc'"),
        ({**BOTH, "graders": {"right": CHECK, "long": {"type": "function", "function": "os:system"}}}, "not served"),
        ({**CHECK, "operation": "is"}, "operation"),
        ({**CHECK, "inptu": ""}, "did you mean"),
        ({**BOTH, "calculate_output": "right +"}, "formula"),
        ({"type": "python", "source": "def grade(:"}, "grade"),
    ],
)
def test_what_a_stranger_may_not_have(server: Live, grader: Any, told: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        server.client().fine_tuning.alpha.graders.validate(grader=grader)
    assert told in str(error.value)


def test_a_job_may_not_bring_such_a_grader_either(server: Live) -> None:
    client = server.client()
    rows = client.files.create(
        file=("a.jsonl", b'{"messages": [{"role": "user", "content": "hi"}]}\n'), purpose="fine-tune"
    )
    method: Any = {"type": "reinforcement", "reinforcement": {"grader": {"type": "function", "function": "os:system"}}}
    with pytest.raises(openai.BadRequestError, match="'function' is not served"):
        client.fine_tuning.jobs.create(model="smollm2-135m-instruct", training_file=rows.id, method=method)
    assert not server.service.store.jobs()


def test_python_that_fails_says_so_and_gives_no_reward(server: Live) -> None:
    broken: Any = {"type": "python", "name": "broken", "source": "def grade(sample, item):\n    return 1 / 0"}
    told = server.client().fine_tuning.alpha.graders.run(grader=broken, model_sample="7", item={})
    assert told.reward is None and told.metadata.errors.python_grader_runtime_error


ARN = "arn:aws:lambda:us-west-2:123456789012:function:my-reward-function"
HANDLER = """
def lambda_handler(event, context):
    return [
        {"id": one["id"], "aggregate_reward_score": len(one["messages"][-1]["content"]) / one["metadata"]["most"]}
        for one in event
    ]
"""


@pytest.mark.parametrize("how", ["nested", "flat"])
def test_a_reward_function_has_the_name_that_the_operator_gave_it(
    live: Callable[..., Live], tmp_path: Path, how: str
) -> None:
    file = tmp_path / "rewards.py"
    file.write_text(HANDLER)
    server = live(rewards=dict([reward_function(f"{ARN}={file}")]))
    named = {"lambda": {"function": ARN}} if how == "nested" else {"function": ARN}
    asked: Any = {"type": "lambda", "name": "short", **named}
    told = server.client().fine_tuning.alpha.graders.run(grader=asked, model_sample="four", item={"most": 8})
    assert told.reward == 0.5, told
    shown = server.client().fine_tuning.alpha.graders.validate(grader=asked).to_dict()
    assert str(file) not in str(shown)


def test_a_script_of_bedrock_names_its_function_as_ever(
    live: Callable[..., Live], tmp_path: Path, folder_of: Callable[..., Path]
) -> None:
    file = tmp_path / "rewards.py"
    file.write_text(HANDLER)
    server = live(rewards=dict([reward_function(f"{ARN}={file}")]))
    registry = Registry(server.service.store)
    version = registry.register("tiny", folder_of("llama", "chatml"), method="none", base_model="none")
    registry.promote(version.id, force=True, reason="first")
    client = server.client()
    rows = b'{"messages": [{"role": "user", "content": "say it"}], "most": 8}\n' * 4
    sent = client.files.create(file=("rows.jsonl", rows), purpose="fine-tune")
    how = {"grader": {"type": "lambda", "lambda": {"function": ARN}}, "hyperparameters": {"batch_size": 4}}
    body = {"method": {"type": "reinforcement", "reinforcement": how}}
    job = client.fine_tuning.jobs.create(model="tiny@prod", training_file=sent.id, extra_body=body)
    assert ARN in job.to_json() and str(file) not in job.to_json()
    assert server.service.store.job(job.id).recipe["grader"]["lambda"] == {"function": str(file)}


@pytest.mark.parametrize("told", ["rewards.py", "=rewards.py", "polite=", "polite=nowhere.py:grade"])
def test_a_reward_function_that_cannot_be_is_told_at_the_start(told: str) -> None:
    with pytest.raises(ConfigError, match="--reward"):
        reward_function(told)


def test_addresses_may_have_signs_of_their_own() -> None:
    assert reward_function("a=https://x.example/f?key=1") == ("a", "https://x.example/f?key=1")
    assert reward_function(f"{ARN}=module:grade") == (ARN, "module:grade")
