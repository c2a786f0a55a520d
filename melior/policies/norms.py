"""root-mean-square norms in three passes instead of ten

A norm is no arithmetic to speak of, but written as seven tensor operations it reads and writes its rows again and
again, and its gradient more often still: on two CPU cores it took eight times as long (docs/experiments.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHECKED_SIZES = (1.0, 1e-2, 1e-4)  # of rows on which a norm must agree: in small ones what is added to them shows
TOLERANCE = 1e-5  # of the largest output
PRECISE = (torch.float32, torch.float64)  # in others transformers computes part of the norm in float32


def fuse_norms(model: Any) -> Any:
    """The same model, its root-mean-square norms computed by this module where they mean x / rms(x) * weight."""
    agrees: dict[tuple[type, bool], bool] = {}
    for module in model.modules():
        if not type(module).__name__.endswith("RMSNorm") or getattr(module, "weight", None) is None:
            continue
        norm, kind = _FusedNorm(module), (type(module), _epsilon(module) is None)
        if kind not in agrees:
            agrees[kind] = norm.agrees()
        if agrees[kind]:
            module.forward = norm
    return model


class _FusedNorm:
    """Stands in for the forward of one norm."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.plain = type(module).forward.__get__(module)
        self.epsilon = _epsilon(module) or 0.0

    def __call__(self, inputs: Tensor) -> Tensor:
        weight = self.module.weight
        if inputs.dtype != weight.dtype or inputs.dtype not in PRECISE:
            return self.plain(inputs)
        return _Norm.apply(inputs, weight, self.epsilon)

    def agrees(self) -> bool:
        """Whether the norm's own forward pass says the same of a few rows, under a weight that would tell."""
        weight = self.module.weight
        generator = torch.Generator().manual_seed(0)
        sizes = torch.tensor(CHECKED_SIZES)[:, None]
        rows = (torch.randn(1, len(sizes), weight.shape[-1], generator=generator) * sizes).to(weight)
        with torch.no_grad():
            own, ours = self.plain(rows), self(rows)
        if own.shape != ours.shape:
            return False
        return bool(((own - ours).abs().amax(-1) <= TOLERANCE * own.abs().amax(-1)).all())


def _epsilon(module: Any) -> float | None:
    """What the norm adds under its root, by whichever name."""
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


class _Norm(torch.autograd.Function):
    """x / sqrt(mean(x²) + epsilon) * weight, with gradients for x and weight.

    Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        length = torch.linalg.vector_norm(inputs, dim=-1, keepdim=True)
        inverse = length.square_().div_(inputs.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(inputs, weight, inverse)
        return (inputs * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, inverse = ctx.saved_tensors
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (gradients[0] * inputs * inverse).flatten(0, -2).sum(0)
        scaled = gradients[0] * weight
        along = torch.linalg.vecdot(scaled, inputs).unsqueeze(-1)
        shrink = along.mul_(inverse.square()).div_(inputs.shape[-1])
        return scaled.addcmul_(inputs, shrink, value=-1).mul_(inverse), grad_weight, None
