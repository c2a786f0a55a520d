"""melior grade tells what a grader does on rows of every kind, and the page on graders tells the truth"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from melior.cli.grade import _duration
from melior.cli.main import app

GRADERS = """
def length(sample, item):
    return len(sample["output_text"]) / 10

def picky(sample, item):
    if "crash" in sample["output_text"]:
        raise KeyError("answer")
    return None if "skip" in sample["output_text"] else 1.0

def nothing(sample, item):
    return 0.0

def broken(sample, item):
    raise ValueError("no")
"""
EXACT = {"type": "string_check", "operation": "eq", "input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
DATA = Path(os.environ.get("MELIOR_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with graders; MELIOR_HOME inside it."""
    (tmp_path / "graders.py").write_text(GRADERS)
    (tmp_path / "exact.json").write_text(json.dumps(EXACT))
    monkeypatch.setenv("MELIOR_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: Any, code: int = 0) -> Any:
    """The result of a command that must end with the given exit status."""
    result = CliRunner().invoke(app, ["grade", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.stderr
    return result


def told(*arguments: Any, code: int = 0) -> dict[str, Any]:
    return dict(json.loads(call(*arguments, "--json", code=code).stdout))


def test_rated_rows_bring_outputs_and_labels(place: Path) -> None:
    texts = ["a", "bb", "ccc", "dddd"]
    rows = write(place / "rated.jsonl", *[{"prompt": "q", "completion": t, "label": len(t) > 2} for t in texts])
    found = told("graders.py:length", rows)
    assert found["outputs"] == 4 and found["reward"]["estimate"] == pytest.approx(0.25)
    assert found["agreement"]["auc"]["estimate"] == 1.0 and found["agreement"]["threshold"] == pytest.approx(0.3)
    assert [shown["output"] for shown in found["lowest"]] == ["a", "bb", "ccc"]
    assert found["highest"][0]["label"] == 1.0


def test_preferences_are_two_outputs_and_which_was_chosen(place: Path) -> None:
    pairs = [{"prompt": "q", "chosen": "long answer", "rejected": "short"}] * 3
    found = told("graders.py:length", write(place / "pairs.jsonl", *pairs))
    assert (found["rows"], found["outputs"], found["groups"], found["flat_groups"]) == (3, 6, 3, 0)
    assert found["agreement"]["auc"]["estimate"] == 1.0


def test_a_tie_prefers_neither_output(place: Path) -> None:
    pair = {"prompt": "q", "chosen": "long answer", "rejected": "short"}
    rows = [{**pair, "probability": share} for share in (1.0, 0.7, 0.5)]
    turned = {"prompt": "q", "chosen": "short", "rejected": "long answer", "probability": 0.2}
    found = told("graders.py:length", write(place / "pairs.jsonl", *rows, turned))
    assert (found["outputs"], found["agreement"]["rows"]) == (8, 6) and found["agreement"]["auc"]["estimate"] == 1.0


def test_demonstrations_are_graded_as_they_stand(place: Path) -> None:
    call_tool = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    rows = write(
        place / "tools.jsonl",
        {"messages": [{"role": "user", "content": "q"}, call_tool]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "four"}]},
    )
    grader = {**EXACT, "input": "{{sample.output_tools[0].function.name}}", "reference": "f"}
    found = told(json.dumps(grader), rows)
    assert found["histogram"] == [[0.0, 0.0, 1], [1.0, 1.0, 1]] and not found["failures"]
    assert "output_tools" in found["lowest"][0]["reason"]


def test_any_column_can_hold_the_output_or_several(place: Path) -> None:
    rows = write(
        place / "rows.jsonl",
        {"question": "2 + 2", "answer": "4", "tries": ["4", "5", "4"], "ok": "yes"},
        {"question": "2 + 3", "answer": "5", "tries": ["4", "4"], "ok": "no"},
    )
    found = told("exact.json", rows, "--output-column", "tries", "--label-column", "ok")
    assert (found["rows"], found["outputs"], found["groups"], found["flat_groups"]) == (2, 5, 2, 1)
    assert found["reward"]["estimate"] == pytest.approx(1 / 3) and found["agreement"]["rows"] == 5
    assert told("exact.json", rows, "--output-column", "answer", "--limit", "1")["outputs"] == 1


def test_each_of_several_outputs_may_have_its_own_label(place: Path) -> None:
    rows = write(
        place / "rows.jsonl",
        {"answer": "4", "tries": ["4", "5"], "ok": [True, False]},
        {"answer": "5", "tries": ["4", "5"], "ok": ["no", "yes"]},
    )
    found = told("exact.json", rows, "--output-column", "tries", "--label-column", "ok")
    assert found["agreement"]["rows"] == 4 and found["agreement"]["accuracy"]["estimate"] == 1.0
    write(rows, {"answer": "4", "tries": ["4", "5"], "ok": [True]})
    error = call("exact.json", rows, "--output-column", "tries", "--label-column", "ok", code=1).stderr
    assert "rows.jsonl:1 has 1 labels in 'ok' for 2 outputs" in error
    write(rows, {"answer": "4", "tries": "4", "ok": "perhaps"})
    error = call("exact.json", rows, "--output-column", "tries", "--label-column", "ok", code=1).stderr
    assert "rows.jsonl:1: a label is 'perhaps'" in error


def test_rows_beyond_the_limit_are_not_left_out_without_a_word(place: Path) -> None:
    rows = write(place / "rows.jsonl", *[{"prompt": "q", "completion": "x" * n} for n in range(1, 5)])
    assert "--limit 3 was reached" in call("graders.py:length", rows, "--limit", 3).stderr
    assert "limit" not in call("graders.py:length", rows, "--limit", 5).stderr
    with rows.open("a") as file:
        file.write("{\n")
    call("graders.py:length", rows, "--limit", 4)  # what comes after is not even read
    assert "rows.jsonl, line 5" in call("graders.py:length", rows, "--limit", 5, code=1).stderr


def test_rewards_that_tell_nothing_apart_show_no_odd_numbers(place: Path) -> None:
    rated = [{"prompt": "q", "completion": "x", "label": n == 0} for n in range(3)]
    shown = call("graders.py:nothing", write(place / "rows.jsonl", *rated)).stdout
    assert "all rewards are equal" in shown and "where no output counts as good" in shown
    assert "nan" not in shown and "inf" not in shown


def test_names_that_a_reward_function_made_up_do_not_steer_the_terminal(place: Path) -> None:
    (place / "reward.py").write_text(
        "def lambda_handler(event, context):\n"
        "    length, metric = len(event[0]['messages'][-1]['content']), {'name': '\\x1b[31mred', 'value': 1}\n"
        "    return [{'id': event[0]['id'], 'aggregate_reward_score': length, 'metrics_list': [metric]}]\n"
    )
    rows = write(place / "rows.jsonl", *[{"prompt": "q", "completion": text} for text in ("x", "xx")])
    result = call('{"type": "lambda", "function": "reward.py"}', rows)
    assert "[31mred" in result.stdout and "[31mred says the same of every output" in result.stderr
    assert "\x1b" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00018, "0.18 ms"), (0.0042, "4.2 ms"), (0.123, "123 ms"), (1.5, "1.5 s"), (62.0, "62 s"), (1234.0, "1,234 s")],
)
def test_durations_are_plain_numbers(seconds: float, text: str) -> None:
    assert _duration(seconds) == text


