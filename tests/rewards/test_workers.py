"""whatever a grader does, its call comes back, the next one works, and no process is left"""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from melior.errors import ConfigError, GraderError
from melior.rewards.base import FailureLimit
from melior.rewards.workers import GraderPool
from melior.types import Record, Score

HERE = Path(__file__).parent
FAULTY = str(HERE / "faulty.py")
ROOT = str(HERE.parents[1])


def record(output: str = "four", **item: Any) -> Record:
    return Record(inputs="q", output=output, item=item)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def descendants(pid: int) -> set[int]:
    """Processes below this one, those included that left its session."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def gone(pids: set[int], seconds: float = 5.0) -> bool:
    """Whether all of these processes end in time."""
    end = time.monotonic() + seconds
    while any(map(alive, pids)):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(autouse=True)
def no_orphans() -> Iterator[None]:
    before = descendants(os.getpid())
    yield
    left = descendants(os.getpid()) - before
    assert gone(left), f"processes left: {left}"


def closure() -> Callable[..., float]:
    """The faulty grader as a function that no new process could import."""
    sys.path.insert(0, str(HERE))
    try:
        import faulty
    finally:
        sys.path.remove(str(HERE))
    return lambda sample, item: faulty.misbehave(sample, item)


FAULTS = {
    "raise": "raised ValueError: bad luck",
    "exit": "raised SystemExit: 3",
    "hang": "did not answer within 2 s",
    "hang_in_c": "did not answer within 2 s",
    "os_exit": "exit status 0",
    "segfault": "signal 11",
    "kill_itself": "signal 9",
    "kill_guardian": "guardian was killed",
    "eat_memory": "raised MemoryError",
}
HARMLESS = ("flood", "flood_descriptor", "fork_and_return")


@pytest.mark.parametrize("forked", [False, True], ids=["spawned", "forked"])
def test_every_fault_comes_back_as_a_failure_and_the_next_call_works(forked: bool) -> None:
    grader = closure() if forked else FAULTY + ":misbehave"
    memory = None if forked else 2 << 30  # a fork of this process has mapped more than that already
    with GraderPool(grader, processes=1, timeout_s=2, memory_bytes=memory) as pool:
        for fault, error in FAULTS.items():
            if forked and fault == "eat_memory":
                continue
            broken, fine = pool.grade([record(fault=fault), record("five5")])
            assert broken.value is None and error in broken.error, (fault, broken)
            assert (fine.value, fine.error) == (5.0, ""), (fault, fine)
        for fault in HARMLESS:
            assert [score.value for score in pool.grade([record(fault=fault), record("five5")])] == [4.0, 5.0], fault


def test_a_failure_says_where() -> None:
    with GraderPool(FAULTY + ":misbehave", processes=1, timeout_s=3) as pool:
        raised, hung, crashed = pool.grade([record(fault=fault) for fault in ("raise", "hang", "segfault")])
    assert "in _raise" in raised.traceback and "bad luck" in raised.traceback and "\n" not in raised.error
    assert "in _hang" in hung.traceback
    assert "in _segfault" in crashed.traceback and "last words" in crashed.traceback


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "huge", "string", "list", "complex"])
def test_values_that_are_no_numbers_fail_across_the_process_border(value: str) -> None:
    with GraderPool(FAULTY + ":returns", processes=1) as pool:
        (score,) = pool.grade([record(value=value)])
    assert score.value is None and "returned" in score.error


def test_scores_come_in_order_from_several_processes() -> None:
    with GraderPool(FAULTY + ":trl_length", processes=2) as pool:
        outputs = ["x" * (number % 37) for number in range(300)]
        scores = pool.grade([record(output) for output in outputs])
        assert [score.value for score in scores] == [float(len(output)) for output in outputs]
        assert {score.name for score in scores} == {"trl_length"} and all(score.seconds >= 0 for score in scores)
        big = pool.submit(record("y" * 3_000_000, text="z" * 3_000_000)).result()
        assert big.value == 3_000_000.0


def test_a_run_with_a_tenth_of_failures_ends_well_and_one_of_failures_only_stops() -> None:
    with GraderPool(FAULTY + ":misbehave", timeout_s=3) as pool:
        limit = FailureLimit(pool.grader.name)
        faults = ["raise", "os_exit", "segfault", "hang"]
        for step in range(4):
            scores = pool.grade([record(fault=faults[step] if row == 3 else "") for row in range(10)])
            limit.add(scores)
            assert [row for row, score in enumerate(scores) if score.value is None] == [3]
            assert all(score.value == 4.0 for row, score in enumerate(scores) if row != 3)
        assert (limit.calls, limit.failures) == (40, 4)
        with pytest.raises(GraderError, match=r"(?s)misbehave failed on 16 of 16 calls.*in _raise"):
            FailureLimit(pool.grader.name).add(pool.grade([record(fault="raise")] * 16))


def test_what_cannot_be_written_as_json_is_told() -> None:
    with GraderPool(FAULTY + ":length", processes=1) as pool:
        broken, fine = pool.grade([record(bad={1, 2}), record("\ud800 is half a character")])
    assert broken.value is None and "set is not JSON" in broken.error
    assert fine.value == float(len("\ud800 is half a character"))


@pytest.mark.parametrize(
    ("source", "reason"),
    [("import no_such_module", "ModuleNotFoundError"), ("x = 1", "has no function 'f'"), ("f = (", "SyntaxError")],
)
def test_a_grader_that_cannot_be_loaded_is_an_error_at_once(tmp_path: Path, source: str, reason: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(source)
    with pytest.raises(GraderError, match=reason):
        GraderPool(f"{path}:f")


def test_a_grader_that_never_finishes_loading_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "slow.py"
    path.write_text("import time\ntime.sleep(60)")
    for seconds in (0.5, 2, 8, 30):  # however long this machine takes to come to the sleep
        with pytest.raises(GraderError, match=f"did not answer within {seconds:g} s") as caught:
            GraderPool(f"{path}:f", load_timeout_s=seconds)
        if "slow.py" in str(caught.value):
            break
    assert re.search(r"(?s)slow\.py.*line 2", str(caught.value))


def test_functions_of_a_script_are_loaded_from_its_file_without_running_it(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("BONUS = 10")
    script = tmp_path / "train.py"
    script.write_text(
        "import neighbour\n"
        "from melior.rewards.workers import GraderPool\n"
        "from melior.types import Record\n"
        "def reward(completions, **columns):\n"
        "    return [len(completions[0]) + neighbour.BONUS]\n"
        "if __name__ == '__main__':\n"
        "    with GraderPool(reward) as pool:\n"
        "        print(pool.grader.spec['function'], pool.submit(Record(inputs='q', output='abc')).result().value)\n"
    )
    environment = {**os.environ, "PYTHONPATH": ROOT}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=30)
    assert done.stdout.split() == [f"{script}:reward", "13.0"], done.stderr


def test_closures_and_objects_run_in_forks() -> None:
    class Times:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def __call__(self, sample: dict[str, Any], item: dict[str, Any]) -> float:
            return self.factor * len(sample["output_text"])

    spec = {"type": "weighted", "graders": {"a": {"grader": Times(2.0), "weight": 3.0}}}
    with GraderPool(Times(0.5)) as half, GraderPool(spec) as weighted:
        assert [score.value for score in half.grade([record("ab"), record("abc")])] == [1.0, 1.5]
        assert [(score.value, score.parts) for score in weighted.grade([record("ab")])] == [(12.0, {"a": 4.0})]


def test_workers_are_reused_and_do_not_import_torch() -> None:
    def seen(sample: dict[str, Any], item: dict[str, Any]) -> float:
        return float(os.getpid())

    with GraderPool(seen, processes=1) as pool:
        pids = {score.value for score in pool.grade([record()] * 20)}
    assert len(pids) == 1 and pids != {float(os.getpid())}
    with GraderPool(f"{HERE / 'heavy.py'}:imported") as pool:
        assert pool.submit(record()).result().value == 0.0


def test_a_worker_killed_while_idle_costs_no_score() -> None:
    with GraderPool(FAULTY + ":length", processes=1) as pool:
        assert pool.submit(record()).result().value == 4.0
        mine = descendants(os.getpid())
        for pid in mine:
            os.kill(pid, signal.SIGKILL)
        assert gone(mine)
        assert pool.submit(record("five5")).result().value == 5.0


def test_where_no_process_can_be_had_calls_fail_and_nobody_waits() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with GraderPool(FAULTY + ":misbehave", processes=1) as pool:
        assert "exit status 0" in pool.submit(record(fault="os_exit")).result(30).error  # the next call needs a process
        with open(os.devnull) as lowest:
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest.fileno(), hard))
            try:
                scores = [pool.submit(record()).result(30) for _ in range(2)]
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert all(score.value is None and "Too many open files" in score.error for score in scores)
        assert pool.submit(record("five5")).result(30).value == 5.0


def left_behind(path: Path) -> set[int]:
    """The ids a grader wrote down, once all five are there."""
    end = time.monotonic() + 10
    while not path.exists() or len(path.read_text().splitlines()) < 5:
        assert time.monotonic() < end, "the grader left no children"
        time.sleep(0.02)
    return set(map(int, path.read_text().split()))


@pytest.mark.parametrize("forked", [False, True], ids=["spawned", "forked"])
@pytest.mark.parametrize("after", ["", "_and_hang", "_and_crash", "_and_raise"])
def test_children_of_graders_end_with_their_worker(tmp_path: Path, after: str, forked: bool) -> None:
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        pytest.skip("this system does not list children")
    path = tmp_path / "pids"
    limit = 3.0 if after == "_and_hang" else 30.0
    with GraderPool(closure() if forked else FAULTY + ":misbehave", processes=1, timeout_s=limit) as pool:
        pool.submit(record(fault=f"leave_child{after}", pids=str(path))).result()
        pids = left_behind(path)
    assert gone(pids)


def test_nothing_is_left_after_an_exception_in_the_body() -> None:
    before = descendants(os.getpid())
    with pytest.raises(RuntimeError), GraderPool(FAULTY + ":misbehave", timeout_s=60) as pool:
        pending = [pool.submit(record(fault="hang")) for _ in range(6)]
        workers = descendants(os.getpid()) - before
        assert len(workers) >= 4
        raise RuntimeError
    assert gone(workers)
    assert all(future.cancelled() or future.result().error for future in pending)
    assert sum(future.cancelled() for future in pending) >= 4


@pytest.mark.parametrize("forked", [False, True], ids=["spawned", "forked"])
def test_nothing_is_left_after_the_parent_is_killed(tmp_path: Path, forked: bool) -> None:
    path = tmp_path / "pids"
    grader = "lambda sample, item: faulty.misbehave(sample, item)" if forked else repr(FAULTY + ":misbehave")
    program = (
        f"import sys, time, os; sys.path[:0] = [{ROOT!r}, {str(HERE)!r}]\n"
        "import faulty\n"
        "from melior.rewards.workers import GraderPool\n"
        "from melior.types import Record\n"
        f"pool = GraderPool({grader}, timeout_s=100)\n"
        f"item = {{'fault': 'leave_child_and_hang', 'pids': {str(path)!r}}}\n"
        "pool.submit(Record(inputs='', output='', item=item))\n"
        "if os.fork() == 0:\n"
        "    time.sleep(30)  # holds the parent's ends of all pipes open\n"
        "time.sleep(100)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    pids = left_behind(path)
    bystander = {
        pid for pid in descendants(parent.pid) if b"import sys, time" in Path(f"/proc/{pid}/cmdline").read_bytes()
    }
    workers = descendants(parent.pid) | pids
    parent.kill()
    parent.wait()
    try:
        if not forked:  # in forks of the parent the bystander has the workers' command line
            assert gone(workers - bystander, 5.0)
        assert gone(pids, 5.0)
    finally:
        for pid in workers:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def test_closing_does_not_wait_for_calls_and_is_final(tmp_path: Path) -> None:
    pool = GraderPool(FAULTY + ":misbehave", timeout_s=60)
    path = tmp_path / "pids"
    hanging = pool.submit(record(fault="leave_child_and_hang", pids=str(path)))
    pids = left_behind(path)  # so it hangs by now
    pool.close()
    assert "closed" in hanging.result(0).error  # and not that its time was over
    assert gone(pids)
    with pytest.raises(GraderError, match="closed"):
        pool.submit(record())
    pool.close()


def test_cancelled_calls_are_not_made() -> None:
    with GraderPool(FAULTY + ":misbehave", processes=1, timeout_s=3) as pool:
        pool.submit(record(fault="hang"))
        waiting = pool.submit(record())
        assert waiting.cancel()
        assert pool.submit(record("five5")).result().value == 5.0


def test_records_may_be_submitted_from_many_threads() -> None:
    with GraderPool(FAULTY + ":length") as pool:
        results: list[Score] = []
        threads = [
            threading.Thread(target=lambda n=n: results.extend(pool.grade([record("x" * n)] * 20))) for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(score.value or 0.0 for score in results) == sorted(float(n) for n in range(8) for _ in range(20))


def test_impossible_limits_are_refused() -> None:
    for settings in ({"processes": 0}, {"timeout_s": 0}, {"load_timeout_s": -1}, {"memory_bytes": 0}):
        with pytest.raises(ConfigError):
            GraderPool(FAULTY + ":length", **settings)  # type: ignore[arg-type]
