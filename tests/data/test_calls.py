"""calls are read out of what models write, and whatever is none stays text"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_tokenizer

from melior.data.calls import Form, calls_in, form_of, opening
from melior.data.chat import Renderer

ADD = '{"name": "add", "arguments": {"a": 1, "b": {"c": "}"}}}'
CALLED = ("add", {"a": 1, "b": {"c": "}"}})
NAMES = {"add", "say"}


def found(text: str) -> list[tuple[str, Any]]:
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls_in(text, NAMES)[1]]


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        (f"<tool_call>\n{ADD}\n</tool_call>", "", [CALLED]),
        (f"I add.\n<tool_call>{ADD}</tool_call>\n<tool_call>{ADD}</tool_call>", "I add.\n", [CALLED, CALLED]),
        (f"<tool_call>{ADD}", "", [CALLED]),  # the end was cut, the call was not
        (f"[TOOL_CALLS] [{ADD}, {ADD}]", "", [CALLED, CALLED]),
        (f"[TOOL_CALLS]{ADD}", "", [CALLED]),
        ('{"name": "say", "parameters": {"é": "ü"}}', "", [("say", {"é": "ü"})]),
        ('<|python_tag|>{"name": "say", "parameters": {}}', "", [("say", {})]),
        ('<tool_call>{"name": "say", "arguments": "{\\"x\\": 1}"}</tool_call>', "", [("say", {"x": 1})]),
    ],
)
def test_calls_are_read(text: str, said: str, calls: list[Any]) -> None:
    assert calls_in(text, NAMES)[0] == said and found(text) == calls


@pytest.mark.parametrize(
    "text",
    [
        "",
        "just text",
        '<tool_call>{"name": "add", "arguments": {"a": 1}',
        '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": [1]}</tool_call>',
        '<tool_call>["add"]</tool_call>',
        '{"name": "add", "parameters": {}} and more',
        '{"name": "Ann", "age": 3}',
        f"[TOOL_CALLS] [{ADD}, 3]",
        "[TOOL_CALLS] []",
    ],
)
def test_what_is_no_call_is_text(text: str) -> None:
    assert calls_in(text, NAMES) == (text, [])


@given(st.text(alphabet='<tol_ca>{}["name:d,\\n]T'), st.integers(0, 40))
def test_what_may_be_told_before_the_end_is_told_at_the_end(text: str, cut: int) -> None:
    """A stream never says what turns out to be a part of a call, nor what is not said in the end."""
    before = text[:cut]
    for whole in (text, f"{text}<tool_call>{ADD}</tool_call>"):
        safe = opening(before, 0, NAMES)
        said, calls = calls_in(whole, NAMES)
        assert said.startswith(before[:safe]) or (calls and not before[:safe].strip())


def test_the_form_of_a_call_is_read_off_the_template() -> None:
    assert form_of(f"<tool_call>\n{ADD}\n</tool_call>", "add") == Form("<tool_call>\n", "arguments", "\n</tool_call>")
    assert form_of('{"name": "add", "parameters": {}}', "add") == Form("", "parameters", "")
    assert form_of("<call>add {}</call>", "add") is None and form_of(ADD, "say") is None
    assert Renderer(tiny_tokenizer("hermes")).call_form == Form("<tool_call>\n", "arguments", "\n</tool_call>")
    assert Renderer(tiny_tokenizer("chatml")).call_form is None
