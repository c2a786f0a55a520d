"""rows of known formats become demonstrations, preferences, rated outputs and tasks

messages             {"messages": [..., assistant]}                              demonstration (OpenAI, TRL)
messages-task        {"messages": [..., user], other keys}                       task (OpenAI reinforcement)
prompt-completion    {"prompt", "completion"}                                    demonstration (TRL)
prompt               {"prompt", other keys}                                      task (TRL)
prompt-preference    {"prompt", "chosen", "rejected", "margin"?}                 preference (TRL)
openai-preference    {"input": {"messages"}, "preferred_output", "non_preferred_output"}    preference
rated                {"prompt", "completion", "label"}                           rated (TRL)

A prompt, completion, chosen or rejected is a string or a list of messages. Every other column of a row is kept in
the example's `item`, but for `group`. All rows of a file have one format.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from melior.data.readers import Line, Problem, read_rows
from melior.errors import ConfigError, DataError
from melior.types import Demonstration, Preference, Rated, Task

Kind = Literal["demonstrations", "tasks", "preferences", "rated"]
Example = Demonstration | Preference | Rated | Task
Row = Mapping[str, Any]

KINDS: tuple[Kind, ...] = ("demonstrations", "tasks", "preferences", "rated")
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
SHOWN_PROBLEMS = 5


class RowError(ValueError):
    """A row cannot become an example; the message says why."""


@dataclass(frozen=True)
class Format:
    """One way to write an example as a row."""

    name: str
    kind: Kind
    columns: tuple[str, ...]  # what it must have
    optional: tuple[str, ...]  # what it reads besides; all else goes into the item
    read: Callable[[Row], dict[str, Any]]  # the fields of the example

    def example(self, row: Row, id: str) -> Example:
        """The example a row writes.

        Raises:
            RowError: if a value of the row cannot be used.
        """
        group = row.get("group", "")
        if not isinstance(group, str | int):
            raise RowError(f"group must be a string, got {group!r}")
        used = {*self.columns, *self.optional, "group"}
        item = {key: value for key, value in row.items() if key not in used}
        made = self.read(row)
        made["item"] = {**item, **made.get("item", {})}
        return _TYPES[self.kind](**made, id=id, group=str(group))


@dataclass(frozen=True)
class Examples:
    """What a file held: its examples in order, and the lines that could not be used."""

    rows: list[Any]  # of the one type that `kind` names
    kind: Kind
    format: str
    problems: list[Problem]

    def __len__(self) -> int:
        return len(self.rows)


def read_examples(path: str | Path, kind: Kind | None = None, on_error: Literal["stop", "skip"] = "stop") -> Examples:
    """The examples of a JSONL file; `on_error="skip"` leaves lines out that cannot be used and lists them.

    Raises:
        DataError: if a line cannot be used and `on_error` is "stop" (the first five and the total are shown), if no
            line can be used, or if the file holds another kind than asked for.
    """
    if on_error not in ("stop", "skip"):
        raise ConfigError(f"on_error is 'stop' or 'skip', not {on_error!r}")
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"unknown kind {kind!r}; kinds are {', '.join(KINDS)}")
    path = Path(path)
    format: Format | None = None
    rows: list[Example] = []
    problems: list[Problem] = []
    for line in read_rows(path):
        if isinstance(line, Problem):
            problems.append(line)
            continue
        try:
            found = format_of(line.row)
            _agree(found, format, kind)
            format = found
            rows.append(found.example(line.row, f"{path.name}:{line.number}"))
        except RowError as error:
            problems.append(Problem(line.number, str(error)))
    if problems and (on_error == "stop" or not rows):
        raise DataError(_told(path, problems, len(rows)))
    assert format is not None  # a file without rows and without problems is empty, which read_jsonl refuses
    return Examples(rows, format.kind, format.name, problems)


def format_of(row: Row) -> Format:
    """The format a row is written in.

    Raises:
        RowError: if its columns are those of none.
    """
    columns = set(row)
    fitting = [format for format in FORMATS if columns.issuperset(format.columns)]
    if not fitting:
        known = "; ".join(" + ".join(format.columns) for format in FORMATS if format.name != "messages-task")
        raise RowError(f"found the columns {', '.join(sorted(columns)) or '(none)'}, expected one of: {known}")
    best = max(fitting, key=lambda format: len(format.columns))  # prompt + completion + label before prompt
    if best.name == "messages" and _last_role(row["messages"]) == "user":
        return _BY_NAME["messages-task"]
    return best


def _agree(found: Format, first: Format | None, kind: Kind | None) -> None:
    if kind is not None and found.kind != kind:
        expected = " or ".join(" + ".join(format.columns) for format in FORMATS if format.kind == kind)
        ending = {"tasks": " ending with user", "demonstrations": " ending with assistant"}.get(kind, "")
        hint = f" (messages{ending})" if found.columns == ("messages",) and ending else ""
        raise RowError(f"is one of {found.kind} ({found.name}), expected {kind}: columns {expected}{hint}")
    if first is not None and found is not first:
        raise RowError(f"is in format {found.name}, but the rows before it in {first.name}; split the file in two")


def _told(path: Path, problems: Sequence[Problem], good: int) -> str:
    shown = "".join(f"\n  {path.name}:{problem.line}: {problem.reason}" for problem in problems[:SHOWN_PROBLEMS])
    more = f"\n  and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
    remedy = 'correct them, or leave them out with on_error="skip"' if good else "correct them"
    return f"{path}: {len(problems)} of {len(problems) + good} rows cannot be used; {remedy}:{shown}{more}"


def messages_of(value: Any, name: str) -> list[dict[str, Any]]:
    """A list of messages, checked, their text parts joined.

    Raises:
        RowError: if it is not a list of messages.
    """
    if not isinstance(value, list) or not value:
        raise RowError(f"{name} must be a list of at least one message")
    return [_message(message, f"{name}[{index}]") for index, message in enumerate(value)]


def _message(message: Any, name: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise RowError(f"{name} must be an object with role and content, got {type(message).__name__}")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise RowError(f"{name} has the role {role!r}; roles are {', '.join(ROLES)}")
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        if len(texts) < len(content) or not all(isinstance(text, str) for text in texts):
            raise RowError(f"{name} has content parts other than text, which cannot be read yet")
        content = "".join(map(str, texts))
    calls = role == "assistant" and (message.get("tool_calls") or message.get("function_call"))
    if not isinstance(content, str) and not (content is None and calls):
        raise RowError(f"{name} has no text as content, got {type(content).__name__}")
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise RowError(f"{name} has the weight {weight!r}; a message's weight is 0 or 1")
    return {**message, "content": content}


def _last_role(messages: Any) -> Any:
    last = messages[-1] if isinstance(messages, list) and messages else None
    return last.get("role") if isinstance(last, dict) else None


def _learns(message: Mapping[str, Any]) -> bool:
    """Whether a message is an assistant's with something to imitate."""
    says = message["content"] or message.get("tool_calls") or message.get("function_call")
    return message["role"] == "assistant" and message.get("weight", 1) != 0 and bool(says)


