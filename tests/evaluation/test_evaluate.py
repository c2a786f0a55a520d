"""an evaluation counts what happened, keeps it by item, and survives JSON"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from table_policy import Answers, TablePolicy, tasks_of

from melior.errors import ConfigError, DataError, GraderError
from melior.evaluation.evaluate import Evaluation, evaluate, item_key
from melior.types import Record, Sampling, Score, Task

FOUR = Sampling(n=4, max_tokens=8, seed=1)


def test_every_sample_stands_under_its_item(chances: dict[str, float]) -> None:
    evaluation = evaluate(TablePolicy(chances), tasks_of(chances), Answers(), FOUR)
    assert evaluation.items == tuple(f"id-{text}" for text in chances)
    assert all(len(found) == 4 for found in evaluation.values["reward"].values())
    assert all(len(found) == 1 for found in evaluation.values["greedy"].values())
    assert evaluation.values["reward"]["id-question 0"] == (0.0,) * 4
    assert evaluation.values["reward"]["id-question 39"] == (1.0,) * 4
    assert evaluation.reward.estimate == pytest.approx(
        np.mean([np.mean(found) for found in evaluation.values["reward"].values()])
    )
    assert evaluation.reward.low < 0.5 < evaluation.reward.high
    assert evaluation.greedy is not None and evaluation.greedy.estimate == 0.5
    assert (evaluation.graded, evaluation.excluded, evaluation.missing) == (200, 0, ())
    assert evaluation.tokens == 200 * 3 and evaluation.mean_tokens == 3.0 and evaluation.truncated == 0.0
    assert evaluation.grader == "answers" and evaluation.seconds > 0


def test_it_estimates_the_true_reward() -> None:
    chances = {str(index): 0.3 for index in range(400)}
    evaluation = evaluate(TablePolicy(chances), tasks_of(chances), Answers(), Sampling(n=8))
    assert evaluation.reward.estimate == pytest.approx(0.3, abs=0.03)
    assert evaluation.pass_at[1] == pytest.approx(evaluation.reward.estimate)
    for k, share in evaluation.pass_at.items():
        assert share == pytest.approx(1 - 0.7**k, abs=0.05)
    assert list(evaluation.pass_at) == [1, 2, 4, 8]
    sharper = evaluate(TablePolicy(chances), tasks_of(chances), Answers(), Sampling(n=8, temperature=0.5))
    assert sharper.reward.estimate < 0.2  # the serving temperature reaches the policy


def test_failed_gradings_are_excluded_and_never_zero(chances: dict[str, float]) -> None:
    failing = frozenset(["question 39", "question 38"])
    evaluation = evaluate(TablePolicy(chances), tasks_of(chances), Answers(failing), FOUR)
    assert evaluation.missing == ("id-question 38", "id-question 39")
    assert evaluation.excluded == 10 and evaluation.graded == 190
    assert evaluation.error == "no answer for question 38"
    assert "id-question 39" not in evaluation.values["reward"]
    whole = evaluate(TablePolicy(chances), tasks_of(chances), Answers(), FOUR)
    shared = [np.mean(found) for key, found in whole.values["reward"].items() if key not in evaluation.missing]
    assert evaluation.reward.estimate == pytest.approx(np.mean(shared))


class EveryOther(Answers):
    """Fails on every second record, and returns a number that is none on every fourth."""

    def grade(self, records: Sequence[Record]) -> list[Score]:
        scores = super().grade(records)
        return [
            score if index % 2 == 0 else replace(score, value=None if index % 4 == 1 else math.nan, error="broken")
            for index, score in enumerate(scores)
        ]


def test_an_item_keeps_the_samples_that_were_graded(chances: dict[str, float]) -> None:
    evaluation = evaluate(TablePolicy(chances), tasks_of(chances), EveryOther(), FOUR, greedy=False)
    assert all(len(found) == 2 for found in evaluation.values["reward"].values())
    assert evaluation.missing == () and evaluation.excluded == 80
    assert max(evaluation.pass_at) == 2
    assert evaluation.greedy is None and "greedy" not in evaluation.values


def test_a_grader_that_always_fails_stops_the_evaluation(chances: dict[str, float]) -> None:
    with pytest.raises(GraderError, match="160 of 160 gradings failed, first with: no answer for question 0"):
        evaluate(TablePolicy(chances), tasks_of(chances), Answers(frozenset(chances)), FOUR)


def test_truncated_outputs_are_counted(chances: dict[str, float]) -> None:
    evaluation = evaluate(TablePolicy(chances, length=9), tasks_of(chances), Answers(), FOUR)
    assert evaluation.truncated == 1.0 and evaluation.mean_tokens == 8.0
    assert set(evaluation.values["truncated"]["id-question 3"]) == {1.0}


def test_json_round_trip_is_exact_and_strict(chances: dict[str, float]) -> None:
    for greedy in (True, False):
        evaluation = evaluate(TablePolicy(chances), tasks_of(chances), Answers(), FOUR, greedy=greedy)
        text = json.dumps(evaluation.to_json(), allow_nan=False)
        assert Evaluation.from_json(json.loads(text)) == evaluation
    with pytest.raises(DataError, match="evaluate again"):
        Evaluation.from_json({"items": []})


def test_batches_cover_all_tasks_and_report_progress(chances: dict[str, float]) -> None:
    policy, seen = TablePolicy(chances), []
    evaluation = evaluate(
        policy, tasks_of(chances), Answers(), FOUR, batch=16, progress=lambda done, total: seen.append((done, total))
    )
    assert policy.calls == [16, 16, 8]
    assert seen == [(80, 200), (160, 200), (200, 200)]
    assert evaluation.values == evaluate(TablePolicy(chances), tasks_of(chances), Answers(), FOUR, batch=7).values


def test_same_seed_same_evaluation(chances: dict[str, float]) -> None:
    def values(seed: int) -> object:
        return evaluate(TablePolicy(chances), tasks_of(chances), Answers(), replace(FOUR, seed=seed)).values

    assert values(1) == values(1)
    assert values(1) != values(2)


def test_examples_show_the_output_that_was_graded(chances: dict[str, float]) -> None:
    evaluation = evaluate(TablePolicy(chances), tasks_of(chances), Answers(), FOUR, examples=3)
    assert [example.key for example in evaluation.examples] == ["id-question 0", "id-question 1", "id-question 2"]
    first = evaluation.examples[0]
    assert (first.inputs, first.output, first.value, first.greedy, first.greedy_value) == (
        "question 0",
        "wrong",
        0.0,
        "wrong",
        0.0,
    )


def test_item_keys_depend_on_content_alone() -> None:
    task = Task(inputs=[{"role": "user", "content": "2 + 2"}], item={"answer": 4, "kind": "sum"})
    assert item_key(task) == item_key(replace(task, item={"kind": "sum", "answer": 4}))
    assert item_key(task) != item_key(replace(task, item={"kind": "sum", "answer": 5}))
    assert item_key(replace(task, id="train.jsonl:17")) == "train.jsonl:17"


def test_grouped_tasks_are_clustered() -> None:
    chances = {str(index): float(index < 20) for index in range(40)}
    alone = tasks_of(chances)
    grouped = [replace(task, group="solved" if index < 20 else "unsolved") for index, task in enumerate(alone)]
    narrow = evaluate(TablePolicy(chances), alone, Answers(), FOUR).reward
    wide = evaluate(TablePolicy(chances), grouped, Answers(), FOUR).reward
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)  # two users are two units, not forty


def test_bad_requests_are_refused(chances: dict[str, float]) -> None:
    tasks = tasks_of(chances)
    with pytest.raises(DataError, match="0 tasks"):
        evaluate(TablePolicy(chances), [], Answers(), FOUR)
    with pytest.raises(DataError, match="1 of 41 tasks repeat another's key, first 'id-question 0'"):
        evaluate(TablePolicy(chances), [*tasks, tasks[0]], Answers(), FOUR)
    with pytest.raises(ConfigError, match="got 0"):
        evaluate(TablePolicy(chances), tasks, Answers(), FOUR, batch=0)


class Forgetful(TablePolicy):
    """Loses its last record."""

    def sample(self, inputs: Sequence[object], settings: Sampling) -> list[Record]:
        return super().sample(inputs, settings)[:-1]


class Silent(Answers):
    """Loses its last score."""

    def grade(self, records: Sequence[Record]) -> list[Score]:
        return super().grade(records)[:-1]


def test_lost_records_and_scores_are_noticed(chances: dict[str, float]) -> None:
    with pytest.raises(DataError, match="159 records where 160 were asked for"):
        evaluate(Forgetful(chances), tasks_of(chances), Answers(), FOUR)
    with pytest.raises(GraderError, match="159 scores for 160 records"):
        evaluate(TablePolicy(chances), tasks_of(chances), Silent(), FOUR)
