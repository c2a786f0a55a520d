"""an output passes that passes every criterion; what could not be graded neither passes nor fails, and is in no mean"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.errors import GraderError
from melior.evaluation.criteria import counts_by_criterion, counts_of, criteria_of, evaluation_of, status_of
from melior.evaluation.evaluate import REWARD

SAME: dict[str, Any] = {"type": "string_check", "name": "same", "operation": "eq"}
SAME |= {"input": "{{sample.output_text}}", "reference": "{{item.word}}"}
LONG: dict[str, Any] = {"type": "python", "name": "long", "source": "def grade(sample, item):\n    return 1.0"}
ALIKE: dict[str, Any] = {**SAME, "type": "text_similarity", "name": "alike", "evaluation_metric": "gleu"}
ALIKE.pop("operation")
SCORE: dict[str, Any] = {"type": "score_model", "name": "score", "model": "judge", "range": [1, 5]}
SCORE |= {"input": [{"role": "user", "content": "{{sample.output_text}}"}]}
BOTH: dict[str, Any] = {"type": "multi", "name": "both", "graders": {"a": SAME, "b": LONG}, "calculate_output": "a * b"}

values = st.none() | st.floats(-1, 2)
outputs = st.lists(st.fixed_dictionaries({"same": st.sampled_from([None, 0.0, 1.0]), "long": values}), min_size=1)


@pytest.mark.parametrize(
    ("spec", "threshold"),
    [
        (SAME, 1.0),
        (LONG, 0.5),
        ({**LONG, "pass_threshold": 3}, 3.0),
        ({**ALIKE, "pass_threshold": 0.9}, 0.9),
        (SCORE, 3.0),
        ({**SCORE, "pass_threshold": 4}, 4.0),
        (BOTH, 0.5),
        ({**BOTH, "pass_threshold": 0}, 0.0),
    ],
)
def test_from_where_on_an_output_passes(spec: dict[str, Any], threshold: float) -> None:
    (one,) = criteria_of([spec])
    assert one.threshold == threshold and one.passes(threshold)
    assert not one.passes(threshold - 1e-9) and not one.passes(None)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (ALIKE, "give pass_threshold"),
        ({"type": "events", "points": {"click": 1}}, "give pass_threshold"),
        ({**LONG, "pass_threshold": "high"}, "is a number"),
        ({**SAME, "operation": "is"}, "no operation"),
        ({}, "unknown grader type None"),
    ],
)
def test_what_no_criterion_can_be(spec: dict[str, Any], told: str) -> None:
    with pytest.raises(GraderError, match=told):
        criteria_of([spec])


def test_criteria_of_one_name_are_told_apart() -> None:
    assert [one.name for one in criteria_of([SAME, LONG, SAME, SAME])] == ["same", "long", "same (2)", "same (3)"]


@given(outputs)
def test_every_output_is_counted_once(found: list[dict[str, float | None]]) -> None:
    criteria = criteria_of([SAME, LONG])
    counts = counts_of(found, criteria)
    assert counts["total"] == len(found) == counts["passed"] + counts["failed"] + counts["errored"]
    for told, one in zip(counts_by_criterion(found, criteria), criteria, strict=True):
        assert told["passed"] + told["failed"] + told["errored"] == len(found)
        assert told["passed"] >= counts["passed"] and told["errored"] <= counts["errored"]
        assert (told["mean_score"] is None) == all(output[one.name] is None for output in found)
    assert counts["errored"] == sum(None in output.values() for output in found)


@given(outputs)
def test_the_reward_is_the_share_that_passes_of_what_could_be_graded(found: list[dict[str, float | None]]) -> None:
    criteria = criteria_of([SAME, LONG])
    named = [(f"item{number}", output) for number, output in enumerate(found)]
    statuses = [status_of(output, criteria) for output in found]
    graded = [status for status in statuses if status != "error"]
    if not graded:
        with pytest.raises(GraderError, match="could not be graded"):
            evaluation_of(named, criteria, grader="evals")
        return
    evaluation = evaluation_of(named, criteria, grader="evals")
    assert evaluation.reward.estimate == pytest.approx(graded.count("pass") / len(graded))
    assert len(evaluation.missing) == statuses.count("error") == evaluation.excluded
    assert set(evaluation.values[REWARD]) | set(evaluation.missing) == set(evaluation.items)
    assert evaluation_of(named[::-1], criteria, grader="evals").fingerprint == evaluation.fingerprint
