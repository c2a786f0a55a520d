"""feedback: kept once, corrected once, in force by the log alone, found by its words"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from melior.errors import DataError, Forbidden, MeliorError, NotFound, StoreError
from melior.store import Store
from melior.store.feedback import Said
from melior.store.rows import Feedback
from melior.types import Record


@pytest.fixture
def answer(store: Store) -> str:
    return store.add_records([Record(inputs="2+2", output="5")])[0]


@pytest.fixture
def slate(store: Store) -> str:
    """A decision of an episode that showed three items."""
    record = Record(inputs={"context": {}}, output=["a", "b", "7"])
    return store.add_records([record], episode_id="visit")[0]


def ids(rows: Sequence[Feedback]) -> list[str]:
    return [row.id for row in rows]


def say(store: Store, **said: Any) -> Feedback:
    """As a client says it: checked."""
    (result,) = store.add_feedbacks([Said(checked=True, **said)])
    if isinstance(result, MeliorError):
        raise result
    return result


# corrections


def test_of_a_chain_the_last_is_in_force_and_all_of_it_stays(store: Store, answer: str) -> None:
    a = store.add_feedback("stars", 1, decision_id=answer, source="ann")
    b = store.add_feedback("stars", 2, replaces=a.id, source="ann")
    c = say(store, value=3, replaces=b.id, source="ann")
    assert (c.metric, c.decision_id) == ("stars", answer)  # what it replaces says both
    assert ids(store.feedback(in_force=True)) == [c.id] and ids(store.feedback()) == [a.id, b.id, c.id]
    assert store.replacements([a.id, b.id, c.id]) == {a.id: b.id, b.id: c.id}


def test_what_was_taken_back_is_in_force_no_more_and_may_be_said_again(store: Store, answer: str) -> None:
    a = store.add_feedback("stars", 1, decision_id=answer)
    back = say(store, value=None, replaces=a.id)
    assert store.feedback(in_force=True) == [] and ids(store.feedback()) == [a.id, back.id]
    again = say(store, value=4, replaces=back.id)
    assert store.feedback(in_force=True) == [again]


def test_a_value_of_nothing_that_replaces_nothing_counts_as_it_did(store: Store, answer: str) -> None:
    kept = store.add_feedback("any", None, decision_id=answer)
    assert store.feedback(in_force=True) == [kept]


def test_what_was_replaced_is_not_replaced_again(store: Store, answer: str) -> None:
    a = store.add_feedback("stars", 1, decision_id=answer)
    b = store.add_feedback("stars", 2, replaces=a.id)
    with pytest.raises(StoreError, match=f"was replaced by '{b.id}' already"):
        store.add_feedback("stars", 3, replaces=a.id)
    assert store.feedback(in_force=True) == [b]


@pytest.mark.parametrize(
    ("said", "error", "told"),
    [
        ({"source": "bob"}, Forbidden, "said by 'ann', who or an admin"),
        ({"source": "ann", "given_by": "another key"}, Forbidden, "said by 'ann'"),
        ({"source": "ann", "metric": "helpful"}, DataError, "another decision or metric"),
        ({"source": "ann", "episode_id": "visit"}, DataError, "another decision or metric"),
        ({"source": "ann", "replaces": "fb_none"}, NotFound, "no feedback 'fb_none' here; .* send this again later"),
        ({"source": "ann", "value": 9}, DataError, "stars is a whole number from 1 to 5, not 9"),
    ],
)
def test_a_correction_is_of_the_same_thing_by_the_same_source(
    store: Store, slate: str, said: dict[str, Any], error: type[MeliorError], told: str
) -> None:
    store.declare_measure("stars", "rating", low=1, high=5)
    a = store.add_feedback("stars", 1, decision_id=slate, source="ann")
    with pytest.raises(error, match=told):
        say(store, **{"value": 2, "replaces": a.id, **said})
    assert store.feedback(in_force=True) == [a] == store.feedback()


def test_whoever_may_correct_all_may_correct_this(store: Store, answer: str) -> None:
    a = store.add_feedback("stars", 1, decision_id=answer, source="ann")
    b = say(store, value=2, replaces=a.id, source="the editor", any_source=True)
    assert store.feedback(in_force=True) == [b] and b.source == "the editor"


def test_of_corrections_at_the_same_moment_one_is_in_force(store: Store, answer: str) -> None:
    a = store.add_feedback("stars", 0, decision_id=answer)

    def correct(number: int) -> Feedback | None:
        try:
            return store.add_feedback("stars", number, replaces=a.id, feedback_id=f"try-{number}")
        except StoreError as error:
            assert "already" in str(error)
            return None

    with ThreadPoolExecutor(8) as pool:
        won = [row for row in pool.map(correct, range(24)) if row is not None]
    assert len(won) == 1 and store.feedback(in_force=True) == won and len(store.feedback()) == 2


def test_of_corrections_in_one_batch_the_first_stands(store: Store, answer: str) -> None:
    a = store.add_feedback("stars", 0, decision_id=answer)
    first, second = store.add_feedbacks([Said(value=number, replaces=a.id) for number in (1, 2)])
    assert isinstance(first, Feedback) and isinstance(second, StoreError)
    assert store.feedback(in_force=True) == [first]


def test_a_batch_may_hold_a_word_and_its_correction(store: Store, answer: str) -> None:
    said = [
        Said(metric="stars", value=1, decision_id=answer, feedback_id="one"),
        Said(value=2, replaces="one", feedback_id="two"),
        Said(metric="stars", value=1, decision_id=answer, feedback_id="one"),  # sent again: kept once
    ]
    assert ids([row for row in store.add_feedbacks(said) if isinstance(row, Feedback)]) == ["one", "two", "one"]
    assert ids(store.feedback()) == ["one", "two"] and ids(store.feedback(in_force=True)) == ["two"]


def test_a_correction_sent_again_is_kept_once_and_with_another_body_refused(store: Store, answer: str) -> None:
    a = store.add_feedback("stars", 1, decision_id=answer)
    b = store.add_feedback("stars", 2, replaces=a.id, feedback_id="key")
    assert store.add_feedback("stars", 2, replaces=a.id, feedback_id="key") == b
    c = store.add_feedback("stars", 3, decision_id=answer)
    for other in ({"replaces": None}, {"replaces": c.id}, {"made_from": c.id}):
        with pytest.raises(StoreError, match="another body"):
            store.add_feedback("stars", 2, **{"decision_id": answer, "replaces": a.id, "feedback_id": "key", **other})
    assert ids(store.feedback()) == [a.id, b.id, c.id]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.integers(0, 30), st.sampled_from([None, 1, 2])), max_size=10))
def test_what_is_in_force_follows_from_the_log(store: Store, steps: list[tuple[int, int | None]]) -> None:
    about = store.add_records([Record(inputs="q", output="a")])[0]
    for target, value in steps:
        known = store.feedback(decision_id=about)
        replaces = known[target].id if target < len(known) else None
        try:
            store.add_feedback("m", value, decision_id=about, replaces=replaces)
        except StoreError:
            assert replaces in store.replacements([str(replaces)])
    log = store.feedback(decision_id=about)
    replaced = {row.replaces_id for row in log}
    counting = [row for row in log if row.id not in replaced and not (row.replaces_id and row.value is None)]
    assert store.feedback(decision_id=about, in_force=True) == counting
    ends = sum(row.replaces_id is None for row in log)  # each chain begins once, and one of it stands or none
    assert len(counting) <= ends and len([row for row in log if row.id not in replaced]) == ends


# what comes from words


def test_a_person_turns_a_comment_into_rows_that_name_it(store: Store, answer: str) -> None:
    words = say(store, metric="comment", value="it is four", decision_id=answer, source="ann")
    better = say(store, metric="demonstration", value="4", made_from=words.id, source="editor")
    pair = {"chosen": "4", "rejected": "5"}
    choice = say(store, metric="preference", value=pair, made_from=words.id, source="editor")
    assert {better.decision_id, choice.decision_id} == {answer} and better.source == "editor"
    assert ids(store.feedback_page(made_from=words.id, order="asc").rows) == [better.id, choice.id]
    with pytest.raises(DataError, match="stars is made from nothing"):
        say(store, metric="stars", value=1, made_from=words.id)
    with pytest.raises(NotFound, match="no feedback 'fb_none'"):
        say(store, metric="demonstration", value="4", made_from="fb_none")
    assert words in store.feedback(in_force=True)


SEARCHES = {
    "parcel": ["p"],
    "PARCEL": ["p"],
    "100%": ["percent"],
    "%": ["percent"],
    "_": ["under"],
    "a_b": ["under"],
    "straße": ["s"],
    "STRAßE": ["s"],
    "é ici": ["e"],
    "É ICI": ["e"],
    'said "no"': ["quote"],
    "back\\slash": ["slash"],
    "two\nlines": ["lines"],
    "u00e9": [],  # how JSON writes é is nothing that anybody said
    "chosen": [],  # nor are names of fields
    "beside": ["p"],
    "nothing like it": [],
    "|": ["pipe"],
}


def test_words_are_found_whatever_their_case_and_letters(store: Store, answer: str) -> None:
    comments = {
        "p": "Where is my Parcel?",
        "percent": "100% wrong",
        "under": "a_b",
        "s": "Hauptstraße 3",
        "e": "Caché ici",
        "quote": 'she said "no"',
        "slash": "back\\slash",
        "lines": "two\nlines",
        "pipe": "x|y",
    }
    for name, words in comments.items():
        more = {"comment": "Beside the point"} if name == "p" else {}
        store.add_feedback("comment", words, decision_id=answer, feedback_id=name, **more)
    store.add_feedback("preference", {"chosen": "x", "rejected": "y"}, decision_id=answer)
    for search, found in SEARCHES.items():
        assert ids(store.feedback_page(search=search).rows) == found, search


def test_a_search_is_paged_through_many_rows_that_only_look_alike(store: Store, answer: str) -> None:
    said = [
        Said(metric="comment", value="Öl" if number % 100 == 0 else "Äl", decision_id=answer) for number in range(901)
    ]
    rows = [row for row in store.add_feedbacks(said) if isinstance(row, Feedback)]
    wanted = ids([row for row in rows if row.value == "Öl"])
    first = store.feedback_page(search="ÖL", order="asc", limit=4)
    rest = store.feedback_page(search="öl", order="asc", limit=6, after=first.rows[-1].id)
    assert (ids(first.rows), first.more, ids(rest.rows), rest.more) == (wanted[:4], True, wanted[4:], False)


def test_pages_are_the_list_and_end_where_it_ends(store: Store, answer: str) -> None:
    rows = [store.add_feedback("n", number, decision_id=answer) for number in range(7)]
    store.add_feedback("other", 1, decision_id=answer)
    orders: dict[Any, list[Feedback]] = {"asc": rows, "desc": rows[::-1]}
    for order, size in product(orders, (1, 3, 7, 10)):
        seen: list[Feedback] = []
        more = True
        while more:
            after = seen[-1].id if seen else None
            page = store.feedback_page(metric="n", after=after, limit=size, order=order)
            seen += page.rows
            more = page.more
            assert more == (len(seen) < 7), (order, size)
        assert seen == orders[order]
    with pytest.raises(NotFound, match="'fb_none' in this list"):
        store.feedback_page(after="fb_none")


def test_what_arrives_meanwhile_shifts_no_page(store: Store, answer: str) -> None:
    rows = [store.add_feedback("n", number, decision_id=answer) for number in range(4)]
    first = store.feedback_page(limit=2)
    store.add_feedback("n", 9, decision_id=answer)
    second = store.feedback_page(limit=2, after=first.rows[-1].id)
    assert [*first.rows, *second.rows] == rows[::-1]


# what it is about


def test_an_episode_that_nobody_began_is_refused(store: Store, slate: str) -> None:
    assert say(store, metric="happy", value=True, episode_id="visit").episode_id == "visit"
    with pytest.raises(NotFound, match=r"no decision of an episode 'other' was made here; .* again later"):
        say(store, metric="happy", value=True, episode_id="other")
    stranger = store.add_records([Record(inputs="q", output="a")])[0]
    with pytest.raises(DataError, match="is no decision of the episode 'visit'"):
        say(store, metric="happy", value=True, episode_id="visit", decision_id=stranger)
    assert say(store, metric="happy", value=True, episode_id="visit", decision_id=slate).decision_id == slate


def test_events_are_of_what_was_shown(store: Store, slate: str) -> None:
    good = [True, {"position": 1}, {"item": "b"}, {"position": 2, "item": 7}, {"amount": 9.5}]
    for value in good:
        say(store, metric="click", value=value, decision_id=slate)
    bad = {
        "'c' is told of a decision that did not show it": {"item": "c"},
        "at position 3, and 3 were shown": {"position": 3},
        "'a' is told at position 1, where 'b' was shown": {"position": 1, "item": "a"},
    }
    for told, value in bad.items():
        with pytest.raises(DataError, match=told):
            say(store, metric="purchase", value=value, decision_id=slate)
    assert [row.value for row in store.feedback(metric="click")] == good and store.feedback(metric="purchase") == []


def test_better_outputs_are_of_the_kind_that_was_decided(store: Store, answer: str, slate: str) -> None:
    message = {"role": "assistant", "content": "4"}
    for about, value in ((answer, "4"), (answer, message), (answer, [message]), (slate, ["b", "a"])):
        say(store, metric="demonstration", value=value, decision_id=about)
    for about, value in ((answer, ["a"]), (answer, {"role": "user"}), (slate, "a"), (slate, ["a", "a"])):
        with pytest.raises(DataError):
            say(store, metric="demonstration", value=value, decision_id=about)
        with pytest.raises(DataError, match="chosen of preference"):
            say(store, metric="preference", value={"chosen": value, "rejected": "x"}, decision_id=about)
    assert len(store.feedback()) == 4


def test_one_bad_word_spoils_nothing_and_results_stand_in_order(store: Store, answer: str) -> None:
    numbers = list(range(700))  # more than one IN (…)
    random.Random(0).shuffle(numbers)
    said = [
        Said(
            metric="n\0",
            value=number,
            decision_id="dec_none" if number % 7 == 0 else answer,
            source="a\0\ud800",
            feedback_id=f"key-{number}",
            checked=True,
        )
        for number in numbers
    ]
    for _ in range(2):  # and sent again, it is the same
        results = store.add_feedbacks(said)
        kept = [isinstance(row, Feedback) for row in results]
        assert kept == [number % 7 != 0 for number in numbers]
    assert ids(store.feedback()) == [f"key-{number}" for number in numbers if number % 7]
    assert {row.source for row in store.feedback()} == {"a\ufffd\ufffd"}
