"""messages and tools of rows, checked on the way in, written on the way out"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from melior.data.conversations import Conversation, as_context, conversation, learnt
from melior.data.formats.rows import Row, RowError, given, opened, parsed

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
ALSO_ASSISTANT = ("nova_assistant",)  # Amazon Nova's name
TEXT_PARTS = (None, "text", "input_text", "output_text")

Messages = list[dict[str, Any]]


def messages_of(value: Any, name: str) -> Messages:
    """A list of messages, checked, their text parts joined.

    Raises:
        RowError: if it is not a list of messages.
    """
    value = opened(value)
    if not isinstance(value, list) or not value:
        raise RowError(f"{name} must be a list of at least one message")
    return [_message(message, f"{name}[{index}]") for index, message in enumerate(value)]


def _message(message: Any, name: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise RowError(f"{name} must be an object with role and content, got {type(message).__name__}")
    role, content = message.get("role"), message.get("content")
    role = "assistant" if role in ALSO_ASSISTANT else role
    if role not in ROLES:
        raise RowError(f"{name} has the role {role!r}; roles are {', '.join(ROLES)}")
    if isinstance(content, list):
        content = text_of(content, name)
    calls = role == "assistant" and (message.get("tool_calls") or message.get("function_call"))
    if not isinstance(content, str) and not (content is None and calls):
        raise RowError(f"{name} has no text as content, got {type(content).__name__}")
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise RowError(f"{name} has the weight {weight!r}; a message's weight is 0 or 1")
    return {**message, "role": role, "content": content}


def text_of(parts: Sequence[Any], name: str) -> str:
    """The text of content parts, joined.

    Raises:
        RowError: if a part is no text.
    """
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") in TEXT_PARTS]
    if len(texts) < len(parts) or not all(isinstance(text, str) for text in texts):
        raise RowError(f"{name} has content parts other than text, which cannot be read yet")
    return "".join(map(str, texts))


def last_role(messages: Any) -> Any:
    """The role of the last message, if it is a list of messages."""
    messages = opened(messages)
    last = messages[-1] if isinstance(messages, list) and messages else None
    role = last.get("role") if isinstance(last, dict) else None
    return "assistant" if role in ALSO_ASSISTANT else role


def says(message: Mapping[str, Any]) -> bool:
    """Whether a message is an assistant's with something to imitate."""
    return learnt(message) and bool(message["content"] or message.get("tool_calls") or message.get("function_call"))


def text_or_messages(row: Row, name: str) -> str | Messages:
    """A prompt: text, or messages."""
    value = opened(row[name])
    return str(value) if isinstance(value, str) else messages_of(value, name)


def output_of(row: Row, name: str) -> Any:
    """A completion: a plain assistant message is its text, one with tool calls stays a message, several a list.

    Raises:
        RowError: if it is no completion, or empty.
    """
    value = text_or_messages(row, name)
    return one_output(value, name) if isinstance(value, list) else _not_empty(value, name)


def one_output(messages: Messages, name: str) -> Any:
    """The output that messages behind a prompt are.

    Raises:
        RowError: if they begin with another role than the assistant's, or say nothing.
    """
    if not messages or messages[0]["role"] != "assistant":
        found = messages[0]["role"] if messages else "missing"
        raise RowError(f"{name} must be the assistant's, its role is {found}")
    if not any(map(says, messages)):
        raise RowError(f"{name} is empty: nothing to learn")
    if len(messages) > 1:
        return messages
    (message,) = messages
    return message["content"] if set(message) == {"role", "content"} else message


def _not_empty(text: str, name: str) -> str:
    if not text:
        raise RowError(f"{name} is empty: nothing to learn")
    return text


def with_tools(messages: str | Messages, row: Row) -> Any:
    """The inputs: messages alone, or with the tools of the row.

    Raises:
        RowError: if the tools are none.
    """
    if not given(row, "tools") and _is_tools(opened(row.get("functions"))):
        raise RowError('functions is what tools were once called; write tools: {"type": "function", "function": …}')
    tools = parsed(given(row, "tools"))  # typed tables keep them as JSON text, since no two have the same parameters
    if not tools:
        return messages
    if not _is_tools(tools):
        raise RowError('tools must be a list of {"type": "function", "function": {"name": …, "parameters": …}}')
    return {"messages": list(conversation(messages).messages), "tools": tools}


def _is_tools(value: Any) -> bool:
    listed = isinstance(value, list) and bool(value)
    return listed and all(isinstance(tool, dict) and _tool_name(tool) for tool in value)


def _tool_name(tool: Mapping[str, Any]) -> Any:
    inner = tool.get("function", tool)
    return inner.get("name") if isinstance(inner, dict) else None


# ---------------------------------------------------------------------- on the way out


def whole(example: Any) -> Conversation:
    """The conversation of a demonstration, its output included; what is not imitated has weight 0.

    Raises:
        RowError: if it is plain text without a prompt.
    """
    if example.inputs is None:
        raise RowError("it is a whole text without messages; write it as text")
    told = conversation(example.inputs)
    if example.output is None:
        return told
    return Conversation((*as_context(told.messages), *output_messages(example.output)), told.tools)


def output_messages(output: Any) -> Messages:
    """An output as messages."""
    if isinstance(output, list):
        return [dict(message) for message in output]
    return [dict(output) if isinstance(output, Mapping) else {"role": "assistant", "content": output}]


def parted(example: Any) -> tuple[Any, Any]:
    """The prompt and the completion of a demonstration: text where both are, else both are messages."""
    if isinstance(example.inputs, str) and isinstance(example.output, str):
        return example.inputs, example.output
    messages = whole(example).messages
    first = next((index for index, message in enumerate(messages) if learnt(message)), len(messages))
    if not 0 < first < len(messages):
        raise RowError("it has no message before the first one to learn, so no prompt")
    before = [{key: value for key, value in m.items() if key != "weight"} for m in messages[:first]]
    return before, [dict(message) for message in messages[first:]]


def prompt_of(inputs: Any) -> Any:
    """The inputs as a prompt column: text, or messages without their tools.

    Raises:
        RowError: if there is no prompt.
    """
    if inputs is None:
        raise RowError("it is a whole text without a prompt")
    return inputs if isinstance(inputs, str) else [dict(message) for message in conversation(inputs).messages]


def tool_columns(inputs: Any) -> dict[str, Any]:
    """The tools of the inputs as a column, where there are any."""
    tools = inputs.get("tools") if isinstance(inputs, Mapping) else None
    return {"tools": [dict(tool) for tool in tools]} if tools else {}
