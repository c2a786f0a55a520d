"""several adapters over one model: each answers as it would alone, and the model is there once"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from melior.errors import ModelError
from melior.policies.adapters import LoRA
from melior.policies.engine import Request, Sample
from melior.policies.language import LanguagePolicy
from melior.policies.mixing import Mixture, mixes, read_adapter
from melior.types import Sampling

PROMPTS = ["the cat sat", "what is the answer to that?", "hat"]


@pytest.fixture(scope="module")
def adapters(folder_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two folders of trained adapters over one model, of different ranks."""
    made = {}
    for seed, rank in ((1, 4), (2, 8)):
        policy = LanguagePolicy.load(folder_of("llama"), adapter=LoRA(r=rank, seed=seed))
        generator = torch.Generator().manual_seed(seed)
        for _, parameter in policy.candidates():
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.05
        made[f"adapter {seed}"] = tmp_path_factory.mktemp("adapters") / str(seed)
        policy.save(made[f"adapter {seed}"])
    return made


@pytest.fixture(scope="module")
def mixed(folder_of: Callable[..., Path], adapters: dict[str, Path]) -> LanguagePolicy:
    policy = LanguagePolicy.load(folder_of("llama"))
    policy.backbone.mixture = mixture = Mixture(policy.backbone.inner)
    for name, folder in adapters.items():
        assert mixes(folder)
        mixture.add(name, read_adapter(folder, policy.backbone.device))
    return policy


def requests(policy: LanguagePolicy, names: Sequence[str], **settings: Any) -> list[Request]:
    how = Sampling(**{"max_tokens": 24, "n": 2, "seed": 5, **settings})
    contexts = [policy.renderer.context(prompt) for prompt in PROMPTS]
    return [
        Request(id=number, context=context, settings=how, adapter=name)
        for number, (name, context) in enumerate((name, context) for name in names for context in contexts)
    ]


def answers(policy: LanguagePolicy, asked: Sequence[Request]) -> dict[tuple[int, int], Sample]:
    engine = policy.engine()
    for request in asked:
        engine.submit(request)
    engine.run()
    return {(sample.request, sample.number): sample for sample in engine.collect()}


def test_one_adapter_alone_is_bitwise_the_policy_that_has_only_it(
    mixed: LanguagePolicy, adapters: dict[str, Path], folder_of: Callable[..., Path]
) -> None:
    for name, folder in {**adapters, "": folder_of("llama")}.items():
        alone = LanguagePolicy.load(folder)
        ours = answers(mixed, requests(mixed, [name]))
        theirs = answers(alone, requests(alone, [""]))
        assert [(s.decisions, s.log_probs) for _, s in sorted(ours.items())] == [
            (s.decisions, s.log_probs) for _, s in sorted(theirs.items())
        ]


def test_adapters_beside_one_another_say_what_they_say_alone(mixed: LanguagePolicy, adapters: dict[str, Path]) -> None:
    names = ["adapter 1", "", "adapter 2"]
    together = answers(mixed, requests(mixed, names))
    apart: dict[tuple[int, int], Sample] = {}
    for name in names:
        apart |= answers(mixed, [request for request in requests(mixed, names) if request.adapter == name])
    assert together.keys() == apart.keys() and len(together) == 18
    for key, sample in together.items():
        assert sample.decisions == apart[key].decisions and sample.log_probs and apart[key].log_probs
        gap = (torch.tensor(sample.log_probs) - torch.tensor(apart[key].log_probs)).abs().max()
        assert gap <= 1e-5  # in fp32: one product of matrices has other rows beside it
    texts = [together[number, 0].text for number in (0, 3, 6)]
    assert len(set(texts)) == 3, "the same prompt, and each adapter has its own say"


def test_choices_are_weighed_by_the_adapter_that_is_asked(mixed: LanguagePolicy, adapters: dict[str, Path]) -> None:
    found = {}
    for name, folder in adapters.items():
        alone = LanguagePolicy.load(folder)
        (record,) = alone.sample(["the"], Sampling(choices=("cat", "hat", "mat"), seed=2))
        found[name] = (record.decisions, record.behavior_log_probs)
    texts = ("cat", "hat", "mat")
    asked = [
        Request(
            id=number,
            context=mixed.renderer.context("the"),
            settings=Sampling(choices=texts, seed=2),
            choices=mixed._choices_behind("the", texts, 8),
            adapter=name,
        )
        for number, name in enumerate(adapters)
    ]
    ours = answers(mixed, asked)
    assert {name: (ours[n, 0].decisions, ours[n, 0].log_probs) for n, name in enumerate(adapters)} == found


def test_another_adapter_costs_its_own_matrices_and_no_copy_of_the_model(mixed: LanguagePolicy) -> None:
    mixture = mixed.backbone.mixture
    assert mixture is not None
    model = sum(parameter.numel() for parameter in mixed.parameters())
    held = {t.data_ptr(): t.numel() for t in mixed.backbone.model.state_dict().values()}
    for adapter in mixture.adapters.values():
        held |= {t.data_ptr(): t.numel() for pair in adapter.values() for t in (pair.down, pair.up)}
    small = sum(t.numel() for a in mixture.adapters.values() for p in a.values() for t in (p.down, p.up))
    assert sum(held.values()) == model + small and small < model


def test_scores_of_other_threads_and_of_the_model_itself_are_the_models(
    mixed: LanguagePolicy, folder_of: Callable[..., Path]
) -> None:
    (record,) = mixed.sample(["the cat"], Sampling(max_tokens=8))
    (here,), (there,) = mixed.log_probs([record]), LanguagePolicy.load(folder_of("llama")).log_probs([record])
    assert torch.equal(here, there)


@pytest.mark.parametrize("setting", [{"use_dora": True}, {"bias": "all"}, {"peft_type": "IA3"}])
def test_what_is_no_plain_lora_is_left_to_stand_alone(
    adapters: dict[str, Path], tmp_path: Path, setting: dict[str, Any]
) -> None:
    config = json.loads((adapters["adapter 1"] / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **setting}))
    (tmp_path / "adapter_model.safetensors").write_bytes(
        (adapters["adapter 1"] / "adapter_model.safetensors").read_bytes()
    )
    assert not mixes(tmp_path) and not mixes(tmp_path / "nothing")


def test_an_adapter_of_another_model_is_refused(adapters: dict[str, Path], folder_of: Callable[..., Path]) -> None:
    other = LanguagePolicy.load(folder_of("llama", hidden_size=24, head_dim=8))
    with pytest.raises(ModelError, match="as if it were"):
        Mixture(other.backbone.inner).add("a", read_adapter(adapters["adapter 1"], other.backbone.device))
