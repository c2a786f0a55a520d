"""conversations become token ids: one renderer for training and serving

A policy reads a context and decides a turn. `Renderer.context` is what the server feeds the model; training uses the
very same ids. Every assistant turn of a conversation is one (context, decisions) pair; the forest makes the shared
history cost nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from melior.data.calls import Form, form_of
from melior.data.conversations import Conversation, as_context, conversation, for_template, learnt
from melior.errors import ConfigError, DataError, ModelError
from melior.types import Demonstration

Template = Literal["auto", "chat", "plain"]
PROBE = ({"role": "user", "content": "ping"}, {"role": "assistant", "content": "pong"})
PARAMETERS = {"type": "object", "properties": {}}


@dataclass(frozen=True)
class Turn:
    """What the policy read, and what it decided: the assistant's text and the stop token."""

    context: tuple[int, ...]
    decisions: tuple[int, ...]


class Renderer:
    """Turns inputs and outputs into ids with one tokenizer and one template."""

    def __init__(self, tokenizer: Any, template: Template = "auto", stop_ids: Sequence[int] = ()) -> None:
        """`stop_ids`: what the model's generation settings call the end of a turn.

        Raises:
            ModelError: if the chat template is asked for and the tokenizer has none, or no stop token is known.
        """
        if template not in ("auto", "chat", "plain"):
            raise ConfigError(f'template must be "auto", "chat" or "plain", got "{template}"')
        if template == "chat" and not tokenizer.chat_template:
            raise ModelError('The tokenizer has no chat template; add chat_template.jinja, or use template="plain"')
        self.tokenizer = tokenizer
        self.chat = bool(tokenizer.chat_template) and template != "plain"
        self._known_stops = tuple(int(stop) for stop in stop_ids)

    @cached_property
    def stop_id(self) -> int:
        """The token that ends an assistant turn: what the template writes behind one, else the end of sequence."""
        if self.chat:
            behind = self._render(Conversation(PROBE)).rpartition("pong")[2]
            special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.get_added_vocab().values())
            for token in self._ids(behind):
                if token in special:
                    return token
        for token in (*self._known_stops, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise ModelError("The model has no stop token; set eos_token in its tokenizer_config.json")

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Every token that ends a turn when sampled."""
        return frozenset({self.stop_id, *self._known_stops})

    @cached_property
    def fingerprint(self) -> str:
        """Of tokenizer and template: equal exactly when the same text gives the same ids."""
        tokenizer = self.tokenizer.backend_tokenizer.to_str()
        told = json.dumps([tokenizer, self.tokenizer.chat_template, self.chat, sorted(self.stop_ids)])
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the chat template shows the tools it is given."""
        probe = {"type": "function", "function": {"name": "probed_tool", "description": "", "parameters": PARAMETERS}}
        return self.chat and "probed_tool" in self._shown(Conversation(PROBE[:1], (probe,)))

    @cached_property
    def call_form(self) -> Form | None:
        """How the chat template writes a tool call; None where it writes none, or in a way nobody here can read."""
        if not self.shows_tools:
            return None
        probe = {"type": "function", "function": {"name": "probed_tool", "description": "", "parameters": PARAMETERS}}
        call = {"id": "call12345", "type": "function", "function": {"name": "probed_tool", "arguments": {"a": 1}}}
        inputs = {"messages": [dict(PROBE[0])], "tools": [probe]}
        try:
            turn = self.turn(inputs, {"role": "assistant", "content": "", "tool_calls": [call]})
        except DataError:
            return None
        return form_of(self.text(turn.decisions), "probed_tool")

    def context(self, inputs: Any) -> tuple[int, ...]:
        """Ids the model reads before the assistant's next turn; at most one begin-of-sequence token.

        Raises:
            DataError: if messages or tools are given that the template refuses or does not show, or has none for.
        """
        if inputs is None:
            return (self._begin(),)
        if self.chat:
            return self._ids(self._render(conversation(inputs), generation=True))
        if not isinstance(inputs, str):
            raise DataError("This model has no chat template, so inputs must be plain text, not messages")
        ids = list(self.tokenizer(inputs)["input_ids"])
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        while len(ids) > 1 and ids[0] == ids[1] == begin:
            ids.pop(0)
        # Some tokenizers end every text; a context goes on.
        if len(ids) > 1 and ids[-1] == end != begin and not inputs.endswith(self.tokenizer.eos_token or "\0"):
            ids.pop()
        return tuple(ids) or ((begin,) if begin is not None else ())

    def begun(self, inputs: Any, text: str) -> tuple[int, ...]:
        """Ids the model reads where the assistant's turn has begun with a text, to go on with it."""
        return (
            self._ids(self._render(conversation(inputs), generation=True) + text)
            if self.chat
            else self.context(inputs + text)
        )

    def turn(self, inputs: Any, output: Any) -> Turn:
        """The context of `inputs` and the decisions that write `output` behind it.

        Raises:
            DataError: if the output is neither text nor an assistant's message, or calls tools the template hides.
        """
        return self.alternatives(inputs, [output])[0]

    def alternatives(self, inputs: Any, outputs: Sequence[Any]) -> list[Turn]:
        """One turn per output, all with the same context, which is rendered once.

        Raises:
            DataError: as `turn` does.
        """
        messages = [_message(output) for output in outputs]
        if inputs is None:
            return [self._text_turn(message) for message in messages]
        context = self.context(inputs)
        if not self.chat:
            if any(message.get("tool_calls") or message.get("function_call") for message in messages):
                raise DataError("This model has no chat template, so it cannot write tool calls")
            return [Turn(context, (*self._ids(message["content"]), self.stop_id)) for message in messages]
        told = conversation(inputs)
        before = self._render(told, generation=True)
        contents = [self._written(told, message, before) for message in messages]
        return [Turn(context, (*self._behind(context, before, content), self.stop_id)) for content in contents]

    def _behind(self, context: tuple[int, ...], before: str, content: str) -> tuple[int, ...]:
        """Ids of the content behind the context.

        Where a template joins seamlessly they are those of the whole; else the output is tokenised on its own, behind
        the context exactly as the server sees it.
        """
        joint = self._ids(before + content)
        return joint[len(context) :] if joint[: len(context)] == context else self._ids(content)

    def choices(self, inputs: Any, choices: Sequence[str]) -> list[Turn]:
        """One turn per choice, each with decisions of its own.

        Raises:
            DataError: if two choices have the same tokens, or one has a stop token inside.
        """
        turns = self.alternatives(inputs, choices)
        first: dict[tuple[int, ...], str] = {}
        for choice, turn in zip(choices, turns, strict=True):
            if turn.decisions in first:
                raise DataError(
                    f"The choices {first[turn.decisions]!r} and {choice!r} are the same {len(turn.decisions)} tokens "
                    "to this model; keep one of them"
                )
            if self.stop_ids.intersection(turn.decisions[:-1]):
                raise DataError(f"The choice {choice!r} holds a token that ends an answer; write it otherwise")
            first[turn.decisions] = choice
        return turns

    def turns(self, example: Demonstration) -> list[Turn]:
        """One turn per assistant message to learn from: those of weight 0 are context only."""
        if example.output is not None and not isinstance(example.output, list):
            return [self.turn(example.inputs, example.output)]
        told = conversation(example.inputs)
        if example.output is not None:
            told = replace(told, messages=(*as_context(told.messages), *example.output))
        return [
            self.turn(told.up_to(index).inputs(), message)
            for index, message in enumerate(told.messages)
            if learnt(message)
        ]

    def _written(self, told: Conversation, message: dict[str, Any], before: str) -> str:
        """What the template makes of the turn (trimmed text, tool calls), up to the stop token."""
        after = self._render(replace(told, messages=(*told.messages, message)))
        stop = self.tokenizer.convert_ids_to_tokens(self.stop_id)
        fits = after.startswith(before) and stop in after[len(before) :]
        if message.get("tool_calls"):
            silent = {key: value for key, value in message.items() if key != "tool_calls"}
            if not fits or after == self._render(replace(told, messages=(*told.messages, silent))):
                raise DataError(
                    f"The chat template does not write the {len(message['tool_calls'])} tool calls of an answer; "
                    "write them as text, or choose a model whose template has tool calls"
                )
        return after[len(before) :].rpartition(stop)[0] if fits else message["content"]

    def _text_turn(self, message: dict[str, Any]) -> Turn:
        """A text from its first word: read the begin token, decide all the rest, without any template."""
        ids = self._ids(message["content"])
        ids = ids[1:] if ids[:1] == (self._begin(),) else ids
        end = () if ids and ids[-1] in self.stop_ids else (self.stop_id,)
        return Turn((self._begin(),), (*ids, *end))

    def _begin(self) -> int:
        """The token before the first word: of the sequence's begin, or, as GPT-2 has it, of the end of the last."""
        begin = self.tokenizer.bos_token_id
        return int(begin if begin is not None else self.stop_id)

    def text(self, decisions: Sequence[int]) -> str:
        """The text of decided ids, without the stop token at their end."""
        ids = list(decisions)
        if ids and ids[-1] in self.stop_ids:
            ids.pop()
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _render(self, told: Conversation, generation: bool = False) -> str:
        if told.tools and not self.shows_tools:
            raise DataError(
                f"The chat template does not show tools and {len(told.tools)} are given; describe them in the system "
                "message, or choose a model whose template has tools"
            )
        old = sum(bool(message.get("function_call")) for message in told.messages)
        if old:
            raise DataError(f"{old} messages have function_call, which templates do not show; write tool_calls instead")
        try:
            return self._shown(told, generation)
        except Exception as error:
            roles = ", ".join(str(message.get("role")) for message in told.messages)
            raise DataError(f"The chat template refuses a conversation with roles ({roles}): {error}") from error

    def _shown(self, told: Conversation, generation: bool = False) -> str:
        return self.tokenizer.apply_chat_template(
            [for_template(message) for message in told.messages],
            tools=[dict(tool) for tool in told.tools] or None,
            tokenize=False,
            add_generation_prompt=generation,
        )


def _message(output: Any) -> dict[str, Any]:
    """An output as an assistant's message, its content text.

    Raises:
        DataError: if it is none.
    """
    message = dict(output) if isinstance(output, Mapping) else {"role": "assistant", "content": output}
    if message.get("content") is None and message.get("tool_calls"):
        message["content"] = ""
    if not isinstance(message.get("content"), str):
        raise DataError(f"A language output must be text or an assistant message, got {type(output).__name__}")
    return message