def _text_or_messages(row: Row, name: str) -> str | list[dict[str, Any]]:
    value = row[name]
    return value if isinstance(value, str) else messages_of(value, name)


def _output(row: Row, name: str) -> str | list[dict[str, Any]]:
    """A completion; one plain assistant message is its text."""
    value = _text_or_messages(row, name)
    if isinstance(value, list) and [set(message) for message in value] == [{"role", "content"}]:
        if value[0]["role"] != "assistant":
            raise RowError(f"{name} must be the assistant's, its role is {value[0]['role']}")
        value = value[0]["content"]
    if not value:
        raise RowError(f"{name} is empty: nothing to learn")
    return value


def _read_messages(row: Row) -> dict[str, Any]:
    messages = messages_of(row["messages"], "messages")
    if messages[-1]["role"] != "assistant":
        raise RowError(
            f"messages end with {messages[-1]['role']}; a demonstration ends with assistant, a task with user"
        )
    if not any(map(_learns, messages)):
        raise RowError("no assistant message has text and a weight other than 0: nothing to learn")
    return {"inputs": messages}


def _read_messages_task(row: Row) -> dict[str, Any]:
    return {"inputs": messages_of(row["messages"], "messages")}


def _read_prompt_completion(row: Row) -> dict[str, Any]:
    prompt, output = _text_or_messages(row, "prompt"), _output(row, "completion")
    if isinstance(output, str):
        return {"inputs": prompt, "output": output}
    # several turns: one conversation, in which only those of the completion are imitated
    before = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    given = [{**message, "weight": 0} if message["role"] == "assistant" else message for message in before]
    if not any(map(_learns, output)):
        raise RowError("completion has no assistant message with text: nothing to learn")
    return {"inputs": given + output}


