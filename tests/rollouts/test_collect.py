"""collecting: each output with its own score, grouped by the task it answers"""

from __future__ import annotations

import math

import pytest
from tabular import Reward, Tabular

from melior.rollouts.collect import collect
from melior.types import Sampling, Score, Task

TASKS = [Task("a", item={"answer": 1}), Task("b", item={"answer": 2}), Task("a", item={"answer": 3})]


def test_outputs_stay_with_their_task_and_its_item() -> None:
    policy = Tabular(("a", "b"))
    seen = []

    def grade(record) -> Score:
        seen.append(record)
        return Score(value=float(record.item["answer"] * 100 + record.decisions[0]))

    rollouts = collect(policy, TASKS, Reward(grade), Sampling(n=3, max_tokens=3), step=5)
    assert [r.record.inputs for r in rollouts] == ["a"] * 3 + ["b"] * 3 + ["a"] * 3
    assert [r.record.item["answer"] for r in rollouts] == [1] * 3 + [2] * 3 + [3] * 3
    assert [r.record for r in rollouts] == seen
    for rollout in rollouts:
        assert rollout.reward == rollout.record.item["answer"] * 100 + rollout.record.decisions[0]
        assert len(rollout.record.decisions) == len(rollout.record.behavior_log_probs) == 3
    groups = [r.record.group for r in rollouts]
    assert len(set(groups)) == 3 and all(groups.count(group) == 3 for group in groups)  # equal inputs, two tasks
    other = collect(policy, TASKS, Reward(grade), Sampling(n=3, max_tokens=3), step=6)
    assert not set(groups) & {r.record.group for r in other}


def test_a_failed_grading_is_no_reward() -> None:
    policy = Tabular(("a", "b"))
    grader = Reward(lambda record: Score(value=None, error="gone") if record.inputs == "b" else Score(value=0.0))
    rewards = [r.reward for r in collect(policy, TASKS, grader, Sampling(n=2, max_tokens=3))]
    assert rewards[:2] == rewards[4:] == [0.0, 0.0]
    assert all(math.isnan(reward) for reward in rewards[2:4])


def test_a_grader_that_answers_for_too_few_is_refused() -> None:
    class Short(Reward):
        def grade(self, records) -> list[Score]:
            return super().grade(records)[1:]

    with pytest.raises(ValueError, match="shorter"):
        collect(Tabular(("a", "b")), TASKS, Short(lambda r: Score(value=0.0)), Sampling(n=2, max_tokens=3))
