"""what a client asks of a chat, and how it is sampled; what cannot be honoured is refused with a sentence"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from melior.data.calls import Form, names_of
from melior.data.formats.messages import messages_of
from melior.data.formats.rows import RowError
from melior.errors import ConfigError
from melior.policies.constraints import ANY_OBJECT, call_rule, json_rule
from melior.serving.problems import Problem
from melior.types import Sampling

LONGEST = 1_024  # tokens of an answer, where nobody says how long it may be
MOST_CHOICES = 128
UNSERVED = ("functions", "function_call", "audio", "web_search_options")  # of the dialect; the first two are tools now

Name = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class Texts(BaseModel):
    """A request whose texts are made of characters: half of a surrogate pair has no bytes for a tokenizer to read."""

    @model_validator(mode="before")
    @classmethod
    def _whole_characters(cls, values: Any) -> Any:
        if isinstance(values, bytes):  # a body that did not say that it is JSON: told as no object, by what comes next
            return values
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"a text holds \\u{ord(error.object[error.start]):04x}, half of a character") from None
        return values


class Drawn(Texts):
    """How tokens are drawn: the settings that chats and completions share."""

    model_config = ConfigDict(extra="allow")  # clients send names and ids for their own bookkeeping

    model: Name
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES)
    max_tokens: int | None = Field(default=None, ge=0)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None

    def refuse(self, *names: str) -> None:
        """Nothing, if none of these is asked for.

        Raises:
            Problem: naming the first that is.
        """
        for name in names:
            if getattr(self, name, None):
                raise unserved(f"{name} is not served; leave it out", name)
        if self.stream_options and not self.stream:
            raise Problem(400, "stream_options go with stream: true", param="stream_options")

    @property
    def counted(self) -> bool:
        """Whether a stream ends by telling what it cost."""
        return bool((self.stream_options or {}).get("include_usage"))

    def sampling(self, room: int, *, most: int | None, constraint: str = "") -> Sampling:
        """How it is sampled: at most `most` tokens, else what the context leaves.

        Raises:
            Problem: if it cannot be sampled so.
        """
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        try:
            return Sampling(
                n=self.n or 1,
                max_tokens=most or max(1, min(LONGEST, room)),
                temperature=1.0 if self.temperature is None else self.temperature,
                top_p=1.0 if self.top_p is None else self.top_p,
                stop=tuple(text for text in stop if text),
                seed=secrets.randbits(31) if self.seed is None else self.seed & 0x7FFFFFFF,
                constraint=constraint,
                logit_bias=tuple((_token(token), bias) for token, bias in (self.logit_bias or {}).items()),
                frequency_penalty=self.frequency_penalty or 0.0,
                presence_penalty=self.presence_penalty or 0.0,
            )
        except ConfigError as error:
            raise Problem(400, str(error)) from error


class Asked(Drawn):
    """What a client sends to chat."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = Field(default=None, max_length=16)

    def check(self) -> None:
        """Nothing, if all of it can be honoured.

        Raises:
            Problem: naming what cannot.
        """
        self.refuse(*UNSERVED)
        if self.modalities not in (None, ["text"]):
            raise unserved("modalities other than text are not served", "modalities")
        if self.max_tokens == 0:
            raise Problem(400, "max_tokens: a chat's answer has at least 1 token", param="max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise Problem(400, "top_logprobs go with logprobs: true", param="top_logprobs")
        for place, tool in enumerate(self.tools or ()):
            function = tool.get("function")
            if tool.get("type") != "function" or not isinstance(function, Mapping) or not function.get("name"):
                told = f"tools[{place}] is no function with a name; other kinds of tools are not served"
                raise unserved(told, f"tools[{place}]")

    @property
    def told(self) -> int | None:
        """How many of the likeliest tokens are told beside each; None where not even its own log-prob is."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def offered(self) -> Sequence[Mapping[str, Any]]:
        """The tools that may be called."""
        return () if self.tool_choice == "none" else self.tools or ()

    @property
    def inputs(self) -> Any:
        """What the policy reads.

        Raises:
            Problem: if the messages cannot be read.
        """
        try:
            messages = messages_of(self.messages, "messages")
        except RowError as error:
            raise Problem(400, str(error), param="messages") from error
        return {"messages": messages, "tools": list(self.offered)} if self.offered else messages

    def constraint(self, form: Form | None, tokenizer: Any) -> str:
        """The grammar of the answer; empty where it may be anything. `form`: how this model writes a call.

        Raises:
            Problem: if what was asked for cannot be held to.
        """
        try:
            said, called = self._said(), self._called(form, tokenizer)
        except ConfigError as error:
            raise Problem(400, str(error), code="unsupported_value") from error
        rules = [rule for rule in (said if not self._must_call else "", called) if rule]
        return f"start: {' | '.join(rules)}" if said or self._must_call else ""

    @property
    def _must_call(self) -> bool:
        return self.tool_choice == "required" or isinstance(self.tool_choice, Mapping)

    def _said(self) -> str:
        """What the text of an answer may be."""
        return format_rule(self.response_format)

    def _called(self, form: Form | None, tokenizer: Any) -> str:
        """What a call may be, where one must or may be written in a grammar."""
        choice = self.tool_choice
        if choice not in (None, "auto", "none", "required") and not isinstance(choice, Mapping):
            raise unserved(f"tool_choice can be auto, none, required or a function, not {choice!r}", "tool_choice")
        functions = [tool["function"] for tool in self.offered]
        if isinstance(choice, Mapping):
            name = _within(choice, "function").get("name")
            functions = [function for function in functions if function["name"] == name]
            if choice.get("type") != "function" or not functions:
                told = f"tool_choice names the function {name!r}, which is none of {sorted(names_of(self.tools))}"
                raise Problem(400, told, param="tool_choice")
        if self._must_call and not functions:
            raise Problem(400, "tool_choice asks for a call and there are no tools", param="tool_choice")
        if not functions or (form is None and not self._must_call):
            return ""
        if form is None:
            told = "this model's chat template writes no calls that can be held to a tool; leave tool_choice at auto"
            raise unserved(told, "tool_choice")
        return call_rule(form, functions, tokenizer)


def format_rule(asked: Mapping[str, Any] | None, param: str = "response_format") -> str:
    """What a `response_format` lets a text be, as a part of a grammar; empty where it may be anything.

    Raises:
        ConfigError: if the schema would be loosened by one of its keys.
        Problem: if it is no format that is served.
    """
    asked = asked or {"type": "text"}
    kind = asked.get("type")
    if kind == "text":
        return ""
    if kind == "json_object":
        return json_rule(ANY_OBJECT)
    if kind != "json_schema":
        raise unserved(f"response_format can be text, json_object or json_schema, not {kind!r}", param)
    schema = _within(asked, "json_schema").get("schema")
    if not isinstance(schema, Mapping):
        raise unserved("response_format of type 'json_schema' needs json_schema.schema", param)
    return json_rule(schema)


def unserved(told: str, param: str) -> Problem:
    """What the dialect has and nothing here could follow."""
    return Problem(400, told, param=param, code="unsupported_value")


def _within(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """What lies under the key; nothing, if that is no object."""
    inner = value.get(key)
    return inner if isinstance(inner, Mapping) else {}


def _token(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise Problem(400, f"logit_bias has the key {text!r}; its keys are token ids", param="logit_bias")
    return int(text)
