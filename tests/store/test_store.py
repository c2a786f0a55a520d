"""the store's contract: what goes in comes out, once, in order"""

import math
import random
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from threading import Barrier
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.event import listen

from melior.errors import NotFound, StoreError
from melior.store import Store
from melior.store.rows import Version
from melior.types import Record, Sampling, Score

FULL = Record(
    inputs=[{"role": "user", "content": "2+2? é\u2028\0\ud800", "name": None}],
    output={"z": 1, "a": [1.5, True, None]},
    item={"reference_answer": 4, "b": 1, "a": 2},
    group="train.jsonl:17",
    context=(1, 2**40, 3),
    decisions=(5, 0),
    behavior_log_probs=(-0.1, -1e-320),
    sampling=Sampling(n=8, max_tokens=3, temperature=0.7, top_k=5, top_p=0.9, stop=("\n", "end"), seed=2**62),
    policy_version="ver_1",
    fingerprint="abc",
    finish="length",
)


def bits(numbers: tuple[float, ...] | None) -> bytes:
    assert numbers is not None
    return struct.pack(f"{len(numbers)}d", *numbers)


def decision(store: Store) -> str:
    return store.add_records([Record(inputs="2+2", output="4")])[0]


def version(store: Store, name: str = "sums") -> Version:
    return store.add_version(name, "/models/sums", fingerprint="f", files={"a": "b"}, base_model="tiny", method="sft")


# records


def test_every_field_of_a_record_survives(store: Store) -> None:
    default = Record(inputs=None, output=None)
    unset = [f.name for f in fields(Record) if f.name != "inputs" and getattr(FULL, f.name) == getattr(default, f.name)]
    assert unset == []  # a new field of Record must be given a value above
    for record in (FULL, default):
        assert store.records(store.add_records([record])) == [record]
    assert list(store.records()[0].output) == ["z", "a"]  # key order: tools are rendered in it


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), max_size=20))
def test_log_probs_survive_bit_for_bit(store: Store, numbers: list[float]) -> None:
    sent = Record(inputs="", output="", behavior_log_probs=(*numbers, -0.0, -math.inf))
    [back] = store.records(store.add_records([sent]))
    assert bits(back.behavior_log_probs) == bits(sent.behavior_log_probs)


def test_records_come_back_in_the_order_asked_for(store: Store) -> None:
    ids = store.add_records([Record(inputs=n, output=n) for n in range(1200)])  # more than one IN (…)
    random.Random(0).shuffle(ids)
    assert [one.id for one in store.decisions(ids)] == ids
    assert [record.inputs for record in store.records(limit=3)] == [0, 1, 2]


def test_the_log_can_be_read_page_by_page(store: Store) -> None:
    ids = store.add_records([Record(inputs=n, output=n) for n in range(7)])
    pages: list[str] = []
    while page := store.decisions(after=pages[-1] if pages else None, limit=3):
        pages += [one.id for one in page]
    assert pages == ids


def test_decisions_are_found_by_what_is_known_of_them(store: Store) -> None:
    run = store.add_run("rft", {}, "runs/1")
    mine = replace(FULL, policy_version="ver_a")
    ids = store.add_records(
        [mine], ids=["chatcmpl-1"], run_id=run.id, alias="prod", episode_id="ep", propensities=[[0.25, 0.75]]
    )
    store.add_records([FULL])
    assert ids == ["chatcmpl-1"]
    for known in ({"run_id": run.id}, {"policy_version": "ver_a"}, {"alias": "prod"}, {"episode_id": "ep"}):
        [found] = store.decisions(**known)
        assert (found.id, found.record, found.propensities) == ("chatcmpl-1", mine, [0.25, 0.75])
    assert store.records(run_id=run.id) == [mine]


def test_unknown_decisions_are_an_error_with_their_number(store: Store) -> None:
    with pytest.raises(StoreError, match=r"1 of 2 decisions are not in the log, the first is 'dec_no'"):
        store.records([decision(store), "dec_no"])


def test_what_is_not_json_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="not JSON serializable"):
        store.add_records([Record(inputs="a", output="b"), Record(inputs={1, 2}, output="b")])
    with pytest.raises(StoreError, match="2 records came with 1 ids"):
        store.add_records([FULL, FULL], ids=["a"])
    assert store.records() == []


# scores


def test_scores_come_back_as_they_were_given(store: Store) -> None:
    ids = [decision(store) for _ in range(2)]
    good = Score(
        value=0.1 + 0.2, name="exact", reason="equal", parts={"a": 1.0, "b": -0.5}, decisions=(0.5, -0.2), seconds=0.25
    )
    failed = Score(value=None, name="exact", error="ValueError: \0", traceback="Traceback…")
    store.add_scores(ids, [good, failed])
    first, second = store.scores(ids)
    assert (first.decision_id, first.score) == (ids[0], good)
    assert (second.decision_id, second.score) == (ids[1], replace(failed, error="ValueError: \ufffd"))
    assert store.scores(name="other") == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_refused(store: Store, value: float) -> None:
    with pytest.raises(StoreError, match="1 of 2 scores are not finite"):
        store.add_scores([decision(store)] * 2, [Score(value=1.0), Score(value=value, name="judge")])
    assert store.scores() == []


