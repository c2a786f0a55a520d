"""/v1/evals: what is to be graded and how, again and again; its runs are in `eval_runs`

An eval says what its rows hold (a JSON schema, or kept completions with some labels) and what an output must pass. Both
are checked when it is made: the schema, every grader, and that templates name what rows can have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from melior.errors import GraderError
from melior.evaluation.criteria import criteria_of
from melior.serving.eval_rows import Metadata, check_finite
from melior.serving.eval_schema import OPEN, check_template, checked_schema, templates_of, told_schema
from melior.serving.feedback import Id
from melior.serving.graders import from_client
from melior.serving.problems import Problem
from melior.serving.security import needs
from melior.serving.service import Service
from melior.serving.wire import page, page_of, seconds
from melior.store.query import Order
from melior.store.rows import Eval

UNNAMED = "eval"
MOST_CRITERIA = 50  # each grades every output

router = APIRouter(prefix="/v1/evals", tags=["evals"])

Name = Annotated[str, StringConstraints(min_length=1, max_length=500)]


class Custom(BaseModel):
    """Rows of a schema."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["custom"]
    item_schema: dict[str, Any]
    include_sample_schema: bool = False


class Logged(BaseModel):
    """Rows out of kept completions."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["logs", "stored_completions"]
    metadata: Metadata | None = None


class Create(BaseModel):
    """What a client sends."""

    model_config = ConfigDict(extra="forbid")

    name: Name | None = None
    data_source_config: Annotated[Custom | Logged, Field(discriminator="type")]
    testing_criteria: list[dict[str, Any]] = Field(min_length=1, max_length=MOST_CRITERIA)
    metadata: Metadata | None = None


class Update(BaseModel):
    """What of an eval can be changed."""

    model_config = ConfigDict(extra="forbid")

    name: Name | None = None
    metadata: Metadata | None = None


@router.post("", dependencies=[Depends(needs("train"))])
def create(request: Request, asked: Create) -> dict[str, Any]:
    """An eval, without a run."""
    service: Service = request.app.state.service
    config = asked.data_source_config.model_dump(exclude_none=True)
    check_finite(config, "data_source_config")
    check_finite(asked.testing_criteria, "testing_criteria")
    checked_schema(item_schema(config), "data_source_config.item_schema")
    checked_criteria(service, asked.testing_criteria, item_schema(config), has_samples(config))
    kept = {"data_source_config": config, "testing_criteria": asked.testing_criteria}
    return told(service.store.add_eval(asked.name or UNNAMED, kept, asked.metadata))


@router.get("", dependencies=[Depends(needs("read"))])
def listed(
    request: Request,
    after: Id | None = None,
    limit: int = Query(20, ge=1, le=100),
    order: Order = "asc",
    order_by: Literal["created_at", "updated_at"] = "created_at",
) -> dict[str, Any]:
    """The evals there are."""
    service: Service = request.app.state.service
    if order_by == "created_at":
        return page_of(service.store.evals_page(after=after, limit=limit, order=order), told)
    rows = sorted(service.store.evals(), key=lambda row: row.updated)
    return page(rows, told, after=after, limit=limit, order=order)


@router.get("/{eval_id}", dependencies=[Depends(needs("read"))])
def one(request: Request, eval_id: Id) -> dict[str, Any]:
    """One eval."""
    return told(request.app.state.service.store.one_eval(eval_id))


@router.post("/{eval_id}", dependencies=[Depends(needs("train"))])
def update(request: Request, eval_id: Id, asked: Update) -> dict[str, Any]:
    """The eval with another name or other labels; what it grades cannot change, or its runs could not be compared."""
    service: Service = request.app.state.service
    return told(service.store.change_eval(eval_id, name=asked.name, labels=asked.metadata))


@router.delete("/{eval_id}", dependencies=[Depends(needs("train"))])
def delete(request: Request, eval_id: Id) -> dict[str, Any]:
    """The eval and its runs, no longer found; what was sampled and graded stays in the log."""
    row = request.app.state.service.store.delete_eval(eval_id)
    return {"object": "eval.deleted", "deleted": True, "eval_id": row.id}


def item_schema(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of items; kept completions have whatever was asked."""
    schema: Mapping[str, Any] = config.get("item_schema", OPEN)
    return schema


def has_samples(config: Mapping[str, Any]) -> bool:
    """Whether criteria may look at a sample."""
    return config["type"] != "custom" or bool(config.get("include_sample_schema"))


def checked_criteria(
    service: Service, criteria: list[dict[str, Any]], schema: Mapping[str, Any], samples: bool
) -> list[dict[str, Any]]:
    """Strangers' criteria with their models as ours.

    Raises:
        Problem: if one cannot grade such rows; says which.
    """
    made = []
    for number, criterion in enumerate(criteria):
        param = f"testing_criteria.{number}"
        plain = {name: value for name, value in criterion.items() if name != "id"}  # as retrieved elsewhere
        made.append(from_client(service, plain, param))
        try:
            criteria_of(made[-1:])
        except GraderError as error:
            raise Problem(400, str(error), param=param) from error
        for place, template in templates_of(criterion, param):
            check_template(template, schema, samples, place)
    return made


def told(row: Eval) -> dict[str, Any]:
    """An eval as the dialect has it."""
    config = dict(row.asked["data_source_config"])
    schema = told_schema(item_schema(config), has_samples(config))
    kept = {name: config.get(name) for name in ("type", *(["metadata"] if config["type"] != "custom" else []))}
    return {
        "id": row.id,
        "object": "eval",
        "created_at": seconds(row.created),
        "name": row.name,
        "data_source_config": {**kept, "schema": schema},
        "testing_criteria": list(row.asked["testing_criteria"]),
        "metadata": dict(row.labels),
    }
