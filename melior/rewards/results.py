"""graders run and validated as the OpenAI dialect tells it: one JSON object per call"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from melior.errors import GraderError
from melior.rewards.base import failed
from melior.rewards.graders import load_grader
from melior.rewards.workers import GraderPool
from melior.types import Record, Score

FLAGS = (
    "formula_parse_error",
    "sample_parse_error",
    "truncated_observation_error",
    "unresponsive_reward_error",
    "invalid_variable_error",
    "other_error",
    "python_grader_server_error",
    "python_grader_runtime_error",
    "model_grader_server_error",
    "model_grader_refusal_error",
    "model_grader_parse_error",
)
DETAILS = {  # flag → where its words go
    "python_grader_server_error": "python_grader_server_error_type",
    "python_grader_runtime_error": "python_grader_runtime_error_details",
    "model_grader_server_error": "model_grader_server_error_details",
}


def run_grader(
    grader: Mapping[str, Any], model_sample: Any, item: Mapping[str, Any] | None = None, *, timeout_s: float = 120.0
) -> dict[str, Any]:
    """What a grader says of one output, as `POST /v1/fine_tuning/alpha/graders/run` answers it.

    `reward` is null where the grader failed or does not apply: the flag of the failure is set in `metadata.errors`. An
    output that lacks what a template asks for is a bad output, so it has both a reward and `sample_parse_error`.

    Args:
        model_sample: a text, or an assistant message with `content` and `tool_calls`.

    Raises:
        GraderError: if the setting makes no grader.
    """
    made = load_grader(grader)
    started = time.monotonic()
    try:
        with GraderPool(made, processes=1, timeout_s=timeout_s) as pool:
            score = pool.grade([Record(inputs="", output=model_sample, item=dict(item or {}))])[0]
    except GraderError as error:  # user code that cannot be imported, a model that is not there
        score = failed(made.name, *str(error).partition("\n")[::2], kind=error.kind)
    return result_of(score, grader, seconds=time.monotonic() - started)


def result_of(score: Score, grader: Mapping[str, Any], *, seconds: float | None = None) -> dict[str, Any]:
    """The dialect's object for one score of a grader."""
    usage = {model: {**counts, "total_tokens": sum(counts.values())} for model, counts in score.usage.items()}
    return {
        "reward": score.value,
        "sub_rewards": dict(score.parts),
        "model_grader_token_usage_per_model": usage,
        "metadata": {
            "name": score.name,
            "type": str(grader.get("type")),
            "scores": dict(score.parts),
            "execution_time": score.seconds if seconds is None else seconds,
            "token_usage": sum(counts["total_tokens"] for counts in usage.values()) if usage else None,
            "sampled_model_name": next(iter(usage), None) if len(usage) == 1 else None,
            "errors": errors_of(score),
        },
    }


def errors_of(score: Score) -> dict[str, Any]:
    """Every flag of the dialect, and the words of the failure beside the flag that is set."""
    told = score.traceback or score.error or None
    return {
        **dict.fromkeys(FLAGS, False),
        **dict.fromkeys(DETAILS.values()),
        **({score.kind: True} if score.kind in FLAGS else {}),
        **({DETAILS[score.kind]: told} if score.kind in DETAILS else {}),
        **({"other_error": True} if score.error and score.kind not in FLAGS else {}),
    }


def validate_grader(grader: Mapping[str, Any]) -> dict[str, Any]:
    """The setting, with its name, where it makes a grader; nothing of the user's is run.

    Raises:
        GraderError: saying what is wrong with it.
    """
    if not isinstance(grader, Mapping):
        raise GraderError(f"a grader is an object with a type, not {type(grader).__name__}")
    return {"grader": {**grader, "name": load_grader(grader).name}}
