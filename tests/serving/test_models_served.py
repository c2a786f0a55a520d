"""models through the official client: base models, adapters over one of them, deletion, names, log-probs"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from live import Live
from openai import OpenAI

from melior.errors import ConfigError
from melior.policies.adapters import LoRA
from melior.policies.language import LanguagePolicy
from melior.policies.weights import resolve
from melior.registry import BASE, Registry
from melior.serving.bases import named_models
from melior.serving.loaded import Voices
from melior.store.rows import Version
from melior.types import Sampling

SAID: Any = [{"role": "user", "content": "say something"}]


@pytest.fixture
def server(live: Callable[..., Live], folder_of: Callable[..., Path]) -> Live:
    """A server whose operator named a base model `little`, and another one `large`."""
    return live(models={"little": folder_of("llama"), "large": folder_of("qwen3")})


@pytest.fixture
def client(server: Live) -> OpenAI:
    return server.client()


@pytest.fixture
def adapted(server: Live, folder_of: Callable[..., Path], tmp_path: Path) -> Callable[..., Version]:
    """`adapted(seed)`: a version that is a trained adapter over a model."""

    def make(seed: int, family: str = "llama", *, alias: str = "") -> Version:
        policy = LanguagePolicy.load(folder_of(family), adapter=LoRA(r=4, seed=seed))
        generator = torch.Generator().manual_seed(seed)
        for _, parameter in policy.candidates():
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
        policy.save(tmp_path / "adapters" / f"{family} {seed}")
        registry = Registry(server.service.store)
        version = registry.register(
            "cats", tmp_path / "adapters" / f"{family} {seed}", method="sft", base_model="little"
        )
        if alias:
            registry.promote(version.id, alias, force=True, reason="test")
        return version

    return make


def ask(client: OpenAI, model: str, **more: Any) -> Any:
    asked: dict[str, Any] = {"model": model, "messages": SAID, "max_tokens": 12, "seed": 3}
    return client.chat.completions.create(**{**asked, **more})


def said(client: OpenAI, model: str, **more: Any) -> str:
    return str(ask(client, model, **more).choices[0].message.content)


def alone(folder: str | Path, **more: Any) -> str:
    (record,) = LanguagePolicy.load(folder).sample([SAID], Sampling(max_tokens=12, seed=3, **more))
    return str(record.output)


# ---------------------------------------------------------------------- base models


def test_a_base_model_answers_before_anything_was_trained(
    server: Live, client: OpenAI, folder_of: Callable[..., Path]
) -> None:
    answer = ask(client, "little")
    assert answer.choices[0].message.content == alone(folder_of("llama"))
    (decision,) = server.service.store.decisions([answer.id])
    version = server.service.store.version(str(decision.record.policy_version))
    assert (version.method, version.name, version.base_model) == (BASE, "little", "little")
    listed = {model.id: model for model in client.models.list()}
    assert {"little", "large"} <= listed.keys() and version.id not in listed, "by its name alone"
    assert listed["little"] == client.models.retrieve("little") == client.models.retrieve("little")
    assert listed["little"].owned_by == "melior" and listed["little"].object == "model"
    assert abs(listed["little"].created - time.time()) < 600


def test_a_base_model_cannot_be_deleted_nor_its_name_given_to_another(client: OpenAI) -> None:
    with pytest.raises(openai.PermissionDeniedError, match="only what was trained here"):
        client.models.delete("little")
    rows = client.files.create(file=("rows.jsonl", b'{"messages": []}\n'), purpose="fine-tune").id
    with pytest.raises(openai.BadRequestError, match="the name of a base model"):
        client.fine_tuning.jobs.create(model="little", training_file=rows, suffix="large")


def test_a_known_model_that_was_not_pulled_says_how_to_get_it(
    client: OpenAI, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MELIOR_HOME", str(tmp_path / "nothing here"))
    with pytest.raises(openai.NotFoundError, match="melior pull smollm2-135m-instruct") as error:
        ask(client, "smollm2-135m-instruct")
    assert error.value.code == "model_not_found"


def test_a_job_names_the_base_model_it_began_with(server: Live, client: OpenAI) -> None:
    rows = client.files.create(file=("rows.jsonl", b'{"messages": []}\n'), purpose="fine-tune").id
    job = client.fine_tuning.jobs.create(model="little", training_file=rows)
    assert job.model == "little"
    from melior.cycles.models import find_model

    found = find_model(server.service.store.job(job.id).recipe["model"]["path"], server.service.store)
    assert found.base_model == "little" and found.version is None


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["nowhere"], "there is no folder .nowhere."),
        (["/nowhere/at/all"], "there is no folder"),
        (["smollm2-135m-instruct"], "melior pull smollm2-135m-instruct"),
        (["owner/name"], "melior pull owner/name"),
        (["x={a}", "x={b}"], "two models x"),
        ([""], "there is no folder"),
    ],
)
def test_an_operator_is_told_what_cannot_be_served(
    asked: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MELIOR_HOME", str(tmp_path / "home"))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=told):
        named_models([one.format(a=tmp_path / "a", b=tmp_path / "b") for one in asked])


def test_an_operator_names_folders_and_what_was_pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MELIOR_HOME", str(tmp_path))
    pulled = tmp_path / "models" / "owner" / "name"
    pulled.mkdir(parents=True)
    mine = tmp_path / "mine"
    mine.mkdir()
    found = named_models([str(mine), f"other={mine}", "owner/name"])
    assert found == {"mine": mine, "other": mine, "owner/name": pulled}


# ---------------------------------------------------------------------- adapters over one model


def test_adapters_answer_together_as_each_does_alone_over_one_copy_of_their_model(
    server: Live, client: OpenAI, adapted: Callable[..., Version]
) -> None:
    versions = [adapted(seed) for seed in (1, 2, 3)]
    expected = {version.id: alone(version.folder) for version in versions}
    expected["little"] = said(client, "little")
    with ThreadPoolExecutor(8) as threads:
        names = [*expected] * 4
        answers = list(threads.map(lambda name: said(client, name), names))
    assert answers == [expected[name] for name in names] and len(set(expected.values())) == 4
    (voice,) = server.service.voices.loaded.values()
    assert set(voice.adapters) == {version.id for version in versions}
    held = {tensor.data_ptr() for tensor in voice.policy.backbone.model.state_dict().values()}
    once = {
        tensor.data_ptr() for tensor in LanguagePolicy.load(versions[0].folder).backbone.inner.state_dict().values()
    }
    small = sum(2 * len(adapter) for adapter in voice.mixture.adapters.values()) // 3  # tensors of one adapter
    assert len(held) == len(once) - small, "the model, once"


def test_a_model_without_a_shared_layout_gives_each_adapter_its_own(
    server: Live, client: OpenAI, adapted: Callable[..., Version]
) -> None:
    version = adapted(1, "gpt2")
    assert said(client, version.id) == alone(version.folder)


def test_what_is_held_is_bounded_and_what_answers_is_never_dropped(
    server: Live, client: OpenAI, adapted: Callable[..., Version], folder_of: Callable[..., Path]
) -> None:
    voices: Voices = server.service.voices
    voices.most, voices.adapters, voices.room_s = 1, 2, 0.2
    versions = [adapted(seed) for seed in (1, 2, 3)]
    for version in versions:
        said(client, version.id)
    (voice,) = voices.loaded.values()
    assert list(voice.adapters) == [version.id for version in versions[1:]], "the one asked least lately made room"
    assert said(client, "large") and list(voices.loaded) == [str(folder_of("qwen3").resolve())]
    assert not voice.thread.is_alive()
    (busy,) = voices.loaded.values()
    go_on = threading.Event()
    step = busy.engine.step

    def slowly() -> bool:
        assert go_on.wait(30)
        return step()

    busy.engine.step = slowly  # type: ignore[method-assign]
    with ThreadPoolExecutor(4) as threads:
        answering = threads.submit(said, client, "large")
        until = time.monotonic() + 20
        while not busy.tickets:
            assert time.monotonic() < until
            time.sleep(0.01)
        with pytest.raises(openai.InternalServerError, match="there is room for are answering") as full:
            ask(client, "little")
        assert full.value.status_code == 503 and full.value.response.headers["retry-after"]
        voices.room_s = 20
        waiting = [threads.submit(said, client, "little") for _ in range(3)]
        time.sleep(0.3)
        go_on.set()
        assert answering.result() == alone(folder_of("qwen3"))
        assert {each.result() for each in waiting} == {alone(folder_of("llama"))}
    assert len(voices.loaded) == 1 == sum(thread.name == "voice" for thread in threading.enumerate())


# ---------------------------------------------------------------------- deletion and names


def test_a_deleted_model_is_gone_and_what_it_said_stays(
    server: Live, client: OpenAI, adapted: Callable[..., Version]
) -> None:
    serving, spare = adapted(1, alias="prod"), adapted(2)
    answer = ask(client, spare.id)
    for name in ("cats@prod", "cats", serving.id):
        with pytest.raises(openai.ConflictError, match="is what cats@prod points to") as refused:
            client.models.delete(name)
        assert refused.value.response.headers["x-should-retry"] == "false"
    gone = client.models.delete(spare.id)
    assert (gone.id, gone.object, gone.deleted) == (spare.id, "model", True)
    assert spare.id not in {model.id for model in client.models.list()}
    for refused_by in (client.models.retrieve, client.models.delete, lambda name: ask(client, name)):
        with pytest.raises(openai.NotFoundError, match="was deleted on"):
            refused_by(spare.id)
    assert server.service.store.decisions([answer.id])[0].record.policy_version == spare.id
    until = time.monotonic() + 10
    while any(spare.id in voice.adapters for voice in server.service.voices.loaded.values()):
        assert time.monotonic() < until, "its matrices are held for nothing"
        time.sleep(0.05)
    reader = server.client(server_key(server, "read"))
    with pytest.raises(openai.PermissionDeniedError):
        reader.models.delete(serving.id)


def test_an_id_is_whole_or_nobodys(server: Live, client: OpenAI, adapted: Callable[..., Version]) -> None:
    spare = adapted(1)
    for short in (spare.id[:-1], "ver_"):
        for refused_by in (client.models.retrieve, client.models.delete, lambda name: ask(client, name)):
            with pytest.raises(openai.NotFoundError, match="there is no model"):
                refused_by(short)
    assert server.service.store.version(spare.id).deleted is None
    assert client.models.retrieve(spare.id).id == spare.id


def server_key(server: Live, scope: str) -> str:
    from melior.serving.security import hash_of

    server.service.store.add_key("somebody", hash_of(f"a token to {scope}"), [scope])
    return f"a token to {scope}"


def test_names_with_slashes_come_percent_encoded(live: Callable[..., Live], folder_of: Callable[..., Path]) -> None:
    server = live(models={"owner/name": folder_of("llama")})
    client = server.client()
    assert client.models.retrieve("owner/name").id == "owner/name"
    with server.http() as http:
        assert http.get("/v1/models/owner%2Fname").json()["id"] == "owner/name"
    assert said(client, "owner/name")


@pytest.mark.parametrize(
    "name", ["ft:little::ftjob_none", "ft:", "ft:a:b:c:ckpt-step-1", "ver_none", "a@b", "../../etc", "x"]
)
def test_what_is_called_nothing_is_not_found(client: OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model") as error:
        ask(client, name)
    assert error.value.code == "model_not_found" and error.value.param == "model"


def test_projects_share_no_checkpoints_here(server: Live, client: OpenAI) -> None:
    name = "ft:little:cats:ftjob_1:ckpt-step-3"
    permissions = client.fine_tuning.checkpoints.permissions
    for call in (
        lambda: permissions.list(name),
        lambda: list(permissions.create(name, project_ids=["proj_1"])),
        lambda: permissions.delete("cp_1", fine_tuned_model_checkpoint=name),
    ):
        with pytest.raises(openai.InternalServerError, match="melior keys add") as error:
            call()
        assert error.value.status_code == 501


# ---------------------------------------------------------------------- log-probs


def test_log_probs_of_served_answers_are_those_that_training_computes(
    server: Live, client: OpenAI, adapted: Callable[..., Version]
) -> None:
    versions = [adapted(seed) for seed in (1, 2)]
    settings: list[dict[str, Any]] = [{"n": 3}, {"temperature": 0.6}, {"stop": ["e"], "n": 2}, {"top_p": 0.8}]
    with ThreadPoolExecutor(8) as threads:
        asked = [(version, more) for version in versions for more in settings]
        answers = list(threads.map(lambda pair: ask(client, pair[0].id, max_tokens=24, **pair[1]), asked))
    for (version, more), answer in zip(asked, answers, strict=True):
        ids = [answer.id, *(f"{answer.id}:{place}" for place in range(1, len(answer.choices)))]
        records = [decision.record for decision in server.service.store.decisions(ids)]
        for record, scored in zip(records, LanguagePolicy.load(version.folder).log_probs(records), strict=True):
            assert record.behavior_log_probs is not None and record.policy_version == version.id
            gap = scored.double() - torch.tensor(record.behavior_log_probs, dtype=torch.float64)
            assert record.sampling is not None and record.sampling.truncated == ("top_p" in more)
            if record.sampling.truncated:  # of what was left: each is more probable than among all, and kept as it was
                assert (gap < 1e-4).all() and (gap < -1e-3).any()
            else:
                assert gap.abs().max() < 1e-4  # fp32: the cache and the forest add up in another order


@pytest.mark.slow
def test_the_model_that_was_pulled_chats_by_name(live: Callable[..., Live]) -> None:
    if not os.environ.get("MELIOR_HOME"):
        pytest.skip("MELIOR_HOME names no folder with pulled models")
    resolve("smollm2-135m-instruct")
    client = live().client()
    assert "smollm2-135m-instruct" in {model.id for model in client.models.list()}
    asked: Any = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    assert "Paris" in said(client, "smollm2-135m-instruct", messages=asked, temperature=0, max_tokens=16)
