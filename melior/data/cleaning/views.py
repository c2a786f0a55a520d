"""a row as the checks see it: conversation, prompt, answers, question and verdict, whatever its format

The question and its verdict say what contradicts what: a prompt and its label, an output and its rating, two answers
and which of them was preferred.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from melior.data.conversations import contexts, conversation, learnt
from melior.data.formats import Example, canonical
from melior.data.readers.rows import Cell
from melior.types import Demonstration, Image, Preference, Rated, Record, SlateRequest, Task

LABEL_CHARACTERS = 60  # an answer of one line up to this length is compared as a whole, as a label is
REFERENCES = ("reference_answer", "reference", "answer", "solution", "target", "ground_truth", "expected", "label")
NAMES = frozenset({"id", "uuid", "_id", "row_id", "timestamp", "created_at", "updated_at"})  # they tell rows apart
NOT_TEXT = frozenset({"role", "type", "id", "group", "from"})
FINAL = re.compile(r"####\s*(.+?)\s*$|\\boxed\{([^{}]+)\}")
_GAPS = {ord(sign): " " for sign in ".,!?;:'\"‘’“”…"}
_EXACT = re.compile(r"\d+|[-+*/=^<>×÷](?=\s*\d)")


@dataclass(frozen=True, slots=True)
class View:
    """What the checks ask of one example."""

    kind: str  # demonstrations, preferences, rated, tasks
    messages: tuple[tuple[str, str], ...]  # role and text, the answer included where there is one
    prompt: str  # what is read before the first decision
    answers: tuple[str, ...]  # what is imitated, preferred or rated
    question: str
    verdict: str
    tools: str  # that may be called, as JSON; empty where there are none
    content: str  # equal exactly when two rows teach the same
    group: str
    reference: str | None  # of a task: None where it has none
    reads: tuple[str, ...]  # what is read before each decision, but for the short opening of a chat
    exact: bool = False  # whether it is no text: then it is the same as another row, or another one

    def told(self, text: str) -> str:
        """A text as rows are compared by it."""
        return text if self.exact else normalised(text)

    @property
    def label(self) -> str | None:
        """The verdict, where it is short enough to be a class."""
        short = len(self.verdict) <= LABEL_CHARACTERS and "\n" not in self.verdict
        return self.verdict if short and self.kind in ("demonstrations", "rated") and self.verdict else None

    @property
    def spoken(self) -> str:
        """What the user says: a system message says the same in every row, often in another language."""
        return "\n".join(text for role, text in self.messages if role == "user")

    @property
    def long_answers(self) -> list[str]:
        """The answers too long for a label; all of several turns, which together are none."""
        if self.kind == "demonstrations" and len(self.answers) > 1:
            return list(self.answers)
        return [answer for answer in self.answers if len(answer) > LABEL_CHARACTERS or "\n" in answer]

    @property
    def short_answers(self) -> list[str]:
        """The answers that are compared as a whole, where no label says the same."""
        if self.kind != "demonstrations":
            return [answer for answer in self.answers if len(answer) <= LABEL_CHARACTERS]
        said = "\n".join(self.answers)
        return [said] if len(self.answers) > 1 and len(said) <= LABEL_CHARACTERS else []


def view_of(example: Example, kind: str) -> View:
    """The view of an example."""
    if _is_no_text(example.inputs):
        return _decision(example, kind)
    if isinstance(example, Record):  # a text that a policy labelled
        return _decision(example, kind)
    return _VIEWS[type(example)](example, kind)


def _is_no_text(inputs: Any) -> bool:
    """Whether a table's row, a picture or a slate's request is read: such are the same, or not."""
    return isinstance(inputs, Image | SlateRequest) or (isinstance(inputs, Mapping) and "messages" not in inputs)


def _decision(example: Example, kind: str) -> View:
    """What is not compared letter by letter. A log may hold the same decision as often as it was made."""
    told = canonical(example.inputs)
    answers = tuple(_listed(getattr(example, name)) for name in _SIDES[type(example)])
    verdict = str(example.rating) if isinstance(example, Rated) else answers[0] if answers else ""
    reference = None
    if isinstance(example, Task):
        found = next((example.item[name] for name in REFERENCES if name in example.item), None)
        reference = None if found is None else _listed(found)
        verdict = reference or ""
    question = told if isinstance(example, Demonstration | Task) else "\0".join([told, *sorted(answers)])
    content = canonical([kind, told, *answers, verdict])
    if isinstance(example, Record):
        question = content = ""
    read = (told,)
    return View(kind, (), told, answers, question, verdict, "", content, example.group, reference, read, exact=True)


_SIDES: dict[type, tuple[str, ...]] = {
    Demonstration: ("output",),
    Preference: ("chosen", "rejected"),
    Rated: ("output",),
    Task: (),
    Record: ("output",),
}


def _listed(output: Any) -> str:
    return ", ".join(map(str, output)) if isinstance(output, list | tuple) else str(output)


def _demonstration(example: Demonstration, kind: str) -> View:
    messages = _messages(example.inputs)
    if example.output is not None:
        prompt, answers = messages, [_text(example.output)]
        messages = [*messages, {"role": "assistant", "content": answers[0]}]
    else:
        imitated = [index for index, message in enumerate(messages) if learnt(message)]
        prompt, answers = messages[: imitated[0] if imitated else None], [_said(messages[i]) for i in imitated]
    said = "\n".join(answers)
    final = FINAL.search(said)
    verdict = (final.group(1) or final.group(2)).strip() if final else said
    told = _joined(prompt)
    return _view(kind, messages, told, answers, told, verdict, [_plain(messages), _weights(messages)], example)


def _preference(example: Preference, kind: str) -> View:
    messages, sides = _messages(example.inputs), [_text(example.chosen), _text(example.rejected)]
    told = _joined(messages)
    question = "\0".join([told, *sorted(sides)])
    return _view(kind, messages, told, sides, question, sides[0], [told, sides, example.probability], example)


def _rated(example: Rated, kind: str) -> View:
    messages, output = _messages(example.inputs), _text(example.output)
    told, rating = _joined(messages), f"{example.rating:g}"
    return _view(kind, messages, told, [output], f"{told}\0{output}", rating, [told, output, rating], example)


def _task(example: Task, kind: str) -> View:
    messages = _messages(example.inputs)
    told = _joined(messages)
    present = [name for name in REFERENCES if name in example.item]
    values = [example.item[name] for name in present if example.item[name] not in (None, "", [], {})]
    reference = None
    if values:
        reference = values[0] if isinstance(values[0], str) else json.dumps(values[0], ensure_ascii=False, default=str)
        reference = reference if reference.strip() else None
    item = {key: value for key, value in example.item.items() if key not in NAMES}
    return _view(kind, messages, told, [], told, reference or "", [told, item], example, reference)


def _view(
    kind: str,
    messages: Sequence[Mapping[str, Any]],
    prompt: str,
    answers: Sequence[str],
    question: str,
    verdict: str,
    content: Any,
    example: Example,
    reference: str | None = None,
) -> View:
    told = tuple((str(message.get("role")), _said(message)) for message in messages)
    given = conversation(example.inputs).tools if example.inputs is not None else ()
    tools = canonical(given) if given else ""
    asked = f"{question}\0{tools}" if tools else question  # the right answer may be another one with other tools
    shown = canonical([kind, content, tools])
    reads = _reads(example, prompt)
    return View(kind, told, prompt, tuple(answers), asked, verdict, tools, shown, example.group, reference, reads)


def _reads(example: Example, prompt: str) -> tuple[str, ...]:
    if getattr(example, "output", "") is not None or example.inputs is None:
        return (prompt,)
    return tuple(_joined(read.messages) for read in contexts(conversation(example.inputs)))


_VIEWS: dict[type, Callable[[Any, str], View]] = {
    Demonstration: _demonstration,
    Preference: _preference,
    Rated: _rated,
    Task: _task,
}


def _messages(inputs: Any) -> list[Mapping[str, Any]]:
    return [] if inputs is None else list(conversation(inputs).messages)


def _said(message: Mapping[str, Any]) -> str:
    """A message's text, and its tool calls as JSON."""
    content, calls = message.get("content"), message.get("tool_calls") or message.get("function_call")
    text = content if isinstance(content, str) else "" if content is None else json.dumps(content, ensure_ascii=False)
    return f"{text}\n{json.dumps(calls, ensure_ascii=False)}".strip() if calls else text


