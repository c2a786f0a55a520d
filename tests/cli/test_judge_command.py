"""melior judge says whether a judge may be a reward, keeps it, and lets a recipe learn from it"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from local_server import Request, Server, answer, serving
from typer.testing import CliRunner

from melior.cli.main import app
from melior.cycles.judges import check_judges
from melior.cycles.recipe import recipe_of
from melior.errors import ConfigError
from melior.store import Store

SIDES = re.compile(r"<answer [AB] (\w+)>\n(.*?)\n</answer [AB] \1>", re.DOTALL)

FAR = '{"type": "pair_model", "model": {"endpoint": "http://h/v1", "model": "m"}}'


def longer(a: str, b: str) -> str:
    return "A" if len(a) > len(b) else "B"


def model(choose: Callable[[str, str], str]) -> Any:
    def script(request: Request, connection: socket.socket, server: Server) -> None:
        (_, a), (_, b) = SIDES.findall(request.json["messages"][-1]["content"])
        message = {"role": "assistant", "content": json.dumps({"steps": [], "result": choose(a, b)})}
        usage = {"prompt_tokens": 7, "completion_tokens": 1}
        answer(connection, {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})

    return serving(script)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with people's pairs, the longer answer always preferred; MELIOR_HOME inside it."""
    kind = "a long and kind answer that says what happens next" * 3
    rows = [{"prompt": f"question {n}?", "chosen": kind, "rejected": "no"} for n in range(120)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("MELIOR_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def spec(server: Server, **more: Any) -> str:
    where = {"endpoint": f"http://127.0.0.1:{server.port}/v1", "model": "big", "attempts": 1, "timeout_s": 5}
    return json.dumps({"type": "pair_model", "name": "kind", "model": where, **more})


def call(*arguments: Any, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["judge", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.stderr
    return result


def test_an_accepted_judge_is_kept_and_may_be_a_reward(place: Path, folder_of: Callable[..., Path]) -> None:
    with model(longer) as server:
        told = call(spec(server), "pairs.jsonl", "--limit", 110, "--canary-prompts", 2).stdout
        assert told.startswith("Accepted: kind agrees with people on 1.000 [")
        assert "order consistency" in told and "110 of 110 pairs, 110 independent" in told and "tokens" in told
        assert "0 of 2" in told and "kept as eval_" in told
        raw = {"method": "rft", "model": {"path": str(folder_of("llama"))}, "data": {"train": "pairs.jsonl"}}
        grader = {**json.loads(spec(server)), "reference": "{{item.answer}}"}
        with Store.open() as store:
            check_judges(recipe_of({**raw, "grader": grader}), store)  # what it compares with makes no other judge
        with pytest.raises(ConfigError, match="nobody has shown"), Store.open() as store:
            check_judges(recipe_of({**raw, "grader": {**grader, "criterion": "Which is shorter?"}}), store)


def test_a_refused_judge_ends_with_status_1_and_says_why(place: Path) -> None:
    with model(lambda a, b: "A") as server:
        result = call(spec(server), "pairs.jsonl", "--canary-prompts", 1, "--no-record", code=1)
    assert result.stdout.startswith("Refused: it agrees with people on 0.500") and "exchange of sides" in result.stdout
    assert "kept as" not in result.stdout
    with Store.open() as store:
        assert not store.evaluations()


def test_json_tells_all_of_it(place: Path) -> None:
    with model(longer) as server:
        told = json.loads(call(spec(server), "pairs.jsonl", "--canary-prompts", 0, "--json").stdout)
    assert told["accepted"] is True and told["consistency"]["estimate"] == 1.0 and told["canaries"] == []
    with Store.open() as store:
        (row,) = store.evaluations()
    assert row.id == told["evaluation"] and row.grader == "people" and row.summary["fingerprint"]
    assert row.base_model is not None and row.base_model.startswith("big at http://127.0.0.1")


def test_a_judge_that_is_not_there_is_refused_with_its_error(place: Path) -> None:
    with model(longer) as server:
        gone = spec(server)
    result = call(gone, "pairs.jsonl", "--limit", 4, "--canary-prompts", 0, "--no-record", code=1)
    assert "it failed on all 4 rows" in result.stdout and "cannot be reached" in result.stdout
    assert "model_grader_server_error" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("os:system", "pairs.jsonl"), "a judge is a score_model"),
        (('{"type": "string_check"}', "pairs.jsonl"), "a judge is a score_model"),
        (('{"type": "pair_model"}', "pairs.jsonl"), "needs the key 'model'"),
        (('{"type": "pair_model", "model": "no-such"}', "pairs.jsonl"), "no-such"),
        (("judge.yaml", "pairs.jsonl"), "cannot be read"),
        (('{"type": "pair_model", "model": {"endpoint": "http://h/v1", "model": "m"}}', "nowhere.jsonl"), "nowhere"),
        (
            ('{"type": "pair_model", "model": {"endpoint": "http://h/v1", "model": "m"}}', "shown.jsonl"),
            "demonstrations",
        ),
        (('{"type": "pair_model", "model": {"endpoint": "http://h/v1", "model": "m"}}', "rated.jsonl"), "give pairs"),
    ],
)
def test_mistakes_are_told_in_one_sentence(place: Path, arguments: tuple[str, ...], told: str) -> None:
    (place / "shown.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (place / "rated.jsonl").write_text('{"prompt": "a", "completion": "b", "label": true}\n')
    result = call(*arguments, code=1)
    assert told in result.stderr and len(result.stderr.strip().splitlines()) == 1
