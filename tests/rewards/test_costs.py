"""what decisions cost"""

from __future__ import annotations

from typing import Any

import pytest

from melior.errors import GraderError
from melior.rewards.graders import load_grader
from melior.rewards.workers import GraderPool
from melior.types import Record

COSTS = {"bad": {"good": 5}, "good": {"bad": 1}}
SPEC = {"type": "cost_matrix", "costs": COSTS}


def record(true: Any, decided: Any, **more: Any) -> Record:
    return Record(inputs={"age": 33}, output=decided, item={"label": true}, **more)


def test_the_reward_is_minus_the_cost() -> None:
    with GraderPool(SPEC) as pool:
        scores = pool.grade([record(true, decided) for true in COSTS for decided in COSTS])
    assert [score.value for score in scores] == [0, -5, -1, 0]
    assert [score.decisions for score in scores] == [(0,), (-5,), (-1,), (0,)]
    assert str(scores[0].value) == "0.0"  # and not -0.0


def test_being_right_may_pay_and_labels_may_be_numbers() -> None:
    grader = load_grader(
        {"type": "cost_matrix", "costs": {1: {1: -2, 2: 4}, 2: {1: 3}}, "reference": "{{ item.credit }}"}
    )
    assert grader.grade(Record(inputs={}, output="1", item={"credit": 1})).value == 2
    assert grader.grade(Record(inputs={}, output="1", item={"credit": "2"})).value == -3


def test_a_label_written_in_several_tokens_is_one_reward() -> None:
    assert load_grader(SPEC).grade(record("bad", "good", decisions=(3, 4, 5))).decisions == ()


@pytest.mark.parametrize(
    ("true", "decided", "told"),
    [
        ("bad", "goood", "no cost for deciding 'goood', did you mean 'good'"),
        ("bat", "good", "no costs for the true label 'bat', did you mean 'bad'"),
        ("bad", ("good", "bad"), "prices one label"),
    ],
)
def test_what_has_no_price_is_a_failure(true: Any, decided: Any, told: str) -> None:
    with GraderPool(SPEC) as pool:
        (score,) = pool.grade([record(true, decided)])
    assert score.value is None and told in score.error


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"costs": {}}, "needs costs by true and decided label"),
        ({"costs": {"bad": 5}}, "needs costs by true and decided label"),
        ({"costs": {"bad": {"good": "5"}}}, "must be a number, got '5'"),
        ({"costs": COSTS, "reference": 3}, "needs a string"),
        ({"costs": COSTS, "references": ""}, "did you mean 'reference'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(spec: dict[str, Any], told: str) -> None:
    with pytest.raises(GraderError, match=told):
        load_grader({"type": "cost_matrix", **spec})


@pytest.mark.parametrize("column", ["label", "completion"])
def test_what_is_right_is_found_where_rows_have_it(column: str) -> None:
    given = Record(inputs={"age": 3}, output="good", item={column: "bad"})
    with GraderPool(SPEC) as pool:
        assert pool.grade([given])[0].value == -5