def test_tasks_with_a_completion_column_and_without_one(place: Path) -> None:
    rows = write(
        place / "tasks.jsonl", {"messages": [{"role": "user", "content": "q"}], "completion": "4", "answer": "4"}
    )
    assert told("exact.json", rows)["reward"]["estimate"] == 1.0
    bare = write(place / "bare.jsonl", {"prompt": "q", "answer": "4"})
    error = call("exact.json", bare, code=1).stderr
    assert "without outputs" in error and "--output-column (columns: answer)" in error and "--model" in error


def test_outputs_are_sampled_from_a_model(place: Path, folder_of: Callable[..., Path]) -> None:
    rows = write(place / "tasks.jsonl", *[{"prompt": f"say {i}", "answer": "4"} for i in range(3)])
    found = told("graders.py:length", rows, "--model", folder_of("llama"), "--n", 3, "--max-tokens", 5)
    assert (found["rows"], found["outputs"], found["groups"]) == (3, 9, 3)
    again = told("graders.py:length", rows, "--model", folder_of("llama"), "--n", 3, "--max-tokens", 5)
    assert again["reward"] == found["reward"]


def test_failures_and_what_does_not_apply_are_told_apart(place: Path) -> None:
    texts = ["fine", "crash 1", "skip", "crash 2", "fine"]
    rows = write(place / "rows.jsonl", *[{"prompt": "q", "completion": text, "label": True} for text in texts])
    write(place / "both.jsonl", *[{"prompt": "q", "completion": text} for text in texts])
    found = told("graders.py:picky", place / "both.jsonl")
    assert (found["graded"], found["nulls"], len(found["failures"])) == (2, 1, 1)
    failure = found["failures"][0]
    assert (failure["count"], failure["id"], failure["kind"]) == (2, "both.jsonl:2", "python_grader_runtime_error")
    assert "graders.py" in failure["traceback"]
    assert "no agreement with labels: all 2 labels are 1" in call("graders.py:picky", rows).stderr


