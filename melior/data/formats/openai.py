"""rows of OpenAI's fine-tuning files: supervised, preference, reinforcement"""

from __future__ import annotations

from typing import Any

from melior.data.conversations import conversation
from melior.data.formats.messages import (
    last_role,
    messages_of,
    output_messages,
    output_of,
    prompt_of,
    says,
    tool_columns,
    whole,
    with_tools,
)
from melior.data.formats.rows import Format, Lost, Reading, Row, RowError, opened


def _read_messages(row: Row, reading: Reading) -> dict[str, Any]:
    messages = messages_of(row["messages"], "messages")
    if messages[-1]["role"] != "assistant":
        raise RowError(
            f"messages end with {messages[-1]['role']}; a demonstration ends with assistant, a task with user"
        )
    if not any(map(says, messages)):
        raise RowError("no assistant message has text and a weight other than 0: nothing to learn")
    return {"inputs": with_tools(messages, row)}


def _write_messages(example: Any, item: dict[str, Any], lost: Lost) -> dict[str, Any]:
    told = whole(example)
    return {"messages": [dict(message) for message in told.messages], **tool_columns(example.inputs)}


def _read_task(row: Row, reading: Reading) -> dict[str, Any]:
    return {"inputs": with_tools(messages_of(row["messages"], "messages"), row)}


def _write_task(example: Any, item: dict[str, Any], lost: Lost) -> dict[str, Any]:
    prompt_of(example.inputs)  # refuses what has no prompt
    messages = [dict(message) for message in conversation(example.inputs).messages]
    return {"messages": messages, **tool_columns(example.inputs)}


def _read_preference(row: Row, reading: Reading) -> dict[str, Any]:
    asked = opened(row["input"])
    if not isinstance(asked, dict) or "messages" not in asked:
        raise RowError('input must be an object with "messages"')
    inputs = with_tools(messages_of(asked["messages"], "input.messages"), asked)
    for name in ("preferred_output", "non_preferred_output"):
        if last_role(row[name]) != "assistant":
            raise RowError(f"{name} must be a list that ends with an assistant message")
    rest = {key: value for key, value in asked.items() if key not in ("messages", "tools")}
    return {**pair(inputs, output_of(row, "preferred_output"), output_of(row, "non_preferred_output")), "item": rest}


def pair(inputs: Any, chosen: Any, rejected: Any) -> dict[str, Any]:
    """The fields of a preference.

    Raises:
        RowError: if both outputs are the same.
    """
    if chosen == rejected:
        raise RowError("chosen and rejected are the same: nothing to learn")
    return {"inputs": inputs, "chosen": chosen, "rejected": rejected}


def _write_preference(example: Any, item: dict[str, Any], lost: Lost) -> dict[str, Any]:
    asked = _write_task(example, item, lost)
    if "parallel_tool_calls" in item:
        asked["parallel_tool_calls"] = item.pop("parallel_tool_calls")
    if example.margin:
        lost["margin"] += 1
    if example.probability != 1.0:
        lost["probability"] += 1
    chosen, rejected = output_messages(example.chosen), output_messages(example.rejected)
    return {"input": asked, "preferred_output": chosen, "non_preferred_output": rejected}


_ASKED = [{"role": "user", "content": "What is 2 + 2?"}]
_TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
FORMATS = (
    Format(
        "messages",
        "demonstrations",
        ("messages",),
        ("tools",),
        _read_messages,
        _write_messages,
        {"messages": [*_ASKED, {"role": "assistant", "content": "4"}], "tools": [_TOOL]},
    ),
    Format(
        "messages-task",
        "tasks",
        ("messages",),
        ("tools",),
        _read_task,
        _write_task,
        {"messages": _ASKED, "answer": "4"},
        lambda row, reading: "messages" in row and last_role(row["messages"]) == "user",
    ),
    Format(
        "openai-preference",
        "preferences",
        ("input", "preferred_output", "non_preferred_output"),
        (),
        _read_preference,
        _write_preference,
        {
            "input": {"messages": _ASKED},
            "preferred_output": [{"role": "assistant", "content": "4"}],
            "non_preferred_output": [{"role": "assistant", "content": "5"}],
        },
    ),
)
