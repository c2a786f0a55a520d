"""which layout fits, what is refused at load, and forward passes that repeat"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import FORESTS, tiny_tokenizer
from transformers import AutoModelForCausalLM

from melior.errors import ConfigError, LayoutError, ModelError
from melior.policies.backbones import load_backbone
from melior.policies.language import LanguagePolicy
from melior.types import Demonstration, Sampling

Make = Callable[..., Path]
Shared = Callable[..., LanguagePolicy]


@pytest.mark.parametrize("family", FORESTS)
def test_the_probe_picks_the_forest(family: str, shared_policy: Shared) -> None:
    assert shared_policy(family).backbone.layout == "forest"


def test_the_probe_leaves_sliding_windows_as_they_were(shared_policy: Shared) -> None:
    backbone = shared_policy("gemma3").backbone
    assert backbone.config.sliding_window == 5
    windows = [layer.self_attn.sliding_window for layer in backbone.inner.get_decoder().layers]
    assert windows == [5, None]


def test_a_state_space_model_is_padded_with_a_warning(folder_of: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="melior"):
        policy = LanguagePolicy.load(folder_of("mamba"), dtype="float32", device="cpu")
    assert policy.backbone.layout == "padded"
    assert "layout padded" in caplog.text and "mamba" in caplog.text


def test_a_state_space_model_refuses_the_forest(folder_of: Make) -> None:
    with pytest.raises(LayoutError, match="layout='padded'"):
        LanguagePolicy.load(folder_of("mamba"), dtype="float32", device="cpu", layout="forest")


def test_a_state_space_model_still_scores_and_samples(folder_of: Make) -> None:
    policy = LanguagePolicy.load(folder_of("mamba"), dtype="float32", device="cpu")
    records = policy.sample(["hi", "what is that?"], Sampling(n=3, max_tokens=6, seed=1))
    for record, scored in zip(records, policy.log_probs(records), strict=True):
        assert record.behavior_log_probs is not None
        assert (scored - torch.tensor(record.behavior_log_probs)).abs().max() <= 1e-5
    (loss,) = policy.log_probs([Demonstration("hi", "yo")])
    loss.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for _, p in policy.backbone.trainable())


@pytest.mark.parametrize("layout", ["forest", "padded"])
def test_a_layout_asked_for_is_used(layout: str, folder_of: Make) -> None:
    policy = LanguagePolicy.load(folder_of("llama"), device="cpu", layout=layout)  # type: ignore[arg-type]
    assert policy.backbone.layout == layout


def test_an_unknown_layout_or_dtype_is_refused(folder_of: Make) -> None:
    with pytest.raises(ConfigError, match="layout"):
        LanguagePolicy.load(folder_of("llama"), device="cpu", layout="ragged")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="dtype"):
        LanguagePolicy.load(folder_of("llama"), device="cpu", dtype="int8")  # type: ignore[arg-type]


def copy_of(folder: Path, target: Path, *without: str) -> Path:
    return Path(shutil.copytree(folder, target, ignore=shutil.ignore_patterns(*without)))


@pytest.mark.parametrize(
    ("without", "remedy"),
    [
        (("tokenizer*", "chat_template*", "special_tokens*"), "tokenizer"),
        (("*.safetensors",), "safetensors"),
        (("config.json",), "Cannot load"),
    ],
)
def test_an_incomplete_folder_is_one_sentence(
    without: tuple[str, ...], remedy: str, folder_of: Make, tmp_path: Path
) -> None:
    folder = copy_of(folder_of("llama"), tmp_path / "model", *without)
    with pytest.raises(ModelError, match=remedy) as raised:
        LanguagePolicy.load(folder, device="cpu")
    assert "\n" not in str(raised.value)
    assert str(folder) in str(raised.value)


def test_weights_cut_short_are_refused(folder_of: Make, tmp_path: Path) -> None:
    folder = copy_of(folder_of("llama"), tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="Cannot load") as raised:
        load_backbone(folder, device="cpu")
    assert "\n" not in str(raised.value)


def test_missing_tensors_are_refused_rather_than_drawn_at_random(folder_of: Make, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = copy_of(folder_of("llama"), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 .*model\.layers\.1\.mlp\.up_proj\.weight"):
        load_backbone(folder, device="cpu")


def test_a_tokenizer_larger_than_the_model_is_refused(folder_of: Make, tmp_path: Path) -> None:
    folder = copy_of(folder_of("llama"), tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<extra_{number}>" for number in range(20)])
    tokenizer.save_pretrained(str(folder))
    with pytest.raises(ModelError, match="319 tokens, the model 303"):
        load_backbone(folder, device="cpu")


def test_a_missing_adapter_base_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(ModelError, match="gone"):
        LanguagePolicy.load(folder, device="cpu")


def test_bfloat16_loads_and_scores_finite(shared_policy: Shared) -> None:
    policy = shared_policy("llama", dtype="bfloat16")
    batch = policy.encode([Demonstration("what?", "that"), Demonstration("the hat", "a longer answer, 42")])
    scored = policy.score(batch)
    assert scored.log_probs.dtype == torch.float32
    assert bool(scored.log_probs.isfinite().all())
    exact = shared_policy("llama").score(batch)
    assert (scored.log_probs - exact.log_probs).abs().max() < 0.5


@pytest.mark.parametrize(
    ("family", "dropouts"),
    [
        ("llama", {"attention_dropout": 0.5}),
        ("gpt2", {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}),
    ],
)
def test_dropout_never_touches_a_score(family: str, dropouts: dict[str, float], folder_of: Make) -> None:
    examples = [Demonstration("what?", "that"), Demonstration("the hat", "a cat, 42")]
    dropped = LanguagePolicy.load(folder_of(family, **dropouts), device="cpu")
    assert dropped.backbone.model.training
    first, again = (dropped.score(dropped.encode(examples)).log_probs for _ in range(2))
    assert torch.equal(first, again)
    dropped.backbone.model.eval()
    assert torch.equal(first, dropped.score(dropped.encode(examples)).log_probs)


def test_the_dropout_model_would_differ_by_itself(folder_of: Make) -> None:
    """Else the test above could not fail."""
    model = AutoModelForCausalLM.from_pretrained(folder_of("llama", attention_dropout=0.5)).train()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    assert not torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("layout", ["forest", "padded"])
def test_gradient_checkpointing_recomputes_every_layer_and_changes_no_gradient(layout: str, folder_of: Make) -> None:
    gradients, passes = [], []
    for checkpointed in (False, True):
        policy = LanguagePolicy.load(
            folder_of("qwen3"),
            dtype="float64",
            device="cpu",
            layout=layout,
            gradient_checkpointing=checkpointed,  # type: ignore[arg-type]
        )
        count = [0]
        for layer in policy.backbone.inner.get_decoder().layers:
            layer.self_attn.register_forward_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        log_probs = policy.score(
            policy.encode([Demonstration("the hat", "a cat"), Demonstration("the man", "42")])
        ).log_probs
        log_probs.sum().backward()
        passes.append(count[0])
        gradients.append([parameter.grad for _, parameter in policy.backbone.trainable()])
    assert passes == [2, 4]
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None and recomputed is not None
        assert (plain - recomputed).abs().max() <= 1e-12


def test_saved_weights_load_in_transformers_alone(folder_of: Make, shared_policy: Shared, tmp_path: Path) -> None:
    policy = shared_policy("gemma2", dtype="float32")
    policy.save(tmp_path / "saved")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", attn_implementation="eager")
    ids = torch.tensor([list(range(20, 32))])
    wanted = AutoModelForCausalLM.from_pretrained(folder_of("gemma2"), attn_implementation="eager")(ids).logits
    assert torch.equal(model(ids).logits, wanted)
    assert "melior" not in (tmp_path / "saved" / "config.json").read_text()
