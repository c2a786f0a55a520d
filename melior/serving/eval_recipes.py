"""a run of an eval as a worker does it: what is asked of which model, which rows, which graders"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from melior.errors import ConfigError, StoreError
from melior.jobs.evaluation import Asked as Recipe
from melior.policies.kinds import kind_of
from melior.policies.weights import KNOWN
from melior.serving.asking import format_rule
from melior.serving.eval_rows import (
    INPUT,
    FileContent,
    FileId,
    Inputs,
    Messages,
    Reference,
    Source,
    StoredCompletions,
    check_inputs,
    rows_of,
)
from melior.serving.eval_schema import checked_schema
from melior.serving.evals import checked_criteria, has_samples, item_schema
from melior.serving.models import reference_of, version_of
from melior.serving.problems import Problem
from melior.serving.service import Service
from melior.store.rows import Eval
from melior.types import Sampling

SEED = 42  # where nobody gives one, as the dialect's own examples have it
ROWS = "rows.jsonl"  # what is graded, in a run's folder


class SamplingParams(BaseModel):
    """How a model is sampled."""

    model_config = ConfigDict(extra="forbid")

    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_completions_tokens: int | None = Field(default=None, ge=1)  # how some of the dialect's examples spell it
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = None
    tools: list[dict[str, Any]] | None = Field(default=None, max_length=128)
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None  # our models have no such dial

    def settings(self) -> dict[str, Any]:
        """What `Sampling` takes; without max_tokens, which then is what the context leaves.

        Raises:
            Problem: if it cannot be sampled so.
        """
        tokens = self.max_completion_tokens or self.max_completions_tokens
        made: dict[str, Any] = {
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "seed": SEED if self.seed is None else self.seed & 0x7FFFFFFF,
            **({"max_tokens": tokens} if tokens else {}),
        }
        try:
            rule = format_rule(self.response_format, "data_source.sampling_params.response_format")
            made |= {"constraint": f"start: {rule}"} if rule else {}
            Sampling(**made)
        except ConfigError as error:
            raise Problem(400, str(error), param="data_source.sampling_params") from error
        return made


class Jsonl(BaseModel):
    """Outputs that are there."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["jsonl"]
    source: Annotated[FileContent | FileId, Field(discriminator="type")]


class Completions(BaseModel):
    """A model that is asked; or, without one, completions that were kept."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["completions"]
    source: Source
    input_messages: Inputs | None = None
    model: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    sampling_params: SamplingParams | None = None


class Responses(BaseModel):
    """What the dialect knows and this server has not."""

    model_config = ConfigDict(extra="allow")

    type: Literal["responses"]


def recipe_of(service: Service, row: Eval, source: Jsonl | Completions, folder: Path) -> tuple[Recipe, list[Any]]:
    """What a worker does, and the rows it does it with.

    Raises:
        Problem: if something of it cannot be; says which parameter.
    """
    config = row.asked["data_source_config"]
    schema, asked = item_schema(config), list(row.asked["testing_criteria"])
    criteria = checked_criteria(service, asked, schema, has_samples(config))
    inputs = _inputs(source)
    names: dict[str, str] = dict(_judges(asked, criteria))
    model, settings = None, {}
    if inputs is not None:
        assert isinstance(source, Completions) and source.model is not None
        check_inputs(inputs, schema)
        model = _model(service, source.model)
        names[model] = source.model
        settings = (source.sampling_params or SamplingParams()).settings()
    faults = checked_schema(schema, "data_source")
    labels, samples = config.get("metadata") or {}, has_samples(config)
    rows = rows_of(service, source.source, inputs, faults, labels, samples=samples)
    tools = source.sampling_params.tools if isinstance(source, Completions) and source.sampling_params else None
    if tools and inputs is not None:
        rows = [{**each, "inputs": {"messages": each["inputs"], "tools": tools}} for each in rows]
    digest = hashlib.sha256(json.dumps(criteria, sort_keys=True).encode()).hexdigest()[:8]
    recipe = Recipe(
        rows=str(folder / ROWS),
        criteria=criteria,
        grader=f"{row.id}:{digest}",  # other judges are another grader
        model=model,
        sampling=settings,
        names=names,
    )
    return recipe, rows


def _inputs(source: Jsonl | Completions) -> Messages | Reference | None:
    """What a model is asked; None where none is.

    Raises:
        Problem: if there is a model and nothing to ask it, or the other way round.
    """
    if isinstance(source, Jsonl):
        return None
    if source.model is None:
        if source.input_messages is not None:
            raise Problem(400, "input_messages are asked of a model; name one", param="data_source.model")
        return None
    if source.input_messages is not None:
        return source.input_messages
    if isinstance(source.source, StoredCompletions):
        return Reference(type="item_reference", item_reference=INPUT)
    told = f"{source.model} is asked nothing; say what in input_messages"
    raise Problem(400, told, param="data_source.input_messages")


def _model(service: Service, model: str) -> str:
    """Our reference to a language model.

    Raises:
        Problem: if there is none.
    """
    param = "data_source.model"
    try:
        reference = reference_of(service, model)
        if model not in KNOWN and (kind := kind_of(version_of(service, model).folder)) != "language":
            raise Problem(400, f"{model} is a {kind} policy, and evals ask language models", param=param)
    except StoreError as error:
        raise Problem(400, str(error), param=param, code="model_not_found") from error
    return reference


def _judges(asked: Any, ours: Any) -> Iterator[tuple[str, str]]:
    """What clients call each judge, by what we call it."""
    for sent, made in zip(asked, ours, strict=True):
        if isinstance(sent.get("model"), str):
            ours = made["model"]  # a folder, or the settings of an endpoint that the operator named
            yield str(ours["model"] if isinstance(ours, Mapping) else ours), sent["model"]
        parts = sent.get("graders")
        if isinstance(parts, Mapping) and isinstance(made.get("graders"), Mapping):
            alone = isinstance(parts.get("type"), str)
            yield from _judges([parts] if alone else list(parts.values()), list(made["graders"].values()))
