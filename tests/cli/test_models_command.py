"""melior models delete, and the operator's models of melior serve, as a person types them"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from melior.cli.main import app
from melior.registry import Registry
from melior.store import Store
from melior.store.rows import Version

RUN = CliRunner()


@pytest.fixture
def versions(tmp_path: Path) -> list[Version]:
    """Two versions of sums, of which the second is promoted, and a base model."""
    with Store.open(tmp_path / "melior.db") as store:
        registry = Registry(store)
        for name in ("one", "two", "little"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "weights").write_text(name)
        made = [
            registry.register("sums", tmp_path / name, method="sft", base_model="little") for name in ("one", "two")
        ]
        registry.promote(made[1].id, force=True, reason="test")
        return [*made, registry.register_base("little", tmp_path / "little")]


def said(*words: str, store: Path, fails: bool = False) -> str:
    done = RUN.invoke(app, ["models", *words, "--store", str(store / "melior.db")])
    assert (done.exit_code != 0) == fails, done.output
    return done.output


def test_a_version_is_deleted_and_told_so_afterwards(tmp_path: Path, versions: list[Version]) -> None:
    first, second, _ = versions
    assert f"{first.id} (sums) is deleted" in said("delete", first.id, store=tmp_path)
    listed = said("list", store=tmp_path)
    assert first.id not in listed and second.id in listed
    assert "deleted" in said("show", first.id, store=tmp_path)
    assert "was deleted on" in said("delete", first.id, store=tmp_path, fails=True)
    assert "was deleted on" in said("promote", first.id, "--force", "--reason", "x", store=tmp_path, fails=True)


def test_what_is_needed_is_not_deleted(tmp_path: Path, versions: list[Version]) -> None:
    assert "is what sums@prod points to" in said("delete", "sums", store=tmp_path, fails=True)
    assert "is a base model" in said("delete", "little", store=tmp_path, fails=True)
    assert "no model is called" in said("delete", "nothing", store=tmp_path, fails=True)


def test_lineage_shows_what_was_deleted(tmp_path: Path, versions: list[Version]) -> None:
    said("delete", versions[0].id, store=tmp_path)
    assert "(deleted 20" in said("lineage", versions[0].id, store=tmp_path)
    told = json.loads(said("list", "--json", store=tmp_path))
    assert [(one["method"], one["aliases"]) for one in told] == [("sft", ["@prod"]), ("base", [])]


def test_a_model_that_is_not_there_is_told_before_the_server_starts(tmp_path: Path) -> None:
    done = RUN.invoke(app, ["serve", "--database", f"sqlite:///{tmp_path}/melior.db", "--model", "nowhere"])
    assert done.exit_code != 0 and "there is no folder 'nowhere'" in done.output
