"""every row is traced both ways: request, version, feedback, data set, run, evaluation, gate, promotion, rollback"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from melior.data.formats import read_examples
from melior.errors import DataError, NotFound, StoreError
from melior.store import Store
from melior.store.datasets import beyond_share, export
from melior.store.exports import Wanted
from melior.store.lineage import Step, trace
from melior.types import Record

ASKED = [{"role": "user", "content": "2+2?"}]
MANY = 10_000


def version(store: Store, **more: Any) -> str:
    how: dict[str, Any] = {"fingerprint": "f", "files": {}, "base_model": "tiny", "method": "sft"}
    return store.add_version("bot", "/secret/folder", **{**how, **more}).id


def everywhere(steps: tuple[Step, ...]) -> Iterator[Step]:
    for step in steps:
        yield step
        yield from everywhere(step.steps)


def ids(steps: tuple[Step, ...], kind: str) -> set[str]:
    return {step.id for step in everywhere(steps) if step.kind == kind}


def path(steps: tuple[Step, ...], *kinds: str) -> list[str]:
    """The ids on the first way of these kinds."""
    if not kinds:
        return []
    for step in steps:
        if step.kind == kinds[0] and (len(kinds) == 1 or path(step.steps, *kinds[1:])):
            return [step.id, *path(step.steps, *kinds[1:])]
    return []


class Loop:
    """One whole turn of the loop, and a rollback."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.old = version(store)
        self.decision = store.add_records([Record(inputs=ASKED, output="5", policy_version=self.old)], alias="prod")[0]
        self.comment = store.add_feedback("comment", "wrong", decision_id=self.decision, source="ann").id
        self.wrong = store.add_feedback("demonstration", "3", decision_id=self.decision, source="ann").id
        first = {"decision_id": self.decision, "source": "ann"}
        self.said = store.add_feedback("demonstration", "4", replaces=self.wrong, made_from=None, **first).id
        self.dataset = export(store, Wanted(kind="demonstrations"), folder / "rows.jsonl").dataset.id
        self.file = store.add_file("rows.jsonl", "fine-tune", size=1, sha256="", dataset_id=self.dataset).id
        self.run = store.add_run("sft", {}, "/secret", base_version=self.old, dataset_id=self.dataset).id
        self.new = version(store, parent_id=self.old, run_id=self.run, dataset_id=self.dataset)
        self.evaluation = store.add_evaluation(grader="exact", values={}, summary={}, version_id=self.new).id
        self.gate = store.add_gate(self.new, self.old, "promote", evaluation_ids=[self.evaluation]).id
        self.first = store.promote("bot", "prod", self.old, expected=None, forced=True).id
        self.promotion = store.promote("bot", "prod", self.new, expected=self.old, gate_id=self.gate).id
        self.rollback = store.roll_back("bot", "prod", expected=self.new).id


@pytest.fixture
def loop(store: Store, tmp_path: Path) -> Loop:
    return Loop(store, tmp_path)


def test_feedback_is_traced_both_ways(store: Store, loop: Loop) -> None:
    found = trace(store, loop.said)
    assert found.kind == "feedback" and found.facts["value"] == "4" and found.facts["in_force"]
    assert path(found.came_from, "decision", "version") == [loop.decision, loop.old]
    way = ("dataset", "run", "version", "gate")
    assert path(found.became, *way) == [loop.dataset, loop.run, loop.new, loop.gate]
    assert ids(found.became, "evaluation") == {loop.evaluation}
    assert ids(found.became, "promotion") == {loop.promotion, loop.rollback}
    assert ids(found.came_from, "feedback") == {loop.wrong}
    replaced = trace(store, loop.wrong)
    assert not replaced.facts["in_force"] and ids(replaced.became, "feedback") == {loop.said}


@pytest.mark.parametrize("kind", ["rollback", "promotion", "gate", "evaluation", "new", "run", "file", "dataset"])
def test_whatever_came_of_it_leads_back_to_what_was_said_and_decided(store: Store, loop: Loop, kind: str) -> None:
    found = trace(store, getattr(loop, kind))
    assert loop.said in ids(found.came_from, "feedback") and loop.decision in ids(found.came_from, "decision")
    assert loop.old in ids(found.came_from, "version")


