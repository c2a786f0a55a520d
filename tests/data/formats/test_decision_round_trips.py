"""rows of tables, pictures, slates and logs: what is written is read as the same example, in every kind of file"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from melior.data.formats import Reading, fingerprint, format_named, read_examples
from melior.data.writers import write_examples
from melior.types import Demonstration, Image, Interaction, Item, Preference, Rated, Record, SlateRequest, Task

words = st.text("abcdefgh -_/äß漢", min_size=1, max_size=8).map(lambda text: f"w{text}w")
numbers = st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6).map(lambda x: int(x) if x.is_integer() else x)
features = st.dictionaries(st.sampled_from(["age", "price", "brand"]), st.none() | numbers | words, max_size=3)
IDS = [f"p{number}" for number in range(8)]


@st.composite
def requests(draw: st.DrawFn) -> SlateRequest:
    items = [
        Item(id, draw(features)) if draw(st.booleans()) else id
        for id in draw(st.lists(st.sampled_from(IDS), min_size=4, unique=True))
    ]
    past = st.builds(
        Interaction,
        st.sampled_from([*IDS, "gone"]),
        st.sampled_from(["click", "purchase"]),
        st.none() | st.floats(0, 9),
    )
    return SlateRequest(
        draw(features),
        draw(st.sampled_from(["", "p1"])),
        tuple(draw(st.lists(past, max_size=2))),
        draw(st.sampled_from([tuple(items), None])),
    )


@st.composite
def slates(draw: st.DrawFn, request: SlateRequest, least: int = 1) -> list[str]:
    ids = IDS if request.candidates is None else [c.id if isinstance(c, Item) else c for c in request.candidates]
    return draw(st.lists(st.sampled_from(ids), min_size=least, max_size=3, unique=True))


rows = st.dictionaries(st.sampled_from(["age", "purpose", "amount"]), st.none() | numbers | words, min_size=1)
images = st.builds(
    lambda h, w, c, seed: Image(pixels=bytes((seed + place) % 256 for place in range(h * w * c)), shape=(h, w, c)),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1, 3]),
    st.integers(0, 255),
)
labels = words | st.lists(words, max_size=3, unique=True).map(tuple)


@st.composite
def asked(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    """Inputs of some policy and two outputs that differ."""
    if draw(st.booleans()):
        request = draw(requests())
        first, second = draw(slates(request)), draw(slates(request, least=2))
        return request, first, second if second != first else second[::-1]
    inputs = draw(rows | images | words)
    return inputs, *draw(st.lists(labels, min_size=2, max_size=2, unique=True))


@st.composite
def records(draw: st.DrawFn) -> Record:
    inputs, output, _ = draw(asked())
    nats = st.floats(-9, -0.001)
    places = len(output) if isinstance(inputs, SlateRequest) else 1
    item = {"events": [{"type": "click"}], "reward": 2.0} if draw(st.booleans()) else {}
    logged = tuple(draw(st.lists(nats, min_size=places, max_size=places)))
    return Record(inputs=inputs, output=output, behavior_log_probs=logged, policy_version="ver_1", item=item)


items = st.dictionaries(st.sampled_from(["note", "source"]), words, max_size=2)
EXAMPLES: dict[str, st.SearchStrategy[Any]] = {
    "decision": st.builds(lambda a, item: Demonstration(a[0], a[1], item=item), asked(), items),
    "decision-task": st.builds(lambda a, item: Task(a[0], item, group="u1"), asked(), items),
    "decision-preference": st.builds(lambda a, p: Preference(*a, p, 0.5), asked(), st.sampled_from([1.0, 0.75])),
    "decision-rating": st.builds(lambda a, rating: Rated(a[0], a[1], rating), asked(), st.floats(0, 1)),
    "logged": records(),
    "image-label": st.builds(
        lambda image, label: Demonstration(image, label, item={"label": label if isinstance(label, str) else [*label]}),
        images,
        labels,
    ),
    "table": st.builds(
        lambda row, label: Demonstration(row, label, item={"label": label}),
        rows.filter(lambda row: any(value is not None for value in row.values())),
        words,
    ),
}


def plain(example: Any) -> Any:
    """Without its place, and as JSON has it: Parquet gives lists for tuples and leaves None out of objects."""
    return json.loads(json.dumps(fingerprint([example])))


@pytest.mark.parametrize("name", EXAMPLES)
@given(st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_what_a_format_writes_it_reads_as_the_same_example(name: str, data: st.DataObject) -> None:
    format, example = format_named(name), data.draw(EXAMPLES[name])
    lost: Counter[str] = Counter()
    row = json.loads(json.dumps(format.row(example, lost)))
    read = format.example(row, "")
    assert not lost
    assert plain(read) == plain(example)
    if isinstance(read, Record) and read.behavior_log_probs and example.behavior_log_probs:
        assert read.behavior_log_probs == pytest.approx(example.behavior_log_probs)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("file", ["rows.jsonl", "rows.json", "rows.parquet"])
@given(st.data())
@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
def test_every_file_of_typed_values_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, file: str, name: str, data: st.DataObject
) -> None:
    if "parquet" in file:
        pytest.importorskip("pyarrow")
    examples = data.draw(st.lists(EXAMPLES[name], min_size=1, max_size=4))
    path = tmp_path_factory.mktemp("rows") / file
    written = write_examples(path, examples, name)
    assert written.rows == len(examples) and not written.problems
    reading = Reading(label="label", least_rows=1) if name == "table" else Reading()
    read = read_examples(path, format=name, reading=reading).rows
    if not any("null of" in what for what in written.lost) and name != "table":
        assert [plain(without_none(row)) for row in read] == [plain(without_none(row)) for row in examples]
    assert [getattr(row, "output", None) for row in read] == [getattr(row, "output", None) for row in examples]


def without_none(example: Any) -> Any:
    """A table's column of structs gives every struct all keys, and those of other rows are absent again."""
    if isinstance(example.inputs, dict):
        return replace(example, inputs={name: value for name, value in example.inputs.items() if value is not None})
    if not isinstance(example.inputs, SlateRequest):
        return example

    def known(features: Any) -> dict[str, Any]:
        return {name: value for name, value in features.items() if value is not None}

    told = example.inputs
    listed = told.candidates and tuple(
        Item(c.id, known(c.features)) if isinstance(c, Item) else c for c in told.candidates
    )
    return replace(example, inputs=replace(told, context=known(told.context), candidates=listed))


