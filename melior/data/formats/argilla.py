"""records as Argilla exports them: nested (`to_json`), and flat as a data set (`to_datasets`)

Source: Argilla 2, `Record.to_dict` and `Dataset.records.to_list(flatten=True)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from melior.data.formats.answers import Answer, Labelled
from melior.data.formats.messages import prompt_of, whole
from melior.data.formats.rows import Format, Kind, Lost, Reading, Row, RowError, opened

OWN = ("id", "status", "_server_id", "vectors", "score")  # columns of a flat record that are no fields
FLAT = (".responses", ".responses.users", ".responses.status", ".suggestion", ".suggestion.score", ".suggestion.agent")


def is_record(row: Row) -> bool:
    """Whether a row is a record of Argilla."""
    return {"fields", "responses"} <= row.keys() or any(name.endswith(".responses") for name in row)


def _labelled(row: Row) -> Labelled:
    return _nested(row) if "fields" in row else _flat(row)


def _nested(row: Row) -> Labelled:
    fields, responses = opened(row["fields"]), opened(row["responses"])
    if not isinstance(fields, Mapping) or not isinstance(responses, Mapping):
        raise RowError("fields and responses must be objects")
    answers = [
        {"annotator": given.get("user_id", ""), "question": question, "value": given.get("value")}
        | ({"status": given["status"]} if given.get("status") else {})
        for question, all_given in responses.items()
        for given in all_given
    ]
    metadata = opened(row.get("metadata"))
    item = {**(metadata if isinstance(metadata, Mapping) else {}), **_record(row.get("id"), row.get("suggestions"))}
    return Labelled(_chats(fields), answers, item)


def _flat(row: Row) -> Labelled:
    questions = [name.removesuffix(".responses") for name in row if name.endswith(".responses")]
    answers: list[Answer] = []
    for question in questions:
        values = opened(row[f"{question}.responses"]) or []
        users, states = (opened(row.get(f"{question}.responses.{of}")) or [] for of in ("users", "status"))
        for place, value in enumerate(values):
            answer = {"annotator": users[place] if place < len(users) else "", "question": question, "value": value}
            answers.append(answer | ({"status": states[place]} if place < len(states) and states[place] else {}))
    suggested = {
        name.removesuffix(".suggestion"): {"value": row[name], "agent": row.get(f"{name}.agent")}
        for name in row
        if name.endswith(".suggestion") and row[name] is not None
    }
    fields = {
        name: value for name, value in row.items() if name not in OWN and not name.endswith(FLAT) and value is not None
    }
    return Labelled(_chats(fields), answers, _record(row.get("id"), suggested))


def _record(id: Any, suggestions: Any) -> dict[str, Any]:
    """What the item keeps of the record itself."""
    told = {"record_id": id, "suggestions": opened(suggestions)}
    return {key: value for key, value in told.items() if value}


def _chats(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, numbers and missing ones as they are; a chat field stays a list of messages."""
    return {name: opened(value) for name, value in fields.items()}


def _fits(kind: Kind) -> Callable[[Row, Reading], bool]:
    """Whether a record's answers make it one of the kind; a record nobody can use counts as a demonstration."""

    def fits(row: Row, reading: Reading) -> bool:
        return is_record(row) and kind_of(_labelled(row), reading) == kind

    return fits


def kind_of(labelled: Labelled, reading: Reading) -> Kind:
    """The kind of a record; "demonstrations" where its answers are unusable, so that reading it tells why."""
    try:
        return labelled.kind(reading)
    except RowError:
        return "demonstrations"


def _read(row: Row, reading: Reading, kind: Kind) -> dict[str, Any]:
    labelled = _labelled(row)
    labelled.kind(reading)  # tells at once if nobody answered
    made = labelled.read(kind, reading)
    return {**made, "used": tuple(row)}


