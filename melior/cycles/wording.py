"""what is wrong with a recipe, told by its place: line, key, and the nearest valid one"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import ValidationError

from melior.errors import ConfigError

Place = tuple[Any, ...]  # keys and list indices from the top of the file
Lines = Mapping[Place, int] | None
ANY = "*"  # in the place of a key that people choose


def sentence(
    error: ValidationError, raw: Any, told: str, lines: Lines, schema: type, withheld: Collection[Place] = ()
) -> str:
    """The most telling of the errors in a mapping of `schema`, in one sentence; `withheld` keys are never suggested."""
    problems = error.errors(include_url=False)
    unknown = [p for p in problems if p["type"] in ("unexpected_keyword_argument", "extra_forbidden")]
    problem = (unknown or problems)[0]
    place = _place(problem["loc"], raw, schema)
    where, dotted = where_of(told, place, lines), ".".join(map(str, place))
    if unknown:
        return f"{where}: unknown key {dotted!r}{_nearest(place, schema, withheld)}"
    if problem["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{where}: {dotted} is missing; it has no default"
    told_so = problem["msg"][0].lower() + problem["msg"][1:]
    if any(p["type"] == "literal_error" and p["ctx"]["expected"] == "'auto'" for p in problems[:3]):
        told_so += ', or be "auto"'
    return f"{where}: {dotted} is {problem['input']!r:.60}, but {told_so}"


def _place(loc: Place, raw: Any, schema: type) -> Place:
    """Pydantic's location without the names of union members: the keys that a reader finds in the file."""
    place: list[Any] = []
    known = {key for path, _ in _keys(schema, ()) for key in path}
    for part in loc:
        inside = (isinstance(raw, Mapping) and part in raw) or (isinstance(raw, list) and isinstance(part, int))
        if inside:
            raw = raw[part]
            place.append(part)
        elif part in known:
            place.append(part)
    return tuple(place)


def _nearest(place: Place, schema: type, withheld: Collection[Place]) -> str:
    """The valid key most like an unknown one, in its own section first."""
    keys = [path for path, _ in _keys(schema, ()) if path not in withheld]
    section, key = tuple(part for part in place[:-1] if not isinstance(part, int)), str(place[-1])
    own = [path[-1] for path in keys if _fits(section, path[:-1])]
    if near := difflib.get_close_matches(key, own, n=1, cutoff=0.75):
        return f", did you mean {'.'.join((*section, near[0]))!r}?"
    elsewhere = [path for path in keys if ANY not in path]
    exact = [path for path in elsewhere if path[-1] == key]
    others = exact or [path for path in elsewhere if difflib.get_close_matches(key, [path[-1]], n=1, cutoff=0.75)]
    if others:
        best = max(others, key=lambda path: difflib.SequenceMatcher(None, key, path[-1]).ratio())
        return f", did you mean {'.'.join(best)!r}?"
    if near := difflib.get_close_matches(key, own, n=1, cutoff=0.5):
        return f", did you mean {'.'.join((*section, near[0]))!r}?"
    return f"; the keys here are {', '.join(own)}" if own else ""


def _keys(kind: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every valid key with its place, sections included."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        yield (*path, field.name), hints[field.name]
        for member in _members(hints[field.name]):
            if is_dataclass(member):
                yield from _keys(member, (*path, field.name))
            elif get_origin(member) is dict and is_dataclass(get_args(member)[1]):
                yield from _keys(get_args(member)[1], (*path, field.name, ANY))


def _fits(section: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a place is the one that the schema means."""
    return len(section) == len(pattern) and all(
        wanted in (part, ANY) for part, wanted in zip(section, pattern, strict=True)
    )


def _members(hint: Any) -> Iterator[Any]:
    if get_origin(hint) in (Union, type(int | str), tuple):
        for inner in get_args(hint):
            yield from _members(inner)
    else:
        yield hint


def stands_at(raw: Any, place: Place) -> bool:
    """Whether a mapping has a key there."""
    for part in place:
        if not isinstance(raw, Mapping) or part not in raw:
            return False
        raw = raw[part]
    return True


def where_of(told: str, place: Place, lines: Lines) -> str:
    """The file, and the line of a key where that is known."""
    found = (lines or {}).get(place)
    return told if found is None else f"{told}:{found}"


def lines_of(node: Any, path: Place, file: Path) -> Iterator[tuple[Place, int]]:
    """The line of every key; a key written twice is an error, since YAML would keep the last in silence."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise ConfigError(
                    f"{file}:{line}: {key.value} was written in line {seen[key.value]} already; remove one"
                )
            seen[key.value] = line
            yield (*path, key.value), line
            yield from lines_of(value, (*path, key.value), file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from lines_of(value, (*path, index), file)
