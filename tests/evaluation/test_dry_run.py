"""a dry run counts every output once and warns of what would spoil a training run"""

from __future__ import annotations

import json

import pytest

from melior.errors import DataError
from melior.evaluation.dry_run import DryRun, Graded, dry_run
from melior.rewards.base import failed
from melior.types import Record, Score


def run(*scores: Score | float | None, labels: list[float] | None = None, each: int = 1, **more: float) -> DryRun:
    """Outputs with these scores, `each` to a row."""
    made = [score if isinstance(score, Score) else Score(value=score, seconds=0.01) for score in scores]
    given = labels or [None] * len(made)
    return dry_run(
        "g",
        [
            Graded(f"rows:{index // each}", Record(inputs="q", output=str(index)), score, label)
            for index, (score, label) in enumerate(zip(made, given, strict=True))
        ],
        threshold=more.get("threshold"),
    )


def test_every_output_is_graded_failed_or_not_applicable() -> None:
    found = run(1.0, None, failed("g", "bad"), 0.5, failed("g", "bad"))
    assert (found.outputs, found.graded, found.nulls) == (5, 2, 1)
    assert found.failed.estimate == pytest.approx(0.4) and sum(failure.count for failure in found.failures) == 2
    assert found.reward is not None and found.reward.estimate == 0.75
    assert sum(count for _, _, count in found.histogram) == 2
    assert json.loads(json.dumps(found.to_json()))["nulls"] == 1


def test_errors_of_one_kind_are_told_once_by_the_first() -> None:
    errors = [
        failed("g", "g raised KeyError: 'a'", "trace a", "python_grader_runtime_error"),
        failed("g", "row 17 is too long"),
        failed("g", "g raised KeyError: 'b'", "trace b", "python_grader_runtime_error"),
        failed("g", "row 4.5 is too long"),
        failed("g", "g raised KeyError: 'c'", "trace c", "python_grader_runtime_error"),
    ]
    first, second = run(1.0, *errors).failures
    assert (first.count, first.id, first.error, first.traceback) == (3, "rows:1", errors[0].error, "trace a")
    assert (second.count, second.id, second.error) == (2, "rows:2", "row 17 is too long")


def test_quantiles_bars_and_the_share_that_passes() -> None:
    found = run(*[index / 100 for index in range(101)], threshold=0.75)
    assert found.quantiles["p0"] == 0 and found.quantiles["p50"] == 0.5 and found.quantiles["p100"] == 1
    assert len(found.histogram) == 10 and found.histogram[0][:2] == (0.0, pytest.approx(0.1))
    assert found.passing == pytest.approx(26 / 101) and found.positive == pytest.approx(100 / 101)
    few = run(0.0, 1.0, 1.0)
    assert few.histogram == ((0.0, 0.0, 1), (1.0, 1.0, 2)) and few.passing is None


def test_groups_whose_rewards_are_equal_are_counted() -> None:
    found = run(0.0, 0.0, 1.0, 1.0, 0.0, 1.0, each=2)
    assert (found.groups, found.flat_groups, found.rows) == (3, 2, 3)
    assert any("2 of 3 rows all outputs get the same reward" in warning for warning in found.warnings)
    assert run(0.0, 1.0).groups == 0
    one_failed = run(0.0, failed("g", "bad"), 1.0, 0.0, each=2)
    assert (one_failed.groups, one_failed.flat_groups) == (1, 0)


def test_the_slowest_calls_are_named() -> None:
    scores = [Score(value=float(index), seconds=float(seconds)) for index, seconds in enumerate([1, 9, 2, 3])]
    found = run(*scores)
    assert found.slowest[0] == ("rows:1", 9.0) and found.seconds["max"] == 9.0 and found.seconds["p50"] == 2.5


def test_parts_are_told_with_their_say() -> None:
    scores = [Score(value=float(i), parts={"same": 1.0, "all": float(i), "against": -float(i)}) for i in range(5)]
    same, whole, against = run(*scores).parts
    assert (same.name, same.deviation, same.correlation) == ("same", 0.0, None)
    assert whole.correlation == pytest.approx(1.0) and against.correlation == pytest.approx(-1.0)
    assert any("part same says the same" in warning for warning in run(*scores).warnings)


def test_examples_from_both_ends() -> None:
    found = run(0.2, 0.9, 0.1, 0.5, 0.7, 0.6, 0.3)
    assert [shown.reward for shown in found.lowest] == [0.1, 0.2, 0.3]
    assert [shown.reward for shown in found.highest] == [0.9, 0.7, 0.6]
    assert run(1.0, 1.0).highest == ()  # they would be the lowest again


def test_labels_are_agreed_with() -> None:
    found = run(0.1, 0.2, 0.8, 0.9, failed("g", "bad"), labels=[0.0, 0.0, 1.0, 1.0, 1.0])
    assert found.agreement is not None and found.agreement.rows == 4 and found.agreement.auc is not None
    assert run(0.1, 0.2).agreement is None


def test_labels_that_nothing_can_agree_with_spoil_no_report() -> None:
    found = run(0.1, 0.2, 0.9, labels=[1.0, 1.0, 1.0])
    assert found.agreement is None and found.reward is not None and found.graded == 3
    assert any("no agreement with labels: all 3 labels are 1" in warning for warning in found.warnings)
    one = run(0.1, failed("g", "bad"), labels=[1.0, 0.0])
    assert one.agreement is None and any("1 scores and 1 labels" in warning for warning in one.warnings)


@pytest.mark.parametrize("labels", [[0.0, 1.0], [1.0, 5.0]], ids=["yes or no", "ratings"])
def test_rewards_against_the_labels_are_told_apart_from_chance(labels: list[float]) -> None:
    rewards = [index / 40 for index in range(40)]
    bad, good = [labels[index < 20] for index in range(40)], [labels[index >= 20] for index in range(40)]
    chance = [labels[index % 2] for index in range(40)]
    assert any("go against the labels" in warning for warning in run(*rewards, labels=bad).warnings)
    assert any("no better than chance" in warning for warning in run(*rewards, labels=chance).warnings)
    assert not any("labels" in warning for warning in run(*rewards, labels=good).warnings)


@pytest.mark.parametrize(
    ("scores", "warning"),
    [
        ([0.0] * 5, "every one of 5 rewards is 0: it may read the wrong column"),
        ([1.0] * 5, "every one of 5 rewards is 1"),
        ([0.0] * 39 + [1.0], "only 2.5% of rewards are above 0"),
        ([1.0] * 39 + [0.9], "is 1.00 already"),
        ([failed("g", "bad")] * 3, "no reward for any of 3 outputs"),
        ([0.1, 0.9, failed("g", "bad")], "33.3% of calls fail, first at row rows:2"),
        ([0.1, 0.9, None], "does not apply to 1 of 3"),
    ],
)
def test_what_would_spoil_a_run_is_warned_of(scores: list[Score | float | None], warning: str) -> None:
    assert any(warning in told for told in run(*scores).warnings), run(*scores).warnings


def test_a_good_grader_is_not_warned_of() -> None:
    assert run(0.1, 0.9, 0.5, 0.4, 0.8, 0.2, each=2).warnings == ()


def test_no_outputs_are_refused() -> None:
    with pytest.raises(DataError, match="0 outputs"):
        dry_run("g", [])
