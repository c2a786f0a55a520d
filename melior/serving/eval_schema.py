"""what an eval's rows may hold, and whether templates name what is there

Schemas are strangers': nothing they refer to is fetched, and their patterns are matched by an engine whose time grows
with the text and not with the pattern's cleverness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jsonschema_rs

from melior.errors import GraderError
from melior.rewards.templates import Key, Template, parse_template
from melior.serving.problems import Problem

TEXTS = ("input", "reference")  # what of a criterion's setting has templates
OPEN: Mapping[str, Any] = {"type": "object"}  # any item
# where one of these stands, more may be there than `properties` lists
ANYTHING = ("$ref", "$dynamicRef", "anyOf", "oneOf", "allOf", "if", "patternProperties")

Faults = Callable[[Any], list[str]]


def checked_schema(schema: Mapping[str, Any], param: str) -> Faults:
    """A function that tells what is wrong with a row's item, nothing where it fits.

    Raises:
        Problem: if it is no JSON schema.
    """
    try:
        validator = jsonschema_rs.validator_for(dict(schema), retriever=_refuse)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        told = str(error).partition("\n")[0]
        raise Problem(400, f"this is no JSON schema: {told}", param=param) from error

    def faults(item: Any) -> list[str]:
        return [_told(error) for error in validator.iter_errors(item)]

    return faults


def _refuse(uri: str) -> Any:
    raise ValueError(f"{uri} is elsewhere, and nothing is fetched; write what it says into the schema")


def _told(error: Any) -> str:
    place = ".".join(["item", *map(str, error.instance_path)])
    return f"{place}: {error.message}"


def told_schema(schema: Mapping[str, Any], samples: bool) -> dict[str, Any]:
    """The schema of a whole row, as the dialect tells it."""
    parts = {"item": dict(schema), **({"sample": {"type": "object"}} if samples else {})}
    return {"type": "object", "properties": parts, "required": list(parts)}


def templates_of(criterion: Mapping[str, Any], param: str) -> Iterator[tuple[str, Template]]:
    """Every template of a grader's setting, its parts' too, and where it stands.

    Raises:
        Problem: if one cannot be read.
    """
    for name in TEXTS:
        for place, text in texts_in(criterion.get(name), f"{param}.{name}"):
            yield place, template_of(text, place)
    parts = criterion.get("graders")
    if isinstance(parts, Mapping):
        alone = isinstance(parts.get("type"), str)
        for name, part in [("", parts)] if alone else parts.items():
            if isinstance(part, Mapping):
                yield from templates_of(part, f"{param}.graders.{name}".rstrip("."))


def texts_in(content: Any, place: str) -> Iterator[tuple[str, str]]:
    """The texts of a string, a message, a part of one, or a list of any of them."""
    if isinstance(content, str):
        yield place, content
    elif isinstance(content, Mapping):
        for name in ("content", "text"):
            yield from texts_in(content.get(name), f"{place}.{name}")
    elif isinstance(content, Sequence):
        for number, part in enumerate(content):
            yield from texts_in(part, f"{place}.{number}")


def template_of(text: str, param: str) -> Template:
    """The template that a text spells.

    Raises:
        Problem: if it cannot be read.
    """
    try:
        return parse_template(text)
    except GraderError as error:
        raise Problem(400, str(error), param=param) from error


def check_template(template: Template, schema: Mapping[str, Any], samples: bool, param: str) -> None:
    """Nothing, if all that a template names can be there.

    Raises:
        Problem: naming what cannot.
    """
    for piece in template.pieces:
        if isinstance(piece, str):
            continue
        if piece.keys[0] == "sample" and not samples:
            told = f"{{{{{piece.text}}}}} asks for a sample, and this eval has none; set include_sample_schema"
            raise Problem(400, told, param=param)
        if piece.keys[0] == "item":
            check_path(piece.text, piece.keys[1:], schema, param)


def check_path(text: str, keys: Sequence[Key], schema: Mapping[str, Any], param: str) -> None:
    """Nothing, if an item can have something there.

    Raises:
        Problem: naming the step that leads nowhere, and what there is instead.
    """
    here: Any = schema
    for key in keys:
        if not isinstance(here, Mapping) or any(word in here for word in ANYTHING):
            return
        if isinstance(key, int) or (here.get("type") == "array" and key.isdigit()):
            here = here.get("items", {})
            continue
        known = here.get("properties")
        if isinstance(known, Mapping) and key in known:
            here = known[key]
        elif isinstance(known, Mapping) and not here.get("additionalProperties"):
            names = ", ".join(map(str, known)) or "nothing"
            raise Problem(400, f"{{{{{text}}}}} names {key!r}, and the schema of items has {names}", param=param)
        else:
            return
