"""Norms: transformers' numbers and gradients, in fewer passes"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from melior.policies.norms import _FusedNorm, _Norm, fuse_norms

Make = Callable[..., Path]


def model_of(folder: Path, dtype: torch.dtype = torch.float64) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(dtype) * 0.3)
    return model


def fused_in(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module.forward, _FusedNorm)]


def results(model: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    logits = model(input_ids=torch.arange(2, 22).view(2, 10)).logits
    gradients = torch.autograd.grad((logits**2).mean(), list(model.parameters()), allow_unused=True)
    return logits.detach(), [gradient for gradient in gradients if gradient is not None]


@pytest.mark.parametrize(("family", "norms"), [("llama", 5), ("qwen3", 9), ("mistral", 5)])  # Qwen 3 has some per head
def test_values_and_gradients_are_those_of_transformers(family: str, norms: int, folder_of: Make) -> None:
    own, own_gradients = results(model_of(folder_of(family)))
    model = fuse_norms(model_of(folder_of(family)))
    assert len(fused_in(model)) == norms
    ours, our_gradients = results(model)
    assert (ours - own).abs().max() <= 5e-6  # transformers computes the norm in float32, whatever the model's dtype
    assert len(our_gradients) == len(own_gradients)
    for mine, wanted in zip(our_gradients, own_gradients, strict=True):
        assert (mine - wanted).abs().max() <= 1e-4 * max(1e-3, float(wanted.abs().max()))


def test_the_gradient_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: _Norm.apply(x, w, 1e-3), (inputs, weight))


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "gpt2"])  # weights around zero, and another norm altogether
def test_other_norms_are_left_alone(family: str, folder_of: Make) -> None:
    assert not fused_in(fuse_norms(model_of(folder_of(family))))


class EpsilonRMSNorm(torch.nn.Module):
    """What is added under the root has a name of its own."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = torch.nn.Parameter(torch.ones(8)), epsilon

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * (inputs.square().mean(-1, keepdim=True) + self.epsilon).rsqrt() * self.weight


@pytest.mark.parametrize("norm", [EpsilonRMSNorm(1e-5), torch.nn.RMSNorm(8)], ids=["another name", "no value"])
def test_a_norm_whose_epsilon_is_not_found_is_left_alone(norm: torch.nn.Module) -> None:
    """On rows of size one nobody would see it; on those of small embeddings it is a percent and more."""
    assert not fused_in(fuse_norms(torch.nn.Sequential(norm)))
    (known,) = fused_in(fuse_norms(torch.nn.Sequential(torch.nn.RMSNorm(8, eps=1e-5))))
    rows = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)) * 1e-3
    assert torch.allclose(known(rows), type(known).forward(known, rows), rtol=1e-5, atol=0)


def test_half_precision_runs_as_transformers_has_it(folder_of: Make) -> None:
    own, _ = results(model_of(folder_of("llama"), torch.bfloat16))
    ours, _ = results(fuse_norms(model_of(folder_of("llama"), torch.bfloat16)))
    assert torch.equal(own, ours)
