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
from melior.rewards.templates import parse_template
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


def test_the_sample_has_the_shape_graders_expect() -> None:
    sample = sample_of(Record(inputs="q", output='{"a": [1]}', finish="length"))
    assert render("{{ sample.output_json.a[0] }}", {}, sample) == "1"
    assert render("{{ sample.choices[0].message.content }}", {}, sample) == '{"a": [1]}'
    assert render("{{ sample.choices[0].finish_reason }}", {}, sample) == "length"
    for text in ("not json", "NaN", "[" * 100_000, "1" * 10_000):
        sample = sample_of(Record(inputs="q", output=text))
        assert sample["output_text"] == text and "output_json" not in sample
