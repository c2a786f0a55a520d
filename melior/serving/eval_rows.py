"""the rows of an eval's run: out of a file, out of the request, or out of kept completions; checked, and rendered

What comes out is what the run needs: `item`, and `inputs` where a model is asked or `output` where an output is graded
as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from melior.errors import GraderError, NotFound
from melior.rewards.templates import Path as TemplatePath
from melior.rewards.templates import Template, found_at
from melior.serving import files
from melior.serving.eval_schema import Faults, check_path, check_template, template_of, texts_in
from melior.serving.feedback import Id
from melior.serving.problems import Problem
from melior.serving.service import Service
from melior.serving.wire import seconds
from melior.store.query import CHUNK
from melior.store.rows import Completion

PURPOSES = ("evals", "fine-tune")  # of files that rows are read from
MOST = 100_000  # rows of a run, which are checked while the client waits
NOTHING = {"output_text": ""}  # the sample of a row whose item has all that is graded
TEXTS = ("text", "input_text", "output_text")  # parts of a message that are text
INPUT = "item.input"  # where kept completions have what was asked
SOURCE = "data_source.source"

Metadata = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]],
    Field(max_length=16),
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Row(_Strict):
    """One row, in a request or on a line of a file."""

    item: dict[str, Any]
    sample: dict[str, Any] | None = None


class FileContent(_Strict):
    """Rows in the request."""

    type: Literal["file_content"]
    content: list[Row]


class FileId(_Strict):
    """Rows in a file, one a line."""

    type: Literal["file_id"]
    id: Id


class StoredCompletions(_Strict):
    """Completions that were asked for with store: true."""

    type: Literal["stored_completions"]
    metadata: Metadata | None = None
    model: str | None = None
    created_after: int | None = None
    created_before: int | None = None
    limit: int | None = Field(default=None, ge=1)


class Message(_Strict):
    """A message with variables."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Any
    type: Literal["message"] | None = None


class Messages(_Strict):
    """What a model is asked, with variables."""

    type: Literal["template"]
    template: list[Message] = Field(min_length=1)


class Reference(_Strict):
    """Where in the item the messages stand."""

    type: Literal["item_reference"]
    item_reference: Annotated[str, StringConstraints(min_length=1, max_length=500)]


Source = Annotated[FileContent | FileId | StoredCompletions, Field(discriminator="type")]
Inputs = Annotated[Messages | Reference, Field(discriminator="type")]


def rows_of(
    service: Service,
    source: Source,
    inputs: Messages | Reference | None,
    faults: Faults,
    labels: Mapping[str, str],
    *,
    samples: bool,
) -> list[dict[str, Any]]:
    """The rows of a run; with `inputs` a model is asked, without them what the rows bring is graded.

    Args:
        labels: those that kept completions must have, beside what the source asks for.
        samples: whether criteria look at outputs; where they do not, all that is graded stands in the items.

    Raises:
        Problem: saying which row cannot be used, and why.
    """
    found: list[dict[str, Any]] = []
    for place, row in _rows(service, source, labels):
        if len(found) >= MOST:
            raise Problem(400, f"more than {MOST:,} rows came; make several runs of them", param=SOURCE)
        if wrong := faults(row["item"]):
            raise _at(place, wrong[0])
        found.append(_made(row if samples else {"sample": NOTHING, **row}, inputs, place))
    if not found:
        raise Problem(400, "there are no rows to grade", param=SOURCE)
    return found


def check_finite(sent: Any, param: str) -> None:
    """Nothing, if it is JSON: Python takes NaN, infinities and lone surrogates, and no client could read them back.

    Raises:
        Problem: if there is one in it.
    """
    try:
        json.dumps(sent, allow_nan=False, ensure_ascii=False).encode()
    except ValueError as error:
        raise Problem(400, f"this is not JSON: {error}", param=param) from error


def check_inputs(inputs: Messages | Reference, schema: Mapping[str, Any]) -> None:
    """Nothing, if items can have what the messages name.

    Raises:
        Problem: naming what they cannot.
    """
    param = "data_source.input_messages"
    if isinstance(inputs, Reference):
        path = _path(inputs)
        check_path(path.text, path.keys[1:], schema, f"{param}.item_reference")
        return
    for number, message in enumerate(inputs.template):
        _text(message.content, param := f"data_source.input_messages.template.{number}.content")
        for place, text in texts_in(message.content, param):
            check_template(template_of(text, place), schema, False, place)


def output_of(sample: Mapping[str, Any]) -> Any:
    """What a sample of the dialect says: a text, or an assistant's message where it calls tools.

    Raises:
        ValueError: if it says nothing.
    """
    choices = sample.get("choices")
    if isinstance(choices, Sequence) and choices and isinstance(choices[0], Mapping):
        message = choices[0].get("message")
        if isinstance(message, Mapping):
            calls = message.get("tool_calls")
            return {"role": "assistant", **message} if calls else message.get("content") or ""
    text, tools = sample.get("output_text"), sample.get("output_tools")
    if text is None and "output_json" in sample:
        text = json.dumps(sample["output_json"], ensure_ascii=False)
    if text is None and not tools:
        raise ValueError(f"has none of output_text, output_json, output_tools, choices; it has {', '.join(sample)}")
    return {"role": "assistant", "content": text, "tool_calls": tools} if tools else str(text)