def test_scores_of_nothing_are_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="1 of 2 ids in decision_id are not in records"):
        store.add_scores([decision(store), "dec_no"], [Score(value=1.0)] * 2)
    with pytest.raises(StoreError, match="1 scores came for 2 decisions"):
        store.add_scores(["a", "b"], [Score(value=1.0)])
    assert store.scores() == []


# feedback

BODY: dict[str, Any] = {"source": "ann", "comment": "short\0", "tags": {"page": "3", "side": "left"}}


def test_feedback_given_twice_is_stored_once(store: Store) -> None:
    of = decision(store)
    first = store.add_feedback("thumb", True, decision_id=of, feedback_id="key-1", **BODY)
    again = store.add_feedback(
        "thumb", True, decision_id=of, feedback_id="key-1", **{**BODY, "tags": {"side": "left", "page": "3"}}
    )
    assert again == first
    assert store.feedback(decision_id=of) == [first]


@pytest.mark.parametrize(
    "other", [{"value": 1}, {"value": False}, {"metric": "stars"}, {"comment": ""}, {"source": "bob"}, {"tags": {}}]
)
def test_the_same_id_with_another_body_is_refused(store: Store, other: dict[str, Any]) -> None:
    body = {"metric": "thumb", "value": True, "decision_id": decision(store), "feedback_id": "key-1", **BODY}
    first = store.add_feedback(**body)
    with pytest.raises(StoreError, match="another body"):
        store.add_feedback(**{**body, **other})
    assert store.feedback() == [first]


def test_retries_at_the_same_moment_are_stored_once(store: Store) -> None:
    of = decision(store)

    def give(number: int) -> object:
        return store.add_feedback("thumb", True, decision_id=of, feedback_id=f"key-{number % 5}")

    with ThreadPoolExecutor(8) as pool:
        given_back = list(pool.map(give, range(40)))
    assert len(store.feedback()) == 5
    assert all(row in store.feedback() for row in given_back)


@pytest.mark.parametrize("value", [True, 0.30000000000000004, 4, "a comment", None, {"chosen": "a", "tie": False}, [1]])
def test_feedback_is_any_json_value(store: Store, value: Any) -> None:
    store.add_feedback("any", value, episode_id="ep_1")
    [found] = store.feedback(metric="any", episode_id="ep_1")
    assert found.value == value and type(found.value) is type(value)


def test_feedback_that_means_nothing_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="neither a decision nor an episode"):
        store.add_feedback("thumb", True)
    with pytest.raises(NotFound, match=r"nothing was decided here as 'dec_no'; .* send this again later"):
        store.add_feedback("thumb", True, decision_id="dec_no")
    with pytest.raises(StoreError, match="not JSON"):
        store.add_feedback("stars", math.nan, decision_id=decision(store))
    assert store.feedback() == []


# runs, data sets, evaluations, gates


def test_a_run_starts_and_ends_once(store: Store) -> None:
    data = store.add_dataset("f1", kind="train", path="train.jsonl", rows=192)
    run = store.add_run("sft", {"steps": 3, "lr": 1e-3}, "runs/1", base_model="tiny", dataset_id=data.id)
    assert store.runs(status="running") == [run] and run.finished is None
    ended = store.finish_run(run.id, metrics={"loss": math.nan, "steps": 3})
    assert (ended.status, ended.config, ended.dataset_id) == ("succeeded", {"steps": 3, "lr": 1e-3}, data.id)
    assert ended.finished is not None and ended.finished >= ended.created
    assert math.isnan(ended.metrics["loss"])  # a diverged run can still be written down
    assert store.finish_run(run.id).finished == ended.finished
    with pytest.raises(StoreError, match="has ended as succeeded"):
        store.finish_run(run.id, status="failed")
    with pytest.raises(StoreError, match="cannot be resumed"):
        store.reopen_run(run.id)


def test_a_failed_run_can_be_resumed(store: Store) -> None:
    run = store.add_run("rft", {}, "runs/1")
    store.finish_run(run.id, status="failed", error="disk full")
    assert store.run(run.id).error == "disk full"
    assert store.reopen_run(run.id) == run
    assert store.finish_run(run.id).status == "succeeded"


def test_a_data_set_is_known_by_its_fingerprint(store: Store) -> None:
    first = store.add_dataset("f1", kind="train", path="a.jsonl", rows=3)
    assert store.add_dataset("f1", kind="train", path="copy.jsonl", rows=3) == first
    assert store.add_dataset("f1", kind="heldout", path="a.jsonl", rows=3).id != first.id
    assert len(store.datasets()) == 2


