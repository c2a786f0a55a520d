"""what a format reads it can write, and what it wrote it reads as the same example"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from melior.data.conversations import as_context, conversation, learnt
from melior.data.formats import FORMATS, Format, Kind, Reading, RowError, format_of, read_examples
from melior.data.splits import input_key
from melior.data.writers import write_examples
from melior.errors import DataError
from melior.types import Demonstration, Preference, Rated, Task

OTHERS = ("table", "image-label", "decision", "decision-task", "decision-preference", "decision-rating", "logged")
OTHERS += ("segment-preference",)
TEXTS = [format for format in FORMATS if format.name not in OTHERS]  # the others: test_decision_round_trips.py
words = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=12)
texts = words.filter(lambda text: bool(text.strip()) and text.lstrip()[0] not in "[{")
TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
}
values = st.none() | st.booleans() | st.integers(-9, 9) | texts | st.lists(texts, max_size=2)
items = st.dictionaries(st.sampled_from(["answer", "source", "difficulty"]), values, max_size=2)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@st.composite
def histories(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Messages that end with the user's."""
    messages = [{"role": "system", "content": draw(texts)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        messages += [user(draw(texts)), assistant(draw(texts))]
    return [*messages, user(draw(texts))]


prompts = texts | histories()


def with_tools(messages: Any, tools: list[Any]) -> Any:
    return {"messages": messages, "tools": tools} if tools and not isinstance(messages, str) else messages


inputs = st.builds(with_tools, prompts, st.sampled_from([[], TOOLS[:1], TOOLS]))
groups = st.sampled_from(["", "u1"])
pairs = st.lists(texts, min_size=2, max_size=2, unique=True)
ratings = st.floats(0, 1) | st.sampled_from([0.0, 1.0])
EXAMPLES: dict[Kind, st.SearchStrategy[Any]] = {
    "demonstrations": st.builds(Demonstration, inputs, texts, item=items, group=groups)
    | st.builds(
        lambda history, last, item: Demonstration([*history, last], item=item),
        histories(),
        st.builds(assistant, texts),
        items,
    )
    | st.builds(
        lambda history, text: Demonstration(
            with_tools([*history, CALL, {"role": "tool", "tool_call_id": "c1", "content": "2"}, assistant(text)], TOOLS)
        ),
        histories(),
        texts,
    )
    | st.builds(lambda text, item: Demonstration(None, text, item=item), texts, items),
    "tasks": st.builds(Task, inputs, items, group=groups),
    "preferences": st.builds(
        lambda inputs, pair, p, margin, item: Preference(inputs, *pair, p, margin, item=item),
        inputs,
        pairs,
        st.sampled_from([1.0, 0.75]),
        st.sampled_from([0.0, 1.5]),
        items,
    ),
    "rated": st.builds(Rated, inputs, texts, ratings, item=items, group=groups),
}


def learnt_by(example: Any) -> Any:
    """What an example comes to, however it is written: its input, and what is imitated, preferred or rated."""
    if isinstance(example, Demonstration) and example.inputs is not None:
        told = conversation(example.inputs)
        messages = list(told.messages)
        if example.output is not None:
            messages = [*as_context(messages), assistant(example.output)]
        outputs: Any = [message["content"] for message in messages if learnt(message)]
    else:
        outputs = [getattr(example, name, None) for name in ("output", "chosen", "rejected", "rating")]
    return input_key(example), outputs


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_the_row_shown_is_read_and_written_as_itself(format: Format) -> None:
    reading = Reading(label="label") if format.typed_cells else Reading()
    assert format_of(format.sample, None, reading) is format
    example = format.example(format.sample, "row")
    lost: Counter[str] = Counter()
    again = format.row(example, lost)
    assert format_of(again, None, reading) is format and not lost
    assert format.example(again, "row") == example


@pytest.mark.parametrize("format", TEXTS, ids=lambda format: format.name)
@given(st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_a_format_writes_it_reads_as_the_same_example(format: Format, data: st.DataObject) -> None:
    """Once more exactly; the first time as the same input and output, where nothing is told to be lost."""
    example = data.draw(EXAMPLES[format.kind])
    lost: Counter[str] = Counter()
    try:
        row = format.row(example, lost)
    except RowError:
        return
    row = json.loads(json.dumps(row))
    assert format_of(row, format.kind) is format
    read = format.example(row, example.id)
    if not lost:
        assert learnt_by(read) == learnt_by(example)
        assert {**read.item, **example.item} == read.item or "annotations" in read.item
    written = format.row(read, Counter())
    assert format.example(written, read.id) == read


@pytest.mark.parametrize("format", TEXTS, ids=lambda format: format.name)
def test_every_format_can_write_a_plain_example_of_its_kind(format: Format) -> None:
    plain: dict[Kind, Any] = {
        "demonstrations": Demonstration("q", "a"),
        "tasks": Task("q", {"reference_answer": {"n": 4}}) if format.name == "bedrock-task" else Task("q"),
        "preferences": Preference("q", "a", "b"),
        "rated": Rated("q", "a", 1.0),
    }
    example = Demonstration(None, "a") if format.name == "text" else plain[format.kind]
    read = format.example(format.row(example, Counter()), "")
    assert learnt_by(read) == learnt_by(example)


FILES = ["rows.jsonl", "rows.json", "rows.csv", "rows.tsv", "rows.parquet", "rows.jsonl.gz", "rows.csv.gz"]


@pytest.mark.parametrize("name", FILES)
@given(st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_kind_of_file_gives_back_what_it_does_not_tell_as_lost(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    if "parquet" in name:
        pytest.importorskip("pyarrow")
    format = data.draw(st.sampled_from([f for f in TEXTS if f.name not in ("text", "bedrock-task")]))
    examples = data.draw(st.lists(EXAMPLES[format.kind], min_size=1, max_size=4))
    path = tmp_path_factory.mktemp("rows") / name
    try:
        written = write_examples(path, examples, format.name)
    except DataError as error:
        assert "0 of" in str(error)
        return
    plain = path.with_name("plain.jsonl")
    write_examples(plain, examples, format.name)
    read = read_examples(path, format=format.name).rows
    expected = read_examples(plain, format=format.name).rows
    assert len(read) == len(expected) == written.rows
    if not any("kind of file" in what for what in written.lost):
        assert [strip(row, name) for row in read] == [strip(row, name) for row in expected]


def strip(example: Any, name: str) -> Any:
    """Without its place, and without the None that a table cannot tell from an absent cell."""
    return replace(example, id="", item={k: v for k, v in example.item.items() if v is not None})
