"""the log becomes training rows, each of which says what it was made of"""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from melior.data.formats import as_json, read_examples
from melior.errors import ConfigError, DataError
from melior.store import Store
from melior.store.datasets import Exported, export, moment
from melior.store.exports import CUT, LIMITED, ORIGIN, LeftOut, Wanted, rows_of
from melior.store.feedback import Said
from melior.types import Demonstration, Preference, Rated, Record, Sampling, SlateRequest, Task

ITEM = {"reference_answer": "4"}
ASKED = [{"role": "user", "content": "2+2?"}]


@pytest.fixture
def answer(store: Store) -> str:
    return store.add_records([Record(inputs="2+2", output="5", group="q1", item=ITEM)])[0]


def rows(store: Store, kind: str, **more: Any) -> list[Any]:
    """The examples, without what tells their origin."""
    with store.database.read() as connection:
        return [_plain(made.example) for made in rows_of(connection, Wanted(kind=kind, **more), LeftOut())]  # type: ignore[arg-type]


def _plain(example: Any) -> Any:
    item = {name: value for name, value in example.item.items() if name not in ORIGIN}
    return type(example)(**{**vars(example), "item": item})


def test_a_better_answer_is_a_demonstration_and_a_pair(store: Store, answer: str) -> None:
    store.add_feedback("demonstration", "4", decision_id=answer)
    assert rows(store, "demonstrations") == [Demonstration("2+2", "4", group="q1", item=ITEM)]
    assert rows(store, "preferences") == [Preference("2+2", "4", "5", group="q1", item=ITEM)]


def test_confirming_an_answer_prefers_nothing(store: Store, answer: str) -> None:
    store.add_feedback("demonstration", "5", decision_id=answer)
    assert len(rows(store, "demonstrations")) == 1 and rows(store, "preferences") == []


def test_a_tie_is_an_even_chance_and_no_choice_is_no_row(store: Store, answer: str, tmp_path: Path) -> None:
    for more in ({}, {"tie": True}, {"skip": True}, {"both_bad": True}):
        store.add_feedback("preference", {"chosen": "4", "rejected": "5", **more}, decision_id=answer)
    assert [pair.probability for pair in rows(store, "preferences")] == [1.0, 0.5]
    done = export(store, Wanted(kind="preferences"), tmp_path / "pairs.jsonl", format="openai-dpo")
    assert done.rows == 1, "OpenAI's rows cannot say that two outputs tie"
    assert {reason: told["count"] for reason, told in done.left_out.items()} == {
        "no choice: skipped, or both bad": 2,
        "a tie, which the format cannot hold": 1,
    }


def test_ratings_are_numbers(store: Store, answer: str, tmp_path: Path) -> None:
    ungrouped = store.add_records([Record(inputs="1+1", output="2")], episode_id="ep_1")[0]
    store.add_feedback("helpful", False, decision_id=answer)
    store.add_feedback("helpful", 0.75, decision_id=ungrouped)
    whole = store.add_feedback("helpful", True, episode_id="ep_1")
    words = store.add_feedback("helpful", "very", decision_id=answer)
    assert rows(store, "ratings", metric="helpful") == [
        Rated("2+2", "5", 0.0, group="q1", item=ITEM),
        Rated("1+1", "2", 0.75, group="ep_1"),
    ]
    assert rows(store, "ratings", metric="unheard of") == []
    left = export(store, Wanted(kind="ratings", metric="helpful"), tmp_path / "rated.csv").left_out
    assert left == {
        "of a whole episode, not of one output": {"count": 1, "first": whole.id},
        "a value that is no number": {"count": 1, "first": words.id},
    }


