"""graders that compare two texts, right or wrong"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from melior.errors import GraderError
from melior.rewards.base import nearest, sample_of
from melior.rewards.templates import OutputLacks, Template, parse_template
from melior.types import Record, Score

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
        """1.0 or 0.0; 0.0 too where the output lacks what is compared."""
        try:
            text, reference = rendered(record, self.input, self.reference)
        except OutputLacks as lack:
            return lack.score
        return Score(value=float(COMPARISONS[self.operation](text, reference)))


def rendered(record: Record, *templates: Template) -> list[str]:
    """The templates' texts for this record."""
    sample = sample_of(record)
    return [template.render(record.item, sample) for template in templates]


def texts_of(spec: Mapping[str, Any]) -> list[Template]:
    """The templates `input` and `reference` of a grader's setting.

    Raises:
        GraderError: if one is not a string, or is malformed.
    """
    for key in ("input", "reference"):
        if not isinstance(spec[key], str):
            raise GraderError(f"{spec['type']} needs a string as {key!r}, got {spec[key]!r}")
    return [parse_template(spec[key]) for key in ("input", "reference")]


def string_check(spec: Mapping[str, Any], name: str | None) -> StringCheck:
    """The grader of a setting.

    Raises:
        GraderError: if the operation is unknown, or a template cannot be used.
    """
    operation = spec["operation"]
    if not isinstance(operation, str) or operation not in COMPARISONS:
        near = nearest(operation, COMPARISONS)
        raise GraderError(f"string_check has no operation {operation!r}{near}; it has {', '.join(COMPARISONS)}")
    named = name or "string_check"
    return StringCheck(named, {**spec, "name": named}, operation, *texts_of(spec))
