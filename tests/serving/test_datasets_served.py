"""the log becomes training files over HTTP, a job learns from one, and both are traced back to what was said"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live import Live

from melior.data.formats import read_examples
from melior.errors import DatabaseAway
from melior.registry import Registry
from melior.serving.security import hash_of
from melior.types import Record


def decided(server: Live, count: int = 4, version: str | None = None) -> list[str]:
    """Answers in the log, and a better one to each."""
    store = server.service.store
    asked = [[{"role": "user", "content": f"say it {number} times"}] for number in range(count)]
    records = [Record(inputs=each, output="a dog", policy_version=version) for each in asked]
    names = store.add_records(records)
    for number, name in enumerate(names):
        store.add_feedback("demonstration", "the cat", decision_id=name, source="ben" if number % 4 else "ann")
    return names


def test_an_export_is_a_file_and_a_data_set_that_can_be_paged(server: Live, tmp_path: Path) -> None:
    names = decided(server)
    with server.http() as http:
        made = http.post("/v1/datasets", json={"kind": "demonstrations"}).json()
        assert made["object"] == "dataset" and made["rows"] == 4 and made["sources"] == {"ann": 1, "ben": 3}
        content = server.client().files.content(made["file_id"]).read()
        (tmp_path / "rows.jsonl").write_bytes(content)
        assert len(read_examples(tmp_path / "rows.jsonl", "demonstrations")) == 4
        file = server.client().files.retrieve(made["file_id"])
        assert (file.purpose, file.filename, file.bytes) == ("fine-tune", "demonstrations.jsonl", len(content))
        assert http.get(f"/v1/datasets/{made['id']}").json() == {k: v for k, v in made.items() if k != "not_kept"}
        rows, after = [], None
        while True:
            page = http.get(
                f"/v1/datasets/{made['id']}/rows", params={"limit": 3, **({"after": after} if after else {})}
            )
            rows += page.json()["data"]
            after = page.json()["last_id"]
            if not page.json()["has_more"]:
                break
        assert [row["position"] for row in rows] == [0, 1, 2, 3]
        assert [row["made_of"][0]["decision_id"] for row in rows] == names
        assert http.get(f"/v1/datasets/{made['id']}/rows", params={"after": "ds_other:3"}).status_code == 404


def test_an_unchanged_log_gives_the_same_file_and_a_deleted_one_is_made_again(server: Live) -> None:
    decided(server)
    with server.http() as http:
        asked = {"kind": "preferences", "format": "openai-dpo"}
        first, again = (http.post("/v1/datasets", json=asked).json() for _ in range(2))
        assert first == again and len(list(server.service.files.iterdir())) == 1
        as_table = http.post("/v1/datasets", json={**asked, "file": "csv"}).json()
        assert as_table["file_id"] != first["file_id"]
        server.client().files.delete(first["file_id"])
        third = http.post("/v1/datasets", json=asked).json()
        assert third["id"] == first["id"] and third["file_id"] not in (None, first["file_id"])
        listed = http.get("/v1/datasets", params={"limit": 1}).json()
        assert not listed["has_more"] or listed["data"][0]["id"] == as_table["id"]
        server.client().files.delete(third["file_id"])
        if as_table["id"] != first["id"]:
            assert http.get(f"/v1/datasets/{first['id']}").json()["file_id"] is None


def test_an_export_that_no_row_names_leaves_no_bytes(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*file: Any, **more: Any) -> Any:
        raise DatabaseAway("the database does not answer")

    decided(server)
    monkeypatch.setattr(server.service.store, "add_file", away)
    with server.http() as http:
        assert http.post("/v1/datasets", json={"kind": "preferences", "format": "openai-dpo"}).status_code == 503
    assert not list(server.service.files.iterdir())


@pytest.mark.parametrize(
    ("asked", "told", "param"),
    [
        ({"kind": "rows"}, "demonstrations", "kind"),
        ({"kind": "ratings"}, "of one metric", None),
        ({"kind": "demonstrations", "format": "openai-dpo"}, "holds preferences", None),
        ({"kind": "demonstrations", "format": "no such"}, "unknown format", None),
        ({"kind": "demonstrations", "version": "ver_none"}, "there is no version", "version"),
        ({"kind": "demonstrations", "since": "soon"}, "ISO 8601", None),
        ({"kind": "demonstrations", "most_per_source": 2}, "less than or equal", "most_per_source"),
        ({"kind": "demonstrations", "most_per_source": 0.3}, "2 sources cannot each stay", None),
        ({"kind": "demonstrations", "sources": ["nobody\0"]}, "the log has no demonstrations", None),
        ({"kind": "demonstrations", "folder": "/etc"}, "Extra inputs", "folder"),
        ({"kind": "demonstrations", "file": "../../x"}, "jsonl", "file"),
    ],
)
def test_what_cannot_be_exported(server: Live, asked: dict[str, Any], told: str, param: str | None) -> None:
    decided(server)
    with server.http() as http:
        refused = http.post("/v1/datasets", json=asked)
        error = refused.json()["error"]
        assert refused.status_code == 400 and told in error["message"] and error["param"] == param
        assert str(server.service.files) not in error["message"]
        assert http.get("/v1/datasets").json()["data"] == []
    assert not server.service.files.exists() or list(server.service.files.iterdir()) == []


def test_reading_and_exporting_need_their_scopes(server: Live) -> None:
    decided(server)
    for scope, allowed in (("read", {"GET"}), ("train", {"POST"}), ("infer", set())):
        server.service.store.add_key(scope, hash_of(scope), [scope])
        with server.http(scope) as http:
            got, posted = http.get("/v1/datasets"), http.post("/v1/datasets", json={"kind": "demonstrations"})
            assert (got.status_code == 200) == ("GET" in allowed) and (posted.status_code == 200) == ("POST" in allowed)
            assert (http.get("/v1/trace/nothing").status_code == 404) == ("GET" in allowed)


@pytest.fixture
def working(live: Callable[..., Live], folder_of: Callable[..., Path]) -> Iterator[tuple[Live, str]]:
    """A server that trains, with a tiny model called tiny@prod."""
    made = live(work=True)
    registry = Registry(made.service.store)
    version = registry.register("tiny", folder_of("llama", "chatml"), method="none", base_model="tiny")
    registry.promote(version.id, force=True, reason="the only one")
    yield made, version.id


def test_a_job_learns_from_an_export_and_all_of_it_is_traced(working: tuple[Live, str]) -> None:
    server, version = working
    names = decided(server, 20, version)
    client, store = server.client(), server.service.store
    with server.http() as http:
        made = http.post("/v1/datasets", json={"kind": "demonstrations", "most_per_source": 0.75}).json()
        assert made["rows"] == 20
        how: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 4}}}
        job = client.fine_tuning.jobs.create(
            model="tiny@prod", training_file=made["file_id"], method=how, suffix="cats"
        )
        until = time.monotonic() + 200
        while (job := client.fine_tuning.jobs.retrieve(job.id)).status not in ("succeeded", "failed", "cancelled"):
            assert time.monotonic() < until
            time.sleep(0.3)
        assert job.status == "succeeded", job.error
        (run,) = store.runs()
        assert run.dataset_id == made["id"], "a run over an export names it, whatever part it holds out"
        learnt = str(store.job(job.id).result["version_id"])
        (said, *_) = store.feedback(decision_id=names[7])
        ahead = http.get(f"/v1/trace/{said.id}").json()
        (dataset,) = ahead["became"]
        assert (dataset["kind"], dataset["id"]) == ("dataset", made["id"])
        (trained,) = [step for step in dataset["steps"] if step["kind"] == "run"]
        assert trained["id"] == run.id and learnt in [step["id"] for step in trained["steps"]]
        assert ahead["came_from"][0]["id"] == names[7] and ahead["came_from"][0]["steps"][0]["id"] == version
        back = http.get(f"/v1/trace/{learnt}", params={"shown": 100}).json()
        assert {row.id for row in store.feedback()} <= set(_ids(back["came_from"])) and version in _ids(
            back["came_from"]
        )
        assert job.id in _ids(back["came_from"]) and made["file_id"] in _ids(back["came_from"])
        assert str(server.service.settings.data) not in json.dumps([ahead, back]), "no folder is told"


def _ids(steps: list[Any]) -> list[str]:
    return [name for step in steps for name in (step["id"], *_ids(step["steps"]))]
