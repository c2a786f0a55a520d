"""tasks as Label Studio exports them (JSON): choices, taxonomy, rating, number, text areas, pairwise

Source: Label Studio, "JSON format of annotated tasks"; an annotator is the id under completed_by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from melior.data.formats.answers import Answer, Labelled
from melior.data.formats.argilla import kind_of, kinds, shown
from melior.data.formats.rows import Kind, Lost, Reading, Row, RowError, opened

VALUES = {  # under which key each type of region keeps its answer
    "choices": "choices",
    "taxonomy": "taxonomy",
    "rating": "rating",
    "number": "number",
    "textarea": "text",
    "pairwise": "selected",
}
TOLD = {"created_at": "at", "updated_at": "updated_at", "lead_time": "seconds", "ground_truth": "ground_truth"}
LISTS = ("choices", "taxonomy", "textarea")  # a list of one is that one


def _labelled(row: Row) -> Labelled:
    data, annotations = opened(row["data"]), opened(row["annotations"])
    if not isinstance(data, Mapping) or not isinstance(annotations, list):
        raise RowError("data must be an object and annotations a list")
    answers = [answer for annotation in annotations for answer in _answers(annotation)]
    meta = opened(row.get("meta"))
    kept = {"record_id": row.get("id"), "predictions": row.get("predictions")}
    item = {**(meta if isinstance(meta, Mapping) else {}), **{key: value for key, value in kept.items() if value}}
    return Labelled(data, answers, item)


def _answers(annotation: Any) -> list[Answer]:
    if not isinstance(annotation, Mapping) or not isinstance(annotation.get("result"), list):
        raise RowError("an annotation must be an object with a result")
    who = annotation.get("completed_by", "")
    who = who.get("id", "") if isinstance(who, Mapping) else who
    told = {name: annotation[key] for key, name in TOLD.items() if annotation.get(key)}
    if annotation.get("was_cancelled"):
        told["status"] = "cancelled"
    return [
        {
            "annotator": str(who),
            "question": region["from_name"],
            "type": region["type"],
            "value": _value(region),
            **told,
        }
        for region in annotation["result"]
        if isinstance(region, Mapping) and region.get("type") in VALUES
    ]


def _value(region: Mapping[str, Any]) -> Any:
    value = region["value"].get(VALUES[region["type"]])
    single = region["type"] in LISTS and isinstance(value, list) and len(value) == 1
    return value[0] if single and not isinstance(value[0], list) else value


def _fits(kind: Kind) -> Callable[[Row, Reading], bool]:
    def fits(row: Row, reading: Reading) -> bool:
        return {"data", "annotations"} <= row.keys() and kind_of(_labelled(row), reading) == kind

    return fits


def _read(row: Row, reading: Reading, kind: Kind) -> dict[str, Any]:
    labelled = _labelled(row)
    labelled.kind(reading)  # tells at once if nobody answered
    return {**labelled.read(kind, reading), "used": tuple(row)}


def _write(example: Any, item: dict[str, Any], lost: Lost, kind: Kind) -> dict[str, Any]:
    data, question, value = shown(example, item, lost, kind)
    given = item.pop("annotations", None) or [{"annotator": "", "question": question, "value": value}]
    annotations = [_annotation(answer, kind, list(data)) for answer in given]
    kept = {"record_id": "id", "predictions": "predictions"}
    head = {key: item.pop(name) for name, key in kept.items() if name in item}
    meta = {"meta": dict(item)} if item else {}
    item.clear()
    return {**head, "data": data, **meta, "annotations": annotations}


def _annotation(answer: Answer, kind: Kind, shown_fields: Sequence[str]) -> dict[str, Any]:
    value = answer["value"]
    whole = isinstance(value, int) and value > 0
    usual: dict[Kind, str] = {"rated": "rating" if whole else "number", "preferences": "pairwise"}
    type = answer.get("type") or usual.get(kind, "textarea")
    if kind == "preferences" and "type" not in answer and value in shown_fields[-2:]:
        value = ("left", "right")[list(shown_fields[-2:]).index(value)]
    listed = type in LISTS and (not isinstance(value, list))
    region = {
        "from_name": answer["question"],
        "to_name": ",".join(shown_fields[-2:]) if type == "pairwise" else shown_fields[-1],
        "type": type,
        "value": {VALUES[type]: [value] if listed else value},
    }
    told = {key: answer[name] for key, name in TOLD.items() if name in answer}
    if answer.get("status") == "cancelled":
        told["was_cancelled"] = True
    return {"completed_by": answer.get("annotator", ""), "result": [region], **told}


def _sample(data: Mapping[str, Any], type: str, value: Any) -> Row:
    region = {"from_name": "answer", "to_name": list(data)[-1], "type": type, "value": {VALUES[type]: value}}
    return {"id": 1, "data": data, "annotations": [{"completed_by": 7, "result": [region]}]}


FORMATS = kinds(
    "label-studio",
    ("data", "annotations"),
    _read,
    _write,
    _fits,
    {
        "demonstrations": _sample({"text": "Where is my card?"}, "choices", ["card_arrival"]),
        "rated": _sample({"prompt": "What is 2 + 2?", "completion": "Four."}, "rating", 4),
        "preferences": _sample({"prompt": "2 + 2?", "response_1": "4", "response_2": "5"}, "pairwise", "left"),
    },
)