def _read_prompt(row: Row) -> dict[str, Any]:
    return {"inputs": _text_or_messages(row, "prompt")}


def _preference(inputs: Any, chosen: Any, rejected: Any) -> dict[str, Any]:
    if chosen == rejected:
        raise RowError("chosen and rejected are the same: nothing to learn")
    return {"inputs": inputs, "chosen": chosen, "rejected": rejected}


def _read_preference(row: Row) -> dict[str, Any]:
    pair = _preference(_text_or_messages(row, "prompt"), _output(row, "chosen"), _output(row, "rejected"))
    return {**pair, "margin": _number(row.get("margin", 0.0), "margin")}


def _read_openai_preference(row: Row) -> dict[str, Any]:
    given = row["input"]
    if not isinstance(given, dict) or "messages" not in given:
        raise RowError('input must be an object with "messages"')
    inputs = messages_of(given["messages"], "input.messages")
    for name in ("preferred_output", "non_preferred_output"):
        if _last_role(row[name]) != "assistant":
            raise RowError(f"{name} must be a list that ends with an assistant message")
    rest = {key: value for key, value in given.items() if key != "messages"}
    return {**_preference(inputs, _output(row, "preferred_output"), _output(row, "non_preferred_output")), "item": rest}


def _read_rated(row: Row) -> dict[str, Any]:
    label = row["label"]
    rating = float(label) if isinstance(label, bool) else _number(label, "label")
    return {"inputs": _text_or_messages(row, "prompt"), "output": _output(row, "completion"), "rating": rating}


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RowError(f"{name} must be a number, got {value!r}")
    return float(value)


FORMATS = (
    Format("messages", "demonstrations", ("messages",), (), _read_messages),
    Format("messages-task", "tasks", ("messages",), (), _read_messages_task),
    Format("prompt-completion", "demonstrations", ("prompt", "completion"), (), _read_prompt_completion),
    Format("prompt", "tasks", ("prompt",), (), _read_prompt),
    Format("prompt-preference", "preferences", ("prompt", "chosen", "rejected"), ("margin",), _read_preference),
    Format(
        "openai-preference",
        "preferences",
        ("input", "preferred_output", "non_preferred_output"),
        (),
        _read_openai_preference,
    ),
    Format("rated", "rated", ("prompt", "completion", "label"), (), _read_rated),
)
_BY_NAME = {format.name: format for format in FORMATS}
_TYPES: Mapping[Kind, Callable[..., Example]] = {
    "demonstrations": Demonstration,
    "tasks": Task,
    "preferences": Preference,
    "rated": Rated,
}


def fingerprint(rows: Iterable[Any]) -> str:
    """sha256 of the examples' content in order, as hexadecimal; ids, which name files and lines, do not count.

    `rows` are dataclasses of `melior.types`, or JSON values.
    """
    digest = hashlib.sha256()
    for row in rows:
        digest.update(canonical(_content(row)).encode() + b"\n")
    return digest.hexdigest()


def _content(row: Any) -> Any:
    """A row as JSON, with its type and without its id."""
    if not is_dataclass(row):
        return row
    values = {field.name: getattr(row, field.name) for field in fields(row) if field.name != "id"}
    return {"type": type(row).__name__, **values}


def canonical(value: Any) -> str:
    """The one JSON text of a value: keys sorted, ASCII, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=dict)


__all__ = ["Examples", "Format", "Line", "Problem", "canonical", "fingerprint", "format_of", "read_examples"]
