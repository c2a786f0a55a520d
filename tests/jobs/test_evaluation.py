"""a run of an eval comes to the same outputs and scores whoever is killed, and tells rows that cannot be asked"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from melior.jobs.evaluation import AT_ONCE, keys_of, output_id, row_number
from melior.jobs.worker import Worker
from melior.registry import Registry
from melior.store import Store
from melior.store.jobs import ATTEMPTS
from melior.store.rows import Job

LONG = {"type": "python", "name": "long", "pass_threshold": 3}
LONG["source"] = "import time\ndef grade(sample, item):\n    time.sleep(0.01)\n    return len(sample['output_text'])\n"
SAME = {"type": "string_check", "name": "same", "operation": "ilike"}
SAME |= {"input": "{{sample.output_text}}", "reference": "{{item.word}}"}
WORDS = ("cat", "e", "the", "a")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'melior.db'}"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


@pytest.fixture
def version(store: Store, folder_of: Callable[..., Path]) -> str:
    return Registry(store).register("tiny", folder_of("llama", "chatml"), method="none", base_model="tiny").id


@pytest.fixture
def worker(store: Store, url: str) -> Worker:
    return Worker(store, url, owner="here", beat_s=0.1)


def run_of(
    store: Store, tmp_path: Path, rows: list[dict[str, Any]], model: str | None, *criteria: Any, **sampling: Any
) -> Job:
    """A run that waits for a worker."""
    made = store.add_eval("tiny", {})
    number = len(store.jobs())
    path = tmp_path / f"rows{number}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {"rows": str(path), "criteria": list(criteria), "grader": "evals", "model": model}
    recipe |= {"sampling": {"seed": 3, "max_tokens": 6, **sampling} if model else {}}
    return store.add_job(
        "evaluation", recipe, str(tmp_path / f"run{number}"), eval_id=made.id, job_id=f"evalrun_{number}"
    )


def asked(count: int) -> list[dict[str, Any]]:
    words = [WORDS[number % len(WORDS)] for number in range(count)]
    return [
        {"item": {"word": word, "n": n // 2}, "inputs": [{"role": "user", "content": f"say {word} {n // 2} times"}]}
        for n, word in enumerate(words)
    ]


def do(worker: Worker, store: Store, job: Job) -> Job:
    held = store.claim("here", 30, job_id=job.id)
    assert held is not None
    worker.do(held)
    return store.job(job.id)


def came_to(store: Store, job: Job) -> list[Any]:
    """Every output of a run: what was decided, with which chance, and what was said of it."""
    found = {decision.id: decision.record for decision in store.decisions(run_id=job.id)}
    return [
        (row_number(one.id), one.key, found[one.id].decisions, found[one.id].behavior_log_probs, one.values)
        for one in store.graded(job.id)
    ]


def trainers(job: Job) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"melior.jobs.trainer" in command and job.id.encode() in command:
                found.append(int(folder.name))
    return found


def test_what_a_run_came_to_stands_in_the_log_and_in_the_registry(
    store: Store, worker: Worker, tmp_path: Path, version: str
) -> None:
    job = do(worker, store, run_of(store, tmp_path, asked(8), version, SAME, {**LONG, "pass_threshold": 1}))
    assert job.status == "succeeded", job.error
    outputs = store.graded(job.id)
    assert [one.id for one in outputs] == [output_id(job.id, number) for number in range(8)]
    counts = job.result["counts"]
    assert counts["total"] == 8 and counts["passed"] + counts["failed"] == 8 and counts["errored"] == 0
    rights = sum(one.values["same"] == 1.0 for one in outputs)
    told = {one["testing_criteria"]: one for one in job.result["criteria"]}
    assert told["same"]["passed"] == rights and told["same"]["mean_score"] == rights / 8
    records = [decision.record for decision in store.decisions(run_id=job.id)]
    assert all(record.policy_version == version and record.behavior_log_probs for record in records)
    (usage,) = job.result["usage"]
    assert usage["invocation_count"] == 8 and usage["prompt_tokens"] == sum(len(r.context or ()) for r in records)
    assert usage["completion_tokens"] == sum(len(record.decisions or ()) for record in records)
    evaluation = store.evaluation(job.result["evaluation_id"])
    assert evaluation.version_id == version and store.dataset(evaluation.dataset_id or "").rows == 8
    passed = sum(values == [1.0] for values in evaluation.values.values())
    assert passed == counts["passed"] and store.run(job.id).status == "succeeded"


def test_a_run_that_is_killed_goes_on_to_the_same_outputs(
    store: Store, worker: Worker, tmp_path: Path, version: str
) -> None:
    rows = asked(2 * AT_ONCE + 10)
    whole = do(worker, store, run_of(store, tmp_path, rows, version, SAME, LONG))
    killed = run_of(store, tmp_path, rows, version, SAME, LONG)
    held = store.claim("here", 30, job_id=killed.id)
    assert held is not None
    thread = threading.Thread(target=worker.do, args=(held,))
    thread.start()
    until = time.monotonic() + 120
    while len(store.graded(killed.id)) < AT_ONCE:
        assert time.monotonic() < until and thread.is_alive()
        time.sleep(0.02)
    for process in trainers(killed):
        os.kill(process, signal.SIGKILL)
    thread.join()
    lost, begun = store.job(killed.id), len(store.graded(killed.id))
    assert (lost.status, lost.attempts) == ("queued", 1) and AT_ONCE <= begun < len(rows)
    done = do(worker, store, killed)
    assert done.status == "succeeded", done.error
    assert came_to(store, done) == came_to(store, whole) and len(came_to(store, whole)) == len(rows)
    same = ("counts", "criteria", "usage")
    assert [done.result[name] for name in same] == [whole.result[name] for name in same]
    assert len(store.scores()) == 2 * 2 * len(rows), "nothing is graded twice"


@pytest.mark.slow
@pytest.mark.timeout(900)  # six processes load a model one after the other
@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random_moments_change_nothing(
    store: Store, worker: Worker, tmp_path: Path, version: str, seed: int
) -> None:
    """Each run loses as many processes as a run may: while they load, sample, grade or write."""
    moments = random.Random(seed)
    rows = asked(5 * AT_ONCE)
    whole = do(worker, store, run_of(store, tmp_path, rows, version, SAME, LONG))
    killed = run_of(store, tmp_path, rows, version, SAME, LONG)
    for begun in sorted(moments.sample(range(0, len(rows), AT_ONCE), ATTEMPTS - 1)):
        held = store.claim("here", 30, job_id=killed.id)
        assert held is not None
        thread = threading.Thread(target=worker.do, args=(held,))
        thread.start()
        while len(store.graded(killed.id)) < begun:
            assert thread.is_alive()
            time.sleep(0.02)
        time.sleep(moments.random())
        for process in trainers(killed):
            os.kill(process, signal.SIGKILL)
        thread.join()
    assert store.job(killed.id).attempts == ATTEMPTS - 1
    done = do(worker, store, killed)
    assert done.status == "succeeded", done.error
    assert came_to(store, done) == came_to(store, whole) and len(store.scores()) == 2 * 2 * len(rows)


def test_outputs_that_are_given_are_graded_as_they_are(store: Store, worker: Worker, tmp_path: Path) -> None:
    rows = [{"item": {"word": word}, "output": output} for word, output in (("cat", "A cat."), ("dog", "A cat."))]
    job = do(worker, store, run_of(store, tmp_path, rows, None, SAME))
    assert job.status == "succeeded" and job.result["counts"] == {"total": 2, "passed": 1, "failed": 1, "errored": 0}
    assert job.result["usage"] == [] and "evaluation_id" not in job.result and store.evaluations() == []


def test_a_row_that_cannot_be_asked_is_an_error_of_its_own(
    store: Store, worker: Worker, tmp_path: Path, version: str
) -> None:
    rows = asked(3)
    rows[1]["inputs"] = [{"role": "user", "content": "word " * 2_000}]
    job = do(worker, store, run_of(store, tmp_path, rows, version, SAME))
    assert job.status == "succeeded" and job.result["counts"]["errored"] == 1
    first, second, third = store.graded(job.id)
    assert "exceed the context of 512" in second.errors["same"] and not first.errors and not third.errors
    assert store.decisions([second.id])[0].record.output is None


def test_a_criterion_that_fails_is_counted_and_never_zero(store: Store, worker: Worker, tmp_path: Path) -> None:
    broken = {"type": "python", "name": "half", "source": "def grade(sample, item):\n    return 1 / item['n']\n"}
    rows = [{"item": {"n": n, "word": "a"}, "output": "a"} for n in (0, 1)]
    job = do(worker, store, run_of(store, tmp_path, rows, None, SAME, broken))
    assert job.result["counts"] == {"total": 2, "passed": 1, "failed": 0, "errored": 1}
    half = job.result["criteria"][1]
    assert (half["passed"], half["failed"], half["errored"], half["mean_score"]) == (1, 0, 1, 1.0)


def test_where_nothing_can_be_graded_the_run_fails_and_keeps_what_it_saw(
    store: Store, worker: Worker, tmp_path: Path
) -> None:
    missing = {**SAME, "reference": "{{item.nothing}}"}
    job = do(worker, store, run_of(store, tmp_path, [{"item": {"n": 1}, "output": "a"}], None, missing))
    assert job.status == "failed" and job.error is not None and job.error["code"] == "evaluation_failed"
    told = job.error["message"]
    assert (
        "1 of 1 outputs could not be graded" in told and "stops at 'nothing'" in told and len(store.graded(job.id)) == 1
    )
    assert store.run(job.id).status == "failed"


def test_items_are_known_by_what_they_hold() -> None:
    first, again, second = keys_of([{"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2}])
    assert again == f"{first}:2" and second not in (first, again)
