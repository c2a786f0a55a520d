"""steps, objectives and evaluations that a test can look into"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from melior.policies.adapters import LoRA
from melior.policies.base import Batch
from melior.policies.language import LanguagePolicy
from melior.trainers.checkpoints import newest_checkpoint
from melior.trainers.loop import FitConfig, fit
from melior.trainers.steps import Objective, Step

NO_CLIP = 1e12


@dataclass
class Fixed:
    """The same steps every time."""

    batches: Sequence[Batch]
    name: str = "fixed"
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return len(self.batches)

    def __call__(self, index: int) -> Step:
        return Step(self.batches[index], self.metrics)

    def fingerprint(self) -> str:
        return self.name


def gradient(policy: Any, batch: Batch, objective: Objective, folder: Path, **config: Any) -> dict[str, Tensor]:
    """The gradient of one step of `fit`, read from the optimizer's first moment; the policy's weights are put back."""
    before = {name: tensor.clone() for name, tensor in policy.state().items()}
    beta = 0.9
    settings = FitConfig(folder=folder, max_grad_norm=NO_CLIP, betas=(beta, 0.999), **config)
    fit(policy, Fixed([batch]), objective, settings)
    policy.load_state(before)
    found = newest_checkpoint(folder / "checkpoints")
    assert found is not None
    moments = {name: moment for name, moment in found.optimizer.items() if name.startswith("exp_avg/")}
    return {name.removeprefix("exp_avg/"): moment / (1 - beta) for name, moment in moments.items()}


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest difference of two gradients, relative to the largest entry."""
    assert first.keys() == second.keys() and first
    held = [name for name, tensor in second.items() if tensor.numel()]  # a table without ids has an empty embedding
    scale = max(float(second[name].abs().max()) for name in held)
    return max(float((first[name] - second[name]).abs().max()) for name in held) / scale


def exact_norm(module: LlamaRMSNorm, hidden: Tensor) -> Tensor:
    """RMSNorm in the precision of its input; transformers computes it in float32 even in a float64 model."""
    return module.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + module.variance_epsilon)


@pytest.fixture
def learner(folder_of: Callable[..., Path]) -> Callable[..., LanguagePolicy]:
    """`learner(dtype="float64", adapter=True)`: a fresh tiny language policy that a test may train."""

    def make(dtype: Any = "float64", *, adapter: bool = True) -> LanguagePolicy:
        lora = LoRA(r=2, seed=1) if adapter else None
        policy = LanguagePolicy.load(folder_of("llama", "chatml"), adapter=lora, dtype=dtype, device="cpu")
        if dtype == "float64":
            for module in policy.backbone.model.modules():
                if isinstance(module, LlamaRMSNorm):
                    module.forward = partial(exact_norm, module)  # type: ignore[method-assign]
        if adapter:  # a fresh adapter has half its matrices at zero, and then half its gradients
            source = torch.Generator().manual_seed(5)
            with torch.no_grad():
                for tensor in policy.state().values():
                    tensor.add_(torch.randn(tensor.shape, generator=source, dtype=tensor.dtype) * 0.05)
        return policy

    return make