def test_outputs_of_one_input_that_were_rated_become_pairs_and_examples(store: Store, tmp_path: Path) -> None:
    outputs = [Record(inputs=ASKED, output=text, group="chat") for text in ("four", "4", "5", "?")]
    four, digit, wrong, silent = store.add_records(outputs)
    alone = store.add_records([Record(inputs=ASKED, output="!", group="other")])[0]
    said = [store.add_feedback("good", value, decision_id=name, source="ann")
            for name, value in ((four, 0.5), (digit, 1), (digit, True), (wrong, False), (alone, 1))]  # fmt: skip
    done = export(store, Wanted(kind="preferences", metric="good"), tmp_path / "pairs.parquet")
    pairs = read_examples(done.path).rows
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("4", "four"), ("4", "5")]
    links = [(row.position, row.decision_id, row.feedback_id) for row in store.dataset_rows(done.dataset.id)]
    better = [(digit, said[1].id), (digit, said[2].id)]
    assert links == [(0, *link) for link in [*better, (four, said[0].id)]] + [
        (1, *link) for link in [*better, (wrong, said[3].id)]
    ]
    assert done.left_out == {"no other output of its input was rated otherwise": {"count": 1, "first": said[4].id}}
    best = export(store, Wanted(kind="demonstrations", metric="good"), tmp_path / "best.jsonl")
    assert [row.inputs[-1]["content"] for row in read_examples(best.path).rows] == ["4", "!"]
    some = export(store, Wanted(kind="demonstrations", metric="good", at_least=0.5), tmp_path / "some.jsonl")
    assert some.rows == 3 and silent not in {row.decision_id for row in store.dataset_rows(some.dataset.id)}


def test_an_answer_whose_client_left_is_a_question_and_no_example(store: Store) -> None:
    cut = Record(inputs=ASKED, output="fo", finish="cancelled", group="chat")
    (name, whole) = store.add_records([cut, Record(inputs=ASKED, output="4", finish="stop", group="chat")])
    for decision, value in ((name, 1), (whole, 0)):
        store.add_feedback("good", value, decision_id=decision)
    store.add_feedback("demonstration", "four", decision_id=name)
    assert [row.output for row in rows(store, "ratings", metric="good")] == ["4"]
    assert rows(store, "preferences", metric="good") == rows(store, "preferences") == []
    assert rows(store, "demonstrations", metric="good") == []
    assert [row.output for row in rows(store, "decisions")] == ["4"]
    assert [row.output for row in rows(store, "demonstrations")] == ["four"], "somebody wrote that for it"
    assert len(rows(store, "tasks")) == 1
    with store.database.read() as connection:
        left = LeftOut()
        assert len(list(rows_of(connection, Wanted(kind="ratings", metric="good"), left))) == 1
    assert left.to_json() == {CUT: {"count": 1, "first": store.feedback(decision_id=name, metric="good")[0].id}}


def test_a_preference_with_an_answer_whose_client_left_is_none(store: Store, tmp_path: Path) -> None:
    (cut,) = store.add_records([Record(inputs=ASKED, output="fo", finish="cancelled")])
    (whole,) = store.add_records([Record(inputs=ASKED, output="four", finish="stop")])
    sides = ({"chosen": "fo", "rejected": "5"}, {"chosen": "4", "rejected": {"role": "assistant", "content": "fo"}})
    first, _, kept = (
        store.add_feedback("preference", value, decision_id=name)
        for name, value in ((cut, sides[0]), (cut, sides[1]), (whole, {"chosen": "four", "rejected": "5"}))
    )
    others = store.add_feedback("preference", {"chosen": "4", "rejected": "5"}, decision_id=cut)
    done = export(store, Wanted(kind="preferences"), tmp_path / "pairs.jsonl")
    assert [row.feedback_id for row in store.dataset_rows(done.dataset.id)] == [kept.id, others.id]
    assert done.left_out == {CUT: {"count": 2, "first": first.id}}


def test_an_answer_that_its_limit_cut_short_is_no_demonstration(store: Store, tmp_path: Path) -> None:
    answers = [Record(inputs=ASKED, output=text, finish=end) for text, end in (("fo", "length"), ("four", "stop"))]
    said = [store.add_feedback("good", True, decision_id=name) for name in store.add_records(answers)]
    done = export(store, Wanted(kind="demonstrations", metric="good"), tmp_path / "best.jsonl")
    assert [row.feedback_id for row in store.dataset_rows(done.dataset.id)] == [said[1].id]
    assert done.left_out == {LIMITED: {"count": 1, "first": said[0].id}}
    assert len(rows(store, "ratings", metric="good")) == 2, "that somebody liked it is true"


