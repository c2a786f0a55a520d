"""judges over HTTP: we ask ourselves as an endpoint; names that the operator gave, and no address of a stranger"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from live import Live
from local_server import Request, Server, answer, closed_port, serving

from melior.cli.serve import named_judge
from melior.cycles.judges import record_report
from melior.errors import ConfigError
from melior.evaluation.judges import judge_report
from melior.registry import Registry
from melior.rewards.graders import load_grader
from melior.rewards.pairs import Pair, PairModel
from melior.types import Preference, Record, Score

ASK = {"type": "score_model", "name": "judge", "input": [{"role": "user", "content": "Good? {{sample.output_text}}"}]}


def tiny(server: Live, folder: Path) -> None:
    registry = Registry(server.service.store)
    version = registry.register("tiny", folder, method="none", base_model="none")
    registry.promote(version.id, force=True, reason="first")


def test_we_ask_ourselves_as_any_endpoint(
    server: Live, folder_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from live import TOKEN

    monkeypatch.setenv("OWN_KEY", TOKEN.replace(" ", "-"))
    tiny(server, folder_of("llama", "chatml", max_position_embeddings=2048))
    where = {"endpoint": f"{server.url}/v1", "model": "tiny@prod", "key_env": "OWN_KEY", "timeout_s": 60, "attempts": 1}
    refused = load_grader({**ASK, "model": where}).grade(Record(inputs="q", output="four"))
    assert refused.value is None and "answered 401" in refused.error  # the key is not the token

    monkeypatch.setenv("OWN_KEY", TOKEN)
    params = {"max_completions_tokens": 64}
    score = load_grader({**ASK, "model": where, "sampling_params": params}).grade(Record(inputs="q", output="four"))
    assert score.usage["tiny@prod"]["prompt_tokens"] > 10 and score.usage["tiny@prod"]["completion_tokens"] > 0
    assert (score.value is None) == (score.kind == "model_grader_parse_error")  # a random model may say anything
    assert score.value is None or 0 <= score.value <= 1

    pairs = load_grader({"type": "pair_model", "model": {**where, "max_tokens": 64}})
    assert isinstance(pairs, PairModel)
    (compared,) = pairs.compare([Pair(inputs="q", first="four", second="five")])
    assert compared.value in (None, 0.0, 0.5, 1.0) and compared.usage["tiny@prod"]["prompt_tokens"] > 100


def good_if_four(request: Request, connection: socket.socket, server: Server) -> None:
    said = "good" if "four" in request.json["messages"][-1]["content"] else "bad"
    message = {"role": "assistant", "content": json.dumps({"steps": [], "result": said})}
    answer(connection, {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 5}})


LABEL = {"type": "label_model", "name": "kind", "labels": ["good", "bad"], "passing_labels": ["good"]}
LABEL |= {"input": [{"role": "user", "content": "{{sample.output_text}}"}]}


def test_a_client_asks_a_judge_by_the_name_that_the_operator_gave(live: Callable[..., Live]) -> None:
    with serving(good_if_four) as judging:
        told = f"careful=http://127.0.0.1:{judging.port}/v1,judge-large"
        graders = live(judges=dict([named_judge(told)])).client().fine_tuning.alpha.graders
        asked: Any = {**LABEL, "model": "careful"}
        found = graders.run(grader=asked, model_sample="four", item={})
        assert found.reward == 1.0 and list(found.api_model_grader_token_usage_per_model) == ["judge-large"]
        assert graders.run(grader=asked, model_sample="five", item={}).reward == 0.0
        shown = graders.validate(grader=asked).to_dict()
        assert "127.0.0.1" not in json.dumps(shown)


@pytest.mark.parametrize(
    "model",
    [
        {"endpoint": "http://169.254.169.254/v1", "model": "x"},
        {"endpoint": "http://127.0.0.1:1/v1", "model": "x", "key_env": "HOME"},
        "http://127.0.0.1:1/v1",
        "/etc",
        None,
    ],
)
@pytest.mark.parametrize("kind", ["score_model", "label_model", "pair_model"])
def test_a_client_names_no_address(server: Live, model: Any, kind: str) -> None:
    parts = {"score_model": ASK, "label_model": LABEL, "pair_model": {"type": "pair_model"}}
    with pytest.raises(openai.BadRequestError, match="there is no model"):
        server.client().fine_tuning.alpha.graders.run(grader={**parts[kind], "model": model}, model_sample="x", item={})


class Coin:
    def grade(self, records: Any) -> list[Score]:
        return [Score(value=0.5) for _ in records]


def test_a_job_may_not_learn_from_a_judge_that_was_refused(
    live: Callable[..., Live], folder_of: Callable[..., Path]
) -> None:
    told = f"careful=http://127.0.0.1:{closed_port()}/v1,judge-large"
    server = live(judges=dict([named_judge(told)]))
    tiny(server, folder_of("llama", "chatml"))
    client = server.client()
    rows = b'{"messages": [{"role": "user", "content": "say it"}]}\n' * 4
    sent = client.files.create(file=("rows.jsonl", rows), purpose="fine-tune")
    how: Any = {"type": "reinforcement", "reinforcement": {"grader": {**LABEL, "model": "careful"}}}
    job = client.fine_tuning.jobs.create(model="tiny@prod", training_file=sent.id, method=how)
    recipe = server.service.store.job(job.id).recipe
    assert recipe["judge"]["require"] == "not_refused"
    spec = recipe["grader"]
    pairs = [Preference(f"q{number}", "good", "bad") for number in range(120)]
    record_report(server.service.store, spec, judge_report(Coin(), pairs, spec=spec))
    with pytest.raises(openai.BadRequestError, match="the judge kind, and it was tried: Refused"):
        client.fine_tuning.jobs.create(model="tiny@prod", training_file=sent.id, method=how, seed=1)


@pytest.mark.parametrize(
    "told",
    ["careful", "=http://h/v1,m", "a=http://h/v1", "a=h,m", "a=http://h/v1,m,NO_SUCH_KEY", "a=http://h/v1,m,k,x"],
)
def test_a_judge_that_cannot_be_is_told_at_the_start(told: str) -> None:
    with pytest.raises(ConfigError, match="--judge"):
        named_judge(told)