@given(st.lists(rows, min_size=2, max_size=6))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_a_table_reads_the_same_from_csv_parquet_and_jsonl(
    tmp_path_factory: pytest.TempPathFactory, cells: list[dict[str, Any]]
) -> None:
    """Where nothing is told to be lost; a column that holds text and numbers is text in all of them."""
    pytest.importorskip("pyarrow")
    names = ["age", "purpose", "amount"]
    full = [{"id": "x", **{name: row.get(name) for name in names}} for row in cells]
    examples = [Demonstration(row, "ab"[place % 2], item={"label": "ab"[place % 2]}) for place, row in enumerate(full)]
    folder = tmp_path_factory.mktemp("table")
    reading = Reading(label="label", least_rows=1)
    found = {}
    for suffix in ("csv", "jsonl", "parquet"):
        written = write_examples(folder / f"rows.{suffix}", examples, "table")
        if suffix == "csv":
            lost = written.lost
        found[suffix] = [row.inputs for row in read_examples(folder / f"rows.{suffix}", reading=reading).rows]
    if not lost:
        assert found["csv"] == found["jsonl"]
    empty = {name for name in names if all(row[name] is None for row in full)}  # Parquet leaves such columns out
    kept = [{name: value for name, value in row.items() if name not in empty} for row in found["jsonl"]]
    assert found["parquet"] == kept


def test_log_probs_and_propensities_say_the_same() -> None:
    row = {"request": {"candidates": ["a", "b", "c"]}, "slate": ["a", "b"], "events": []}
    one = format_named("logged").example({**row, "propensities": [0.5, 0.25]}, "")
    two = format_named("logged").example({**row, "log_probs": [math.log(0.5), math.log(0.25)]}, "")
    assert isinstance(one, Record) and isinstance(two, Record)
    assert one.behavior_log_probs == pytest.approx(two.behavior_log_probs)