def _rows(service: Service, source: Source, labels: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row stands, and the row."""
    if isinstance(source, FileContent):
        for number, row in enumerate(source.content):
            yield f"row {number + 1}", row.model_dump(exclude_none=True)
    elif isinstance(source, FileId):
        yield from _lines(service, source.id)
    else:
        yield from _completions(service, source, labels)


def _lines(service: Service, file_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        file = files.found(service, file_id)
    except NotFound as error:
        raise Problem(400, str(error), param=f"{SOURCE}.id") from error
    if file.purpose not in PURPOSES:
        told = f"{file.id} was uploaded for {file.purpose}; upload it for {' or '.join(PURPOSES)}"
        raise Problem(400, told, param=f"{SOURCE}.id")
    with files.place(service, file).open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                place = f"{file.filename}, line {number}"
                yield place, _line(line, place)


def _line(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line.encode("utf-8", "surrogateescape").decode("utf-8"), parse_constant=_not_json)
        json.dumps(row, ensure_ascii=False).encode()  # what is escaped may be half a character
    except (ValueError, RecursionError) as error:
        raise _at(place, f"is no JSON ({error})") from error
    if not isinstance(row, dict) or not isinstance(row.get("item"), dict):
        got = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise _at(place, f'needs {{"item": {{…}}}}, and has {got or "nothing"}')
    if not isinstance(row.get("sample"), dict | None):
        raise _at(place, "has a sample that is no object")
    return {name: row[name] for name in ("item", "sample") if row.get(name) is not None}


def _completions(
    service: Service, source: StoredCompletions, labels: Mapping[str, str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kept completions, the oldest first, without those whose decision is not in the log."""
    wanted = {**labels, **(source.metadata or {})}
    found = (
        (kept.id, {"item": {"input": kept.request.get("messages", [])}, "sample": dict(kept.response), **decided})
        for page in _pages(service, source.model, wanted)
        for kept, decided in _decided(service, [kept for kept in page if _timely(kept, source)])
    )
    yield from islice(found, source.limit)


def _pages(service: Service, model: str | None, labels: Mapping[str, str]) -> Iterator[list[Completion]]:
    """The kept completions of a model with these labels, a page at a time."""
    after = None
    while True:
        page = service.store.completion_page(model=model, labels=labels, after=after, limit=CHUNK)
        yield page.rows
        if not page.more:
            return
        after = page.rows[-1].id


def _timely(kept: Completion, source: StoredCompletions) -> bool:
    created, after, before = seconds(kept.created), source.created_after, source.created_before
    return (after is None or created >= after) and (before is None or created <= before)


def _decided(service: Service, kept: Sequence[Completion]) -> Iterator[tuple[Completion, dict[str, Any]]]:
    """Those of which the log has the decision, with the version that made it."""
    decisions = service.store.known_decisions([one.id for one in kept])
    return ((one, {"version": decisions[one.id].record.policy_version}) for one in kept if one.id in decisions)


def _made(row: Mapping[str, Any], inputs: Messages | Reference | None, place: str) -> dict[str, Any]:
    if inputs is not None:
        return {"item": row["item"], "inputs": _rendered(row["item"], inputs, place)}
    if "sample" not in row:
        raise _at(place, "has no sample to grade; give one, or name a model and input_messages to have it answered")
    sample = row["sample"]
    try:
        output = output_of(sample)
    except ValueError as error:
        raise _at(place, f"its sample {error}") from error
    choices = sample.get("choices") or [{}]
    finish = choices[0].get("finish_reason") if isinstance(choices[0], Mapping) else None
    told = {"finish": finish} if finish in ("stop", "length") else {}
    asked = row["item"].get("input") if isinstance(row["item"].get("input"), list) else None
    return {"item": row["item"], "inputs": asked, "output": output, "version": row.get("version"), **told}


def _rendered(item: Mapping[str, Any], inputs: Messages | Reference, place: str) -> list[dict[str, Any]]:
    """The messages for one item; what developers say is the system's to templates."""
    try:
        if isinstance(inputs, Reference):
            found = found_at(_path(inputs), {"item": item})
            messages = [{"role": "user", "content": found}] if isinstance(found, str) else found
        else:
            param = "data_source.input_messages.template"
            messages = [
                {"role": each.role, "content": template_of(_text(each.content, param), param).render(item, {})}
                for each in inputs.template
            ]
    except GraderError as error:
        raise _at(place, str(error)) from error
    if not isinstance(messages, list) or not messages or not all(_is_message(message) for message in messages):
        raise _at(place, f"what stands at {getattr(inputs, 'item_reference', 'it')} is no list of messages")
    return [{**each, "role": "system"} if each["role"] == "developer" else each for each in messages]


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and isinstance(message.get("role"), str) and "content" in message


def _path(inputs: Reference) -> TemplatePath:
    """Where the messages stand.

    Raises:
        Problem: if that is nowhere in an item.
    """
    param = "data_source.input_messages.item_reference"
    told = inputs.item_reference.strip().removeprefix("{{").removesuffix("}}").strip()
    template: Template = template_of(f"{{{{{told}}}}}", param)
    (piece,) = template.pieces
    if isinstance(piece, str) or piece.keys[0] != "item":
        raise Problem(400, f"item_reference is {inputs.item_reference!r}; write item.name", param=param)
    return piece


def _text(content: Any, param: str) -> str:
    """The text of a message's content.

    Raises:
        Problem: if there is more in it than text.
    """
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        if isinstance(part, Mapping) and part.get("type") in TEXTS and isinstance(part.get("text"), str):
            part = part["text"]
        if not isinstance(part, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            told = f"content of type {kind!r} is not served here; send text"
            raise Problem(400, told, param=param, code="unsupported_value")
        texts.append(part)
    return "".join(texts)


def _at(place: str, told: str) -> Problem:
    return Problem(400, f"{place}: {told}", param=SOURCE)


def _not_json(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
