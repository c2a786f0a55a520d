"""AdamW against its paper, the schedules, and state that travels by name"""

from __future__ import annotations

import math

import pytest
import torch

from melior.errors import CheckpointError
from melior.policies.base import ParameterGroup
from melior.trainers.optimizers import AdamW, rate_factor


def parameter(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).requires_grad_()


def test_updates_are_those_of_the_paper() -> None:
    """Loshchilov & Hutter 2017, algorithm 2, with decay scaled by the learning rate."""
    tensor = parameter(0.7)
    optimizer = AdamW([ParameterGroup(("w",), (tensor,), 0.1, 0.05)], betas=(0.8, 0.9), epsilon=1e-8)
    weight, first, second = 0.7, 0.0, 0.0
    for t, (gradient, factor) in enumerate([(0.3, 1.0), (-2.0, 0.5), (0.1, 0.25)], start=1):
        tensor.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step(factor)
        first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
        rate = 0.1 * factor
        weight -= rate * 0.05 * weight
        weight -= rate * (first / (1 - 0.8**t)) / (math.sqrt(second / (1 - 0.9**t)) + 1e-8)
        assert tensor.item() == pytest.approx(weight, abs=1e-14)


def test_each_group_has_its_own_rate_and_decay() -> None:
    fast, slow = parameter(1.0), parameter(1.0)
    groups = [ParameterGroup(("fast",), (fast,), 0.1, 0.0), ParameterGroup(("slow",), (slow,), 0.01, 0.0)]
    optimizer = AdamW(groups, betas=(0.9, 0.999), epsilon=1e-12)
    for tensor in (fast, slow):
        tensor.grad = torch.ones_like(tensor)
    optimizer.step(0.5)
    assert [fast.item(), slow.item()] == pytest.approx([1 - 0.05, 1 - 0.005])


def test_the_norm_is_of_all_gradients_and_told_before_clipping() -> None:
    first, second = parameter(0.0), parameter(0.0, 0.0)
    optimizer = AdamW([ParameterGroup(("a", "b"), (first, second), 0.1, 0.0)], betas=(0.9, 0.999), epsilon=1e-8)
    assert optimizer.clip(1.0) == 0.0
    first.grad, second.grad = torch.tensor([3.0]).double(), torch.tensor([0.0, 4.0]).double()
    assert optimizer.clip(10.0) == pytest.approx(5.0)
    assert first.grad.item() == 3.0
    assert optimizer.clip(1.0) == pytest.approx(5.0)
    assert [first.grad.item(), second.grad[1].item()] == pytest.approx([0.6, 0.8], rel=1e-5)
    first.grad[0] = math.nan
    assert not math.isfinite(optimizer.clip(1.0))


def test_state_travels_by_name_and_refuses_strangers() -> None:
    def trained(name: str, steps: int) -> tuple[AdamW, torch.Tensor]:
        tensor = parameter(1.0, -1.0)
        optimizer = AdamW([ParameterGroup((name,), (tensor,), 0.1, 0.0)], betas=(0.9, 0.999), epsilon=1e-8)
        for step in range(steps):
            tensor.grad = torch.tensor([0.1 * step, 1.0], dtype=torch.float64)
            optimizer.step(1.0)
        return optimizer, tensor

    (half, middle), (_, end) = trained("w", 3), trained("w", 4)
    resumed, tensor = trained("w", 0)
    resumed.load_state(half.state())
    with torch.no_grad():
        tensor.copy_(middle)
    tensor.grad = torch.tensor([0.1 * 3, 1.0], dtype=torch.float64)
    resumed.step(1.0)
    assert torch.equal(tensor, end)
    with pytest.raises(CheckpointError, match="w, which this run does not train"):
        trained("other", 0)[0].load_state(half.state())


def test_schedules_start_at_one_and_fall_to_the_floor() -> None:
    cosine = [rate_factor(index, 4, schedule="cosine", warmup=0) for index in range(5)]
    assert cosine == pytest.approx([1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0.0], abs=1e-12)
    assert rate_factor(4, 4, schedule="linear", warmup=0, floor=0.1) == pytest.approx(0.1)
    assert [rate_factor(i, 9, schedule="constant", warmup=2) for i in range(4)] == [0.5, 1.0, 1.0, 1.0]
    assert rate_factor(2, 2, schedule="linear", warmup=2) == 1.0  # nothing is left behind the warm-up