def _text(output: Any) -> str:
    if isinstance(output, str):
        return output
    if isinstance(output, Mapping):
        return _said(output)
    return "\n".join(_text(message) for message in output) if isinstance(output, list) else str(output)


def _joined(messages: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(_said(message) for message in messages)


def _plain(messages: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [[str(message.get("role")), _said(message)] for message in messages]


def _weights(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [message.get("weight", 1) for message in messages if message.get("role") == "assistant"]


def normalised(text: str) -> str:
    """The text without case, and with one space for each run of spaces and punctuation; mathematical signs stay."""
    return " ".join(text.casefold().translate(_GAPS).split()) or text.strip()


def exact_parts(text: str) -> str:
    """The numbers of a normalised text with their signs: texts that differ in them say different things."""
    return " ".join(_EXACT.findall(text))


def key_of(text: str) -> int:
    """64 bits of a text; among ten million rows the chance of one collision is 3e-6."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def strings(value: Any, name: str = "") -> Iterator[str]:
    """Every text in a JSON value, names and roles left out."""
    if isinstance(value, str):
        if name not in NOT_TEXT:
            yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from strings(inner, key)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from strings(inner, name)


def mapped(value: Any, change: Callable[[str], str], name: str = "") -> Any:
    """The JSON value with every text changed, names and roles left as they are."""
    if isinstance(value, str):
        changed = value if name in NOT_TEXT else change(value)
        return Cell(changed) if isinstance(value, Cell) else changed
    if isinstance(value, Mapping):
        return {key: mapped(inner, change, key) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [mapped(inner, change, name) for inner in value]
    return value
