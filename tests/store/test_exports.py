"""feedback becomes training rows"""

import pytest

from melior.errors import StoreError
from melior.store import Store
from melior.store.exports import demonstrations, preferences, ratings
from melior.types import Demonstration, Preference, Rated, Record

ITEM = {"reference_answer": "4"}


@pytest.fixture
def answer(store: Store) -> str:
    return store.add_records([Record(inputs="2+2", output="5", group="q1", item=ITEM)])[0]


def test_a_better_answer_is_a_demonstration_and_a_pair(store: Store, answer: str) -> None:
    said = store.add_feedback("demonstration", "4", decision_id=answer)
    assert demonstrations(store) == [Demonstration("2+2", "4", id=said.id, group="q1", item=ITEM)]
    assert preferences(store) == [Preference("2+2", "4", "5", id=said.id, group="q1", item=ITEM)]


def test_confirming_an_answer_prefers_nothing(store: Store, answer: str) -> None:
    store.add_feedback("demonstration", "5", decision_id=answer)
    assert len(demonstrations(store)) == 1 and preferences(store) == []


def test_a_tie_is_an_even_chance(store: Store, answer: str) -> None:
    for tie in (False, True):
        store.add_feedback("preference", {"chosen": "4", "rejected": "5", "tie": tie}, decision_id=answer)
    assert [pair.probability for pair in preferences(store)] == [1.0, 0.5]


def test_ratings_are_numbers(store: Store, answer: str) -> None:
    ungrouped = store.add_records([Record(inputs="1+1", output="2")])[0]
    first = store.add_feedback("helpful", False, decision_id=answer)
    second = store.add_feedback("helpful", 0.75, decision_id=ungrouped)
    store.add_feedback("helpful", True, episode_id="ep_1")
    assert ratings(store, "helpful") == [
        Rated("2+2", "5", 0.0, id=first.id, group="q1", item=ITEM),
        Rated("1+1", "2", 0.75, id=second.id, group=ungrouped),
    ]
    assert ratings(store, "unheard of") == []


def test_what_is_neither_is_refused_by_its_id(store: Store, answer: str) -> None:
    store.add_feedback("comment", "nice", decision_id=answer, feedback_id="fb_words")
    store.add_feedback("preference", "left", decision_id=answer, feedback_id="fb_left")
    with pytest.raises(StoreError, match="fb_words"):
        ratings(store, "comment")
    with pytest.raises(StoreError, match="fb_left"):
        preferences(store)
