"""templates insert what paths point at, and nothing else"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.errors import GraderError
from melior.rewards.base import sample_of
from melior.rewards.templates import OutputLacks, parse_template
from melior.types import Record

plain = st.text().filter(lambda text: "{{" not in text and not text.endswith("{"))
names = st.text(st.characters(exclude_characters=" .[]{}\"'", exclude_categories=("Z", "C")), min_size=1, max_size=8)


def render(text: str, item: dict[str, Any] | None = None, sample: dict[str, Any] | None = None) -> str:
    return parse_template(text).render(item or {}, sample or {})


@given(plain)
def test_text_without_variables_is_itself(text: str) -> None:
    assert render(text) == text


@given(plain, names, st.text(), plain, st.sampled_from(["{{item.%s}}", "{{ item.%s }}", '{{\titem["%s"]\n}}']))
def test_a_value_stands_where_its_variable_stood(before: str, name: str, value: str, after: str, form: str) -> None:
    assert render(before + form % name + after, {name: value}) == before + value + after


@given(st.text())
def test_any_text_renders_or_is_refused(text: str) -> None:
    with suppress(GraderError):
        render("{{" + text + "}}", {"a": [{"b": 1}]})


@given(st.lists(st.one_of(st.integers(0, 3), names), max_size=4), st.text())
def test_a_path_of_any_depth_is_followed(keys: list[int | str], leaf: str) -> None:
    value: Any = leaf
    for key in reversed(keys):
        value = {key: value} if isinstance(key, str) else [None] * key + [value]
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    assert render("{{item.x" + path + "}}", {"x": value}) == leaf


def test_values_that_are_not_strings_appear_as_json() -> None:
    item = {"n": 4, "f": 2.5, "b": True, "none": None, "list": [1, "ü"], "map": {"k": 1}}
    assert render("{{item.n}} {{item.f}} {{item.b}} {{item.none}}", item) == "4 2.5 true null"
    assert render("{{item.list}} {{item.map}} {{ item.list.1 }}", item) == '[1, "ü"] {"k": 1} ü'
    assert json.loads(render("{{item}}", item)) == item


def test_what_is_inserted_is_not_looked_at_again() -> None:
    sample = sample_of(Record(inputs="q", output="{{ item.secret }}"))
    assert render("{{sample.output_text}}", {"secret": "s"}, sample) == "{{ item.secret }}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ item.a", "never closes"),
        ("{{ other.a }}", "must start with item or sample"),
        ("{{ items.a }}", "must start with item or sample"),
        ("{{ }}", "must start"),
        ("{{ item.a b }}", "cannot be read from ' b'"),
        ("{{ item. }}", "cannot be read"),
        ("{{ item[x] }}", "cannot be read"),
        ("{{ item.a() }}", r"stops at 'a\(\)'"),
        ("{{ item.b }}", r"stops at 'b': found \['a', 's'\]"),
        ("{{ item.a[2] }}", "stops at 2: found list"),
        ("{{ item.a[-1] }}", "cannot be read"),
        ("{{ item.a.__class__ }}", "stops at '__class__'"),
        ("{{ item.s[0] }}", "stops at 0: found str"),
        ("{{ item.__len__ }}", "stops at '__len__'"),
    ],
)
def test_bad_variables_are_refused(text: str, reason: str) -> None:
    with pytest.raises(GraderError, match=reason):
        render(text, {"a": [1, 2], "s": "text"})


TOOLS = [
    {"function": {"name": "look", "arguments": {"q": "ü"}}},
    {"id": "b", "function": {"name": "n", "arguments": "{}"}},
]


@pytest.mark.parametrize(
    "before", [[], [{"role": "assistant", "content": "let me"}, {"role": "tool", "content": "ok"}]]
)
def test_tool_calls_of_a_message_are_read_as_the_api_has_them(before: list[dict[str, Any]]) -> None:
    message = {"role": "assistant", "content": None, "tool_calls": TOOLS}
    sample = sample_of(Record(inputs="q", output=[*before, message] if before else message))
    assert render("{{ sample.output_tools[0].function.name }}", {}, sample) == "look"
    assert render("{{ sample.output_tools[0].function.arguments }}", {}, sample) == '{"q": "ü"}'
    assert [call["id"] for call in sample["output_tools"]] == ["call_0", "b"]
    assert render("{{ sample.choices[0].message.tool_calls[1].id }}", {}, sample) == "b"
    assert render("{{ sample.choices[0].finish_reason }}|{{ sample.output_text }}", {}, sample) == "tool_calls|"
    old = {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "{}"}}
    assert sample_of(Record(inputs="q", output=old))["output_tools"][0]["function"]["name"] == "f"


def test_the_text_of_a_message_is_its_content() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    for content, text in (("four", "four"), (parts, "ab"), (None, "")):
        assert sample_of(Record(inputs="q", output={"role": "assistant", "content": content}))["output_text"] == text
    assert sample_of(Record(inputs="q", output=["x", 1]))["output_text"] == '["x", 1]'


def test_what_an_output_lacks_is_told_apart_from_what_a_row_lacks() -> None:
    sample = sample_of(Record(inputs="q", output="text"))
    for path in ("output_json", "output_json.a", "output_tools[0].function.name", "choices[1]"):
        with pytest.raises(OutputLacks) as lack:
            render("{{ sample." + path + " }}", {}, sample)
        assert lack.value.score.value == 0.0 and lack.value.score.kind == "sample_parse_error"
    with pytest.raises(GraderError) as caught:
        render("{{ item.a }}", {}, sample)
    assert not isinstance(caught.value, OutputLacks)
    with pytest.raises(GraderError, match="did you mean 'output_tools'"):
        parse_template("{{ sample.output_tool[0] }}")


def test_the_sample_has_the_shape_graders_expect() -> None:
    sample = sample_of(Record(inputs="q", output='{"a": [1]}', finish="length"))
    assert render("{{ sample.output_json.a[0] }}", {}, sample) == "1"
    assert render("{{ sample.choices[0].message.content }}", {}, sample) == '{"a": [1]}'
    assert render("{{ sample.choices[0].finish_reason }}", {}, sample) == "length"
    for text in ("not json", "NaN", "[" * 100_000, "1" * 10_000):
        sample = sample_of(Record(inputs="q", output=text))
        assert sample["output_text"] == text and "output_json" not in sample


def test_calls_that_a_policy_wrote_as_text_are_seen_where_tools_were_offered() -> None:
    written = 'I look.\n<tool_call>\n{"name": "look", "arguments": {"q": "ü"}}\n</tool_call>'
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    inputs = {"messages": [{"role": "user", "content": "q"}], "tools": tools}
    sample = sample_of(Record(inputs=inputs, output=written, finish="stop"))
    assert render("{{ sample.output_tools[0].function.name }}", {}, sample) == "look"
    assert sample["output_text"] == "I look.\n" and sample["choices"][0]["finish_reason"] == "tool_calls"
    assert sample_of(Record(inputs="q", output=written))["output_text"] == written, "nobody offered a tool"
    assert sample_of(Record(inputs="q", output='{"a": [1]}'))["output_json"] == {"a": [1]}