def test_each_source_has_one_voice_however_often_it_speaks(store: Store) -> None:
    much, little = (
        Record(inputs=ASKED, output=text, group="chat", finish="stop", behavior_log_probs=(-1.0,)) for text in "45"
    )
    praised, liked = store.add_records([much, little])
    voices = [("bot", True)] * 9 + [(person, False) for person in ("ann", "ben", "eve")]
    for source, value in voices:
        store.add_feedback("good", value, decision_id=praised, source=source)
    store.add_feedback("good", 0.5, decision_id=liked, source="ann")
    assert [row.item["reward"] for row in rows(store, "decisions", metric="good")] == [0.25, 0.5]
    assert [row.output for row in rows(store, "demonstrations", metric="good", at_least=0.5)] == ["5"]
    assert [(row.chosen, row.rejected) for row in rows(store, "preferences", metric="good")] == [("5", "4")]


@pytest.mark.parametrize("kind", ["demonstrations", "preferences", "ratings", "tasks"])
def test_half_a_character_is_one_row_that_cannot_be_trained_on(store: Store, kind: Any, tmp_path: Path) -> None:
    whole, half = store.add_records([Record(inputs=text, output="5") for text in ("2+2", "2+ \ud83d")])
    for name in (whole, half):
        store.add_feedback("demonstration", "4", decision_id=name)
        store.add_feedback("good", True, decision_id=name)
    metric = "good" if kind == "ratings" else None
    done = export(store, Wanted(kind=kind, metric=metric), tmp_path / "rows.jsonl")
    assert done.rows == 1 and [told["count"] for told in done.left_out.values()] == [1]
    assert list(done.left_out) == ["cannot be trained on"]


def test_tasks_are_each_input_once_with_its_item(store: Store, tmp_path: Path) -> None:
    decided = (("4", 4), ("5", 4), ("4", 5))
    store.add_records([Record(inputs=ASKED, output=text, item={"answer": answer}) for text, answer in decided])
    done = export(store, Wanted(kind="tasks"), tmp_path / "tasks.jsonl")
    found = read_examples(done.path, "tasks").rows
    assert [(row.inputs, row.item["answer"]) for row in found] == [(ASKED, 4), (ASKED, 5)]
    assert done.left_out["the same input and item again"]["count"] == 1


REQUEST = SlateRequest({"age": 31}, candidates=("a", "b", "c"))


def slates(store: Store) -> Iterator[str]:
    for number, shown in enumerate((["a", "b"], ["c", "a"], ["b", "c"])):
        chances = (-1.0, -0.5 - number)
        record = Record(inputs=as_json(REQUEST), output=shown, behavior_log_probs=chances, policy_version="v")
        yield store.add_records([record])[0]


def test_decisions_come_with_their_chances_and_what_came_of_them(store: Store, tmp_path: Path) -> None:
    first, second, third = slates(store)
    click = store.add_feedback("click", {"item": "b", "position": 1}, decision_id=first)
    bought = store.add_feedback("purchase", True, decision_id=second)
    done = export(store, Wanted(kind="decisions"), tmp_path / "log.jsonl")
    found = read_examples(done.path, "logged").rows
    assert [row.behavior_log_probs for row in found] == [(-1.0, -0.5), (-1.0, -1.5), (-1.0, -2.5)]
    assert [row.inputs for row in found] == [REQUEST] * 3 and found[0].output == ["a", "b"]
    assert [row.item["events"] for row in found] == [
        [{"type": "click", "id": click.id, "item": "b", "position": 1}],
        [{"type": "purchase", "id": bought.id}],
        [],
    ]
    links = [(row.decision_id, row.feedback_id) for row in store.dataset_rows(done.dataset.id)]
    assert links == [(first, click.id), (second, bought.id), (third, None)]
    rewarded = export(store, Wanted(kind="decisions", metric="click"), tmp_path / "clicks.csv")
    assert [row.item["reward"] for row in read_examples(rewarded.path, "logged").rows] == [1.0, 0.0, 0.0]


def test_a_metric_is_the_reward_and_silence_is_left_out_or_has_its_own(store: Store, tmp_path: Path) -> None:
    record = Record(inputs=ASKED, output="4", context=(1, 2), decisions=(3, 4), behavior_log_probs=(-1.0, -2.0),
                    sampling=Sampling(temperature=0.5), fingerprint="t", finish="stop")  # fmt: skip
    greedy = Record(inputs=ASKED, output="4", context=(1, 2), decisions=(3, 4))
    said, silent, certain = store.add_records([record, record, greedy])
    for value in (True, 0.5):
        store.add_feedback("good", value, decision_id=said)
    sure = store.add_feedback("good", 1, decision_id=certain)
    done = export(store, Wanted(kind="decisions", metric="good"), tmp_path / "log.parquet")
    (found,) = read_examples(done.path, "logged").rows
    assert found.item["reward"] == 0.75 and found.decisions == (3, 4) and found.sampling == Sampling(temperature=0.5)
    assert done.left_out["nothing said of it under good"] == {"count": 1, "first": silent}
    assert done.left_out["cannot be trained on"]["first"].startswith(f"{sure.id}: it has no behavior log-probs")
    assert export(store, Wanted(kind="decisions", metric="good", silent=-1), tmp_path / "log.jsonl").rows == 2


