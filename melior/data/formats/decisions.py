"""rows with inputs of any policy: a table's row, a text, a picture, or the request of a slate

{"inputs": {"age": 67, "purpose": "car"}, "output": "good"}
{"request": {"context": {...}, "viewed": "p1", "history": [...], "candidates": [...]}, "slate": ["p7", "p2"]}
{"inputs": ..., "chosen": "good", "rejected": "bad"}        and with "output" and "rating", or with neither: a task
{"request": ..., "slate": [...], "propensities": [0.2, 0.3], "events": [{"type": "click", "item": "p2"}]}   logged
{"inputs": [messages], "output": "4", "log_probs": [...], "sampled": {"context": [ids], "decisions": [ids], …}}  logged
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from melior.data.formats.rows import Format, Lost, Reading, Row, RowError, given, number_of, opened
from melior.data.formats.trl import read_strength, strength_columns
from melior.data.pictures import image_of
from melior.data.pictures import written as written_image
from melior.errors import DataError, MeliorError
from melior.types import Image, Interaction, Item, Record, Sampling, SlateRequest

REQUEST_KEYS = ("context", "viewed", "history", "candidates")
LOGGED = ("propensities", "propensity", "log_probs", "events", "reward", "policy_version", "sampled")
SAMPLED = (
    "context",
    "decisions",
    "sampling",
    "fingerprint",
    "finish",
)  # of a text: its tokens, and how they came
SURE = 1e-9  # how far above 1 a propensity may be by rounding


# ---------------------------------------------------------------------- inputs


def inputs_of(row: Row, reading: Reading) -> Any:
    """The inputs of a row: a `SlateRequest` under "request", anything else under "inputs".

    Raises:
        RowError: if they cannot be any policy's.
    """
    if "request" in row:
        return request_of(opened(row["request"]))
    value = opened(row["inputs"])
    if isinstance(value, Mapping) and value.keys() == {"image"}:
        try:
            return image_of(value["image"], "image", reading.folder)
        except DataError as error:
            raise RowError(str(error)) from error
    if isinstance(value, Mapping) and "messages" not in value:
        _check_features(value, "inputs")
    elif value is None or value == [] or not isinstance(value, str | list | Mapping):
        raise RowError(f"inputs must be a table's row, a text, a picture or messages, got {value!r:.40}")
    return str(value) if isinstance(value, str) else value


def restored(value: Any) -> Any:
    """Inputs as a policy reads them, out of the JSON that a log keeps of them (`as_json`).

    Raises:
        RowError: if they cannot be any policy's.
    """
    if isinstance(value, Mapping) and value.get("type") == SlateRequest.__name__ and "candidates" in value:
        return request_of(_untyped(value))
    if isinstance(value, Mapping) and value.keys() == {"image"}:
        return inputs_of({"inputs": value}, Reading())
    return value


def _untyped(value: Mapping[str, Any]) -> dict[str, Any]:
    """A request without the names of our types, which a log writes beside its fields."""
    told = {name: value[name] for name in REQUEST_KEYS if name in value}
    if isinstance(told.get("candidates"), list):
        told["candidates"] = [
            {name: entry[name] for name in ("id", "features") if name in entry} if isinstance(entry, Mapping) else entry
            for entry in told["candidates"]
        ]
    return told


def request_of(value: Any) -> SlateRequest:
    """What a slate is chosen for.

    Raises:
        RowError: if a part of it is malformed, or its candidates are none or the same twice.
    """
    if not isinstance(value, Mapping):
        raise RowError(f"request must be an object with {', '.join(REQUEST_KEYS)}, got {value!r:.40}")
    unknown = set(value).difference(REQUEST_KEYS)
    if unknown:
        raise RowError(f"request has {min(unknown)!r}, which is none of {', '.join(REQUEST_KEYS)}")
    context, viewed = value.get("context") or {}, value.get("viewed")
    _check_features(context, "request.context")
    viewed = "" if viewed in (None, "") else _id(viewed, "request.viewed")
    history = tuple(_interaction(entry) for entry in _listed(value.get("history") or [], "request.history"))
    if value.get("candidates") is None:
        return SlateRequest(dict(context), viewed, history)
    candidates = tuple(_candidate(entry) for entry in _listed(value["candidates"], "request.candidates"))
    if not candidates:
        raise RowError("request.candidates is empty: nothing can be shown; leave it out to mean the whole catalogue")
    ids = [entry.id if isinstance(entry, Item) else entry for entry in candidates]
    _check_different(ids, "request.candidates")
    return SlateRequest(dict(context), viewed, history, candidates)


def _interaction(entry: Any) -> Interaction:
    if not isinstance(entry, Mapping):
        return Interaction(_id(entry, "request.history"))
    unknown = set(entry).difference(("item", "type", "age_s"))
    if unknown:
        raise RowError(f"an entry of request.history has {min(unknown)!r}, which is none of item, type, age_s")
    age, type = entry.get("age_s"), entry.get("type", "purchase")
    if not isinstance(type, str):
        raise RowError(f"request.history.type must be text, got {type!r:.40}")
    seconds = None if age is None else number_of(age, "request.history.age_s")
    return Interaction(_id(entry.get("item"), "request.history.item"), type, seconds)


def _id(value: Any, name: str) -> str:
    """The id of an item; numbers are ids too."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise RowError(f"{name} must be the id of an item, got {value!r:.40}")
    return str(value)


