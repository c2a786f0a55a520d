"""divergences from a teacher: 0 at the teacher and nowhere else, the textbook's numbers, the slopes of their values"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from melior.errors import ShapeError
from melior.losses.distillation import candidate_divergence, reverse_kl_loss

BETAS = pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
REMAINDER = pytest.mark.parametrize("remainder", [True, False])


def tables(tokens: int = 7) -> tuple[Tensor, Tensor]:
    """Log-probs of a student and a teacher over all tokens, [3, 4, V]."""
    source = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, 3, 4, tokens, generator=source, dtype=torch.float64)
    student, teacher = torch.log_softmax(2 * drawn, -1)
    return student, teacher


def kl(first: Tensor, second: Tensor) -> Tensor:
    return (first.exp() * (first - second)).sum(-1)


def slope_error(value: Callable[[Tensor], Tensor], at: Tensor) -> float:
    """How far autograd's slope in a random direction is from the finite difference."""
    direction = torch.randn(at.shape, generator=torch.Generator().manual_seed(1), dtype=at.dtype)
    leaf = at.clone().requires_grad_()
    slope = (torch.autograd.grad(value(leaf), leaf)[0] * direction).sum()
    step = 1e-5
    return abs(float((value(at + step * direction) - value(at - step * direction)) / (2 * step) - slope))


@BETAS
@REMAINDER
def test_over_all_tokens_it_is_the_textbooks_divergence(beta: float, remainder: bool) -> None:
    student, teacher = tables()
    mixture = torch.log(beta * teacher.exp() + (1 - beta) * student.exp())
    expected = {0.0: kl(teacher, student), 1.0: kl(student, teacher)}.get(
        beta, beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)
    )
    found = candidate_divergence(student, teacher, beta=beta, remainder=remainder)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@BETAS
def test_the_rest_is_one_more_candidate(beta: float) -> None:
    """Merging tokens into one and listing the others says the same as leaving the merged one out."""
    student, teacher = tables()

    def merged(table: Tensor) -> Tensor:
        return torch.cat([table[..., :3], table[..., 3:].logsumexp(-1, keepdim=True)], -1)

    found = candidate_divergence(student[..., :3], teacher[..., :3], beta=beta)
    torch.testing.assert_close(
        found, candidate_divergence(merged(student), merged(teacher), beta=beta), rtol=0, atol=1e-10
    )
    assert bool((found <= candidate_divergence(student, teacher, beta=beta) + 1e-12).all())  # merging only hides


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_temperature_is_that_of_the_logits_and_keeps_the_size_of_gradients(temperature: float) -> None:
    student, teacher = tables()
    flat = [torch.log_softmax(table / temperature, -1) for table in (student, teacher)]
    found = candidate_divergence(student, teacher, temperature=temperature, remainder=False)
    torch.testing.assert_close(found, temperature**2 * kl(flat[1], flat[0]), rtol=0, atol=1e-12)


@BETAS
@REMAINDER
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("listed", [3, 7])
def test_at_the_teacher_value_and_gradient_are_0_and_elsewhere_not(
    beta: float, remainder: bool, temperature: float, listed: int
) -> None:
    student, teacher = (table[..., :listed] for table in tables())
    settings = {"beta": beta, "remainder": remainder, "temperature": temperature}
    same = teacher.clone().requires_grad_()
    there = candidate_divergence(same, teacher, **settings)
    assert float(there.detach().abs().max()) <= 1e-12
    assert float(torch.autograd.grad(there.sum(), same)[0].abs().max()) <= 1e-12
    assert bool((candidate_divergence(student, teacher, **settings) > 1e-4).all())


@BETAS
@REMAINDER
def test_slopes_are_finite_differences(beta: float, remainder: bool) -> None:
    _, teacher = tables()
    at = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def value(logits: Tensor) -> Tensor:
        candidates = torch.log_softmax(logits, -1)[..., :4]
        return candidate_divergence(candidates, teacher[..., :4], beta=beta, temperature=1.5, remainder=remainder).sum()

    assert slope_error(value, at) <= 1e-6