def test_what_cannot_be_read_is_named_and_never_in_the_file(store: Store, answer: str, tmp_path: Path) -> None:
    good = store.add_feedback("demonstration", "4", decision_id=answer)
    bad = [store.add_feedback("demonstration", value, decision_id=answer) for value in ("", 5, {"role": "user"})]
    slate = store.add_records([Record(inputs=as_json(REQUEST), output=["a"])])[0]
    other = store.add_feedback("demonstration", ["b"], decision_id=slate)
    done = export(store, Wanted(kind="demonstrations"), tmp_path / "rows.jsonl")
    assert [row.feedback_id for row in store.dataset_rows(done.dataset.id)] == [good.id]
    assert len(read_examples(done.path)) == done.rows == 1
    unusable = done.left_out["cannot be trained on"]
    assert unusable["count"] == 3 and unusable["first"].startswith(f"{bad[0].id}: ")
    assert done.left_out["of another kind of policy than the first row"] == {"count": 1, "first": other.id}


def test_an_empty_export_says_what_was_left_out_and_leaves_no_file(store: Store, answer: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the log has no demonstrations such as these$"):
        export(store, Wanted(kind="demonstrations"), tmp_path / "rows.jsonl")
    said = store.add_feedback("helpful", "words", decision_id=answer)
    with pytest.raises(DataError, match=f"left out: 1 a value that is no number .first: {said.id}"):
        export(store, Wanted(kind="ratings", metric="helpful"), tmp_path / "rows.jsonl")
    store.add_feedback("demonstration", "", decision_id=answer)
    with pytest.raises(DataError, match=r"left out: 1 cannot be trained on"):
        export(store, Wanted(kind="demonstrations"), tmp_path / "rows.jsonl")
    assert list(tmp_path.glob("*.jsonl")) == [] and store.datasets() == []


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"kind": "rows"}, "kinds are demonstrations"),
        ({"kind": "ratings"}, "of one metric, such as helpful"),
        ({"kind": "tasks", "metric": "good"}, "metric says nothing of tasks"),
        ({"kind": "decisions", "silent": 0.0}, "name the metric too"),
        ({"kind": "preferences", "since": "yesterday"}, "ISO 8601 time such as 2026-11-21"),
        ({"kind": "preferences", "until": "0001-01-01T00:00+14:00"}, "ISO 8601 time such as 2026-11-21"),
        ({"kind": "preferences", "most_per_source": 0}, "above 0 and at most 1"),
    ],
)
def test_what_cannot_be_asked_for(asked: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Wanted(**asked)


def test_a_format_for_other_rows_is_refused_with_those_that_fit(store: Store, tmp_path: Path) -> None:
    told = "messages holds demonstrations; preferences can be written as openai-preference"
    with pytest.raises(ConfigError, match=told):
        export(store, Wanted(kind="preferences"), tmp_path / "rows.jsonl", format="openai-sft")


def test_who_decided_who_said_it_and_when(store: Store, tmp_path: Path) -> None:
    how: dict[str, Any] = {"fingerprint": "f", "files": {}, "base_model": "b", "method": "sft"}
    old, new = (store.add_version(name, "/m", **how) for name in ("bot", "other"))
    one = store.add_records([Record(inputs="a", output="b", policy_version=old.id)], alias="prod", episode_id="e")[0]
    two = store.add_records([Record(inputs="a", output="c", policy_version=new.id)])[0]
    first = store.add_feedback("demonstration", "1", decision_id=one, source="ann")
    second = store.add_feedback("demonstration", "2", decision_id=two, source="ben")

    def outputs(**filters: Any) -> list[Any]:
        return [row.output for row in rows(store, "demonstrations", **filters)]

    for mine, theirs in (
        ({"name": "bot"}, {"name": "other"}),
        ({"version": old.id[:12]}, {"version": new.id}),
        ({"sources": ("ann",)}, {"without_sources": ("ann",)}),
        ({"without_sources": ("ben",)}, {"sources": ("ben", "nobody")}),
        ({"until": second.created}, {"since": second.created}),
        ({"alias": "prod"}, {"name": "other"}),
        ({"episode": "e"}, {"since": second.created, "until": "2999-01-01T00:00+02:00"}),
    ):
        assert outputs(**mine) == ["1"] and outputs(**theirs) == ["2"], (mine, theirs)
    assert outputs(since=first.created) == ["1", "2"] and outputs(until="2020-01-01") == []


def summary(done: Exported) -> tuple[Any, ...]:
    return done.dataset, done.rows, done.format


def test_an_unchanged_log_is_the_same_data_set(store: Store, answer: str, tmp_path: Path) -> None:
    said = store.add_feedback("demonstration", "4", decision_id=answer)
    first, again = (export(store, Wanted(kind="demonstrations"), tmp_path / name) for name in ("a.jsonl", "b.jsonl"))
    assert summary(first) == summary(again) and len(store.datasets()) == 1
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert [row.feedback_id for row in store.dataset_rows(first.dataset.id)] == [said.id]
    bare = export(store, Wanted(kind="demonstrations"), tmp_path / "c.jsonl", origin=False)
    assert bare.dataset.id != first.dataset.id and read_examples(bare.path).rows[0].item == ITEM
    later = store.add_feedback("demonstration", "4", decision_id=answer, source="", replaces=said.id)
    again = export(store, Wanted(kind="demonstrations"), tmp_path / "d.jsonl", origin=False)
    assert again.dataset.id == bare.dataset.id, "equal rows are one data set, which then names all they were made of"
    assert [row.feedback_id for row in store.dataset_rows(bare.dataset.id)] == [said.id, later.id]


def test_tasks_of_one_kind_of_row_are_typed(store: Store, tmp_path: Path) -> None:
    store.add_records([Record(inputs={"age": 67}, output="good"), Record(inputs={"age": 30}, output="bad")])
    done = export(store, Wanted(kind="tasks"), tmp_path / "tasks.csv")
    assert done.format == "decision-task"
    assert [(type(row), row.inputs) for row in read_examples(done.path, "tasks").rows] == [
        (Task, {"age": 67}),
        (Task, {"age": 30}),
    ]


def test_what_is_said_meanwhile_is_in_no_pass_over_the_log(store: Store) -> None:
    decided = store.add_records([Record(inputs=f"{number}", output="?") for number in range(600)])  # two pages
    store.add_feedbacks([Said(metric="demonstration", value="!", decision_id=one) for one in decided])
    first, *_ = store.feedback(decision_id=decided[-1])
    with moment(store) as connection:
        found = rows_of(connection, Wanted(kind="demonstrations"), LeftOut())
        next(found)
        store.add_feedback("demonstration", "late", decision_id=decided[0])
        store.add_feedback("demonstration", "corrected", decision_id=decided[-1], replaces=first.id)
        assert [made.example.output for made in found] == ["!"] * 599  # type: ignore[union-attr]
        assert len(list(rows_of(connection, Wanted(kind="demonstrations"), LeftOut()))) == 600
    with moment(store) as connection:
        assert len(list(rows_of(connection, Wanted(kind="demonstrations"), LeftOut()))) == 601


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_an_export_holds_no_more_of_a_log_that_is_longer(tmp_path: Path, name: str) -> None:
    """Peak memory of 6,000 rows within 2 MiB of that of 1,000; a list of the rows would take some 20 MiB more."""
    said = "a better answer " * 60
    with Store.open(tmp_path / "melior.db") as store:
        for source, count in (("few", 1_000), ("many", 6_000)):
            asked = [Record(inputs=f"{source} {number}", output="?") for number in range(count)]
            decided = store.add_records(asked)
            store.add_feedbacks(
                [Said(metric="demonstration", value=said, decision_id=one, source=source) for one in decided]
            )
        peaks = []
        for source in ("few", "few", "many"):  # the first one imports
            tracemalloc.start()
            export(store, Wanted(kind="demonstrations", sources=(source,)), tmp_path / name)
            peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
            tracemalloc.stop()
    assert peaks[2] < peaks[1] + 2, peaks
