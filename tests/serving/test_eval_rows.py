"""rows of evals: what is no text is refused before it is kept, and of kept completions only those asked for are read"""

from __future__ import annotations

import json
from typing import Any

import pytest
from live import Live
from sqlalchemy.event import listen

from melior.serving.eval_rows import StoredCompletions, rows_of
from melior.serving.problems import Problem
from melior.store.query import CHUNK
from melior.types import Record

JSON = {"content-type": "application/json"}
ROW: Any = {"item": {"word": "cat"}, "sample": {"output_text": "cat"}}
HALF: Any = {"item": {"word": "cat \ud83d"}, "sample": {"output_text": "cat"}}


def evaluated(server: Live, reference: str = "cat") -> Any:
    """The answer to an eval of outputs that must say a word."""
    criterion = {
        "type": "string_check",
        "name": "says it",
        "operation": "eq",
        "input": "{{sample.output_text}}",
        "reference": reference,
    }
    config = {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True}
    body = {"name": "cats", "data_source_config": config, "testing_criteria": [criterion]}
    return server.http().post("/v1/evals", content=json.dumps(body), headers=JSON)


def ran(server: Live, source: Any) -> Any:
    """The answer to a run of rows that are there."""
    made = evaluated(server).json()["id"]
    body = {"name": "run", "data_source": {"type": "jsonl", "source": source}}
    return server.http().post(f"/v1/evals/{made}/runs", content=json.dumps(body), headers=JSON)


def test_an_eval_with_half_a_character_is_refused_and_the_list_is_read(server: Live) -> None:
    answer = evaluated(server, "cat \ud83d")
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "testing_criteria"
    assert "surrogates not allowed" in answer.json()["error"]["message"]
    assert server.http().get("/v1/evals").json()["data"] == []


@pytest.mark.parametrize("in_a_file", [False, True])
def test_a_row_with_half_a_character_is_refused(server: Live, in_a_file: bool) -> None:
    source: Any = {"type": "file_content", "content": [ROW, HALF]}
    if in_a_file:
        lines = "".join(json.dumps(row) + "\n" for row in (ROW, HALF)).encode()
        sent = server.http().post("/v1/files", data={"purpose": "evals"}, files={"file": ("rows.jsonl", lines)})
        source = {"type": "file_id", "id": sent.json()["id"]}
    answer = ran(server, source)
    assert answer.status_code == 400 and "surrogates not allowed" in answer.json()["error"]["message"]
    assert ("line 2" in answer.json()["error"]["message"]) is in_a_file
    assert not server.service.jobs.exists() or list(server.service.jobs.iterdir()) == []


def kept(server: Live, count: int, start: int = 0, *, use: str = "words", decided: bool = True) -> list[str]:
    """Completions that somebody asked to keep."""
    ids = [f"chatcmpl_{number}" for number in range(start, start + count)]
    if decided:
        server.service.store.add_records([Record(inputs="q", output=name) for name in ids], ids=ids)
    for name in ids:
        asked = {"messages": [{"role": "user", "content": name}], "metadata": {"use": use}}
        said = {"choices": [{"message": {"role": "assistant", "content": name}}]}
        server.service.store.add_completion(name, "tiny", asked, said)
    return ids


def outputs(server: Live, **more: Any) -> list[str]:
    """What the rows of a run of kept completions would be graded for."""
    source = StoredCompletions(type="stored_completions", **more)
    found = rows_of(server.service, source, None, lambda item: [], {"use": "words"}, samples=True)
    return [row["output"] for row in found]


def test_kept_completions_are_read_until_there_are_enough(server: Live) -> None:
    kept(server, 1, use="other")
    first, second = kept(server, 2, start=1)
    kept(server, 2 * CHUNK, start=3)
    read: list[str] = []
    listen(server.service.store.database.engine, "before_cursor_execute", lambda *told: read.append(str(told[2])))
    assert outputs(server, limit=2) == [first, second]
    assert ["LIMIT" in query for query in read if "FROM completions" in query] == [True], "one page"
    assert len(outputs(server)) == len(outputs(server, created_after=0)) == 2 * CHUNK + 2
    with pytest.raises(Problem, match="there are no rows"):
        outputs(server, created_before=0)


def test_kept_completions_that_nobody_decided_are_no_rows(server: Live) -> None:
    kept(server, 2, decided=False)
    last = kept(server, 1, start=2)
    assert outputs(server, limit=1) == outputs(server) == last
