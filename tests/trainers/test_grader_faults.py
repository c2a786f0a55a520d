"""a run survives a grader that fails now and then, and stops at once where it does nothing else"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tabular import Tabular

from melior.errors import GraderError
from melior.rewards.isolation import detected
from melior.rewards.sandbox import Level
from melior.rewards.workers import GraderPool
from melior.trainers.loop import FitConfig, fit
from melior.trainers.reinforcement import Reinforcement, Rollouts
from melior.types import Sampling, Task

REWARDS = Path(__file__).parents[1] / "rewards"
sys.path.append(str(REWARDS))
from test_workers import descendants, gone  # noqa: E402

FAULTY = REWARDS / "faulty.py"
HIGHEST = detected().level
LEVELS = [Level.L1, *([HIGHEST] if HIGHEST > Level.L1 else [])]
RAISED = ["raise", "exit", "nan", "inf", "-inf", "string", "many", "eat_memory"]
DIED = ["hang", "os_exit", "segfault", "kill_itself", "fork_and_return", "flood"]
NAMES = {"raise": "bad luck", "hang": "did not answer", "segfault": "signal 11", "string": "returned '1'"}
WITH_MEMORY = 2 << 30  # bytes; the grader that eats memory asks for four times as much


@pytest.fixture(autouse=True)
def no_orphans() -> Iterator[None]:
    before = descendants(os.getpid())
    yield
    left = descendants(os.getpid()) - before
    assert gone(left), f"processes left: {left}"


def opened(level: Level) -> GraderPool:
    """The operator's own function at level 1; the same as a source of others above it."""
    source = FAULTY.read_text()
    function = {"type": "function", "name": "faulty", "function": f"{FAULTY}:grade"}
    spec = function if level is Level.L1 else {"type": "python", "name": "faulty", "source": source}
    return GraderPool(spec, timeout_s=2.0, memory_bytes=WITH_MEMORY, level=None if level is Level.L1 else level)


def steps_of(policy: Tabular, pool: GraderPool, faults: dict[str, str], prompts: int) -> Rollouts:
    tasks = [Task(inputs=text, item={"fault": faults.get(text, "")}) for text in policy.rows]
    return Rollouts(policy, tasks, pool, Sampling(n=2, max_tokens=3), prompts=prompts)


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_a_run_in_which_a_tenth_of_the_calls_fail_ends_well(level: Level) -> None:
    faults = [*RAISED, *DIED, "none"]
    inputs = [f"{fault}-{copy}" for fault in faults for copy in range(10)]
    policy = Tabular(inputs)
    with opened(level) as pool:
        broken = {f"{fault}-0": fault for fault in faults}
        run = fit(policy, steps_of(policy, pool, broken, 10), Reinforcement(), FitConfig(steps=len(faults)))
    forks = 2 if level > Level.L1 else 0  # nothing forks in a sandbox: there it is a failure of two calls more …
    kills = 2 if level is Level.L3 else 0  # … and the first process of a namespace is deaf to its own SIGKILL
    assert run.steps == len(faults) and run.skipped == 0
    assert sum(row["grader_errors"] for row in run.metrics) == 2 * (len(RAISED) + len(DIED) - 2) + forks - kills
    assert all(row["rows"] <= 20 - row["grader_errors"] for row in run.metrics)  # excluded …
    assert all(row["reward"] > 4 for row in run.metrics)  # … and never zeroed: no true reward is below 4
    assert all(math.isfinite(row["reward"]) and math.isfinite(row["loss"]) for row in run.metrics)


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("fault", [*RAISED, *(fault for fault in DIED if fault not in ("flood", "fork_and_return"))])
def test_a_run_in_which_all_calls_fail_stops_and_names_the_function(level: Level, fault: str) -> None:
    if fault == "kill_itself" and level is Level.L3:
        pytest.skip("the first process of a namespace is deaf to its own SIGKILL: nothing fails")
    inputs = [str(number) for number in range(4)]
    policy = Tabular(inputs)
    before: Any = policy.state()["logits"].clone()
    with opened(level) as pool:
        rollouts = steps_of(policy, pool, dict.fromkeys(inputs, fault), 4)
        with pytest.raises(GraderError, match=rf"(?s)grader faulty failed on 8 of 8 calls.*{NAMES.get(fault, '')}"):
            fit(policy, rollouts, Reinforcement(), FitConfig(steps=3))
    assert torch.equal(policy.state()["logits"], before)


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_a_grader_that_never_gives_a_number_stops_the_run_in_three_steps(level: Level) -> None:
    policy = Tabular(["a", "b"])
    with opened(level) as pool:
        rollouts = steps_of(policy, pool, {"a": "none", "b": "none"}, 2)
        with pytest.raises(GraderError, match="faulty gave no number for any of 12 outputs"):
            fit(policy, rollouts, Reinforcement(), FitConfig(steps=9))
