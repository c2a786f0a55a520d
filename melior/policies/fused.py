"""adapted matrices and gated blocks in few passes, with gradients in closed form

PEFT computes an adapted matrix as five modules, and autograd keeps whatever each of them read. Here a matrix is one
operation, and so is a gated block (three matrices and a product), which keeps the two factors of its product and
computes the rest again: a quarter less memory per token in a Llama. Whatever does not look as expected runs as PEFT
and transformers have it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

CHECKED_ROWS = 3  # on which a kind of block must agree with its own forward pass before it is replaced
TOLERANCE = 1e-4  # of the largest output; both sides compute the same operations


class Adapted(NamedTuple):
    """A frozen matrix with its adapter: x @ (weight + scaling * up @ down).T + bias."""

    weight: Tensor  # [out, in]
    bias: Tensor | None  # [out]
    down: Tensor  # [r, in]
    up: Tensor  # [out, r]
    scaling: float

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:  # [N, in] -> [N, out], [N, r]
        """The outputs, and the rows in the adapter's small space, which the gradients need."""
        low = rows @ self.down.t()
        return linear(rows, self.weight, self.bias).addmm_(low, self.up.t(), alpha=self.scaling), low

    def small_gradient(self, gradient: Tensor) -> Tensor:  # [N, out] -> [N, r]
        """The loss's gradient in the adapter's small space."""
        return (gradient @ self.up).mul_(self.scaling)

    def add_input_gradient(self, gradient: Tensor, small: Tensor, into: Tensor | None) -> Tensor:  # [N, in]
        """The loss's gradient by the rows, added to what other matrices say of the same rows."""
        found = gradient @ self.weight if into is None else into.addmm_(gradient, self.weight)
        return found.addmm_(small, self.down)

    def up_gradient(self, gradient: Tensor, low: Tensor) -> Tensor:  # [out, r]
        """The loss's gradient by `up`; twice as fast on CPU as gradient.t() @ low, a tall and narrow result."""
        return (low.t() @ gradient).mul_(self.scaling).t()


def fuse(model: Any) -> Any:
    """The same model, its adapted matrices and gated blocks computed by this module.

    Only plain LoRA is fused: one active adapter, no dropout, no bias in the adapter.
    """
    from peft.tuners.lora.layer import Linear

    for module in model.modules():
        if isinstance(module, Linear) and type(module.get_base_layer()) is torch.nn.Linear:
            module.forward = _FusedMatrix(module)  # type: ignore[method-assign, assignment]
    agrees: dict[type, bool] = {}
    for module in model.modules():
        parts = _gated_parts(module)
        if parts is None:
            continue
        block, kind = _FusedBlock(module, parts), type(module)
        if kind not in agrees:
            agrees[kind] = block.agrees()
        if agrees[kind]:
            module.forward = block
    return model


def adapted(module: Any) -> Adapted | None:
    """The matrix and adapter of a PEFT layer as it stands now, or None if it is not plain LoRA."""
    active = module.active_adapters
    if module.disable_adapters or module.merged or len(active) != 1 or active[0] not in module.lora_A:
        return None
    name, base = active[0], module.base_layer
    dropout = module.lora_dropout[name]
    if isinstance(dropout, torch.nn.Dropout) and dropout.p > 0 and dropout.training:
        return None
    down, up = module.lora_A[name], module.lora_B[name]
    same = down.weight.dtype == base.weight.dtype
    if not same or name in module.lora_variant or up.bias is not None or base.weight.requires_grad:
        return None
    return Adapted(base.weight, base.bias, down.weight, up.weight, module.scaling[name])


class _FusedMatrix:
    """Stands in for the forward of one adapted matrix."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.plain = type(module).forward.__get__(module)

    def __call__(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        matrix = adapted(self.module)
        if matrix is None or inputs.dtype != matrix.weight.dtype:
            return self.plain(inputs, *args, **kwargs)
        if torch.is_grad_enabled():
            return _Matrix.apply(inputs, *matrix)
        # Sampling makes 200 of these calls per token, and autograd's part of one is as long as its small products.
        return matrix.forward(inputs.reshape(-1, inputs.shape[-1]))[0].view(*inputs.shape[:-1], -1)


class _FusedBlock:
    """Stands in for the forward of a block that computes down(silu(gate(x)) * up(x))."""

    def __init__(self, module: Any, parts: tuple[Any, Any, Any]) -> None:
        self.module, self.parts = module, parts
        self.plain = type(module).forward.__get__(module)

    def __call__(self, inputs: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.plain(inputs)  # nothing is kept anyway
        return self.fused(inputs)

    def fused(self, inputs: Tensor) -> Tensor:
        matrices = [adapted(part) for part in self.parts]
        if any(matrix is None or matrix.weight.dtype != inputs.dtype for matrix in matrices):
            return self.plain(inputs)
        return _Block.apply(inputs, *(tensor for matrix in matrices if matrix for tensor in matrix))

    def agrees(self) -> bool:
        """Whether the block's own forward pass says the same of a few rows."""
        weight = self.parts[0].base_layer.weight
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(1, CHECKED_ROWS, weight.shape[1], generator=generator).to(weight)
        with torch.no_grad():
            own, ours = self.plain(rows), self.fused(rows)
        return own.shape == ours.shape and bool((own - ours).abs().max() <= TOLERANCE * own.abs().max())


