"""floating-point work, counted as it is done, and the matrix-product peak it is measured against

Per node of a forest: 4 FLOPs for each frozen weight (forward, and the gradient of the input; 2 without a gradient), 6
for each weight of the adapter, 12 · layers · heads · width per key that it sees; per state the head reads, 4 · hidden
size · vocabulary (2 without a gradient). A reference pass counts without the adapter.
Only what an answer needs is counted: padding of attention blocks is not.
"""

from __future__ import annotations

import time
from typing import Any

import torch

PEAK_ROWS = 1024  # of the left factor: as many as a micro-batch has nodes
PEAK_SECONDS = 6.0


class Work:
    """Counts what a policy computes while it is watched."""

    def __init__(self, policy: Any) -> None:
        self.backbone = policy.backbone
        self.flops = 0.0
        self.nodes = 0  # with a gradient
        self.decoded = 0  # without
        self.training = False
        config = self.backbone.config
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.per_key = 4.0 * config.num_hidden_layers * config.num_attention_heads * width
        self.adapter = float(sum(p.numel() for _, p in self.backbone.trainable()))
        self.frozen = float(sum(a * b for a, b, _ in matrices(self.backbone)))
        self.head = 2.0 * config.hidden_size * config.vocab_size
        self._watch()

    def _watch(self) -> None:
        body, head = self.backbone.body, type(self.backbone.head)
        logits = head.logits

        def counted_body(tokens: torch.Tensor, positions: torch.Tensor, plan: Any) -> torch.Tensor:
            self.training = torch.is_grad_enabled()
            size, keys = len(tokens), float(positions.sum()) + len(tokens)
            times = 3 if self.training else 1
            frozen = 4 if self.training else 2
            adapter = self.adapter if adapting(self.backbone) else 0.0
            self.flops += size * (frozen * self.frozen + 2 * times * adapter) + times * self.per_key * keys
            if self.training:
                self.nodes += size
            else:
                self.decoded += size
            return body(tokens, positions, plan)

        def counted_logits(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
            self.flops += len(hidden) * self.head * (2 if self.training else 1)
            return logits(layer, hidden)

        self.backbone.body = counted_body
        head.logits = counted_logits


def adapting(backbone: Any) -> bool:
    """Whether the adapter is on: a reference pass leaves it out."""
    layers = (
        module for module in backbone.inner.modules() if isinstance(getattr(module, "disable_adapters", None), bool)
    )
    return not any(layer.disable_adapters for layer in layers)


def matrices(backbone: Any) -> list[tuple[int, int, int]]:
    """(outputs, inputs, how many) of every frozen matrix of the body, one entry each."""
    found = []
    for name, module in backbone.inner.named_modules():
        weight = getattr(module, "weight", None)
        if type(module) is torch.nn.Linear and "lora_" not in name and "lm_head" not in name and weight is not None:
            found.append((weight.shape[0], weight.shape[1], 1))
    return found


def peak(policy: Any, seconds: float = PEAK_SECONDS) -> dict[str, float]:
    """FLOP/s of bare fp32 matrix products on the model's own shapes, in the proportion in which the body has them.

    "mixed" takes every shape's best time, which is what a training step could reach at most; "best" is the best shape.
    """
    counts: dict[tuple[int, int], int] = {}
    for outputs, inputs, _ in matrices(policy.backbone):
        counts[outputs, inputs] = counts.get((outputs, inputs), 0) + 1
    best_rate, flops, spent = 0.0, 0.0, 0.0
    for (outputs, inputs), count in counts.items():
        left, right = torch.randn(PEAK_ROWS, inputs), torch.randn(outputs, inputs)
        work = 2.0 * PEAK_ROWS * outputs * inputs
        fastest, until = float("inf"), time.perf_counter() + seconds / len(counts)
        while time.perf_counter() < until:
            start = time.perf_counter()
            torch.nn.functional.linear(left, right)
            fastest = min(fastest, time.perf_counter() - start)
        best_rate = max(best_rate, work / fastest)
        flops, spent = flops + count * work, spent + count * fastest
    return {"mixed": flops / spent, "best": best_rate}
