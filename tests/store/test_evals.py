"""evals and their runs: listed, changed, deleted; outputs are stored once, with all scores, by who holds the run"""

from __future__ import annotations

import pytest

from melior.errors import FencedError, NotFound, StoreError
from melior.store import Store
from melior.store.rows import Eval, Job
from melior.types import Record, Score

ASKED = {"testing_criteria": [], "data_source_config": {"type": "custom"}}


@pytest.fixture
def made(store: Store) -> Eval:
    return store.add_eval("topics", ASKED, {"team": "desk"})


def claimed(store: Store, made: Eval) -> Job:
    """A run that a worker holds."""
    job = store.add_job("evaluation", {}, "nowhere", eval_id=made.id)
    store.add_run("evaluation", {}, "nowhere", run_id=job.id)
    held = store.claim("here", 60, job_id=job.id)
    assert held is not None
    return held


def outputs(run: Job, *numbers: int) -> tuple[list[str], list[Record], list[list[Score]]]:
    ids = [f"out_{run.id}_{number}" for number in numbers]
    records = [
        Record(inputs="say it", output="cat", item={"number": number}, group=f"key{number}") for number in numbers
    ]
    right = Score(value=1.0, name="right", usage={"judge": {"prompt_tokens": 7, "completion_tokens": 2}})
    broken = Score(value=None, name="kind", error="it broke")
    return ids, records, [[right, broken] for _ in numbers]


def test_an_eval_is_found_changed_and_deleted(store: Store, made: Eval) -> None:
    assert store.one_eval(made.id) == made and made.asked == ASKED and made.updated == made.created
    changed = store.change_eval(made.id, name="subjects")
    assert (changed.name, changed.labels) == ("subjects", {"team": "desk"}) and changed.updated > made.updated
    assert store.change_eval(made.id, labels={}).labels == {} and store.one_eval(made.id).name == "subjects"
    assert store.delete_eval(made.id).deleted is not None and store.evals() == []
    for call in (store.one_eval, store.delete_eval, lambda name: store.change_eval(name, name="x")):
        with pytest.raises(NotFound, match="there is no eval"):
            call(made.id)


def test_runs_are_those_of_their_eval(store: Store, made: Eval) -> None:
    other = store.add_eval("other", ASKED)
    runs = [store.add_job("evaluation", {}, "nowhere", eval_id=made.id) for _ in range(3)]
    store.ask_job(runs[0].id, "cancel")
    first = store.eval_runs(made.id, limit=2)
    assert [run.id for run in first.rows] == [runs[0].id, runs[1].id] and first.more
    assert [run.id for run in store.eval_runs(made.id, after=runs[1].id).rows] == [runs[2].id]
    assert [run.id for run in store.eval_runs(made.id, among=("cancelled",)).rows] == [runs[0].id]
    assert store.eval_runs(other.id).rows == []
    with pytest.raises(NotFound, match="there is no run"):
        store.eval_run(other.id, runs[0].id)


def test_what_goes_on_is_not_deleted(store: Store, made: Eval) -> None:
    run = claimed(store, made)
    with pytest.raises(StoreError, match="cancel it before"):
        store.delete_eval_run(made.id, run.id)
    with pytest.raises(StoreError, match="cancel them first"):
        store.delete_eval(made.id)
    store.end_job(run.id, run.fence, "succeeded")
    assert store.delete_eval_run(made.id, run.id).deleted
    with pytest.raises(NotFound):
        store.eval_run(made.id, run.id)
    assert store.eval_runs(made.id).rows == [] and store.delete_eval(made.id).deleted


def test_outputs_come_back_in_order_with_what_was_said_of_them(store: Store, made: Eval) -> None:
    run = claimed(store, made)
    store.add_outputs(run.id, *outputs(run, 1, 0), fence=run.fence)
    first, second = store.graded(run.id)
    assert (first.key, second.key) == ("key1", "key0") and first.values == {"right": 1.0, "kind": None}
    assert first.errors == {"kind": "it broke"}
    assert first.usage == {"right": {"judge": {"prompt_tokens": 7, "completion_tokens": 2}}}
    assert store.scores([first.id])[0].score.usage == first.usage["right"], "scores keep what a judge read"
    assert store.decisions([first.id])[0].run_id == run.id


def test_outputs_are_stored_once_and_whole(store: Store, made: Eval) -> None:
    run = claimed(store, made)
    store.add_outputs(run.id, *outputs(run, 0), fence=run.fence)
    with pytest.raises(StoreError, match="there already"):
        store.add_outputs(run.id, *outputs(run, 1, 0), fence=run.fence)
    assert [output.key for output in store.graded(run.id)] == ["key0"] and len(store.scores()) == 2


def test_who_lost_the_run_writes_nothing_more(store: Store, made: Eval) -> None:
    run = claimed(store, made)
    store.give_back(run.id, run.fence)
    assert store.claim("there", 60, job_id=run.id) is not None
    with pytest.raises(FencedError, match="under lease 2"):
        store.add_outputs(run.id, *outputs(run, 0), fence=run.fence)
    assert store.graded(run.id) == []
