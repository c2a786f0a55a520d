"""nothing held out trains, whatever the order of the rows"""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.data.splits import check_disjoint, folds, input_key, split
from melior.errors import ConfigError, DataError
from melior.types import Demonstration, Image, Task

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


# ---------------------------------------------------------------------- every turn that is learnt


def chat(*texts: str, group: str = "") -> Demonstration:
    """A conversation in which every second message is the assistant's, and learnt."""
    roles = ("user", "assistant")
    return Demonstration([{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)], group=group)


def test_chats_with_a_short_opening_have_nothing_in_common() -> None:
    chats = [chat("Hi", "Hello!", f"Question {number}?", f"Answer {number}.") for number in range(20)]
    assert len({input_key(row) for row in chats}) == 20
    assert len(split(chats, 5)[1]) == 5
    check_disjoint(chats[:10], chats[10:])
    greeting = chat("Hi", "Hello!")
    check_disjoint([greeting], chats)  # the greeting alone is an input of its own
    with pytest.raises(DataError, match="share 1 inputs"):
        check_disjoint([greeting], [Task("Hi")])


def test_a_later_turn_and_a_telling_opening_leak() -> None:
    asked = "Please explain how the tides come about, and why there are two of them."
    first, second = chat(asked, "The moon …", "Thanks", "Gladly."), chat(asked, "The sun …", "And?", "No.")
    with pytest.raises(DataError, match="share 1 inputs"):
        check_disjoint([first], [second])
    with pytest.raises(DataError, match="share 1 inputs"):
        check_disjoint([first], [Task(asked)])
    later = Task([*chat("Hi", "Hello!").inputs, {"role": "user", "content": "Question?"}])
    with pytest.raises(DataError, match="share 1 inputs"):
        check_disjoint([chat("Hi", "Hello!", "Question?", "Answer.")], [later])


def test_pictures_and_rows_are_inputs_by_their_content() -> None:
    one, two = Image("a/1.png", sha256="f" * 64), Image("b/other.png", sha256="f" * 64)
    assert input_key(Demonstration(one, "x")) == input_key(Demonstration(two, "y"))
    row = {"age": 1, "sex": None}
    assert input_key(Demonstration(row, "x")) == input_key(Task(dict(reversed(row.items()))))
    assert input_key(Demonstration(row, "x")) != input_key(Demonstration({**row, "sex": "f"}, "x"))


# ---------------------------------------------------------------------- folds

labelled = st.lists(
    st.builds(
        Demonstration,
        inputs=st.integers(0, 30).map(lambda number: {"x": number}),
        output=st.sampled_from(["a", "a", "a", "b"]),
        group=st.sampled_from(["", "", "", "u1", "u2"]),
    ),
    min_size=4,
    max_size=40,
)


@given(labelled, st.integers(2, 5), st.integers(0, 3), st.booleans(), st.randoms(use_true_random=False))
def test_laws_of_folds(rows: list[Demonstration], k: int, seed: int, stratify: bool, shuffler: random.Random) -> None:
    try:
        found = folds(rows, k, seed, stratify=stratify)
    except DataError as error:
        assert "too few" in str(error)
        return
    assert len(found) == k and all(train and held for train, held in found)
    assert sorted(repr(row) for _, held in found for row in held) == sorted(map(repr, rows))
    for train, held in found:
        check_disjoint(train, held)
        assert len(train) + len(held) == len(rows)
    again = folds(shuffler.sample(rows, len(rows)), k, seed, stratify=stratify)
    assert {frozenset(Counter(map(repr, held)).items()) for _, held in again} == {
        frozenset(Counter(map(repr, held)).items()) for _, held in found
    }


def test_folds_have_their_share_of_every_label() -> None:
    rows = [Demonstration({"x": number}, "rare" if number % 10 == 0 else "common") for number in range(200)]
    for _, held in folds(rows, 10, seed=3):
        assert Counter(row.output for row in held) == {"common": 18, "rare": 2}
    assert folds(rows, 10, seed=3) == folds(rows, 10, seed=3) != folds(rows, 10, seed=4)
    with pytest.raises(ConfigError, match="at least 2 folds"):
        folds(rows, 1)