def test_a_data_set_that_two_add_at_once_is_one(store: Store, url: str) -> None:
    with Store.open(url) as other, ThreadPoolExecutor(2) as pool:
        for number in range(20):
            both = Barrier(2)

            def add(into: Store, name: str = f"f{number}", both: Barrier = both) -> str:
                both.wait()
                return into.add_dataset(name, kind="train", path="a.jsonl", rows=3).id

            first, second = pool.map(add, (store, other))
            assert first == second


def test_an_id_may_be_shortened_while_it_is_unique(store: Store) -> None:
    one = store.add_run("sft", {}, "runs/1", run_id="run_abc1")
    two = store.add_run("sft", {}, "runs/2", run_id="run_abc12")
    assert store.run("run_abc12") == two
    assert store.run("run_abc1") == one  # a whole id is that one, though it begins another
    with pytest.raises(StoreError, match="run_abc1 and run_abc12"):
        store.run("run_ab")
    for nothing in ("run_x", "", "RUN_ABC12", "run%", "run_abc1_"):
        with pytest.raises(StoreError):
            store.run(nothing)


def test_a_whole_id_is_found_by_its_index(store: Store) -> None:
    run = store.add_run("sft", {}, "runs/1")
    asked: list[str] = []
    listen(store.database.engine, "before_cursor_execute", lambda *told: asked.append(str(told[2])))
    assert store.run(run.id) == run
    assert not any("substr" in query for query in asked), "which would look at every row"
    assert store.run(run.id[:-1]) == run


def test_evaluations_and_gates_point_to_each_other(store: Store) -> None:
    base, tuned = version(store), version(store)
    values = {"item-10": [1.0, None], "item-2": [0.1 + 0.2]}
    ids = [
        store.add_evaluation(
            grader="exact", values=values, summary={"reward": 0.5}, version_id=one, sampling=Sampling(n=2, stop=("x",))
        ).id
        for one in (tuned.id, base.id)
    ]
    found = store.evaluation(ids[0])
    assert (found.version_id, found.values, list(found.values)) == (tuned.id, values, ["item-10", "item-2"])
    assert found.sampling is not None and found.sampling["n"] == 2
    gate = store.add_gate(tuned.id, base.id, "inconclusive", evaluation_ids=ids, details={"more": 120})
    assert store.gate(gate.id) == gate and gate.evaluation_ids == tuple(ids)
    assert store.gates(candidate_id=tuned.id) == [gate] == store.gates(baseline_id=base.id)
    with pytest.raises(StoreError, match="evaluation_id are not in evaluations"):
        store.add_gate(tuned.id, base.id, "promote", evaluation_ids=["eval_no"])
    with pytest.raises(StoreError, match="'maybe' is not one of promote, reject, inconclusive"):
        store.add_gate(tuned.id, base.id, "maybe")  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="version_id or base_model"):
        store.add_evaluation(grader="exact", values={}, summary={})
    assert store.gates() == [gate]


# aliases


def test_of_two_who_expect_the_same_one_succeeds(store: Store) -> None:
    candidates = [version(store) for _ in range(8)]
    first = version(store)
    for expected in (None, first.id):
        if expected:
            store.promote("other", "prod", first.id, expected=None)
        name = "other" if expected else "sums"

        def attempt(one: Version, name: str = name, expected: str | None = expected) -> str | None:
            try:
                return store.promote(name, "prod", one.id, expected=expected).version_id
            except StoreError as error:
                assert "by now" in str(error)
                return None

        with ThreadPoolExecutor(8) as pool:
            won = [one for one in pool.map(attempt, candidates) if one]
        held = store.alias(name, "prod")
        assert held is not None and won == [held.version_id]
        assert len(store.alias_events(name=name)) == (2 if expected else 1)


def test_rollbacks_walk_back_through_promotions(store: Store) -> None:
    a, b, c, d = (version(store).id for _ in range(4))

    def now() -> str | None:
        held = store.alias("sums", "prod")
        return held.version_id if held else None

    for one in (a, b, c):
        store.promote("sums", "prod", one, expected=now())
    assert [store.roll_back("sums", "prod", expected=one).version_id for one in (c, b)] == [b, a]
    with pytest.raises(StoreError, match="no version before"):
        store.roll_back("sums", "prod", expected=a)
    store.promote("sums", "prod", d, expected=a)
    assert store.roll_back("sums", "prod", expected=d).version_id == a
    log = [(event.action, event.previous_id, event.version_id) for event in store.alias_events(name="sums")]
    assert log == [
        ("promote", None, a),
        ("promote", a, b),
        ("promote", b, c),
        ("rollback", c, b),
        ("rollback", b, a),
        ("promote", a, d),
        ("rollback", d, a),
    ]


def test_rolling_back_twice_by_accident_undoes_once(store: Store) -> None:
    a, b, c = (version(store).id for _ in range(3))
    for before, one in ((None, a), (a, b), (b, c)):
        store.promote("sums", "prod", one, expected=before)
    store.roll_back("sums", "prod", expected=c)
    with pytest.raises(StoreError, match="by now"):
        store.roll_back("sums", "prod", expected=c)
    with pytest.raises(StoreError, match="by now"):
        store.roll_back("nothing", "prod", expected=c)
