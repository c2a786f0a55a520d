"""points for events: what each is worth, where it belongs, and what cannot be read"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.errors import GraderError
from melior.rewards.events import Events
from melior.rewards.graders import load_grader
from melior.rewards.workers import GraderPool
from melior.types import Record, Score

POINTS = {"click": {"one": 1, "several": 2}, "cart": 3, "purchase": {"one": 10, "several": 15}}
SLATE = ["milk", "bread", "jam"]


def grader(**settings: Any) -> Events:
    found = load_grader({"type": "events", "points": POINTS, **settings})
    assert isinstance(found, Events)
    return found


def record(*events: Any, output: Any = SLATE, **more: Any) -> Record:
    return Record(inputs=None, output=output, item={"events": list(events)}, **more)


def at(kind: str, position: int) -> dict[str, Any]:
    return {"type": kind, "position": position}


@pytest.mark.parametrize(
    ("events", "decisions"),
    [
        ([], (0, 0, 0)),
        ([at("click", 1)], (0, 1, 0)),
        ([at("click", 0), at("click", 2)], (1, 0, 1)),  # several: 2 in all
        ([at("click", 0), at("click", 0), at("click", 2), at("click", 2)], (1, 0, 1)),
        ([at("click", 0), at("click", 0), at("click", 0), at("click", 2)], (1.5, 0, 0.5)),
        ([at("cart", 1), at("cart", 1)], (0, 6, 0)),  # a number is paid per event
        ([at("click", 2), at("cart", 2), at("purchase", 2)], (0, 0, 14)),
        ([at("purchase", 0), at("purchase", 1)], (7.5, 7.5, 0)),
    ],
)
def test_points_by_position(events: list[Any], decisions: tuple[float, ...]) -> None:
    score = grader().grade(record(*events))
    assert score.decisions == pytest.approx(decisions)
    assert score.value == pytest.approx(sum(decisions))


def test_each_position_counts_for_itself_where_asked() -> None:
    events = [at("click", 0), at("click", 0), at("click", 2)]
    assert grader(per="position").grade(record(*events)).decisions == (2, 0, 1)
    assert grader().grade(record(*events)).decisions == pytest.approx((4 / 3, 0, 2 / 3))


KINDS = st.sampled_from(sorted(POINTS))
EVENTS = st.lists(st.builds(at, KINDS, st.integers(0, 2)), max_size=8)


@given(EVENTS, st.sampled_from(["output", "position"]))
def test_positions_and_parts_add_up_to_the_value(events: list[Any], per: str) -> None:
    score = grader(per=per).grade(record(*events))
    assert score.value is not None
    assert math.fsum(score.decisions) == pytest.approx(score.value) == math.fsum(score.parts.values())
    assert set(score.parts) == set(POINTS)


@given(EVENTS)
def test_items_say_the_same_as_positions_and_order_says_nothing(events: list[Any]) -> None:
    by_item = [{"type": event["type"], "item": SLATE[event["position"]]} for event in events]
    both = [{**event, **named} for event, named in zip(events, by_item, strict=True)]
    first = grader().grade(record(*events))
    for told in (by_item, both, events[::-1], by_item[::-1]):
        other = grader().grade(record(*told))
        assert other.value == pytest.approx(first.value) and other.decisions == pytest.approx(first.decisions)


def test_an_event_told_twice_counts_once_and_is_counted() -> None:
    once = grader()
    events = [{"type": "purchase", "position": 1, "id": "e1"}] * 3 + [{"type": "click", "position": 1, "id": "e2"}]
    assert once.grade(record(*events)).value == 11
    assert once.noticed == {"an event of type purchase told twice": 2}


def test_an_event_of_no_position_earns_points_that_no_decision_can_claim() -> None:
    score = grader().grade(record({"type": "cart"}, at("click", 0)))
    assert (score.value, score.decisions) == (4, ())


def test_unknown_events_are_refused_or_counted() -> None:
    with pytest.raises(GraderError, match=r"'clik'.*did you mean 'click'"):
        grader().grade(record({"type": "clik", "position": 0}))
    lenient = grader(unknown="ignore")
    assert lenient.grade(record({"type": "view", "position": 0}, at("click", 0))).value == 1
    assert lenient.noticed == {"an event of type view, which has no points": 1}


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([at("click", 3)], "position 3, the output has 3"),
        ([at("click", -1)], "position -1"),
        ([at("click", True)], "position True"),
        ([{"type": "click", "item": "eggs"}], "'eggs' is logged for an output that did not show it"),
        ([{"type": "click", "item": "jam", "position": 0}], "position 0, where 'milk' was shown"),
        (["click"], "got 'click'"),
        ([{"position": 0}], "events such as"),
    ],
)
def test_what_cannot_be_read_is_a_failure(events: list[Any], told: str) -> None:
    (score,) = grader().grade_many([record(*events)])
    assert score.value is None and told in score.error


def test_nobody_looked_is_not_nothing_happened() -> None:
    (score,) = grader().grade_many([Record(inputs=None, output=SLATE, item={"user": 3})])
    assert score.value is None and "it has user" in score.error
    assert grader().grade(record()).value == 0


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"points": {}}, "points by event type"),
        ({"points": {"click": "one"}}, "'click' must be a finite number"),
        ({"points": {"click": {"one": 1}}}, "a number, or one and several"),
        ({"points": {"click": {"one": 1, "several": math.nan}}}, "click.several"),
        ({"points": {"click": 1}, "per": "slate"}, "not per 'slate'"),
        ({"points": {"click": 1}, "unknown": "drop"}, "not 'drop'"),
        ({"points": {"click": 1}, "point": 1}, "did you mean 'points'"),
        ({}, "needs the key 'points'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(spec: dict[str, Any], told: str) -> None:
    with pytest.raises(GraderError, match=told):
        load_grader({"type": "events", **spec})


def test_a_pool_keeps_what_decisions_earned_and_sums_of_graders_too() -> None:
    spec = {"type": "events", "points": POINTS}
    double = {
        "type": "weighted",
        "graders": {"a": {"grader": spec, "weight": 1.5}, "b": {"grader": spec, "weight": 0.5}},
    }
    records = [record(at("click", 0)), record("?"), record(at("purchase", 2))]
    with GraderPool(spec) as pool, GraderPool(double) as pair:
        single, summed = pool.grade(records), pair.grade(records)
    assert [score.value for score in single] == [1, None, 10]
    assert [score.decisions for score in summed] == [(2, 0, 0), (), (0, 0, 20)]
    assert json.dumps(load_grader(spec).spec)


def test_a_single_decision_is_a_slate_of_one() -> None:
    score: Score = grader().grade(record({"type": "click"}, {"type": "click", "item": "milk"}, output="milk"))
    assert (score.value, score.decisions) == (2, ())
    assert grader().grade(record(at("click", 0), output="milk")).decisions == (1,)
