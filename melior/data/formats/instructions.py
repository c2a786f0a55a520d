"""rows with one question and one answer: Alpaca's instructions, and texts with a label

Source: Stanford Alpaca, Taori et al. 2023 (its wording is that of the published training code).
"""

from __future__ import annotations

from typing import Any

from melior.data.formats.bedrock import plain
from melior.data.formats.labels import LABELS, label_column, labels_of, written
from melior.data.formats.messages import Messages, whole
from melior.data.formats.rows import Format, Lost, Reading, Row, RowError, given, opened

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


def _read_alpaca(row: Row, reading: Reading) -> dict[str, Any]:
    instruction, more, output = (_text(row, name) for name in ("instruction", "input", "output"))
    if not output.strip():
        raise RowError("output is empty: nothing to learn")
    if not instruction.strip():
        raise RowError("instruction is empty: nothing to answer")
    prompt = f"{instruction}\n\n{more}" if more else instruction
    if reading.alpaca == "published":
        wording = WITH_INPUT if more else WITHOUT_INPUT
        prompt = wording.replace("{input}", more).replace("{instruction}", instruction)
    before = _before(row)
    return {"inputs": [*before, {"role": "user", "content": prompt}] if before else prompt, "output": output}


def _before(row: Row) -> Messages:
    """The system prompt and the earlier turns that some Alpaca files have."""
    system, history = _text(row, "system"), opened(given(row, "history", []))
    messages = [{"role": "system", "content": system}] if system else []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise RowError("history must be a list of [instruction, output] pairs")
    for asked, answered in history:
        messages += [{"role": "user", "content": str(asked)}, {"role": "assistant", "content": str(answered)}]
    return messages


def _text(row: Row, name: str) -> str:
    value = given(row, name, "")
    if not isinstance(value, str):
        raise RowError(f"{name} must be text, got {type(value).__name__}")
    return str(value)


def _write_alpaca(example: Any, item: dict[str, Any], lost: Lost) -> dict[str, Any]:
    told = whole(example)
    if told.tools:
        lost["tools"] += 1
    messages = list(told.messages)
    columns: dict[str, Any] = {}
    if messages[0]["role"] == "system":
        columns["system"] = plain(messages.pop(0), lost)
    if len(messages) % 2 or [m["role"] for m in messages] != ["user", "assistant"] * (len(messages) // 2):
        raise RowError("its messages do not take turns of user and assistant, as Alpaca's do")
    if any(message.get("weight", 1) != 0 for message in messages[1:-1:2]):
        lost["earlier answers, now context only"] += 1
    texts = [plain({**message, "weight": 1}, lost) for message in messages]
    if len(texts) > 2:
        columns["history"] = [[asked, answered] for asked, answered in zip(texts[:-2:2], texts[1:-2:2], strict=True)]
    return {"instruction": texts[-2], "input": "", "output": texts[-1], **columns}


def _read_label(row: Row, reading: Reading) -> dict[str, Any]:
    name, text_column = label_column(row, reading), reading.text or "text"
    if name is None or text_column not in row:
        raise RowError(f"has no column {text_column} beside one called {' or '.join(LABELS)}; name them")
    output = labels_of(row[name], name, reading)
    text = _text(row, text_column)
    if not text.strip():
        raise RowError(f"{text_column} is empty: nothing to classify")
    return {"inputs": text, "output": output, "used": (name, text_column)}


def _write_label(example: Any, item: dict[str, Any], lost: Lost) -> dict[str, Any]:
    if isinstance(example.inputs, str) and isinstance(example.output, tuple):
        return {"text": example.inputs, "label": written(example.output)}
    told = whole(example)
    if told.tools or [message["role"] for message in told.messages] != ["user", "assistant"]:
        raise RowError("it is a conversation, and a classification is one text and one label")
    text, label = (plain(message, lost) for message in told.messages)
    if label != label.strip():
        raise RowError(f"its label {label!r:.40} begins or ends with space, and would be read without it")
    return {"text": text, "label": label}


def _is_label(row: Row, reading: Reading) -> bool:
    """Whether it is a text and its label; what else the row has goes into the item."""
    return (reading.text or "text") in row and label_column(row, reading) is not None and not reading.image


FORMATS = (
    Format(
        "alpaca",
        "demonstrations",
        ("instruction", "output"),
        ("input", "system", "history"),
        _read_alpaca,
        _write_alpaca,
        {"instruction": "Add the numbers.", "input": "2 and 2", "output": "4"},
    ),
    Format(
        "classification",
        "demonstrations",
        ("text", "label"),
        (),
        _read_label,
        _write_label,
        {"text": "Where is my card?", "label": "card_arrival"},
        _is_label,
    ),
)