def _write(example: Any, item: dict[str, Any], lost: Lost, kind: Kind) -> dict[str, Any]:
    fields, question, value = shown(example, item, lost, kind)
    answers = item.pop("annotations", None) or [{"annotator": "", "question": question, "value": value}]
    responses: dict[str, list[dict[str, Any]]] = {}
    for answer in answers:
        given = {"value": answer["value"], "user_id": answer.get("annotator", "")}
        given |= {"status": answer["status"]} if answer.get("status") else {}
        responses.setdefault(answer["question"], []).append(given)
        for key in answer.keys() - {"annotator", "question", "value", "status"}:
            lost[f"{key} of annotations"] += 1
    id, suggestions = item.pop("record_id", None), item.pop("suggestions", {})
    metadata = dict(item)
    item.clear()
    record = {"fields": fields, "metadata": metadata, "suggestions": suggestions, "responses": responses}
    return {"id": id, **record} if id is not None else record


def shown(example: Any, item: dict[str, Any], lost: Lost, kind: Kind) -> tuple[dict[str, Any], str, Any]:
    """What an annotator would see of an example, the question, and the answer it holds."""
    tools = example.inputs.get("tools") if isinstance(example.inputs, Mapping) else None
    if tools:
        lost["tools"] += 1
    if kind == "demonstrations":
        messages = whole(example).messages
        inputs = example.inputs if example.output is not None else [dict(message) for message in messages[:-1]]
        if example.output is None and any(m["role"] == "assistant" and m.get("weight", 1) for m in messages[:-1]):
            lost["earlier answers, now context only"] += 1
        return {"prompt": _field(inputs, lost)}, "completion", _output(messages[-1])
    prompt = {} if example.inputs is None else {"prompt": _field(example.inputs, lost)}
    if kind == "rated":
        return {**prompt, "completion": _output(example.output)}, "rating", _number(example.rating)
    if example.margin:
        lost["margin"] += 1
    sides = item.pop("sides", {"response_1": "chosen", "response_2": "rejected"})
    if example.probability != 1.0 and "annotations" not in item:
        lost["probability"] += 1
    outputs = {name: _output(getattr(example, role)) for name, role in sides.items()}
    return {**prompt, **outputs}, "preference", next(name for name, role in sides.items() if role == "chosen")


def _field(inputs: Any, lost: Lost) -> Any:
    prompt = prompt_of(inputs)
    if isinstance(prompt, str):
        return prompt
    for message in prompt:
        if message.pop("weight", 1) == 0:
            lost["weight of messages"] += 1
    alone = len(prompt) == 1 and prompt[0].keys() == {"role", "content"} and prompt[0]["role"] == "user"
    return prompt[0]["content"] if alone else prompt  # the same to a policy, and easier to label


def _output(output: Any) -> str:
    text = output.get("content") if isinstance(output, Mapping) else output
    if not isinstance(text, str) or (isinstance(output, Mapping) and output.get("tool_calls")):
        raise RowError("its output is more than text, which label exports do not hold")
    return text


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value


def kinds(
    prefix: str,
    columns: tuple[str, ...],
    read: Callable[..., dict[str, Any]],
    write: Callable[..., dict[str, Any]],
    fits: Callable[[Kind], Callable[[Row, Reading], bool]],
    samples: Mapping[Kind, Row],
) -> tuple[Format, ...]:
    """One format per kind of example that a label export may hold."""
    ending: dict[Kind, str] = {"demonstrations": "demonstration", "rated": "rating", "preferences": "preference"}
    return tuple(
        Format(
            f"{prefix}-{ending[kind]}",
            kind,
            columns,
            (),
            partial(read, kind=kind),
            partial(write, kind=kind),
            samples[kind],
            fits(kind),
        )
        for kind in ending
    )


_USER = "6c2a41f5-0f5e-4b1f-8a3c-2f0d1b6f9a10"
FORMATS = kinds(
    "argilla",
    ("fields", "responses"),
    _read,
    _write,
    _fits,
    {
        "demonstrations": {
            "fields": {"prompt": "What is 2 + 2?"},
            "responses": {"completion": [{"value": "4", "user_id": _USER}]},
        },
        "rated": {
            "fields": {"prompt": "What is 2 + 2?", "completion": "Four."},
            "responses": {"rating": [{"value": 4, "user_id": _USER}]},
        },
        "preferences": {
            "fields": {"prompt": "What is 2 + 2?", "response_1": "4", "response_2": "5"},
            "responses": {"preference": [{"value": "response_1", "user_id": _USER}]},
        },
    },
)
