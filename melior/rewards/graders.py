"""the kinds of graders, and how a setting becomes one

string_check    compares two templates
function        a Python function: TRL's `f(prompts, completions, **columns)` or `grade(sample, item)`
reasoning_gym   the verifier that belongs to a reasoning-gym task
weighted        a sum of other graders; its parts are reported
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from melior.errors import GraderError
from melior.rewards.base import Grader, call_grader, checked, failed, sample_of, text_of
from melior.rewards.functions import Function
from melior.rewards.templates import Template, parse_template
from melior.types import Record, Score

Spec = str | Mapping[str, Any] | Callable[..., Any] | Grader

COMPARISONS: Mapping[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}


@dataclass(frozen=True)
class StringCheck:
    """1.0 if the rendered input compares with the rendered reference as asked, else 0.0."""

    name: str
    spec: Mapping[str, Any]
    operation: str
    input: Template
    reference: Template

    def load(self) -> None:
        """Nothing to import."""

    def grade(self, record: Record) -> Score:
        """1.0 or 0.0."""
        sample = sample_of(record)
        text, reference = (part.render(record.item, sample) for part in (self.input, self.reference))
        return Score(value=float(COMPARISONS[self.operation](text, reference)))


@dataclass(frozen=True)
class ReasoningGym:
    """What the task's own verifier says, from the item alone; white space around the output does not count.

    Some of these verifiers parse the answer with sympy, which evaluates it: call them in a `GraderPool`.
    """

    name: str
    spec: Mapping[str, Any]
    dataset: str
    _made: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def load(self) -> None:
        """Import reasoning_gym; the data set itself is made when its settings are known."""
        from melior.data.reasoning import load_reasoning_gym

        load_reasoning_gym()

    def grade(self, record: Record) -> Score:
        """The verifier's score, mostly between 0 and 1."""
        item = record.item
        if not {"dataset", "config", "answer", "metadata"} <= item.keys():
            raise GraderError(
                f"{self.name} needs dataset, config, answer and metadata in the item, found {sorted(item)}; "
                "draw tasks with reasoning_tasks()"
            )
        if item["dataset"] != self.dataset:
            raise GraderError(f"{self.name} verifies {self.dataset}, but the item is of {item['dataset']!r}")
        entry = {"question": item.get("question", ""), "answer": item["answer"], "metadata": item["metadata"]}
        return checked(self.name, self._dataset(item["config"]).score_answer(text_of(record.output).strip(), entry))

    def _dataset(self, config: Mapping[str, Any]) -> Any:
        from melior.data.reasoning import load_reasoning_gym

        key = json.dumps(config, sort_keys=True)
        if key not in self._made:
            self._made[key] = load_reasoning_gym().create_dataset(self.dataset, **config)
        return self._made[key]


@dataclass(frozen=True)
class Weighted:
    """The weighted sum of other graders; one that fails fails the sum, one that does not apply is left out."""

    name: str
    parts: Mapping[str, tuple[Grader, float]]  # name → grader and weight

    @property
    def spec(self) -> Mapping[str, Any] | None:
        """JSON of all parts, or None if one of them has none."""
        specs = {name: {"grader": part.spec, "weight": weight} for name, (part, weight) in self.parts.items()}
        if any(spec["grader"] is None for spec in specs.values()):
            return None
        return {"type": "weighted", "name": self.name, "graders": specs}

    def load(self) -> None:
        """Load every part."""
        for part, _ in self.parts.values():
            part.load()

    def grade(self, record: Record) -> Score:
        """Σ weight × score, with each part's own score under its name."""
        scores = {name: call_grader(part, record) for name, (part, _) in self.parts.items()}
        values = {name: score.value for name, score in scores.items() if score.value is not None}
        for name, score in scores.items():
            if score.error:
                return replace(failed(self.name, f"part {name}: {score.error}", score.traceback), parts=values)
        if not values:
            return Score(value=None)
        total = checked(self.name, math.fsum(self.parts[name][1] * value for name, value in values.items()))
        return replace(total, parts=values)


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
    if isinstance(spec, StringCheck | ReasoningGym | Weighted | Function):
        return spec if name is None else replace(spec, name=name)
    if callable(spec):
        return Function.from_callable(spec, name=name)
    raise GraderError(f"a grader is a string, a mapping or a callable, not {type(spec).__name__}")