def _candidate(entry: Any) -> str | Item:
    return item_of(entry) if isinstance(entry, Mapping) else _id(entry, "request.candidates")


def item_of(entry: Any) -> Item:
    """An item that `{"id": ..., "features": {...}}` writes.

    Raises:
        RowError: if it writes none.
    """
    if not isinstance(entry, Mapping):
        raise RowError(f"an item is an object with id and features, got {entry!r:.60}")
    id = _id(entry.get("id"), "id")
    unknown = set(entry).difference(("id", "features"))
    if unknown:
        raise RowError(f"the item {id!r} has {min(unknown)!r}; write it into its features")
    features = entry.get("features") or {}
    _check_features(features, f"features of {id!r}")
    return Item(id, dict(features))


def _check_features(features: Any, name: str) -> None:
    """Nothing, if these are numbers, texts and None under names."""
    if not isinstance(features, Mapping):
        raise RowError(f"{name} must be an object with columns, got {features!r:.40}")
    for key, value in features.items():
        if value is not None and not isinstance(value, str | int | float):
            raise RowError(f"{name} holds {value!r:.40} under {key}; features are numbers, texts or null")
        if isinstance(value, float) and not math.isfinite(value):
            raise RowError(f"{name} holds {value} under {key}, which is not finite; write null where it is unknown")


