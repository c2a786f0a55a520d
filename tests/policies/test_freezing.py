"""laws of freezing: a preset means what it says, and what it freezes neither moves nor is kept"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from melior.errors import ConfigError
from melior.policies.adapters import LoRA
from melior.policies.base import Rates
from melior.policies.freezing import factor_for, factors_of
from melior.policies.language import LanguagePolicy
from melior.trainers.loop import FitConfig, fit
from melior.trainers.supervised import Examples, supervised
from melior.types import Demonstration

ROWS = [Demonstration(f"say {number}", "the cat") for number in range(8)]


def policy_of(folder: Path, **how: object) -> LanguagePolicy:
    return LanguagePolicy.load(folder, device="cpu", **how)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("train", "moves", "rests"),
    [
        ("all", ["embed_tokens", "layers.0", "layers.1", "lm_head"], []),
        ("head", ["lm_head", "model.norm"], ["embed_tokens", "layers.0", "layers.1"]),
        ("last-1", ["layers.1", "model.norm"], ["embed_tokens", "layers.0", "lm_head"]),
        ("last-2", ["layers.0", "layers.1", "model.norm"], ["embed_tokens", "lm_head"]),
        ("no-embeddings", ["layers.0", "lm_head"], ["embed_tokens"]),
    ],
)
def test_exactly_what_was_said_moves(
    train: str, moves: list[str], rests: list[str], folder_of: Callable[..., Path]
) -> None:
    policy = policy_of(folder_of("llama"))
    before = {name: p.detach().clone() for name, p in policy.backbone.model.named_parameters()}
    rates = policy.freeze(factors_of(list(before), train=train))
    fit(policy, Examples(policy, ROWS, batch_size=4), supervised(), FitConfig(learning_rate=1e-2, rates=rates))
    moved = {name for name, p in policy.backbone.model.named_parameters() if not (p == before[name]).all()}
    assert all(any(part in name for name in moved) for part in moves)
    assert not [name for name in moved if any(part in name for part in rests)]
    assert set(policy.state()) >= moved and not [name for name in policy.state() if any(part in name for part in rests)]
    assert policy.share.trainable == sum(tensor.numel() for tensor in policy.state().values())


def test_a_tied_head_is_the_embeddings(folder_of: Callable[..., Path]) -> None:
    policy = policy_of(folder_of("smollm"))
    names = [name for name, _ in policy.backbone.candidates()]
    policy.freeze(factors_of(names, train="head"))
    assert {name.split(".")[1] for name in policy.state()} == {"embed_tokens", "norm"}


def test_lower_blocks_learn_at_lower_rates(folder_of: Callable[..., Path]) -> None:
    policy = policy_of(folder_of("llama"))
    names = [name for name, _ in policy.backbone.candidates()]
    factors = factors_of(names, layer_decay=0.5)
    assert factor_for("model.layers.1.mlp.up_proj.weight", factors) == 1
    assert factor_for("model.layers.0.mlp.up_proj.weight", factors) == 0.5
    assert factor_for("model.embed_tokens.weight", factors) == 0.25 and factor_for("lm_head.weight", factors) == 1
    rates = {group.learning_rate for group in policy.parameter_groups(Rates(1.0, 0.0, policy.freeze(factors)))}
    assert rates == {0.25, 0.5, 1.0}


def test_an_adapter_can_train_its_upper_blocks_alone(folder_of: Callable[..., Path]) -> None:
    policy = policy_of(folder_of("llama"), adapter=LoRA(r=2))
    names = [name for name, _ in policy.backbone.candidates()]
    assert names and all("lora_" in name for name in names)
    policy.freeze(factors_of(names, train="last-1"))
    assert policy.state() and all(".layers.1." in name for name in policy.state())
    policy.freeze(factors_of(names, train="no-embeddings"))  # it has none
    assert any(".layers.0." in name for name in policy.state())
    policy.freeze(factors_of(names, train="last-1"))
    policy.freeze(factors_of(names))
    assert any(".layers.0." in name for name in policy.state())  # freezing is not for good


@pytest.mark.parametrize(
    ("train", "lora", "told"),
    [
        ("heads", False, "last-N"),
        ("last-9", False, "the model has 2; write last-2"),
        ("head", True, "model.lora: null"),
        ("last-0", False, "no choice"),
    ],
)
def test_what_would_train_nothing_is_refused(train: str, lora: bool, told: str, folder_of: Callable[..., Path]) -> None:
    policy = policy_of(folder_of("llama"), adapter=LoRA(r=2) if lora else None)
    with pytest.raises(ConfigError, match=told):
        policy.freeze(factors_of([name for name, _ in policy.backbone.candidates()], train=train))


def test_a_pattern_that_matches_nothing_is_refused(folder_of: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="matches no trainable parameter"):
        policy_of(folder_of("llama")).freeze({"layers.7": 0.0})


def test_other_weights_are_another_origin(folder_of: Callable[..., Path], tmp_path: Path) -> None:
    first, again = policy_of(folder_of("llama")), policy_of(folder_of("llama"), dtype="bfloat16")
    assert first.origin == again.origin != ""
    fit(first, Examples(first, ROWS, batch_size=4), supervised(), FitConfig(learning_rate=1e-2))
    assert first.origin == again.origin  # of the weights it began with
    first.save(tmp_path / "trained")
    assert policy_of(tmp_path / "trained").origin != first.origin
