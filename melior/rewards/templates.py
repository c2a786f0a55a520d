"""`{{ item.x }}` and `{{ sample.output_text }}` in the text of graders

A path starts at `item` or `sample` and goes on with `.name`, `.0`, `[0]` or `["name"]`. It reads mappings and lists,
never attributes; what it finds is inserted as it is and not looked at again, so model text cannot inject a path.

An item that lacks what a path asks for is a fault of the data, and an error. An output that lacks it (no tool call, no
JSON) is a bad output, and gets the lowest score: excluding it would teach nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from melior.errors import GraderError
from melior.rewards.base import nearest, text_of
from melior.types import Score

NAMESPACES = ("item", "sample")
OUTPUT = ("output_text", "output_json", "output_tools", "choices")  # what a sample has
Key = str | int

_STEP = re.compile(
    r"""\.(?P<name>[^\s.\[\]{}"']+) | \[\s*(?P<index>\d+)\s*\] | \[\s*(?P<quote>["'])(?P<quoted>.*?)(?P=quote)\s*\]""",
    re.VERBOSE,
)


class OutputLacks(GraderError):
    """An output has nothing where a template looks: no JSON, no tool call."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "sample_parse_error")

    @property
    def score(self) -> Score:
        """What such an output gets: nothing, with the reason."""
        return Score(value=0.0, reason=str(self), kind=self.kind)


@dataclass(frozen=True)
class Path:
    """Where in the item or the sample a value lies."""

    text: str
    keys: tuple[Key, ...]  # the namespace first


@dataclass(frozen=True)
class Template:
    """Literal text and paths, in turn."""

    pieces: tuple[str | Path, ...]

    def render(self, item: Mapping[str, Any], sample: Mapping[str, Any]) -> str:
        """The text with every path replaced by what it points at; what is not a string appears as JSON.

        Raises:
            GraderError: if a path leads nowhere; OutputLacks, if it does so in the sample.
        """
        return "".join(found for _, found in self.filled(item, sample))

    def filled(self, item: Mapping[str, Any], sample: Mapping[str, Any]) -> list[tuple[str | Path, str]]:
        """Every piece with its text, for those who mark where inserted text begins and ends."""
        spaces = {"item": item, "sample": sample}
        return [(piece, piece if isinstance(piece, str) else text_of(found_at(piece, spaces))) for piece in self.pieces]


def parse_template(text: str) -> Template:
    """The template a text spells.

    Raises:
        GraderError: if a `{{` is not closed, or a path is malformed or in another namespace.
    """
    pieces: list[str | Path] = []
    end = 0
    while (start := text.find("{{", end)) >= 0:
        close = text.find("}}", start)
        if close < 0:
            raise GraderError(f"template {text!r} opens {{{{ at character {start + 1} and never closes it; add }}}}")
        pieces += [text[end:start], _parse_path(text[start + 2 : close].strip())]
        end = close + 2
    pieces.append(text[end:])
    return Template(tuple(piece for piece in pieces if piece != ""))


def _parse_path(text: str) -> Path:
    namespace = re.match(r"\w*", text)
    assert namespace is not None  # the pattern matches the empty string
    if namespace.group() not in NAMESPACES:
        raise GraderError(f"template variable {text!r} must start with item or sample")
    keys: list[Key] = [namespace.group()]
    at = namespace.end()
    while at < len(text):
        step = _STEP.match(text, at)
        if step is None:
            raise GraderError(f"template variable {text!r} cannot be read from {text[at:]!r} on; write item.name[0]")
        if step["index"] is not None:
            keys.append(int(step["index"]))
        else:
            keys.append(step["name"] if step["name"] is not None else step["quoted"])
        at = step.end()
    if keys[0] == "sample" and len(keys) > 1 and keys[1] not in OUTPUT:
        near = nearest(keys[1], OUTPUT)
        raise GraderError(f"template variable {text!r}: a sample has {', '.join(OUTPUT)}, not {keys[1]!r}{near}")
    return Path(text, tuple(keys))


def found_at(path: Path, spaces: Mapping[str, Any]) -> Any:
    """The value that a path leads to.

    Raises:
        GraderError: if it leads nowhere; OutputLacks, if it does so in the sample.
    """
    value: Any = spaces
    for key in path.keys:
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif (index := _index(value, key)) is not None:
            value = value[index]
        else:
            found = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            told = f"template variable {path.text!r} stops at {key!r}: found {found}"
            raise OutputLacks(told) if path.keys[0] == "sample" else GraderError(told)
    return value


def _index(value: Any, key: Key) -> int | None:
    """The position a key names in a list, if it names one."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return None
    index = int(key) if isinstance(key, int) or (key.isascii() and key.isdigit()) else -1
    return index if 0 <= index < len(value) else None
