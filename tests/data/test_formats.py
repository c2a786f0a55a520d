"""each known format becomes its example; anything else is told, with the line and what was expected"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from melior.data.formats import fingerprint, read_examples
from melior.errors import ConfigError, DataError
from melior.types import Demonstration, Item, Preference, Rated, SlateRequest, Task


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


CHAT = [user("a"), assistant("b", weight=0), user("c"), assistant("d")]

KNOWN: list[tuple[dict[str, Any], str, Any]] = [
    ({"messages": CHAT, "tools": []}, "messages", Demonstration(CHAT, None)),
    (
        {"messages": CHAT, "parallel_tool_calls": False},
        "messages",
        Demonstration(CHAT, item={"parallel_tool_calls": False}),
    ),
    ({"messages": [user("q")], "answer": 4}, "messages-task", Task([user("q")], {"answer": 4})),
    ({"prompt": "q", "completion": "a", "n": 1}, "prompt-completion", Demonstration("q", "a", item={"n": 1})),
    ({"prompt": [user("q")], "completion": [assistant("a")]}, "prompt-completion", Demonstration([user("q")], "a")),
    ({"prompt": "q", "completion": [assistant("a")]}, "prompt-completion", Demonstration("q", "a")),
    (
        {"prompt": [user("a"), assistant("b"), user("c")], "completion": [assistant("d"), user("e"), assistant("f")]},
        "prompt-completion",
        Demonstration(
            [user("a"), assistant("b", weight=0), user("c"), assistant("d"), user("e"), assistant("f")], None
        ),
    ),
    ({"prompt": "q", "answer": "4"}, "prompt", Task("q", {"answer": "4"})),
    ({"prompt": "q", "answer": "4", "group": "u1"}, "prompt", Task("q", {"answer": "4"}, group="u1")),
    ({"prompt": [user("q")]}, "prompt", Task([user("q")])),
    ({"prompt": "q", "group": None}, "prompt", Task("q")),
    (
        {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2},
        "prompt-preference",
        Preference("q", "a", "b", margin=2.0),
    ),
    (
        {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
        "prompt-preference",
        Preference([user("q")], "a", "b"),
    ),
    (
        {
            "input": {"messages": [user("q")], "tools": []},
            "preferred_output": [assistant("a")],
            "non_preferred_output": [assistant("b")],
        },
        "openai-preference",
        Preference([user("q")], "a", "b"),
    ),
    ({"prompt": "q", "completion": "a", "label": True}, "prompt-completion-label", Rated("q", "a", 1.0)),
    ({"prompt": "q", "completion": "a", "label": 0.25}, "prompt-completion-label", Rated("q", "a", 0.25)),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "r"}]}]},
        "messages-task",
        Task([user("qr")]),
    ),
]


@pytest.mark.parametrize(("row", "format", "example"), KNOWN)
def test_a_row_of_a_known_format_becomes_its_example(tmp_path: Path, row: Any, format: str, example: Any) -> None:
    examples = read_examples(write(tmp_path, row))
    assert examples.format == format and examples.problems == []
    assert examples.rows == [replace(example, id="rows.jsonl:1")]
    again = read_examples(write(tmp_path, row), kind=examples.kind)
    assert again.rows == examples.rows


NOTHING_TO_LEARN = [
    {"messages": [user("q"), assistant("a", weight=0)]},
    {"messages": [user("q"), assistant("")]},
    {"prompt": "q", "completion": ""},
    {"prompt": "q", "completion": []},
    {"prompt": "q", "completion": [assistant("")]},
    {"prompt": "q", "chosen": "a", "rejected": "a"},
]
UNUSABLE: list[tuple[dict[str, Any], str]] = [
    *[(row, "nothing to learn|at least one message") for row in NOTHING_TO_LEARN],
    ({"messages": []}, "at least one message"),
    ({"messages": "hello"}, "list of at least one message"),
    ({"messages": [user("q"), {"role": "robot", "content": "a"}]}, "'robot'"),
    ({"messages": [user("q"), "a"]}, r"messages\[1\] must be an object"),
    ({"messages": [user("q"), assistant("a"), {"role": "tool", "content": "r"}]}, "end with tool"),
    ({"messages": [user("q"), {"role": "assistant", "content": None}]}, "no text"),
    ({"messages": [user("q"), assistant("a", weight=2)]}, "weight 2"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "other than text"),
    ({"messages": CHAT, "functions": [{"name": "add"}]}, "functions is what tools were once called"),
    ({"prompt": 3}, "prompt must be a list"),
    ({"prompt": "q", "completion": [user("a")]}, "must be the assistant's"),
    ({"prompt": "q", "completion": "a", "label": "good"}, "label must be a number"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "big"}, "margin must be a number"),
    ({"prompt": "q", "group": ["u"]}, "group must be a string"),
    ({"input": "q", "preferred_output": [], "non_preferred_output": []}, "input must be an object"),
    (
        {"input": {"messages": [user("q")]}, "preferred_output": "a", "non_preferred_output": [assistant("b")]},
        "preferred_output must be a list",
    ),
    ({"question": "q", "solution": "a"}, "found the columns question, solution, expected one of: messages; "),
    ({}, r"\(none\)"),
]


@pytest.mark.parametrize(("row", "reason"), UNUSABLE)
def test_a_row_that_cannot_be_used_is_told_with_its_line(tmp_path: Path, row: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as raised:
        read_examples(write(tmp_path, row))
    assert "rows.jsonl:1:" in str(raised.value)
    good = {"prompt": "q"}
    if not {"messages", "completion", "chosen", "input"} & set(row):
        examples = read_examples(write(tmp_path, good, row, good), on_error="skip")
        assert [example.id for example in examples.rows] == ["rows.jsonl:1", "rows.jsonl:3"]
        assert [problem.line for problem in examples.problems] == [2]


def test_stopping_tells_a_reason_once_with_its_first_lines_and_the_total(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        read_examples(write(tmp_path, {"prompt": "q"}, *[{"question": "q"}] * 7, {"prompt": 3}))
    message = str(raised.value)
    assert "8 of 9 rows cannot be used" in message and len(message.splitlines()) == 3
    assert "rows.jsonl:2, 3, 4, 5, 6 and 2 more: found the columns question" in message
    assert message.count("found the columns") == 1 and "rows.jsonl:9: prompt must be" in message


def test_stopping_shows_the_first_five_reasons(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        read_examples(write(tmp_path, {"prompt": "q"}, *[{f"column {number}": "q"} for number in range(7)]))
    message = str(raised.value)
    assert "7 of 8 rows cannot be used" in message and message.endswith("and 2 more")
    assert [f"rows.jsonl:{line}:" in message for line in (1, 2, 6, 7)] == [False, True, True, False]


def test_columns_of_no_format_are_told_with_the_formats_most_like_them(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"expected one of: prompt \+ chosen \+ rejected; .* others; where only"
    ) as raised:
        read_examples(write(tmp_path, {"prompt_": "q", "chosen": "a", "rejecte": "b"}))
    assert len(str(raised.value)) < 600


def test_all_rows_of_a_file_share_one_format(tmp_path: Path) -> None:
    rows = {"prompt": "q", "completion": "a"}, {"prompt": "q"}, {"prompt": "r", "completion": "a"}
    with pytest.raises(
        DataError, match=r"rows.jsonl:2: is in format prompt because it lacks completion, .* prompt-completion"
    ):
        read_examples(write(tmp_path, *rows))
    assert len(read_examples(write(tmp_path, *rows), on_error="skip")) == 2


def test_another_kind_than_asked_for_names_the_columns_expected(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "q"})
    with pytest.raises(
        DataError, match=r"is one of tasks \(prompt\), expected preferences: columns .*prompt \+ chosen"
    ):
        read_examples(path, kind="preferences", on_error="skip")
    with pytest.raises(DataError, match="messages ending with user"):
        read_examples(write(tmp_path, {"messages": CHAT}), kind="tasks")


def test_a_file_without_one_usable_row_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 of 2 rows"):
        read_examples(write(tmp_path, "{", "x"), on_error="skip")


def test_one_row_and_duplicate_ids_and_a_truncated_last_line(tmp_path: Path) -> None:
    assert len(read_examples(write(tmp_path, {"prompt": "q"}))) == 1
    path = write(tmp_path, {"prompt": "q", "id": 1}, {"prompt": "r", "id": 1}, '{"prompt": "s')
    twins = read_examples(path, on_error="skip")
    assert [row.id for row in twins.rows] == ["rows.jsonl:1", "rows.jsonl:2"]
    assert [row.item for row in twins.rows] == [{"id": 1}, {"id": 1}]
    assert "cut short" in str(twins.problems[0])


def test_unknown_settings_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "q"})
    with pytest.raises(ConfigError, match="rank"):
        read_examples(path, kind="rank")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="ignore"):
        read_examples(path, on_error="ignore")  # type: ignore[arg-type]


def test_the_fingerprint_is_of_content_and_order_not_of_names() -> None:
    a, b = Task("a", {"x": 1, "y": (1, 2)}, id="one.jsonl:1"), Task("b")
    assert fingerprint([a, b]) == fingerprint([Task("a", {"y": [1, 2], "x": 1}, id="two.jsonl:9"), b])
    changed = [[b, a], [a], [a, a, b], [replace(a, group="g"), b], [replace(a, item={"x": 1}), b], []]
    assert len({fingerprint(rows) for rows in [[a, b], *changed]}) == 7
    assert fingerprint([Task("a")]) != fingerprint([Demonstration("a")])
    assert len(fingerprint([])) == 64
    shown = [Task(SlateRequest(candidates=(Item(name, {"price": 1.0}),))) for name in "ab"]
    assert fingerprint(shown[:1]) != fingerprint(shown[1:])  # items are told apart by their ids alone
