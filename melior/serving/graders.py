"""/v1/fine_tuning/alpha/graders: what a grader says of one output, before anything is trained on it

A grader that comes over HTTP is a stranger's: it may compute, ask models of our registry, run Python in the sandbox,
and use the reward functions and the judges elsewhere that the operator gave names (`melior serve --reward
NAME=FUNCTION --judge NAME=URL,MODEL`). It may not name files or functions of this machine, nor addresses that we would
call for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from melior.errors import GraderError, StoreError
from melior.rewards.results import run_grader, validate_grader
from melior.serving.models import version_of
from melior.serving.problems import Problem
from melior.serving.security import needs
from melior.serving.service import Service
from melior.serving.threads import GRADING

PLAIN = ("string_check", "text_similarity", "python", "events", "cost_matrix", "reasoning_gym")
JUDGES = ("score_model", "label_model", "pair_model", "learned")  # ask a model of the registry, or one with a name here
PATIENCE_S = 120.0  # for one output, as OpenAI has it

router = APIRouter(prefix="/v1/fine_tuning/alpha/graders", tags=["graders"])


class Run(BaseModel):
    """What a client sends to try a grader."""

    model_config = ConfigDict(extra="forbid")

    grader: dict[str, Any]
    model_sample: Any
    item: dict[str, Any] = Field(default_factory=dict)


class Validate(BaseModel):
    """What a client sends to have a grader looked at."""

    model_config = ConfigDict(extra="forbid")

    grader: dict[str, Any]


@router.post("/run", dependencies=[Depends(needs("train"))])
async def run(request: Request, asked: Run) -> dict[str, Any]:
    """The reward of one output, and what went wrong where there is none."""
    return await GRADING.run(_graded, request.app.state.service, asked)


def _graded(service: Service, asked: Run) -> dict[str, Any]:
    ours = from_client(service, asked.grader)
    result = _answered(lambda: run_grader(ours, asked.model_sample, asked.item, timeout_s=PATIENCE_S))
    for kind in (flag for flag, wrong in result["metadata"]["errors"].items() if wrong is True):
        service.metrics.grader_failed(result["metadata"]["name"], kind)
    return dict(result)


@router.post("/validate", dependencies=[Depends(needs("train"))])
def validate(request: Request, asked: Validate) -> dict[str, Any]:
    """The grader, as it was sent, if it can be one."""
    ours = from_client(request.app.state.service, asked.grader)
    _answered(lambda: validate_grader(ours))
    return {"grader": asked.grader}


def from_client(service: Service, grader: Any, param: str = "grader") -> dict[str, Any]:
    """A stranger's grader with its models as folders of our registry.

    Raises:
        Problem: if it is none that strangers may have.
    """
    if not isinstance(grader, Mapping):
        raise Problem(400, "a grader is an object with a type; functions of this machine cannot be named", param=param)
    kind, made = grader.get("type"), dict(grader)
    if kind == "multi" and isinstance(made.get("graders"), Mapping):
        parts = made["graders"]
        parts = {str(parts.get("name", parts["type"])): parts} if isinstance(parts.get("type"), str) else parts
        made["graders"] = {name: from_client(service, part, f"{param}.graders.{name}") for name, part in parts.items()}
    elif kind in JUDGES and kind != "learned" and str(made.get("model")) in service.settings.judges:
        made["model"] = dict(service.settings.judges[str(made["model"])])
    elif kind in JUDGES:
        try:
            made["model"] = version_of(service, str(made.get("model"))).folder
        except StoreError as error:
            raise Problem(400, str(error), param=f"{param}.model", code="model_not_found") from error
    elif kind == "lambda":
        made |= {"lambda": {"function": _reward_function(service, grader, param)}}
        made.pop("function", None)
    elif kind not in (*PLAIN, "multi"):
        known = ", ".join((*PLAIN, *JUDGES, "lambda", "multi"))
        raise Problem(400, f"grader type {kind!r} is not served; types are {known}", param=f"{param}.type")
    return made


def _reward_function(service: Service, grader: Mapping[str, Any], param: str) -> str:
    """What the operator meant by the name, perhaps an ARN, that a client gives a function."""
    section = grader.get("lambda")
    name = section.get("function") if isinstance(section, Mapping) else grader.get("function")
    found = service.settings.rewards.get(name) if isinstance(name, str) else None
    if found is None:
        known = ", ".join(service.settings.rewards) or "none"
        told = f"{name!r} is no reward function of this server (there are: {known}); melior serve --reward adds one"
        raise Problem(400, told, param=f"{param}.lambda.function")
    return found


def _answered(call: Any) -> Any:
    try:
        return call()
    except GraderError as error:
        raise Problem(400, str(error), param="grader") from error