@pytest.mark.parametrize("kind", ["decision", "said", "dataset", "run", "old"])
def test_whatever_it_came_from_leads_on_to_what_it_became(store: Store, loop: Loop, kind: str) -> None:
    found = trace(store, getattr(loop, kind))
    assert loop.new in ids(found.became, "version") and loop.gate in ids(found.became, "gate")
    assert loop.rollback in ids(found.became, "promotion")


def test_a_version_says_what_it_decided_and_who_was_heard(store: Store, loop: Loop) -> None:
    facts = trace(store, loop.old).facts
    assert (facts["decisions"], facts["feedback"]) == (1, 3)
    assert path(trace(store, loop.old).became, "dataset") == [loop.dataset]
    (dataset,) = [step for step in everywhere(trace(store, loop.new).came_from) if step.kind == "dataset"]
    assert dataset.facts["sources"] == {"ann": 1} and dataset.facts["rows"] == 1
    assert "secret" not in repr(trace(store, loop.new)), "no folder of this machine is told"


def test_references_are_ids_their_beginnings_and_aliases(store: Store, loop: Loop) -> None:
    assert trace(store, "bot@prod").id == loop.old
    assert trace(store, loop.said[:12]).id == loop.said
    store.add_records([Record(inputs=ASKED, output="!")], ids=["chatcmpl_1:2"])
    assert trace(store, "chatcmpl_1:2").kind == "decision"
    for wrong in ("fb_", "nothing_at_all", "bot@dev", "", "%", "gate__"):
        with pytest.raises(NotFound, match="nothing here has the id"):
            trace(store, wrong)
    for twin in ("dec_twin_a", "dec_twin_b"):
        store.add_records([Record(inputs=ASKED, output="!")], ids=[twin])
    with pytest.raises(StoreError, match="begins several ids"):
        trace(store, "dec_twin")


@contextmanager
def counted(store: Store) -> Iterator[list[str]]:
    statements: list[str] = []

    def seen(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(store.database.engine, "before_cursor_execute", seen)
    try:
        yield statements
    finally:
        event.remove(store.database.engine, "before_cursor_execute", seen)


def test_many_rows_take_no_more_queries_than_one(store: Store, loop: Loop, tmp_path: Path) -> None:
    with counted(store) as few:
        trace(store, loop.old)
    names = store.add_records([Record(inputs=ASKED, output=f"{n}", policy_version=loop.old) for n in range(60)])
    for name in names:
        store.add_feedback("demonstration", "4", decision_id=name, source="ben")
    export(store, Wanted(kind="demonstrations", sources=("ben",)), tmp_path / "more.jsonl")
    with counted(store) as many:
        found = trace(store, loop.old)
    assert len(many) <= len(few) + 4 and found.facts["decisions"] == 61
    more = trace(store, "bot@prod", shown=2)
    (dataset,) = [step for step in more.became if step.kind == "dataset" and step.facts["rows"] == 60]
    made_of = [step for step in trace(store, dataset.id).came_from if step.kind == "feedback"]
    assert len(made_of) == 5 and [step.more for step in made_of] == [0, 0, 0, 0, 55]


# ---------------------------------------------------------------------- laws of any log

OPINIONS = st.tuples(
    st.integers(0, 5),  # of which decision
    st.sampled_from(["demonstration", "preference", "good", "comment"]),
    st.sampled_from(["ann", "ben", "cem"]),
    st.booleans(),  # whether it replaces what this source said of it before
    st.integers(0, 3),
)
LOGS = st.lists(OPINIONS, max_size=12)


def say(store: Store, decisions: list[str], opinions: list[Any]) -> tuple[dict[str, Any], set[str]]:
    """All that was said, and what of it is in force."""
    said: dict[str, Any] = {}
    last: dict[Any, str] = {}
    for which, metric, source, replaces, number in opinions:
        other = "5" if number else "4"
        value: Any = {"demonstration": other, "good": number, "comment": other}.get(metric)
        value = {"chosen": "4", "rejected": other} if metric == "preference" else value
        key = (which, metric, source)
        before = last.get(key) if replaces else None
        row = store.add_feedback(metric, value, decision_id=decisions[which], source=source, replaces=before)
        said[row.id], last[key] = row, row.id
    return said, set(said) - {row.replaces_id for row in said.values()}


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LOGS)
def test_every_row_leads_to_exactly_what_it_was_made_of_and_back(
    store: Store, tmp_path: Path, opinions: list[Any]
) -> None:
    episode = f"ep_{len(store.decisions())}"
    records = [Record(inputs=ASKED, output=str(4 + n % 2), group=f"{episode}:{n % 2}") for n in range(6)]
    decisions = store.add_records(records, episode_id=episode)
    said, counting = say(store, decisions, opinions)
    asked = [("ratings", "good"), ("preferences", None), ("demonstrations", None), ("preferences", "good")]
    wanted = [Wanted(kind=kind, metric=metric, episode=episode) for kind, metric in asked]  # type: ignore[arg-type]
    for each in wanted:
        metrics = {each.metric} if each.metric else {"demonstration"} | ({"preference"} & {each.kind[:-1]})
        candidates = {name for name in counting if said[name].metric in metrics}
        try:
            done = export(store, each, tmp_path / "rows.jsonl")
        except DataError as error:
            assert "the log has no" in str(error) or "0 of" in str(error)
            continue
        links = store.dataset_rows(done.dataset.id)
        used = {row.feedback_id for row in links}
        assert used <= candidates, "only what is in force"
        assert len(candidates) <= len(used) + sum(told["count"] for told in done.left_out.values()), "none is lost"
        examples = read_examples(done.path).rows
        for position, example in enumerate(examples):
            mine = [row for row in links if row.position == position]
            assert example.item["feedback_id"].split() == [row.feedback_id for row in mine]
            assert {said[str(row.feedback_id)].decision_id for row in mine} == {row.decision_id for row in mine}
            assert set(example.item["decision_id"].split()) == {row.decision_id for row in mine}
            assert example.group == episode
        assert {row.position for row in links} == set(range(len(examples)))
        assert ids(trace(store, done.dataset.id, shown=MANY).came_from, "feedback") >= used
        for name in sorted(candidates):
            ahead = {step.id for step in trace(store, name).became if step.kind == "dataset"}
            assert (done.dataset.id in ahead) == (name in used)


