"""rows of Amazon Bedrock: supervised conversations, and reinforcement with a reference answer"""

from __future__ import annotations

from typing import Any

from melior.data.conversations import conversation
from melior.data.formats.messages import (
    last_role,
    messages_of,
    prompt_of,
    says,
    text_of,
    tool_columns,
    whole,
    with_tools,
)
from melior.data.formats.rows import Format, Lost, Reading, Row, RowError, given, opened

SCHEMA = "bedrock-conversation-2024"


def _read_conversation(row: Row, reading: Reading) -> dict[str, Any]:
    if row["schemaVersion"] != SCHEMA:
        raise RowError(f"schemaVersion is {row['schemaVersion']!r}, only {SCHEMA} can be read")
    system = opened(given(row, "system", []))
    if not isinstance(system, list):
        raise RowError('system must be a list of {"text": …}')
    told = [{"role": "system", "content": text_of(system, "system")}] if system else []
    messages = [*told, *messages_of(row["messages"], "messages")]
    if not says(messages[-1]):
        raise RowError(f"messages end with {messages[-1]['role']}, or say nothing: nothing to learn")
    return {"inputs": messages}


def _write_conversation(example: Any, item: dict[str, Any], lost: Lost) -> dict[str, Any]:
    told = whole(example)
    if told.tools:
        lost["tools"] += 1
    system: list[dict[str, str]] = []
    messages: list[dict[str, Any]] = []
    for message in told.messages:
        parts = [{"text": plain(message, lost)}]
        if message["role"] in ("system", "developer") and not messages:
            system += parts
        elif message["role"] in ("user", "assistant"):
            messages.append({"role": message["role"], "content": parts})
        else:
            raise RowError(f"it has a message of the role {message['role']}, which Bedrock's conversations do not hold")
    head = {"schemaVersion": SCHEMA, "system": system} if system else {"schemaVersion": SCHEMA}
    return {**head, "messages": messages}


def plain(message: Any, lost: Lost) -> str:
    """The text of a message; whatever else it has is counted as lost.

    Raises:
        RowError: if it calls tools.
    """
    if message.get("tool_calls") or message.get("function_call"):
        raise RowError("it calls tools, which the format does not hold")
    if message.get("weight", 1) == 0:
        lost["messages of weight 0, now imitated"] += 1
    for key in message.keys() - {"role", "content", "weight"}:
        lost[f"{key} of messages"] += 1
    return str(message["content"])


def _read_task(row: Row, reading: Reading) -> dict[str, Any]:
    inputs = with_tools(messages_of(row["messages"], "messages"), row)
    return {"inputs": inputs, "item": {"reference_answer": opened(row["reference_answer"])}}


def _write_task(example: Any, item: dict[str, Any], lost: Lost) -> dict[str, Any]:
    if "reference_answer" not in item:
        raise RowError("its item has no reference_answer, which Bedrock's reinforcement rows need; rename the column")
    prompt_of(example.inputs)  # refuses what has no prompt
    messages = [dict(message) for message in conversation(example.inputs).messages]
    answer = item.pop("reference_answer")
    return {"messages": messages, "reference_answer": answer, **tool_columns(example.inputs)}


FORMATS = (
    Format(
        "bedrock-conversation",
        "demonstrations",
        ("schemaVersion", "messages"),
        ("system",),
        _read_conversation,
        _write_conversation,
        {
            "schemaVersion": SCHEMA,
            "system": [{"text": "Answer shortly."}],
            "messages": [
                {"role": "user", "content": [{"text": "What is 2 + 2?"}]},
                {"role": "assistant", "content": [{"text": "4"}]},
            ],
        },
    ),
    Format(
        "bedrock-task",
        "tasks",
        ("messages", "reference_answer"),
        ("tools",),
        _read_task,
        _write_task,
        {"messages": [{"role": "user", "content": "What is 2 + 2?"}], "reference_answer": {"sum": 4}},
        lambda row, reading: "reference_answer" in row and "messages" in row and last_role(row["messages"]) == "user",
    ),
)