def test_a_grader_that_says_0_to_all_its_rows_is_warned_of(place: Path) -> None:
    rows = write(place / "rows.jsonl", *[{"prompt": "q", "completion": "x"}] * 2)
    result = call("graders.py:nothing", rows)
    assert "warning: every one of 2 rewards is 0: it may read the wrong column" in result.stderr
    assert "█" in result.stdout and "mean" in result.stdout and "p95" in result.stdout


def test_a_grader_that_always_fails_ends_with_1_and_its_report(place: Path) -> None:
    rows = write(place / "rows.jsonl", {"prompt": "q", "completion": "x"})
    result = call("graders.py:broken", rows, code=1)
    assert "broken raised ValueError: no" in result.stdout and "gave no reward for any of 1" in result.stderr


def test_parts_and_the_share_that_passes(place: Path) -> None:
    pytest.importorskip("rapidfuzz")
    rows = write(place / "rows.jsonl", {"prompt": "q", "completion": "abcd", "answer": "abcd"})
    like = {**{k: EXACT[k] for k in ("input", "reference")}, "type": "text_similarity", "pass_threshold": 0.5}
    multi = {"type": "multi", "graders": {"a": EXACT, "b": {**like, "evaluation_metric": "fuzzy_match"}}}
    (place / "multi.yaml").write_text(json.dumps({**multi, "calculate_output": "a + b"}))
    found = told("multi.yaml", rows)
    assert [(part["name"], part["mean"]) for part in found["parts"]] == [("a", 1.0), ("b", 1.0)]
    assert told(json.dumps({**like, "evaluation_metric": "fuzzy_match"}), rows)["passing"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("missing.json", "rows.jsonl"), "the grader file missing.json cannot be read"),
        (("graders.py:lenght", "rows.jsonl"), "has no function 'lenght'"),
        (('{"type": "string_chek"}', "rows.jsonl"), "did you mean 'string_check'"),
        (("exact.json", "missing.jsonl"), "missing.jsonl"),
        (("exact.json", "rows.jsonl", "--output-column", "out"), "rows.jsonl:1 has no column 'out'; its columns are"),
        (("exact.json", "rows.jsonl", "--label-column", "ok"), "no column 'ok' for a label"),
        (("exact.json", "rows.jsonl", "--output-column", "x", "--model", "m"), "one of the two"),
        (("exact.json", "rows.jsonl", "--label-column", "x", "--model", "m"), "leave it out with --model"),
        (("exact.json", "empty.jsonl", "--output-column", "x"), "empty.jsonl:1 has nothing in column 'x'"),
        (("exact.json", "reasoning_gym:chain_sum"), "tasks without outputs"),
        (("exact.json", "rows.jsonl", "--model", "no-such-model"), "There is no model 'no-such-model'"),
        (('{"type": "label_model"}', "rows.jsonl"), "needs the key 'model'"),
    ],
)
def test_mistakes_are_told_in_one_sentence(place: Path, arguments: tuple[str, ...], reason: str) -> None:
    write(place / "empty.jsonl", {"prompt": "q", "x": None})
    write(place / "rows.jsonl", {"prompt": "q", "completion": "x"})
    result = call(*arguments, code=1)
    assert reason in result.stderr.splitlines()[-1], result.stderr
    assert result.stderr.splitlines()[-1].startswith("melior: ")