def _gated_parts(module: Any) -> tuple[Any, Any, Any] | None:
    """The gate, up and down layers of a block that transformers writes as Llama's, if all are adapted."""
    from peft.tuners.lora.layer import Linear

    parts = tuple(getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj"))
    known = all(isinstance(part, Linear) and isinstance(part.forward, _FusedMatrix) for part in parts)
    activation = getattr(module, "act_fn", None)
    if not known or activation is None or "silu" not in type(activation).__name__.lower():
        return None
    return parts  # type: ignore[return-value]


class _Matrix(torch.autograd.Function):
    """An `Adapted` matrix, with gradients for inputs, down and up."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:
        flat = inputs.reshape(-1, inputs.shape[-1])
        output, low = Adapted(weight, bias, down, up, scaling).forward(flat)
        ctx.save_for_backward(flat, weight, down, up, low)
        ctx.scaling, ctx.shape = scaling, inputs.shape
        return output.view(*inputs.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight, down, up, low = ctx.saved_tensors
        matrix = Adapted(weight, None, down, up, ctx.scaling)
        gradient = gradients[0].reshape(-1, weight.shape[0])
        small = matrix.small_gradient(gradient)
        grad_inputs = None
        if ctx.needs_input_grad[0]:
            grad_inputs = matrix.add_input_gradient(gradient, small, None).view(ctx.shape)
        grad_down = small.t() @ flat if ctx.needs_input_grad[3] else None
        grad_up = matrix.up_gradient(gradient, low) if ctx.needs_input_grad[4] else None
        return grad_inputs, None, None, grad_down, grad_up, None


class _Block(torch.autograd.Function):
    """down(silu(gate(x)) * up(x)) of three `Adapted` matrices; the product is computed again when it is needed."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, *fields: Any) -> Tensor:
        gate, up, down = (Adapted(*fields[start : start + 5]) for start in (0, 5, 10))
        flat = inputs.reshape(-1, inputs.shape[-1])
        gated, low_gate = gate.forward(flat)
        factor, low_up = up.forward(flat)
        output, low_down = down.forward(silu(gated).mul_(factor))
        kept = [tensor for matrix in (gate, up, down) for tensor in (matrix.weight, matrix.down, matrix.up)]
        ctx.save_for_backward(flat, gated, factor, low_gate, low_up, low_down, *kept)
        ctx.scalings, ctx.shape = (gate.scaling, up.scaling, down.scaling), inputs.shape
        return output.view((*ctx.shape[:-1], output.shape[-1]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat, gated, factor, low_gate, low_up, low_down, *kept = ctx.saved_tensors
        gate, up, down = (
            Adapted(weight, None, small_down, small_up, scaling)
            for (weight, small_down, small_up), scaling in zip(
                (kept[0:3], kept[3:6], kept[6:9]), ctx.scalings, strict=True
            )
        )
        gradient = gradients[0].reshape(-1, gradients[0].shape[-1])
        small = down.small_gradient(gradient)
        activated = silu(gated)
        by_down = (small.t() @ (activated * factor), down.up_gradient(gradient, low_down))
        by_product = down.add_input_gradient(gradient, small, None)
        grad_factor = activated.mul_(by_product)
        grad_gated = torch.ops.aten.silu_backward(by_product.mul_(factor), gated)
        grad_inputs, found = None, []
        for matrix, part, low in ((gate, grad_gated, low_gate), (up, grad_factor, low_up)):
            small = matrix.small_gradient(part)
            if ctx.needs_input_grad[0]:
                grad_inputs = matrix.add_input_gradient(part, small, grad_inputs)
            found += [None, None, small.t() @ flat, matrix.up_gradient(part, low), None]
        if grad_inputs is not None:
            grad_inputs = grad_inputs.view(ctx.shape)
        return grad_inputs, *found, None, None, *by_down, None
