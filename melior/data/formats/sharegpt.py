"""rows as ShareGPT wrote them: conversations of {from, value}, with the tool turns of later files"""

from __future__ import annotations

import json
from typing import Any

from melior.data.formats.messages import Messages, messages_of, says, tool_columns, whole, with_tools
from melior.data.formats.rows import Format, Lost, Reading, Row, RowError, given, opened, parsed

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
NAMES = {
    "system": "system",
    "developer": "system",
    "user": "human",
    "assistant": "gpt",
    "tool": "tool",
    "function": "tool",
}


def _read(row: Row, reading: Reading) -> dict[str, Any]:
    turns = opened(row["conversations"])
    if not isinstance(turns, list) or not turns:
        raise RowError("conversations must be a list of at least one {from, value}")
    messages = [_message(turn, index) for index, turn in enumerate(turns)]
    system = given(row, "system", "")
    if system:
        messages.insert(0, {"role": "system", "content": str(system)})
    messages = messages_of(messages, "conversations")
    if messages[-1]["role"] != "assistant":
        raise RowError(f"conversations end with {messages[-1]['role']}, so the last turn has no answer; leave it out")
    if not any(map(says, messages)):
        raise RowError("no turn of gpt has text: nothing to learn")
    return {"inputs": with_tools(messages, row)}


def _message(turn: Any, index: int) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise RowError(f"conversations[{index}] must be an object with from and value")
    if "role" in turn:  # files that took OpenAI's keys and kept the column's name
        return turn
    who, said = turn.get("from"), turn.get("value")
    if who not in ROLES or not isinstance(said, str):
        known = ", ".join(ROLES)
        raise RowError(
            f"conversations[{index}] is from {who!r} with {type(said).__name__}; known are {known}, with text"
        )
    message: dict[str, Any] = {"role": ROLES[who], "content": said}
    if who == "function_call":
        message = {"role": "assistant", "content": None, "tool_calls": _calls(said, index)}
    return {**message, "weight": turn["weight"]} if "weight" in turn else message


def _calls(text: str, index: int) -> list[dict[str, Any]]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise RowError(f"conversations[{index}] is no function call: {error}") from error
    calls = found if isinstance(found, list) else [found]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        raise RowError(f"conversations[{index}] is no function call: it has no name")
    return [
        {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}
        for call in calls
    ]


def _write(example: Any, item: dict[str, Any], lost: Lost) -> dict[str, Any]:
    turns: Messages = []
    for message in whole(example).messages:
        turns += _turns(message, lost)
    return {"conversations": turns, **tool_columns(example.inputs)}


def _turns(message: Any, lost: Lost) -> Messages:
    for key in message.keys() - {"role", "content", "weight", "tool_calls"}:
        lost[f"{key} of messages"] += 1
    if message.get("function_call"):
        raise RowError("it calls a function the way OpenAI once wrote it; write tool_calls instead")
    weight = {"weight": message["weight"]} if "weight" in message else {}
    turns = []
    if message["content"] or not message.get("tool_calls"):
        turns.append({"from": NAMES[message["role"]], "value": message["content"] or "", **weight})
    if message.get("tool_calls"):
        if turns:
            lost["text beside tool calls, now a turn of its own"] += 1
        calls = [_call(call, lost) for call in message["tool_calls"]]
        value = json.dumps(calls if len(calls) > 1 else calls[0], ensure_ascii=False)
        turns.append({"from": "function_call", "value": value, **weight})
    return turns


def _call(call: Any, lost: Lost) -> dict[str, Any]:
    inner = call.get("function", call)
    if "id" in call:
        lost["ids of tool calls"] += 1
    arguments = inner.get("arguments", {})
    # a model's own broken call stays text
    return {"name": inner["name"], "arguments": parsed(arguments) if arguments else {}}


FORMATS = (
    Format(
        "sharegpt",
        "demonstrations",
        ("conversations",),
        ("system", "tools"),
        _read,
        _write,
        {"conversations": [{"from": "human", "value": "What is 2 + 2?"}, {"from": "gpt", "value": "4"}]},
    ),
)