def _from_mapping(spec: Mapping[str, Any], name: str | None) -> Grader:
    kind = spec.get("type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise GraderError(f"unknown grader type {kind!r}{_nearest(kind, KINDS)}; known types: {', '.join(KINDS)}")
    read, required, optional = KINDS[kind]
    known = ("type", "name", *required, *optional)
    for key in spec:
        if key not in known:
            raise GraderError(f"grader {kind} has no key {key!r}{_nearest(key, known)}; its keys: {', '.join(known)}")
    for key in required:
        if key not in spec:
            raise GraderError(f"grader {kind} needs the key {key!r}; it has {', '.join(map(str, spec))}")
    named = name if name is not None else spec.get("name")
    if named is not None and not isinstance(named, str):
        raise GraderError(f"the name of a grader is a string, not {named!r}")
    return read(spec, named)


def _nearest(word: Any, words: Iterable[str]) -> str:
    """A suggestion, or nothing where no word is near."""
    near = difflib.get_close_matches(str(word), list(words), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def _string_check(spec: Mapping[str, Any], name: str | None) -> Grader:
    operation = spec["operation"]
    if not isinstance(operation, str) or operation not in COMPARISONS:
        near = _nearest(operation, COMPARISONS)
        raise GraderError(f"string_check has no operation {operation!r}{near}; it has {', '.join(COMPARISONS)}")
    for key in ("input", "reference"):
        if not isinstance(spec[key], str):
            raise GraderError(f"string_check needs a string as {key!r}, got {spec[key]!r}")
    named = name or "string_check"
    parts = {key: parse_template(spec[key]) for key in ("input", "reference")}
    return StringCheck(named, {**spec, "name": named}, operation, parts["input"], parts["reference"])


def _function(spec: Mapping[str, Any], name: str | None) -> Grader:
    if not isinstance(spec["function"], str):
        raise GraderError(f"grader function needs a string such as 'module:function', got {spec['function']!r}")
    return Function.from_reference(spec["function"], name=name)


def _reasoning_gym(spec: Mapping[str, Any], name: str | None) -> Grader:
    dataset = spec["dataset"]
    if not isinstance(dataset, str) or not dataset:
        raise GraderError(f"grader reasoning_gym needs the name of a data set, got {dataset!r}")
    named = name or dataset
    return ReasoningGym(named, {**spec, "name": named}, dataset)


def _weighted(spec: Mapping[str, Any], name: str | None) -> Grader:
    graders = spec["graders"]
    if not isinstance(graders, Mapping) or not graders:
        raise GraderError("grader weighted needs a mapping of at least one name to {grader, weight} as 'graders'")
    parts: dict[str, tuple[Grader, float]] = {}
    for part, setting in graders.items():
        if not isinstance(setting, Mapping) or set(setting) != {"grader", "weight"}:
            raise GraderError(f"part {part!r} of a weighted grader needs exactly the keys grader and weight")
        weight = setting["weight"]
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise GraderError(f"part {part!r} of a weighted grader needs a finite number as weight, got {weight!r}")
        parts[str(part)] = (load_grader(setting["grader"]), float(weight))
    return Weighted(name or "weighted", parts)


Reader = Callable[[Mapping[str, Any], str | None], Grader]

KINDS: Mapping[str, tuple[Reader, tuple[str, ...], tuple[str, ...]]] = {  # reader, required keys, optional keys
    "string_check": (_string_check, ("operation", "input", "reference"), ()),
    "function": (_function, ("function",), ()),
    "reasoning_gym": (_reasoning_gym, ("dataset",), ()),
    "weighted": (_weighted, ("graders",), ()),
}
