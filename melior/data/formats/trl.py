"""rows in the columns of TRL, and the same with other ratings

Source: TRL's dataset formats; Anthropic's HH-RLHF writes conversations as one text with "Human:" and "Assistant:".
"""

from __future__ import annotations

import re
from typing import Any

from melior.data.conversations import as_context, conversation
from melior.data.formats.messages import (
    Messages,
    one_output,
    output_messages,
    output_of,
    parted,
    prompt_of,
    text_or_messages,
    tool_columns,
    with_tools,
)
from melior.data.formats.openai import pair
from melior.data.formats.rows import Format, Lost, Reading, Row, RowError, given, number_of

RATINGS = ("rating", "score")
SPOKEN = re.compile(r"\n\n(Human|Assistant):")


def _read_text(row: Row, reading: Reading) -> dict[str, Any]:
    if not isinstance(row["text"], str):
        raise RowError(f"text must be text, got {type(row['text']).__name__}")
    if not row["text"].strip():
        raise RowError("text is empty: nothing to learn")
    return {"inputs": None, "output": str(row["text"])}


def _write_text(example: Any, item: dict[str, Any], lost: Lost) -> dict[str, Any]:
    if example.inputs is not None or not isinstance(example.output, str):
        raise RowError("it has a prompt, and a text has none; write prompt-completion or messages")
    return {"text": example.output}


def _read_prompt(row: Row, reading: Reading) -> dict[str, Any]:
    return {"inputs": with_tools(text_or_messages(row, "prompt"), row)}


def _write_prompt(example: Any, item: dict[str, Any], lost: Lost) -> dict[str, Any]:
    return {"prompt": prompt_of(example.inputs), **tool_columns(example.inputs)}


def _read_completion(row: Row, reading: Reading) -> dict[str, Any]:
    prompt, output = text_or_messages(row, "prompt"), output_of(row, "completion")
    if isinstance(output, str) or not isinstance(output, list):
        return {"inputs": with_tools(prompt, row), "output": output}
    # several turns: one conversation, in which only those of the completion are imitated
    before = as_context(conversation(prompt).messages)
    return {"inputs": with_tools([dict(message) for message in [*before, *output]], row)}


def _write_completion(example: Any, item: dict[str, Any], lost: Lost) -> dict[str, Any]:
    prompt, completion = parted(example)
    return {"prompt": prompt, "completion": completion, **tool_columns(example.inputs)}


def _read_prompt_preference(row: Row, reading: Reading) -> dict[str, Any]:
    inputs = with_tools(text_or_messages(row, "prompt"), row)
    chosen, rejected = (_behind(row, name, inputs) for name in ("chosen", "rejected"))
    return {**pair(inputs, chosen, rejected), **read_strength(row)}


def _behind(row: Row, name: str, inputs: Any) -> Any:
    """An output; some data sets repeat the prompt's messages in front of it."""
    value = text_or_messages(row, name)
    before = list(conversation(inputs).messages)
    if isinstance(value, list) and len(value) > len(before) and value[: len(before)] == before:
        return one_output(value[len(before) :], name)
    return output_of(row, name)


def read_strength(row: Row) -> dict[str, float]:
    """The margin and the probability of a preference.

    Raises:
        RowError: if either is no number, or the probability none.
    """
    probability = number_of(given(row, "probability", 1.0), "probability")
    if not 0 <= probability <= 1:
        raise RowError(f"probability must be from 0 to 1, got {probability}")
    return {"margin": number_of(given(row, "margin", 0.0), "margin"), "probability": probability}


def _write_prompt_preference(example: Any, item: dict[str, Any], lost: Lost) -> dict[str, Any]:
    prompt, chosen, rejected = prompt_of(example.inputs), example.chosen, example.rejected
    if not all(isinstance(part, str) for part in (prompt, chosen, rejected)):
        prompt = [dict(message) for message in conversation(example.inputs).messages]
        chosen, rejected = output_messages(chosen), output_messages(rejected)
    columns = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return {**columns, **tool_columns(example.inputs), **strength_columns(example)}


def strength_columns(example: Any) -> dict[str, float]:
    """Margin and probability, where they say something."""
    columns = {"margin": example.margin} if example.margin else {}
    return {**columns, "probability": example.probability} if example.probability != 1.0 else columns


