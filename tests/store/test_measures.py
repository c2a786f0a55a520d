"""what a metric takes, and what is told where it is sent something else"""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import pytest

from melior.errors import ConfigError, DataError, StoreError
from melior.store import Store
from melior.store.feedback import Said
from melior.store.measures import MOST_DEPTH, check_value
from melior.store.query import CHUNK
from melior.store.rows import Measure
from melior.types import Record


def measure(type: Any, low: float | None = None, high: float | None = None, name: str = "m") -> Measure:
    return Measure(id="", name=name, type=type, low=low, high=high, description="", created="")


def nested(depth: int) -> Any:
    value: Any = "deep"
    for _ in range(depth):
        value = [value]
    return value


SKIP = {"skip": True}
PAIR = {"chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("of", "value"),
    [
        (measure("boolean"), True),
        (measure("number"), -3.5),
        (measure("number", 0), 10**300),
        (measure("number", 0, 1), 1),
        (measure("rating", 1, 5), 5),
        (measure("rating", 1, 5), 4.0),
        (measure("comment"), "fine"),
        (measure("demonstration"), ["a"]),
        (measure("preference"), PAIR),
        (measure("preference"), {"chosen": "a", "rejected": "a", "tie": True}),
        (measure("preference"), {**PAIR, "both_bad": True, "reason": "rude"}),
        (measure("preference"), SKIP),
        (measure("preference"), {**PAIR, "strength": 2, "side": "right", "seconds": 3.5, "page": "3"}),
        (measure("event"), True),
        (measure("event"), {"item": 3, "position": 0, "time": "2026-11-21T10:00:00Z", "amount": 9.5}),
        (measure("event"), {"time": 1795255200}),
        (None, True),
        (None, 3),
        (None, "short"),
        (measure("demonstration"), nested(MOST_DEPTH)),
    ],
)
def test_values_that_are_taken(of: Measure | None, value: Any) -> None:
    check_value("m", value, of)