def test_real_answers_agree_with_themselves(place: Path) -> None:
    if not (DATA / "gsm8k").is_dir():
        pytest.skip("needs the data of MELIOR_DATA")
    grader = {**EXACT, "operation": "like", "reference": "####"}
    found = told(json.dumps(grader), DATA / "gsm8k" / "train.jsonl.gz", "--output-column", "answer", "--limit", 50)
    assert found["outputs"] == 50 and found["reward"]["estimate"] == 1.0 and not found["failures"]


def test_the_page_on_graders_shows_what_is_printed(place: Path) -> None:
    """The example of the page, run: everything but times is as shown."""
    pytest.importorskip("rouge_score")
    page = (Path(__file__).parents[2] / "docs" / "graders.md").read_text()
    blocks = re.findall(r"```(\w*)\n(.*?)```", page, re.DOTALL)
    rows, grader = (text for kind, text in blocks[:2])
    first = [json.loads(line) for line in rows.splitlines()]
    assert json.loads(grader)["type"] == "multi"
    (place / "grader.json").write_text(grader)
    answers = {"Can I return shoes?": "Yes, unworn and within 30 days."}
    answers |= {"Do you ship to Norway?": "Yes, shipping to Norway takes five days."}
    answers |= {"How do I cancel?": "Under Orders, choose your order and press Cancel."}
    others = [
        ("Can I return shoes?", "Yes, within 30 days and unworn.", True),
        ("Can I return shoes?", "Shoes are nice.", False),
        ("Do you ship to Norway?", "Yes, we ship to Norway in five days.", True),
        ("Do you ship to Norway?", "Norway is a country in Europe.", False),
        ("How do I cancel?", "Open Orders, choose the order, press Cancel.", True),
        ("How do I cancel?", "You cannot.", False),
    ]
    more = [{"prompt": q, "completion": a, "label": label, "reference": answers[q]} for q, a, label in others]
    printed = call("grader.json", write(place / "rows.jsonl", *first, *more)).stdout
    shown = next(text for kind, text in blocks if text.startswith("support: 8 outputs"))

    def timeless(text: str) -> list[str]:
        return [line.rstrip() for line in text.splitlines() if not line.startswith("calls")]

    assert timeless(printed) == timeless(shown)


def test_logged_decisions_are_graded_by_what_happened(place: Path) -> None:
    row = {"request": {"viewed": "tent"}, "slate": ["milk", "jam"], "propensities": [0.2, 0.5]}
    write(
        place / "log.jsonl",
        {**row, "events": [{"type": "click", "item": "jam"}]},
        {**row, "events": []},
        {**row, "events": [{"type": "clik", "position": 0}]},
    )
    (place / "events.json").write_text(json.dumps({"type": "events", "points": {"click": 2}}))
    found = told("events.json", "log.jsonl")
    assert (found["outputs"], found["reward"]["estimate"]) == (3, 1.0)
    assert found["failures"][0]["id"] == "log.jsonl:3" and "did you mean 'click'" in found["failures"][0]["error"]