def _listed(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise RowError(f"{name} must be a list, got {value!r:.40}")
    return value


def _check_different(ids: Sequence[str], name: str) -> None:
    twice = [id for id in dict.fromkeys(ids) if ids.count(id) > 1] if len(set(ids)) < len(ids) else []
    if twice:
        raise RowError(f"{name} has {twice[0]!r} {ids.count(twice[0])} times; an item can be shown once")


def input_columns(inputs: Any) -> dict[str, Any]:
    """The inputs as columns of a row.

    Raises:
        RowError: if they would read back as something else.
    """
    if isinstance(inputs, SlateRequest):
        return {"request": request_json(inputs)}
    if isinstance(inputs, Image):
        return {"inputs": {"image": written_image(inputs)}}
    if inputs is None:
        raise RowError("it is a whole text without inputs")
    if isinstance(inputs, Mapping) and inputs.keys() == {"image"}:
        raise RowError("a table of one column called image would read back as a picture; rename the column")
    return {"inputs": dict(inputs) if isinstance(inputs, Mapping) else inputs}


def request_json(request: SlateRequest) -> dict[str, Any]:
    """A request as `request_of` reads it back; what is empty is left out."""
    told: dict[str, Any] = {"context": dict(request.context)} if request.context else {}
    if request.viewed:
        told["viewed"] = request.viewed
    if request.history:
        told["history"] = [
            {"item": past.item, "type": past.type, **({} if past.age_s is None else {"age_s": past.age_s})}
            for past in request.history
        ]
    if request.candidates is not None:
        told["candidates"] = [
            {"id": entry.id, "features": dict(entry.features)} if isinstance(entry, Item) else entry
            for entry in request.candidates
        ]
    return told


# ---------------------------------------------------------------------- outputs


def decided(value: Any, name: str, inputs: Any) -> Any:
    """An output: the item ids of a slate, a label, or a tuple of labels.

    Raises:
        RowError: if it is none, or a slate that its request does not permit.
    """
    value = opened(value)
    if isinstance(inputs, SlateRequest):
        return _slate(value, name, inputs)
    if isinstance(value, list) and all(isinstance(label, str) for label in value):
        return tuple(value)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"{name} must be a label or a list of labels, got {value!r:.40}")
    return str(value)


def _slate(value: Any, name: str, request: SlateRequest) -> list[str]:
    ids = [_id(id, name) for id in _listed(value, name)]
    if not ids:
        raise RowError(f"{name} is empty: nothing was shown")
    _check_different(ids, name)
    if request.candidates is not None:
        known = {entry.id if isinstance(entry, Item) else entry for entry in request.candidates}
        strange = [id for id in ids if id not in known]
        if strange:
            raise RowError(f"{name} shows {strange[0]!r}, which is not among the {len(known)} candidates")
    return ids


def _output_name(row: Row) -> str:
    return "slate" if "request" in row else "output"


def _output_column(example: Any) -> dict[str, Any]:
    if isinstance(example.inputs, SlateRequest):
        return {"slate": list(example.output)}
    return {"output": _label_json(example.output)}


def _label_json(output: Any) -> Any:
    if isinstance(output, tuple):
        return list(output)
    if not isinstance(output, str):
        raise RowError(f"its output is no label, but {output!r:.40}; write it as messages or prompt-completion")
    return output


# ---------------------------------------------------------------------- the formats


def _read_demonstration(row: Row, reading: Reading) -> dict[str, Any]:
    inputs, name = inputs_of(row, reading), _output_name(row)
    return {"inputs": inputs, "output": decided(row[name], name, inputs), "used": (*_INPUTS, name)}


def _write_demonstration(example: Any, item: dict[str, Any], lost: Lost) -> dict[str, Any]:
    return {**input_columns(example.inputs), **_output_column(example)}


def _read_task(row: Row, reading: Reading) -> dict[str, Any]:
    return {"inputs": inputs_of(row, reading), "used": _INPUTS}


def _write_task(example: Any, item: dict[str, Any], lost: Lost) -> dict[str, Any]:
    return input_columns(example.inputs)


