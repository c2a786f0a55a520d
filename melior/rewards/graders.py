"""the kinds of graders, and how a setting becomes one

string_check      compares two templates                                    checks.py
text_similarity   how alike two templates are, by eleven metrics            similarity.py
score_model       a number that a judge model gives                         judge.py
label_model       whether the label that a judge model gives is a good one  judge.py
python            Python source of others, run in a sandbox               python.py
multi             a formula over other graders                              combined.py
weighted          a sum of other graders; its parts are reported            combined.py
pair_model        whether a judge model finds it better than a reference    pairs.py
learned           what a trained reward model says                          learned.py
events            points for clicks, purchases and the like                 events.py
cost_matrix       minus what a decision costs, by true and decided label    costs.py
function          a Python function: TRL's `f(prompts, completions, **columns)` or `grade(sample, item)`
reasoning_gym     the verifier that belongs to a reasoning-gym task         gym.py
http              what a server answers                                     endpoints.py
lambda            an AWS Lambda reward function: a file, a URL, an ARN      lambdas.py

The first six are the OpenAI dialect's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from melior.errors import GraderError
from melior.rewards.base import Grader, nearest
from melior.rewards.checks import string_check
from melior.rewards.combined import Multi, Weighted
from melior.rewards.costs import cost_matrix
from melior.rewards.endpoints import HTTP_KEYS, http_grader
from melior.rewards.events import events
from melior.rewards.formula import parse_formula
from melior.rewards.functions import Function
from melior.rewards.gym import reasoning_gym
from melior.rewards.judge import label_model, score_model
from melior.rewards.lambdas import KEYS as LAMBDA_KEYS
from melior.rewards.lambdas import lambda_grader
from melior.rewards.learned import KEYS as LEARNED_KEYS
from melior.rewards.learned import learned_grader
from melior.rewards.pairs import pair_model
from melior.rewards.python import python_grader
from melior.rewards.similarity import text_similarity

Spec = str | Mapping[str, Any] | Callable[..., Any] | Grader


def load_grader(spec: Spec, *, name: str | None = None) -> Grader:
    """The grader a setting describes: a string or a callable is a Python function, a mapping has a `type`.

    User code is not imported here but by `Grader.load`.

    Raises:
        GraderError: if the type or a key is unknown, naming the nearest; or a value cannot be used.
    """
    if isinstance(spec, str):
        return Function.from_reference(spec, name=name)
    if isinstance(spec, Mapping):
        return _from_mapping(spec, name)
    if isinstance(spec, Grader):
        return spec if name is None else replace(cast(Any, spec), name=name)
    if callable(spec):
        return Function.from_callable(spec, name=name)
    raise GraderError(f"a grader is a string, a mapping or a callable, not {type(spec).__name__}")


def _from_mapping(spec: Mapping[str, Any], name: str | None) -> Grader:
    kind = spec.get("type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise GraderError(f"unknown grader type {kind!r}{nearest(kind, KINDS)}; known types: {', '.join(KINDS)}")
    read, required, optional = KINDS[kind]
    known = ("type", "name", *required, *optional)
    for key in spec:
        if key not in known:
            raise GraderError(f"grader {kind} has no key {key!r}{nearest(key, known)}; its keys: {', '.join(known)}")
    for key in required:
        if key not in spec:
            raise GraderError(f"grader {kind} needs the key {key!r}; it has {', '.join(map(str, spec))}")
    named = name if name is not None else spec.get("name")
    if named is not None and not isinstance(named, str):
        raise GraderError(f"the name of a grader is a string, not {named!r}")
    return read(spec, named)


def _function(spec: Mapping[str, Any], name: str | None) -> Grader:
    if not isinstance(spec["function"], str):
        raise GraderError(f"grader function needs a string such as 'module:function', got {spec['function']!r}")
    return Function.from_reference(spec["function"], name=name)


def _weighted(spec: Mapping[str, Any], name: str | None) -> Grader:
    graders = spec["graders"]
    if not isinstance(graders, Mapping) or not graders:
        raise GraderError("grader weighted needs a mapping of at least one name to {grader, weight} as 'graders'")
    parts: dict[str, Grader] = {}
    weights: dict[str, float] = {}
    for part, setting in graders.items():
        if not isinstance(setting, Mapping) or set(setting) != {"grader", "weight"}:
            raise GraderError(f"part {part!r} of a weighted grader needs exactly the keys grader and weight")
        weight = setting["weight"]
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise GraderError(f"part {part!r} of a weighted grader needs a finite number as weight, got {weight!r}")
        parts[str(part)], weights[str(part)] = load_grader(setting["grader"]), float(weight)
    return Weighted(name or "weighted", parts, weights)


def _multi(spec: Mapping[str, Any], name: str | None) -> Grader:
    graders = spec["graders"]
    if not isinstance(graders, Mapping) or not graders:
        raise GraderError("grader multi needs a mapping of at least one name to a grader as 'graders'")
    if isinstance(graders.get("type"), str):  # one grader on its own, as the client's types have it
        graders = {str(graders.get("name", graders["type"])): graders}
    parts: dict[str, Grader] = {}
    for part, setting in graders.items():
        if isinstance(setting, Mapping) and setting.get("type") == "multi":
            raise GraderError(f"part {part!r} of a multi grader is multi itself; write one formula over all graders")
        try:
            parts[str(part)] = load_grader(setting)
        except GraderError as error:
            raise GraderError(f"part {part!r} of a multi grader: {error}", error.kind) from None
    return Multi(name or "multi", parts, parse_formula(spec["calculate_output"], frozenset(parts)))


Reader = Callable[[Mapping[str, Any], str | None], Grader]

KINDS: Mapping[str, tuple[Reader, tuple[str, ...], tuple[str, ...]]] = {  # reader, required keys, optional keys
    "string_check": (string_check, ("operation", "input", "reference"), ()),
    "text_similarity": (text_similarity, ("evaluation_metric", "input", "reference"), ("pass_threshold",)),
    "score_model": (score_model, ("model", "input"), ("range", "sampling_params", "pass_threshold")),
    "label_model": (label_model, ("model", "input", "labels", "passing_labels"), ()),
    "pair_model": (pair_model, ("model",), ("criterion", "reference")),
    "multi": (_multi, ("graders", "calculate_output"), ()),
    "weighted": (_weighted, ("graders",), ()),
    "learned": (learned_grader, ("model",), LEARNED_KEYS),
    "events": (events, ("points",), ("per", "unknown")),
    "cost_matrix": (cost_matrix, ("costs",), ("reference",)),
    "function": (_function, ("function",), ()),
    "python": (python_grader, ("source",), ("image_tag", "pass_threshold")),
    "reasoning_gym": (reasoning_gym, ("dataset",), ()),
    "http": (http_grader, ("url",), HTTP_KEYS),
    "lambda": (lambda_grader, (), LAMBDA_KEYS),
}
