"""what a run keeps on the way: the newest few, each whole, none that somebody needs let go"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from melior.cycles.kept import Kept, folder_of, kept_steps
from melior.registry import Registry
from melior.store import Store
from melior.store.rows import Version


class Counting:
    """A policy that is a number."""

    def __init__(self) -> None:
        self.number = 0

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "number").write_text(str(self.number))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "melior.db") as opened:
        yield opened


def keeping(store: Store, run: Path, most: int = 3, every: int = 2) -> Kept:
    def register(place: Path, step: int) -> Version:
        return Registry(store).register("count", place, method="sft", base_model="zero", metrics={"step": step})

    return Kept(run, most, every, store, register, lambda policy: {"number": float(policy.number)})


def train(keeps: Kept, start: int, end: int) -> None:
    policy = Counting()
    for policy.number in range(start + 1, end + 1):
        keeps.see(policy, policy.number)


def test_the_newest_few_ends_of_epochs_are_kept_and_the_others_are_gone(store: Store, tmp_path: Path) -> None:
    train(keeping(store, tmp_path), 0, 11)
    assert keeping(store, tmp_path).see(Counting(), 11) == {}, "no end of an epoch"
    assert kept_steps(tmp_path) == [6, 8, 10]
    assert [(folder_of(tmp_path, step) / "number").read_text() for step in (6, 8, 10)] == ["6", "8", "10"]
    assert [version.metrics["step"] for version in store.versions()] == [6, 8, 10]
    assert [version.metrics["step"] for version in store.versions(deleted=True) if version.deleted] == [2, 4]


def test_a_run_that_goes_on_keeps_what_it_would_have_kept(store: Store, tmp_path: Path) -> None:
    train(keeping(store, tmp_path), 0, 7)
    train(keeping(store, tmp_path), 4, 10)  # killed, and steps 5 to 7 are done again
    assert kept_steps(tmp_path) == [6, 8, 10]
    assert [version.metrics["step"] for version in store.versions()] == [6, 8, 10], "each registered once"


def test_what_was_promoted_or_trained_from_is_not_let_go(store: Store, tmp_path: Path) -> None:
    keeps, registry = keeping(store, tmp_path, most=1), Registry(store)
    train(keeps, 0, 2)
    registry.promote(store.versions()[0].id, force=True, reason="good enough")
    train(keeps, 2, 4)
    child = tmp_path / "child"
    Counting().save(child)
    registry.register("child", child, method="sft", parent=store.versions()[-1].id)
    train(keeps, 4, 8)
    assert kept_steps(tmp_path) == [2, 4, 8]
    assert registry.verify("count@prod").metrics["step"] == 2


def test_what_a_run_or_a_job_begins_with_is_not_let_go_before_it_is_done(store: Store, tmp_path: Path) -> None:
    keeps = keeping(store, tmp_path, most=1)
    train(keeps, 0, 6)
    train(keeping(store, tmp_path, most=3), 6, 10)  # 6, 8, 10
    of_job, of_run, _ = store.versions()
    job = store.add_job("sft", {"model": {"path": of_job.id}}, str(tmp_path / "job"))
    run = store.add_run("sft", {}, tmp_path / "other", base_version=of_run.id)
    train(keeps, 10, 12)
    assert kept_steps(tmp_path) == [6, 8, 12]
    store.ask_job(job.id, "pause")
    store.finish_run(run.id, status="failed", error="the disk is full")
    train(keeps, 12, 14)
    assert kept_steps(tmp_path) == [6, 8, 14], "both may go on"
    store.ask_job(job.id, "cancel")
    store.reopen_run(run.id)
    store.finish_run(run.id)
    train(keeps, 14, 16)
    assert kept_steps(tmp_path) == [16]


def test_nothing_is_kept_where_nothing_was_saved(tmp_path: Path) -> None:
    assert kept_steps(tmp_path / "nowhere") == []
