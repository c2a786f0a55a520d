"""settings become graders; a grader gives one finite number, or says why not"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from melior.errors import GraderError
from melior.rewards.base import FailureLimit, call_grader, failed
from melior.rewards.functions import reference_of
from melior.rewards.graders import load_grader
from melior.types import Record, Score

FAULTY = str(Path(__file__).with_name("faulty.py"))


def grade(spec: Any, output: Any = "four", inputs: Any = "q", **item: Any) -> Score:
    return call_grader(load_grader(spec), Record(inputs=inputs, output=output, item=item, decisions=(7, 8)))


def check(operation: str, reference: str = "{{item.answer}}") -> dict[str, str]:
    return {
        "type": "string_check",
        "name": "exact",
        "operation": operation,
        "input": "{{sample.output_text}}",
        "reference": reference,
    }


@pytest.mark.parametrize(
    ("operation", "output", "answer", "value"),
    [
        ("eq", "4", "4", 1.0),
        ("eq", "4", 4, 1.0),
        ("eq", "4 ", "4", 0.0),
        ("ne", "4", "5", 1.0),
        ("ne", "4", "4", 0.0),
        ("like", "It is Paris.", "Paris", 1.0),
        ("like", "It is paris.", "Paris", 0.0),
        ("like", "Par", "Paris", 0.0),
        ("ilike", "It is paris.", "PARIS", 1.0),
        ("ilike", "Strasse", "STRAßE", 1.0),
        ("ilike", "Rome", "paris", 0.0),
    ],
)
def test_string_check(operation: str, output: str, answer: Any, value: float) -> None:
    score = grade(check(operation), output, answer=answer)
    assert (score.value, score.error, score.name) == (value, "", "exact")


def test_string_check_without_its_column_fails() -> None:
    score = grade(check("eq"), "4", solution="4")
    assert score.value is None and "found ['solution']" in score.error


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"type": "string_chek"}, "did you mean 'string_check'"),
        ({"name": "x"}, "unknown grader type None"),
        ({**check("eq"), "referense": "x"}, "did you mean 'reference'"),
        ({"type": "string_check", "operation": "eq", "input": "x"}, "needs the key 'reference'"),
        (check("equals"), "has no operation 'equals'"),
        (check("iliek"), "did you mean 'ilike'"),
        (check("eq", "{{ other.x }}"), "must start with item or sample"),
        ({**check("eq"), "input": 4}, "needs a string as 'input'"),
        ({**check("eq"), "name": 4}, "name of a grader is a string"),
        ({"type": "function", "function": 4}, "module:function"),
        ({"type": "reasoning_gym", "dataset": ""}, "name of a data set"),
        ({"type": "weighted", "graders": {}}, "at least one name"),
        ({"type": "weighted", "graders": {"a": {"grader": "m:f"}}}, "exactly the keys"),
        ({"type": "weighted", "graders": {"a": {"grader": "m:f", "weight": True}}}, "finite number"),
        ({"type": "weighted", "graders": {"a": {"grader": "m:f", "weight": float("nan")}}}, "finite number"),
        ({"type": "weighted", "graders": {"a": {"grader": {"type": "x"}, "weight": 1}}}, "unknown grader type 'x'"),
        ("just_a_name", "module:function"),
        ("module:", "module:function"),
        ("module:a b", "module:function"),
        (4, "not int"),
    ],
)
def test_settings_that_make_no_grader_are_refused(spec: Any, reason: str) -> None:
    with pytest.raises(GraderError, match=reason):
        load_grader(spec)


@pytest.mark.parametrize("value", ["true", "int"])
def test_booleans_and_integers_are_numbers(value: str) -> None:
    assert grade(FAULTY + ":returns", value=value).value == {"true": 1.0, "int": 3.0}[value]


def test_numbers_of_numpy_are_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    for value in (numpy.float32(0.5), numpy.bool_(True), numpy.int64(2), numpy.array(3.0)):
        assert grade(lambda sample, item, value=value: value).value == float(value)
    assert "one finite number" in grade(lambda sample, item: numpy.zeros(2)).error
    assert grade(lambda completions, **columns: numpy.array([0.5])).value == 0.5


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "huge", "string", "list", "complex"])
def test_what_is_no_finite_number_fails(value: str) -> None:
    score = grade(FAULTY + ":returns", value=value)
    assert score.value is None and score.error.startswith("returns returned")


@pytest.mark.parametrize("value", ["two", "empty", "number", "string", "none", "[nan]", "dict"])
def test_what_is_no_list_of_one_number_fails(value: str) -> None:
    score = grade(FAULTY + ":trl_returns", value=value)
    assert score.value is None and score.error.startswith("trl_returns returned")


def test_none_means_that_the_grader_does_not_apply() -> None:
    for score in (grade(FAULTY + ":returns", value="none"), grade(FAULTY + ":trl_returns", value="[none]")):
        assert (score.value, score.error) == (None, "")


def test_trl_functions_get_lists_of_one_by_their_names() -> None:
    seen: dict[str, Any] = {}

    def everything(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        columns["log_metric"]("name", 1.0)
        seen.update(columns, prompts=prompts, completions=completions)
        return [0.5]

    assert grade(everything, answer="4").value == 0.5
    assert (seen["prompts"], seen["completions"], seen["answer"]) == (["q"], ["four"], ["4"])
    assert seen["completion_ids"] == [[7, 8]]
    chat = [{"role": "user", "content": "q"}]
    grade(everything, inputs=chat, completions="a column of this name does not win")
    assert (seen["prompts"], seen["completions"]) == ([chat], [[{"role": "assistant", "content": "four"}]])
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    looked = [call, {"role": "tool", "content": "4"}, {"role": "assistant", "content": "four"}]
    for output, messages in (
        (call, [call]),
        (looked, looked),
        (["x", 1], [{"role": "assistant", "content": '["x", 1]'}]),
    ):
        grade(everything, output, inputs=chat)
        assert seen["completions"] == [messages]

    def few(completions: list[str], answer: list[str]) -> list[float]:
        return [float(completions == answer)]

    assert grade(few, "4", answer="4", other=1).value == 1.0
    assert "missing 1 required" in grade(few, "4").error

    async def later(completions: list[str], **columns: Any) -> list[float]:
        return [2.0]

    assert grade(later).value == 2.0


def test_a_weighted_sum_reports_its_parts() -> None:
    spec = {
        "type": "weighted",
        "name": "both",
        "graders": {
            "exact": {"grader": check("eq"), "weight": 2},
            "length": {"grader": FAULTY + ":length", "weight": -0.25},
        },
    }
    score = grade(spec, "four", answer="four")
    assert (score.name, score.value, score.parts) == ("both", 1.0, {"exact": 1.0, "length": 4.0})
    rebuilt = load_grader(json.loads(json.dumps(load_grader(spec).spec)))
    assert rebuilt == load_grader(spec)


def test_a_part_that_fails_fails_the_sum_and_one_that_does_not_apply_is_left_out() -> None:
    parts = {
        "length": {"grader": FAULTY + ":length", "weight": 1},
        "odd": {"grader": FAULTY + ":returns", "weight": 1},
    }
    spec = {"type": "weighted", "graders": parts}
    broken = grade(spec, value="nan")
    assert broken.value is None and broken.error.startswith("part odd: returns returned nan")
    assert broken.parts == {"length": 4.0}
    raised = grade(spec, value="no such value")
    assert raised.value is None and "KeyError" in raised.error and "faulty.py" in raised.traceback
    assert grade(spec, value="none").value == 4.0
    assert grade(spec, value="int").value == 7.0


def test_reasoning_gym_needs_a_task_of_its_data_set() -> None:
    pytest.importorskip("reasoning_gym")
    spec = {"type": "reasoning_gym", "dataset": "chain_sum"}
    item = {"answer": "4", "metadata": {}, "dataset": "chain_sum", "config": {}}
    assert grade(spec, " 4\n", **item).value == 1.0
    assert grade(spec, "5", **item).value == 0.0
    assert "reasoning_tasks()" in grade(spec, "4", answer="4").error
    assert "verifies chain_sum" in grade(spec, "4", **{**item, "dataset": "lcm"}).error


def test_functions_are_found_by_module_and_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "my_reward.py"
    path.write_text("class Kind:\n    @staticmethod\n    def grade(sample, item):\n        return 7\nnumber = 3\n")
    assert grade(f"{path}:Kind.grade").value == 7.0
    assert "has no function 'none'" in grade(f"{path}:none").error
    assert "not a function" in grade(f"{path}:number").error
    assert "does not exist" in grade(f"{tmp_path}/other.py:f").error
    assert "ModuleNotFoundError" in grade("no_such_module_here:f").error
    monkeypatch.syspath_prepend(tmp_path)
    assert grade("my_reward:Kind.grade").value == 7.0


def test_only_functions_that_another_process_finds_have_a_reference() -> None:
    assert reference_of(json.dumps) == "json:dumps"
    assert reference_of(importlib.import_module) == "importlib:import_module"
    assert reference_of(lambda sample, item: 1) is None
    assert reference_of(grade(check("eq")).__eq__) is None
    assert reference_of(json.JSONEncoder().encode) is None
    assert reference_of(module_level) in {f"{__file__}:module_level", f"{__name__}:module_level"}
    assert sys.modules[__name__] is not None and load_grader(module_level).spec is not None


def module_level(sample: dict[str, Any], item: dict[str, Any]) -> float:
    return 1.0


def scores(failures: int, total: int) -> list[Score]:
    bad = [failed("f", f"failure {number}", f"trace {number}") for number in range(failures)]
    return bad + [Score(value=1.0)] * (total - failures)


def test_a_grader_that_always_fails_stops_the_first_step_with_its_name_and_first_traceback() -> None:
    for step in (8, 16, 64):
        with pytest.raises(GraderError, match=rf"(?s)grader f failed on {step} of {step} calls.*failure 0.*trace 0$"):
            FailureLimit("f").add(scores(step, step))


def test_failures_of_a_tenth_never_stop_a_run_even_when_they_come_by_chance() -> None:
    import random

    for seed in range(300):
        chance, limit = random.Random(seed), FailureLimit("f")
        for _ in range(50):
            limit.add([failed("f", "bad") if chance.random() < 0.1 else Score(value=0.0) for _ in range(16)])
        assert limit.calls == 800 and 0 < limit.failures < 160
    limit = FailureLimit("f")
    for _ in range(100):
        limit.add(scores(2, 20))


def test_failures_above_the_share_stop_a_run_soon() -> None:
    for share, steps in ((0.5, 4), (0.8, 2)):
        limit = FailureLimit("f")
        with pytest.raises(GraderError, match="limit 20%"):
            for _ in range(steps):
                limit.add(scores(round(16 * share), 16))


def test_what_does_not_apply_and_what_is_too_little_to_tell_do_not_stop_a_run() -> None:
    limit = FailureLimit("f")
    limit.add([Score(value=None)] * 100)
    assert (limit.calls, limit.failures) == (100, 0)
    FailureLimit("f").add(scores(7, 7))