def _read_preference(row: Row, reading: Reading) -> dict[str, Any]:
    inputs = inputs_of(row, reading)
    chosen, rejected = (decided(row[name], name, inputs) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise RowError("chosen and rejected are the same: nothing to learn")
    return {"inputs": inputs, "chosen": chosen, "rejected": rejected, **read_strength(row), "used": _INPUTS}


def _write_preference(example: Any, item: dict[str, Any], lost: Lost) -> dict[str, Any]:
    slates = isinstance(example.inputs, SlateRequest)
    sides = {name: getattr(example, name) for name in ("chosen", "rejected")}
    told = {name: list(side) if slates else _label_json(side) for name, side in sides.items()}
    return {**input_columns(example.inputs), **told, **strength_columns(example)}


def _read_rated(row: Row, reading: Reading) -> dict[str, Any]:
    return {**_read_demonstration(row, reading), "rating": number_of(row["rating"], "rating")}


def _write_rated(example: Any, item: dict[str, Any], lost: Lost) -> dict[str, Any]:
    return {**_write_demonstration(example, item, lost), "rating": example.rating}


def _read_logged(row: Row, reading: Reading) -> dict[str, Any]:
    made = _read_demonstration(row, reading)
    sampled = _sampled(opened(given(row, "sampled")))
    decisions = len(sampled["decisions"] if sampled else made["output"]) if sampled or "request" in row else 1
    item: dict[str, Any] = {}
    if given(row, "events") is not None:
        shown = made["output"] if "request" in row else None
        item["events"] = [_event(event, shown) for event in _listed(opened(row["events"]), "events")]
    if given(row, "reward") is not None:
        item["reward"] = number_of(row["reward"], "reward")
    version = given(row, "policy_version")
    return {
        **made,
        **sampled,
        "behavior_log_probs": _log_probs(row, decisions),
        "policy_version": None if version is None else str(version),
        "item": item,
        "used": (*made["used"], *LOGGED),
    }


def _sampled(value: Any) -> dict[str, Any]:
    """The fields of a record that say which tokens a text was, and how they were drawn; nothing where nobody says.

    Raises:
        RowError: if they are malformed.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not {"context", "decisions"} <= value.keys() or not value.keys() <= {*SAMPLED}:
        raise RowError(f"sampled must be an object with context, decisions and no more than {', '.join(SAMPLED)}")
    ids = {name: _listed(value[name], f"sampled.{name}") for name in ("context", "decisions")}
    if any(isinstance(token, bool) or not isinstance(token, int) for listed in ids.values() for token in listed):
        raise RowError("sampled.context and sampled.decisions are ids of tokens, which are whole numbers")
    how = value.get("sampling")
    try:
        sampling = None if how is None else Sampling(**how)
    except (MeliorError, TypeError) as error:
        raise RowError(f"sampled.sampling says no way to sample: {error}") from error
    more = {name: value[name] for name in ("fingerprint", "finish") if name in value}
    return {**{name: tuple(listed) for name, listed in ids.items()}, "sampling": sampling, **more}


def _log_probs(row: Row, decisions: int) -> tuple[float, ...]:
    """Nats of each decision, as it was made.

    Raises:
        RowError: if they are missing, not one per decision, or no probabilities that were acted on.
    """
    if given(row, "log_probs") is not None:
        name, values = "log_probs", opened(row["log_probs"])
    else:
        name = "propensities" if given(row, "propensities") is not None else "propensity"
        values = opened(given(row, name))
    if values is None:
        raise RowError(
            "has no propensity, so nothing can be told of another policy from it; log it when serving, "
            "or read such rows as demonstrations"
        )
    numbers = [number_of(value, name) for value in (values if isinstance(values, list | tuple) else [values])]
    if len(numbers) != decisions:
        raise RowError(f"has {len(numbers)} {name} for {decisions} decisions; log one of each position")
    if name == "log_probs":
        if max(numbers) > SURE:
            raise RowError(f"{name} holds {max(numbers)}, and the logarithm of a probability is at most 0")
        return tuple(min(0.0, number) for number in numbers)
    if min(numbers) <= 0:
        raise RowError(f"{name} holds {min(numbers)}: what was shown had no chance to be; correct the log")
    if max(numbers) > 1 + SURE:
        raise RowError(f"{name} holds {max(numbers)}, and a probability is at most 1")
    return tuple(min(0.0, math.log(number)) for number in numbers)


def _event(event: Any, shown: Sequence[str] | None) -> dict[str, Any]:
    """What happened to an output.

    Raises:
        RowError: if it has no type, or happened to an item that was not shown.
    """
    if isinstance(event, str) and event:
        return {"type": str(event)}
    if not isinstance(event, Mapping) or not isinstance(event.get("type"), str) or not event["type"]:
        raise RowError(f"an event is an object with a type such as click, got {event!r:.60}")
    item, position = event.get("item"), event.get("position")
    if shown is not None and item is not None and _id(item, "the item of an event") not in shown:
        raise RowError(f"a {event['type']} of {item!r} is logged, which the slate does not show")
    if position is not None and (isinstance(position, bool) or not isinstance(position, int)):
        raise RowError(f"the position of a {event['type']} must be a whole number, got {position!r:.40}")
    return dict(event) if item is None else {**event, "item": str(item)}


def _write_logged(example: Record, item: dict[str, Any], lost: Lost) -> dict[str, Any]:
    if example.behavior_log_probs is None:
        raise RowError("it has no behavior log-probs: nothing was left to chance, or nobody wrote it down")
    told: dict[str, Any] = {name: item.pop(name) for name in ("events", "reward") if name in item}
    if example.context is not None and example.decisions is not None:  # a text: its ids are never made again
        told["sampled"] = {
            "context": [*example.context],
            "decisions": [*example.decisions],
            "sampling": None if example.sampling is None else asdict(example.sampling),
            "fingerprint": example.fingerprint,
            "finish": example.finish,
        }
    else:
        for name, value in (("decision ids", example.decisions), ("sampling settings", example.sampling)):
            lost.update([name] if value is not None else [])
    if example.policy_version is not None:
        told["policy_version"] = example.policy_version
    return {
        **input_columns(example.inputs),
        **_output_column(example),
        "log_probs": [*example.behavior_log_probs],
        **told,
    }


_INPUTS = ("inputs", "request")


def _is(row: Row, *columns: str, logged: bool = False) -> bool:
    """Whether the row has inputs and these columns of outputs, and no others."""
    if not any(name in row for name in _INPUTS):
        return False
    output = _output_name(row)
    found = {name for name in _OUTPUTS if name in row}
    wanted = {output if name == "output" else name for name in columns}
    return found == wanted and any(name in row for name in LOGGED) == logged


_OUTPUTS = ("output", "slate", "chosen", "rejected", "rating")
_ROW = {"age": 67, "purpose": "car"}
_ASKED = {
    "context": {"age": 31, "weekend": "yes"},
    "history": [{"item": "p4", "type": "purchase", "age_s": 86400.0}],
    "candidates": ["p1", "p2", {"id": "new", "features": {"price": 9.5}}],
}
FORMATS = (
    Format(
        "decision",
        "demonstrations",
        ("inputs", "output"),
        (),
        _read_demonstration,
        _write_demonstration,
        {"request": _ASKED, "slate": ["p2", "new"]},
        lambda row, reading: _is(row, "output"),
    ),
    Format(
        "decision-task",
        "tasks",
        ("inputs",),
        (),
        _read_task,
        _write_task,
        {"inputs": _ROW, "label": "good"},
        lambda row, reading: _is(row),
    ),
    Format(
        "decision-preference",
        "preferences",
        ("inputs", "chosen", "rejected"),
        ("margin", "probability"),
        _read_preference,
        _write_preference,
        {"request": _ASKED, "chosen": ["p2", "new"], "rejected": ["p1", "p2"]},
        lambda row, reading: _is(row, "chosen", "rejected"),
    ),
    Format(
        "decision-rating",
        "rated",
        ("inputs", "output", "rating"),
        (),
        _read_rated,
        _write_rated,
        {"inputs": _ROW, "output": "good", "rating": 0.8},
        lambda row, reading: _is(row, "output", "rating"),
    ),
    Format(
        "logged",
        "logged",
        ("inputs", "output"),
        LOGGED,
        _read_logged,
        _write_logged,
        {
            "request": _ASKED,
            "slate": ["p2", "new"],
            "log_probs": [-0.5, -1.0],
            "events": [{"type": "click", "item": "p2"}],
            "policy_version": "ver_1",
        },
        lambda row, reading: _is(row, "output", logged=True),
    ),
)