def test_what_was_replaced_is_in_no_later_export_and_an_earlier_one_says_it_used_it(
    store: Store, tmp_path: Path
) -> None:
    name = store.add_records([Record(inputs=ASKED, output="5")])[0]
    first = store.add_feedback("demonstration", "3", decision_id=name, source="ann")
    before = export(store, Wanted(kind="demonstrations"), tmp_path / "a.jsonl").dataset
    second = store.add_feedback("demonstration", "4", decision_id=name, source="ann", replaces=first.id)
    after = export(store, Wanted(kind="demonstrations"), tmp_path / "b.jsonl").dataset
    assert [row.feedback_id for row in store.dataset_rows(before.id)] == [first.id]
    assert [row.feedback_id for row in store.dataset_rows(after.id)] == [second.id]
    assert {step.id for step in trace(store, first.id).became} == {second.id, before.id}


SOURCES = st.lists(st.sampled_from("uvwxyz"), max_size=2, unique=True)
ROWS = st.dictionaries(st.integers(0, 60), st.tuples(st.text("abc", min_size=1), SOURCES))


@settings(max_examples=200)
@given(ROWS, st.floats(0.05, 1))
def test_no_source_has_more_than_its_share(rows: Any, share: float) -> None:
    rows = {number: (name, tuple(sources)) for number, (name, sources) in rows.items()}
    try:
        gone = beyond_share(rows, share)
    except DataError as error:
        sources = {source for _, several in rows.values() for source in several}
        assert "or more, or gather" in str(error) and sources
        assert not any(not several for _, several in rows.values()), "rows of nobody can always stay"
        return
    stay = [sources for number, (_, sources) in rows.items() if number not in gone]
    counts = {source: sum(source in sources for sources in stay) for source in "uvwxyz"}
    assert all(count <= share * len(stay) + 1e-6 for count in counts.values())
    single = all(len(sources) == 1 for sources in stay)
    if gone and single and share * len(rows) > 1:  # one more of the largest would be too many
        largest = max(counts.values())
        assert largest + 1 > share * (len(stay) + 1) - 1e-6