@BETAS
@REMAINDER
def test_places_without_a_candidate_leave_no_trace(beta: float, remainder: bool) -> None:
    """Columns of -inf change nothing, and a place with nothing but them is 0, in value and gradient."""
    student, teacher = (table[..., :3] for table in tables())
    settings = {"beta": beta, "remainder": remainder}
    known = candidate_divergence(student, teacher, **settings)
    wide = torch.nn.functional.pad(teacher, (0, 2), value=-math.inf)
    leaf = torch.nn.functional.pad(student, (0, 2), value=-math.inf).requires_grad_()
    wide[0] = -math.inf
    found = candidate_divergence(leaf, wide, **settings)
    torch.testing.assert_close(found[1:], known[1:], rtol=0, atol=1e-14)
    slope = torch.autograd.grad(found.sum(), leaf)[0]
    assert bool(slope.isfinite().all()) and float(slope[1:].abs().max()) > 0
    assert float(found[0].detach().abs().max()) <= 1e-15 and not bool(slope[0].any())


def test_single_precision_has_no_gradient_at_the_teacher_even_where_everything_is_listed() -> None:
    _, teacher = tables(50)
    same = teacher.float().requires_grad_()
    for remainder in (True, False):
        found = candidate_divergence(same, teacher.float(), remainder=remainder)
        assert float(torch.autograd.grad(found.sum(), same)[0].abs().max()) <= 1e-6


def test_sampled_gaps_have_their_value_and_are_credited_as_far_as_the_discount_says() -> None:
    source = torch.Generator().manual_seed(2)
    log_probs, teacher = -torch.rand(2, 2, 3, generator=source, dtype=torch.float64)
    leaf = log_probs.clone().requires_grad_()
    gap = log_probs - teacher
    behind = {
        0.0: gap,
        0.5: torch.stack([gap[:, 0] + gap[:, 1] / 2 + gap[:, 2] / 4, gap[:, 1] + gap[:, 2] / 2, gap[:, 2]], 1),
        1.0: torch.stack([gap.sum(1), gap[:, 1:].sum(1), gap[:, 2]], 1),
    }
    for discount, credit in behind.items():
        found = reverse_kl_loss(leaf, teacher, discount=discount)
        torch.testing.assert_close(found.detach(), gap, rtol=0, atol=1e-15)
        torch.testing.assert_close(torch.autograd.grad(found.sum(), leaf)[0], credit, rtol=0, atol=1e-15)


def test_the_defaults_are_the_teachers_side_with_the_rest_and_each_decision_for_itself() -> None:
    student, teacher = (table[..., :3] for table in tables())
    expected = candidate_divergence(student, teacher, beta=0.0, temperature=1.0, remainder=True)
    assert torch.equal(candidate_divergence(student, teacher), expected)
    leaf = student[..., 0].clone().requires_grad_()
    slope = torch.autograd.grad(reverse_kl_loss(leaf, teacher[..., 0]).sum(), leaf)[0]
    torch.testing.assert_close(slope, student[..., 0] - teacher[..., 0], rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rest_below_sixteen_units_is_rounding_and_above_it_probability(dtype: torch.dtype) -> None:
    """The slope by what is left over is as steep as that is small, unless it is taken for no more than rounding."""
    unit = torch.finfo(dtype).eps
    slopes = []
    for rest in (15.5 * unit, 16.5 * unit):
        student = torch.full((1, 1, 1), math.log1p(-rest), dtype=dtype, requires_grad=True)
        candidate_divergence(student, torch.full_like(student, math.log(0.5)).detach()).sum().backward()
        assert student.grad is not None
        slopes.append(abs(student.grad.item()))
    assert slopes[0] < 1 < 1e4 < slopes[1]


@pytest.mark.parametrize("decisions", [0, 1])
def test_outputs_of_one_decision_and_of_none_have_their_gap_and_no_more(decisions: int) -> None:
    leaf = torch.full((2, decisions), -1.0, requires_grad=True)
    found = reverse_kl_loss(leaf, torch.full((2, decisions), -3.0), discount=1.0)
    assert found.tolist() == torch.autograd.grad(found.sum(), leaf)[0].tolist() == [[2.0] * decisions] * 2


def test_shapes_must_agree() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 3\) and \(2, 2\)"):
        reverse_kl_loss(torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(ShapeError, match=r"\(2, 3, 4\) and \(2, 3, 5\)"):
        candidate_divergence(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5))
