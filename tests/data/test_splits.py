"""nothing held out trains, whatever the order of the rows"""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.data.splits import check_disjoint, input_key, split
from melior.errors import ConfigError, DataError
from melior.types import Demonstration, Task

tasks = st.lists(
    st.builds(
        Task,
        inputs=st.sampled_from([f"question {number}" for number in range(20)]),
        group=st.sampled_from(["", "", "u1", "u2", "u3", "u4"]),
    ),
    min_size=2,
    max_size=40,
)


def numbered(count: int) -> list[Task]:
    return [Task(f"question {number}", id=str(number)) for number in range(count)]


def relatives(rows: list[Task], row: Task) -> list[Task]:
    """Every row that must stay with this one, found the slow way."""
    found, before = [row], 0
    while len(found) > before:
        before = len(found)
        inputs, groups = {task.inputs for task in found}, {task.group for task in found} - {""}
        found = [task for task in rows if task.inputs in inputs or task.group in groups]
    return found


@given(tasks, st.integers(0, 5), st.sampled_from([0.1, 0.3, 0.5, 1]), st.randoms(use_true_random=False))
def test_laws_of_a_split(rows: list[Task], seed: int, heldout: float, shuffler: random.Random) -> None:
    wanted = heldout if isinstance(heldout, int) else max(1, round(heldout * len(rows)))
    try:
        train, held = split(rows, heldout, seed)
    except DataError:
        assert wanted >= len(rows) or all(len(relatives(rows, row)) > wanted for row in rows)
        return
    check_disjoint(train, held)
    assert 1 <= len(held) <= wanted and len(train) + len(held) == len(rows)
    assert sorted(map(repr, train + held)) == sorted(map(repr, rows))
    positions = {id(row): index for index, row in enumerate(rows)}
    assert [positions[id(row)] for row in held] == sorted(positions[id(row)] for row in held)
    shuffled = shuffler.sample(rows, len(rows))
    again = split(shuffled, heldout, seed)
    assert [sorted(map(repr, side)) for side in again] == [sorted(map(repr, side)) for side in (train, held)]


def test_without_groups_the_number_held_out_is_exact() -> None:
    for heldout, expected in ((0.1, 10), (0.25, 25), (7, 7), (0.001, 1), (0, 0)):
        assert len(split(numbered(100), heldout)[1]) == expected


def test_seeds_differ_and_agree_with_themselves() -> None:
    rows = numbered(100)
    assert split(rows, 0.2, 1) == split(rows, 0.2, 1)
    assert split(rows, 0.2, 1) != split(rows, 0.2, 2)
    held = [{row.inputs for row in split(rows, 0.2, seed)[1]} for seed in range(200)]
    share = sum("question 7" in inputs for inputs in held) / len(held)
    assert 0.1 < share < 0.3  # any row is held out about as often as asked


def test_groups_and_inputs_connect_rows_through_others() -> None:
    chain = [Task("a", group="1"), Task("b", group="1"), Task("b", group="2"), Task("c", group="2")]
    for seed in range(10):
        train = split([*chain, *numbered(8)], 6, seed)[0]
        sides = {("train" if row in train else "held") for row in chain}
        assert len(sides) == 1


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(DataError, match="the smallest has 4 rows"):
        split([Task(str(number), group="g") for number in range(4)], 0.25)
    with pytest.raises(DataError, match="2 of 2"):
        split(numbered(2), 2)
    with pytest.raises(DataError, match="1 of 1"):
        split(numbered(1), 0.1)
    for heldout in (-1, 1.0, 1.5, True):
        with pytest.raises(ConfigError):
            split(numbered(5), heldout)


def test_check_disjoint_counts_what_is_shared() -> None:
    rows = numbered(6)
    check_disjoint(rows[:3], rows[3:])
    with pytest.raises(DataError, match="share 2 inputs and 1 groups"):
        check_disjoint([*rows[:4], Task("x", group="g")], [*rows[2:], Task("y", group="g")])


def test_the_same_question_is_the_same_input_in_every_form() -> None:
    message = {"role": "user", "content": "q"}
    answer = {"role": "assistant", "content": "a"}
    keys = {
        input_key(Task("q", {"answer": 1}, id="1")),
        input_key(Task([message])),
        input_key(Task([{"content": "q", "role": "user"}])),
        input_key(Demonstration("q", "a")),
        input_key(Demonstration([message, answer])),
        input_key(Demonstration([message, {**answer, "content": "b", "weight": 1}])),
    }
    assert len(keys) == 1
    before = [message, {**answer, "weight": 0}, {"role": "user", "content": "r"}]
    assert input_key(Demonstration([*before, answer])) == input_key(Task([message, answer, before[2]])) not in keys
