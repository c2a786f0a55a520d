"""melior feedback: what was said is found, corrected and turned into rows by a person"""

from __future__ import annotations

from pathlib import Path

import pytest
from test_commands import call, from_json

from melior.store import Store
from melior.types import Record


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database in which a text, a slate and a rating were spoken of."""
    path = tmp_path / "home" / "melior.db"
    monkeypatch.setenv("MELIOR_HOME", str(path.parent))
    monkeypatch.chdir(tmp_path)
    with Store.open(path) as opened:
        text, slate = opened.add_records(
            [Record(inputs="Where?", output="Soon."), Record(inputs={}, output=["a", "b"])]
        )
        opened.add_feedback("comment", "Too SLOW \x1b[31m", decision_id=text, source="ann", feedback_id="fb_text")
        opened.add_feedback("comment", "b first", decision_id=slate, source="bob", feedback_id="fb_slate")
        opened.add_feedback("stars", 4, decision_id=text, source="bob", feedback_id="fb_stars")
    return path


def test_what_was_said_is_found_and_shown(store: Path) -> None:
    assert [row["id"] for row in from_json("feedback", "list", "--search", "slow")] == ["fb_text"]
    shown = call("feedback", "show", "fb_t").stdout
    assert "Too SLOW" in shown and "Soon." in shown and "\x1b" not in shown
    cut = call("feedback", "list", "--limit", "2")
    assert "there are more; --after fb_slate" in cut.stderr
    rest = from_json("feedback", "list", "--after", "fb_slate")
    assert [row["id"] for row in rest] == ["fb_text"]
    assert "nothing was said that fits" in call("feedback", "list", "--metric", "other").stdout


def test_a_comment_is_turned_into_rows_by_whoever_says_so(store: Path, tmp_path: Path) -> None:
    (tmp_path / "better.txt").write_text("Tomorrow.\n")
    better = from_json("feedback", "turn", "fb_text", "--demonstration", "@better.txt", "--by", "editor")
    pair = from_json("feedback", "turn", "fb_text", "--preference", "Tomorrow.", "--by", "editor")
    other = from_json("feedback", "turn", "fb_slate", "--preference", '["b", "a"]', "--by", "editor")
    assert (better["value"], better["source"], better["made_from_id"]) == ("Tomorrow.", "editor", "fb_text")
    assert pair["value"] == {"chosen": "Tomorrow.", "rejected": "Soon."}
    assert other["value"] == {"chosen": ["b", "a"], "rejected": ["a", "b"]}
    assert f"turned into {better['id']} (demonstration), {pair['id']} (preference)" in (
        call("feedback", "show", "fb_text").stdout
    )
    assert "'b' is not JSON" in call("feedback", "turn", "fb_slate", "--demonstration", "b", code=1).stderr
    assert "give --demonstration or --preference" in call("feedback", "turn", "fb_text", code=1).stderr
    assert "cannot be read" in call("feedback", "turn", "fb_text", "--demonstration", "@no.txt", code=1).stderr
    same = call("feedback", "turn", "fb_text", "--preference", "Soon.", code=1).stderr
    assert "chosen and rejected of preference are the same" in same


def test_what_was_corrected_is_listed_only_with_its_history(store: Path) -> None:
    right = from_json("feedback", "correct", "fb_stars", "5", "--by", "editor")
    back = from_json("feedback", "correct", "fb_slate", "--take-back")
    assert [row["id"] for row in from_json("feedback", "list")] == [right["id"], "fb_text"]
    whole = {row["id"]: row["replaced_by"] for row in from_json("feedback", "list", "--history")}
    assert whole == {
        back["id"]: None,
        right["id"]: None,
        "fb_stars": right["id"],
        "fb_slate": back["id"],
        "fb_text": None,
    }
    assert "taken back" in call("feedback", "list", "--history").stdout
    assert "replace that one" in call("feedback", "correct", "fb_stars", "3", code=1).stderr
    assert "give one of them" in call("feedback", "correct", "fb_text", code=1).stderr


def test_metrics_are_declared_and_listed(store: Path) -> None:
    call("feedback", "metrics", "add", "clarity", "--type", "rating", "--low", "1", "--high", "5")
    told = call("feedback", "metrics", "list").stdout
    assert "clarity" in told and "rating from 1 to 5" in told and "purchase" in told
    assert "1 values kept as stars" in (call("feedback", "metrics", "add", "stars", "--type", "boolean", code=1).stderr)
