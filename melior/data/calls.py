"""tool calls as models write them: read out of a text, and how a template would write one

| written                                                    | by            |
| ---------------------------------------------------------- | ------------- |
| `<tool_call>{"name": …, "arguments": {…}}</tool_call>`     | Hermes, Qwen  |
| `[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]`          | Mistral       |
| `{"name": …, "parameters": {…}}`, as the whole answer      | Llama 3       |

Only a call of a tool that was offered is a call; whatever else a model writes is text.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HERMES, HERMES_END = "<tool_call>", "</tool_call>"
MISTRAL = "[TOOL_CALLS]"
PYTHON = "<|python_tag|>"  # Llama 3 may write it before a call
OPENINGS = (HERMES, MISTRAL, PYTHON)
ARGUMENTS = ("arguments", "parameters")  # the key of a call's arguments

Call = dict[str, Any]  # {"type": "function", "function": {"name", "arguments": JSON text}}


@dataclass(frozen=True)
class Form:
    """How a chat template writes one call: a JSON object with a name and arguments, and what stands around it."""

    before: str
    arguments: str  # the key
    after: str


def names_of(tools: Sequence[Mapping[str, Any]] | None) -> set[str]:
    """The names of the tools that are offered."""
    return {str(tool["function"].get("name")) for tool in tools or () if isinstance(tool.get("function"), Mapping)}


def calls_in(text: str, names: Collection[str]) -> tuple[str, list[Call]]:
    """What a text says beside its calls, and its calls in order.

    Where something looks like a call and is none, all of the text is said.
    """
    said, calls, at = [], [], 0
    while (start := opening(text, at, names)) < len(text):
        found = _calls_at(text, start, names)
        if found is None:
            return text, []
        said.append(text[at:start])
        calls += found[0]
        at = found[1]
    said.append(text[at:])
    return "".join(piece for piece in said if piece.strip() or not calls), calls


def opening(text: str, start: int, names: Collection[str]) -> int:
    """Where the next call may begin, or may begin once more has come; the length of the text where none can."""
    places = [place for mark in OPENINGS if (place := text.find(mark, start)) >= 0]
    longest = max(map(len, OPENINGS))
    for place in range(max(start, len(text) - longest + 1), len(text)):
        if any(mark.startswith(text[place:]) for mark in OPENINGS):
            places.append(place)
            break
    begun = len(text) - len(text[start:].lstrip())
    if start == 0 and text[begun:].startswith("{"):
        places.append(0)
    return min(places, default=len(text)) if names else len(text)


def form_of(written: str, name: str) -> Form | None:
    """The form of a call of the named tool that a template wrote; None where it is another than those above."""
    for place, (value, end) in _objects(written):
        if value.get("name") == name:
            key = next((key for key in ARGUMENTS if key in value), None)
            return None if key is None else Form(written[:place], key, written[end:])
    return None


def _objects(text: str) -> Iterator[tuple[int, tuple[dict[str, Any], int]]]:
    """Every JSON object of a text, with where it begins and ends."""
    for place, letter in enumerate(text):
        if letter == "{" and (found := _json(text, place)) and isinstance(found[0], dict):
            yield place, found


def _calls_at(text: str, start: int, names: Collection[str]) -> tuple[list[Call], int] | None:
    """The calls that begin there, and where they end; None where they are no calls."""
    mark = next((mark for mark in OPENINGS if text.startswith(mark, start)), "")
    found = _json(text, start + len(mark))
    if found is None:
        return None
    value, end = found
    calls = [_call(one, names) for one in (value if isinstance(value, list) and mark == MISTRAL else [value])]
    rest = text[end:]
    if mark == HERMES and rest.lstrip().startswith(HERMES_END):
        end += rest.index(HERMES_END) + len(HERMES_END)
    elif mark in ("", PYTHON) and rest.strip():  # Llama's call is the whole answer
        return None
    whole = [call for call in calls if call is not None]
    return (whole, end) if len(whole) == len(calls) and calls else None


def _json(text: str, start: int) -> tuple[Any, int] | None:
    begin = len(text) - len(text[start:].lstrip())
    try:
        return json.JSONDecoder().raw_decode(text, begin)
    except (ValueError, RecursionError):
        return None


def _call(value: Any, names: Collection[str]) -> Call | None:
    if not isinstance(value, Mapping) or value.get("name") not in names:
        return None
    arguments = next((value[key] for key in ARGUMENTS if key in value), None)
    if isinstance(arguments, str):
        arguments = (_json(arguments, 0) or (None,))[0]
    if not isinstance(arguments, Mapping):
        return None
    return {
        "type": "function",
        "function": {"name": value["name"], "arguments": json.dumps(arguments, ensure_ascii=False)},
    }
