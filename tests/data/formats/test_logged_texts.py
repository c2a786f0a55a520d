"""a logged answer keeps the tokens it was, and a request out of a log is a request again"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from melior.data.formats import as_json, read_examples
from melior.data.formats.decisions import restored
from melior.data.writers import write_examples
from melior.errors import DataError
from melior.types import Interaction, Item, Record, Sampling, SlateRequest

SAID = Record(
    inputs=[{"role": "user", "content": "2+2?"}],
    output="4.",
    item={"reward": 1.0},
    group="g",
    context=(5, 6, 7),
    decisions=(8, 9),
    behavior_log_probs=(-0.5, -1.25),
    sampling=Sampling(temperature=0.7, top_p=0.9, seed=3, stop=("\n",)),
    policy_version="ver_1",
    fingerprint="tokens",
    finish="stop",
)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_an_answer_comes_back_with_its_tokens_and_how_they_were_drawn(tmp_path: Path, name: str) -> None:
    bare = replace(SAID, sampling=None, fingerprint=None, finish="given")
    write_examples(tmp_path / name, [SAID, bare], "logged", spreadsheet=name.endswith("csv"))
    assert read_examples(tmp_path / name, "logged").rows == [SAID, bare]


def test_tokens_that_do_not_fit_their_log_probs_are_refused(tmp_path: Path) -> None:
    write_examples(tmp_path / "rows.jsonl", [SAID], "logged")
    text = (tmp_path / "rows.jsonl").read_text()
    for old, new, told in (
        ("[8, 9]", "[8, 9, 10]", "2 log_probs for 3 decisions"),
        ("[8, 9]", '[8, "x"]', "whole numbers"),
        ('"temperature": 0.7', '"temperature": -1', "no way to sample"),
        ('"context": [5, 6, 7]', '"reads": [5, 6, 7]', "sampled must be an object"),
    ):
        (tmp_path / "bad.jsonl").write_text(text.replace(old, new))
        with pytest.raises(DataError, match=told):
            read_examples(tmp_path / "bad.jsonl")


def test_a_request_in_a_log_is_the_request_it_was() -> None:
    history = (Interaction("p4", "click", 30.0), Interaction("p5"))
    request = SlateRequest({"age": 31}, "p1", history, ("p1", Item("new", {"price": 9.5})))
    for one in (request, SlateRequest(), SlateRequest({"a": None}, candidates=("p1",))):
        assert restored(as_json(one)) == one
    assert restored([{"role": "user", "content": "hi"}]) == [{"role": "user", "content": "hi"}]
    assert restored({"age": 67, "type": "x"}) == {"age": 67, "type": "x"}