def _read_preference(row: Row, reading: Reading) -> dict[str, Any]:
    chosen, rejected = (spoken(text_or_messages(row, name)) for name in ("chosen", "rejected"))
    if isinstance(chosen, str) and isinstance(rejected, str):
        if not chosen or not rejected:
            raise RowError("chosen or rejected is empty: nothing to learn")
        return {**pair(None, chosen, rejected), **read_strength(row)}
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise RowError("chosen and rejected must both be text or both be messages")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == len(chosen) == len(rejected):
        raise RowError("chosen and rejected are the same: nothing to learn")
    if shared == 0:
        raise RowError("chosen and rejected share no message, so there is no prompt; give it in a column of its own")
    inputs = with_tools(chosen[:shared], row)
    chosen_output, rejected_output = one_output(chosen[shared:], "chosen"), one_output(rejected[shared:], "rejected")
    return {**pair(inputs, chosen_output, rejected_output), **read_strength(row)}


def spoken(text: str | Messages) -> str | Messages:
    """The messages of a text with "Human:" and "Assistant:", as HH-RLHF writes them; any other as it is."""
    if not isinstance(text, str) or not text.startswith("\n\nHuman:"):
        return text
    parts = SPOKEN.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]


def _write_preference(example: Any, item: dict[str, Any], lost: Lost) -> dict[str, Any]:
    if example.inputs is None:
        return {"chosen": example.chosen, "rejected": example.rejected, **strength_columns(example)}
    before = [dict(message) for message in conversation(example.inputs).messages]
    sides = {name: before + output_messages(getattr(example, name)) for name in ("chosen", "rejected")}
    return {**sides, **tool_columns(example.inputs), **strength_columns(example)}


def _read_rated(row: Row, reading: Reading) -> dict[str, Any]:
    name = "label" if "label" in row else next(name for name in RATINGS if name in row)
    inputs = with_tools(text_or_messages(row, "prompt"), row)
    rating = number_of(row[name], name)
    return {"inputs": inputs, "output": output_of(row, "completion"), "rating": rating, "used": (name,)}


def _write_rated(example: Any, item: dict[str, Any], lost: Lost) -> dict[str, Any]:
    prompt, output = prompt_of(example.inputs), example.output
    if not (isinstance(prompt, str) and isinstance(output, str)):
        prompt = [dict(message) for message in conversation(example.inputs).messages]
        output = output_messages(output)
    return {"prompt": prompt, "completion": output, "rating": example.rating, **tool_columns(example.inputs)}


def _write_labelled(example: Any, item: dict[str, Any], lost: Lost) -> dict[str, Any]:
    written = _write_rated(example, item, lost)
    rating = written.pop("rating")
    if rating not in (0.0, 1.0):
        lost["true or false: other ratings stay numbers"] += 1
        return {**written, "label": rating}
    return {**written, "label": bool(rating)}


def _is_rated(row: Row, reading: Reading) -> bool:
    return {"prompt", "completion"} <= row.keys() and "label" not in row and any(name in row for name in RATINGS)


FORMATS = (
    Format("text", "demonstrations", ("text",), (), _read_text, _write_text, {"text": "Once upon a time, …"}),
    Format(
        "prompt-completion",
        "demonstrations",
        ("prompt", "completion"),
        ("tools",),
        _read_completion,
        _write_completion,
        {"prompt": "What is 2 + 2?", "completion": "4"},
    ),
    Format("prompt", "tasks", ("prompt",), ("tools",), _read_prompt, _write_prompt, {"prompt": "2 + 2 =", "answer": 4}),
    Format(
        "prompt-preference",
        "preferences",
        ("prompt", "chosen", "rejected"),
        ("margin", "probability", "tools"),
        _read_prompt_preference,
        _write_prompt_preference,
        {"prompt": "What is 2 + 2?", "chosen": "4", "rejected": "5", "margin": 1.0},
    ),
    Format(
        "preference",
        "preferences",
        ("chosen", "rejected"),
        ("margin", "probability", "tools"),
        _read_preference,
        _write_preference,
        {
            "chosen": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}],
            "rejected": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "5"}],
        },
    ),
    Format(
        "prompt-completion-label",
        "rated",
        ("prompt", "completion", "label"),
        ("tools",),
        _read_rated,
        _write_labelled,
        {"prompt": "What is 2 + 2?", "completion": "4", "label": True},
    ),
    Format(
        "rated",
        "rated",
        ("prompt", "completion", "rating"),
        ("tools",),
        _read_rated,
        _write_rated,
        {"prompt": "What is 2 + 2?", "completion": "Four.", "rating": 0.8},
        _is_rated,
    ),
)
