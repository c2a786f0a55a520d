"""what a language policy reads, however it is written: messages, and the tools it may call

`inputs` is text (one user message), a list of messages, or `{"messages": [...], "tools": [...]}`. A tool is written as
OpenAI and transformers write it: `{"type": "function", "function": {"name", "description", "parameters"}}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from melior.errors import DataError

Message = Mapping[str, Any]
OPENING = 40  # characters: what is shorter and opens a chat ("Hi", "Can you help me?") tells nothing of its course


@dataclass(frozen=True)
class Conversation:
    """Messages so far, and the tools that may be called."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    def up_to(self, index: int) -> Conversation:
        """The first `index` messages, with the same tools."""
        return replace(self, messages=self.messages[:index])

    def inputs(self) -> Any:
        """The conversation as the `inputs` of an example: a plain list where there are no tools."""
        messages = [dict(message) for message in self.messages]
        return {"messages": messages, "tools": [dict(tool) for tool in self.tools]} if self.tools else messages


def conversation(inputs: Any) -> Conversation:
    """The messages and tools that `inputs` writes.

    Raises:
        DataError: if it writes none.
    """
    if isinstance(inputs, str):
        return Conversation(({"role": "user", "content": inputs},))
    given: Any = inputs
    tools: Any = ()
    if isinstance(inputs, Mapping):
        given, tools = inputs.get("messages"), inputs.get("tools")
    listed = isinstance(given, Sequence) and not isinstance(given, str) and bool(given)
    if not listed or not all(isinstance(message, Mapping) and "role" in message for message in given):
        raise DataError(f"Language inputs must be text or a list of messages with roles, got {inputs!r:.80}")
    return Conversation(tuple(given), tuple(tools or ()))


def learnt(message: Message) -> bool:
    """Whether a message is an assistant's that is imitated: its weight is not 0."""
    return message.get("role") == "assistant" and message.get("weight", 1) != 0


def contexts(told: Conversation) -> list[Conversation]:
    """What is read before each message that is learnt; the whole where none is.

    A short opening of a chat that goes on is left out: a thousand chats that open with "Hi" have nothing in common.
    """
    places = [index for index, message in enumerate(told.messages) if learnt(message)]
    found = [told.up_to(index) for index in places] or [told]
    said = sum(len(str(m.get("content") or "")) for m in found[0].messages if m.get("role") == "user")
    return found[1:] if len(found) > 1 and said < OPENING else found


def as_context(messages: Sequence[Message]) -> list[Message]:
    """The messages with every assistant's weight 0: read, and not imitated."""
    return [{**message, "weight": 0} if message.get("role") == "assistant" else message for message in messages]


def for_template(message: Message) -> dict[str, Any]:
    """A message as chat templates expect it: no weight, no None, and tool-call arguments as objects.

    OpenAI writes arguments as a JSON string, which templates would quote a second time.
    """
    shown = {key: value for key, value in message.items() if key != "weight" and value is not None}
    shown["content"] = message.get("content") or ""
    if shown.get("tool_calls"):
        shown["tool_calls"] = [_with_object(call) for call in shown["tool_calls"]]
    return shown


def _with_object(call: Any) -> Any:
    if not isinstance(call, Mapping):
        return call
    inner = call.get("function")
    if isinstance(inner, Mapping):
        return {**call, "function": _with_object(inner)}
    if isinstance(call.get("arguments"), str):
        try:
            parsed = json.loads(call["arguments"] or "{}")
        except ValueError:  # a model's own broken call is shown as it is
            return call
        return {**call, "arguments": parsed} if isinstance(parsed, dict) else call
    return call
