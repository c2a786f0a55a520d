"""many annotators' answers become one example, and all of them are kept"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from melior.data.formats import Reading, RowError, format_of
from melior.types import Demonstration, Preference, Rated


def argilla(fields: dict[str, Any], *answers: Any, question: str = "q", status: str | None = None) -> dict[str, Any]:
    given = [{"value": value, "user_id": f"u{place}"} for place, value in enumerate(answers)]
    if status:
        given[-1]["status"] = status
    return {"id": "r1", "fields": fields, "metadata": {"lang": "en"}, "suggestions": {}, "responses": {question: given}}


def studio(data: dict[str, Any], type: str, key: str, *answers: Any, **more: Any) -> dict[str, Any]:
    annotations = [
        {
            "id": place,
            "completed_by": {"id": place, "email": "a@example.org"},
            "result": [{"from_name": "q", "to_name": "t", "type": type, "value": {key: value}}],
            "created_at": f"2026-11-2{place}T10:00:00Z",
            "lead_time": 3.5,
            "was_cancelled": False,
            **more,
        }
        for place, value in enumerate(answers)
    ]
    return {"id": 5, "data": data, "annotations": annotations, "predictions": []}


PAIR = {"prompt": "p", "response_1": "one", "response_2": "two"}
CASES: list[tuple[dict[str, Any], Any]] = [
    (argilla({"text": "t"}, "good", "bad", "good"), Demonstration("t", "good")),
    (argilla({"prompt": "p"}, "a better answer"), Demonstration("p", "a better answer")),
    (argilla({"text": "t"}, ["a", "b"]), Demonstration("t", "a, b")),
    (argilla({"prompt": "p", "response": "r"}, 4, 5), Rated("p", "r", 4.5)),
    (argilla(PAIR, "response_2", "2", "A"), Preference("p", "two", "one", 2 / 3)),
    (argilla(PAIR, "response_1", "tie"), Preference("p", "one", "two", 0.75)),
    (
        argilla(PAIR, [{"value": "response_2", "rank": 1}, {"value": "response_1", "rank": 2}]),
        Preference("p", "two", "one"),
    ),
    (argilla({"prompt": "p", "response": "r"}, 4, 1, status="discarded"), Rated("p", "r", 4.0)),
    (studio({"text": "t"}, "choices", "choices", ["x"], ["x"], ["y"]), Demonstration("t", "x")),
    (studio({"text": "t"}, "taxonomy", "taxonomy", [["animal", "cat"]]), Demonstration("t", "animal/cat")),
    (studio({"question": "t"}, "textarea", "text", ["an answer"]), Demonstration("t", "an answer")),
    (studio({"prompt": "p", "answer": "r"}, "rating", "rating", 3, 4), Rated("p", "r", 3.5)),
    (studio({"prompt": "p", "answer": "r"}, "number", "number", 0.5), Rated("p", "r", 0.5)),
    (studio({"text1": "one", "text2": "two"}, "pairwise", "selected", "right"), Preference(None, "two", "one")),
    (studio(PAIR, "pairwise", "selected", "left", "left", "right"), Preference("p", "one", "two", 2 / 3)),
]


@pytest.mark.parametrize(("row", "expected"), CASES)
def test_answers_become_one_example_and_stay_in_its_item(row: dict[str, Any], expected: Any) -> None:
    format = format_of(row)
    example = format.example(row, "")
    for name in ("inputs", "output", "chosen", "rejected"):
        assert getattr(example, name, None) == getattr(expected, name, None)
    assert getattr(example, "rating", None) == pytest.approx(getattr(expected, "rating", None))
    assert getattr(example, "probability", None) == pytest.approx(getattr(expected, "probability", None))
    kept = example.item["annotations"]
    responses = row.get("responses", {}).get("q") or row.get("annotations")
    assert len(kept) == len(responses)
    assert all(answer["annotator"] for answer in kept) and "example.org" not in str(example)
    if "annotations" in row:
        assert [answer["at"] for answer in kept] == [one["created_at"] for one in row["annotations"]]
    again = format.row(example, Counter())
    assert format_of(again) is format and format.example(again, "") == example


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (argilla({"text": "t"}), "nobody has answered"),
        (argilla({"text": "t"}, "x", status="draft"), "nobody has answered .*of 1 answers"),
        (argilla({"text": "t"}, "good", "bad"), "2 annotators disagree evenly"),
        (argilla(PAIR, "left", "right"), "2 votes are even"),
        (argilla(PAIR, "left", "maybe"), "'maybe' names neither"),
        (argilla({"prompt": "p", "response": "r"}, 4, "x"), "some answers are numbers"),
        (argilla({"prompt": "p"}, 4), "needs one field with an output"),
        (argilla({"a": "p", "b": "q"}, "x"), "no field is the prompt"),
        (studio({"text": "t"}, "choices", "choices", ["x"], was_cancelled=True), "nobody has answered"),
        (studio({"text": "t"}, "rectanglelabels", "rectanglelabels", ["x"]), "nobody has answered"),
        (
            studio({"question": "t", "answer": "r"}, "choices", "choices", ["good"]),
            "the label judges answer; .*prompt_field=answer",
        ),
        ({"data": "text", "annotations": []}, "data must be an object"),
    ],
)
def test_answers_that_say_nothing_are_told(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        format_of(row).example(row, "")


def test_one_of_several_questions_is_chosen() -> None:
    row = argilla({"prompt": "p", "response": "r"}, 4)
    row["responses"]["reason"] = [{"value": "well put", "user_id": "u0"}]
    with pytest.raises(RowError, match=r"2 questions are answered \(q, reason\); choose one"):
        format_of(row).example(row, "")
    reading = Reading(question="q")
    example = format_of(row, reading=reading).example(row, "", reading)
    assert isinstance(example, Rated) and example.rating == 4
    assert [answer["question"] for answer in example.item["annotations"]] == ["q", "reason"]


def test_the_flat_records_of_a_data_set_read_as_the_nested_ones() -> None:
    nested = argilla({"prompt": "p", "response": "r"}, 4, 2)
    flat = {
        "id": "r1",
        "status": "completed",
        "_server_id": "s",
        "prompt": "p",
        "response": "r",
        "lang": "en",
        "q.responses": [4, 2],
        "q.responses.users": ["u0", "u1"],
        "q.responses.status": [None, None],
        "q.suggestion": None,
        "q.suggestion.agent": None,
        "q.suggestion.score": None,
    }
    assert format_of(flat).example(flat, "") == format_of(nested).example(nested, "")


def test_a_question_passed_over_is_no_answer() -> None:
    row = argilla({"prompt": "p", "response": "r"}, None, 4)
    example = format_of(row).example(row, "")
    assert isinstance(example, Rated) and example.rating == 4
    with pytest.raises(RowError, match="nobody has answered"):
        nobody = argilla({"text": "t"}, None)
        format_of(nobody).example(nobody, "")


def test_a_label_of_an_output_is_learnt_as_its_label() -> None:
    row = studio({"question": "t", "answer": "r"}, "choices", "choices", ["good"])
    example = format_of(row).example(row, "", Reading(prompt_field="answer"))
    assert isinstance(example, Demonstration) and (example.inputs, example.output) == ("r", "good")
    assert example.item["question"] == "t"