@pytest.mark.parametrize(
    ("of", "value", "told"),
    [
        (measure("boolean"), 1, "m is true or false, not 1"),
        (measure("number", 0, 1), 1.5, "m is a number from 0 to 1, not 1.5"),
        (measure("number", 0), -1, "m is a number from 0, not -1"),
        (measure("number"), True, "m is a number, not true"),
        (measure("number"), math.nan, "m is a number, not NaN"),
        (measure("number"), math.inf, "m is a number, not Infinity"),
        (measure("number"), 10**400, "m is a number"),
        (measure("number"), "3", 'm is a number, not "3"'),
        (measure("rating", 1, 5), 6, "m is a whole number from 1 to 5, not 6"),
        (measure("rating", 1, 5), 2.5, "m is a whole number from 1 to 5, not 2.5"),
        (measure("comment"), "  ", "m is a text"),
        (measure("comment"), 3, "m is a text, not 3"),
        (measure("demonstration"), "", "m is a better output"),
        (measure("demonstration"), 3, "m is a better output"),
        (measure("preference"), "left", '{"chosen": …, "rejected": …}'),
        (measure("preference"), {"chosen": "a"}, "m has no rejected"),
        (measure("preference"), {"rejected": "a", "tie": True}, "m has no chosen"),
        (measure("preference"), {"chosen": "a", "rejected": "a"}, "are the same"),
        (measure("preference"), {**PAIR, "tie": True, "skip": True}, "says tie and skip"),
        (measure("preference"), {**PAIR, "tie": "yes"}, 'tie of m is true or false, not "yes"'),
        (measure("preference"), {**PAIR, "choosen": 1}, '"?choosen'),
        (measure("preference"), {**PAIR, "strength": -1}, "strength of m is a number from 0, not -1"),
        (measure("preference"), {**PAIR, "side": "top"}, "left or right"),
        (measure("event"), False, "what did not happen is not sent"),
        (measure("event"), {"position": -1}, "counted from 0, not -1"),
        (measure("event"), {"position": True}, "counted from 0, not true"),
        (measure("event"), {"item": ["a"]}, "id of an item"),
        (measure("event"), {"amount": math.nan}, "not JSON|finite number"),
        (measure("event"), {"time": "yesterday"}, "ISO 8601 with a zone"),
        (measure("event"), {"time": "2026-11-21T10:00:00"}, "with a zone"),
        (measure("event"), {"colour": "red"}, "none of position, item, time, amount"),
        (None, {"a": 1}, "declared nowhere and takes true, false, a finite number or a text"),
        (None, math.nan, "declared nowhere"),
        (None, [1], "declared nowhere"),
        (measure("demonstration"), nested(MOST_DEPTH + 1), "more than 32 lists and objects deep"),
        (measure("demonstration"), nested(100_000), "more than 32 lists and objects deep"),
        (measure("demonstration"), "x" * (1 << 20), "1,048,578 bytes as JSON, and at most 1,048,576"),
        (measure("demonstration"), {"role": "assistant", "n": math.inf}, "not JSON"),
        (measure("demonstration"), "half an emoji \ud83d", "not JSON .*surrogates not allowed"),
        (measure("demonstration"), {"role": "assistant", "\ud83d": 1}, "surrogates not allowed"),
        (measure("comment"), "\ud83d", "surrogates not allowed"),
        (None, "\ud83d", "surrogates not allowed"),
    ],
)
def test_values_that_are_none_of_it_are_told_with_what_it_should_be(of: Measure | None, value: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        check_value("m", value, of)


# declarations, on both databases


def test_a_declaration_is_in_force_until_the_next_and_the_same_again_is_none(store: Store) -> None:
    first = store.declare_measure("clarity", "rating", low=1, high=5, description="how clear it is")
    assert store.declare_measure("clarity", "rating", low=1, high=5, description="how clear it is") == first
    second = store.declare_measure("clarity", "rating", low=1, high=7)
    other = store.declare_measure("a", "boolean")
    assert store.measures() == [other, second] and second.id != first.id


def test_a_declaration_holds_few_of_the_values_that_it_looks_at(store: Store) -> None:
    (decision,) = store.add_records([Record(inputs="q", output="a")])
    text = "x" * 1000
    for _ in range(4):
        store.add_feedbacks([Said(metric="why", value=text, decision_id=decision) for _ in range(2 * CHUNK)])
    tracemalloc.start()
    store.declare_measure("why", "comment")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * CHUNK * len(text) * 0.6, "of the texts, which all would be"
    with pytest.raises(DataError, match=f"{8 * CHUNK} values kept as why would be none of it, the first is fb_"):
        store.declare_measure("why", "boolean")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": "comment", "type": "comment"}, "comment is built in"),
    ({"name": "m", "type": "rating"}, "rating m needs low and high"),
    ({"name": "m", "type": "rating", "low": 1.5, "high": 3}, "whole numbers"),
    ({"name": "m", "type": "number", "low": 3, "high": 3}, "low of m is 3 and not below high, 3"),
    ({"name": "m", "type": "number", "low": math.nan}, "finite"),
    ({"name": "m", "type": "boolean", "low": 0}, "a boolean has no range"),
]


def test_what_is_no_declaration(store: Store) -> None:
    for asked, told in WRONG:
        with pytest.raises(ConfigError, match=told):
            store.declare_measure(**asked)
    assert store.measures() == []


def test_a_type_that_there_is_not(store: Store) -> None:
    with pytest.raises(StoreError, match="'stars' is not one of boolean, number, rating"):
        store.declare_measure("m", "stars")  # type: ignore[arg-type]


def test_what_was_said_is_never_made_wrong_by_a_declaration(store: Store) -> None:
    first = store.add_feedback("clarity", 6, episode_id="e")
    store.add_feedback("clarity", 4, episode_id="e")
    with pytest.raises(DataError, match=rf"1 values kept as clarity would be none of it, the first is {first.id}"):
        store.declare_measure("clarity", "rating", low=1, high=5)
    store.add_feedback("clarity", 5, replaces=first.id)  # corrected, it no longer stands in the way
    assert store.declare_measure("clarity", "rating", low=1, high=5).high == 5
    with pytest.raises(DataError, match="2 values kept"):
        store.declare_measure("clarity", "boolean")
