"""chunked log-probs and entropy are those of one plain log_softmax, and so are their gradients"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import melior.policies.head as head_module
from melior.policies.head import Head, decision_log_probs

STATES, WIDTH, ROWS = 23, 6, 31


def case(
    *, trained: bool, bias: bool, softcap: float | None, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> tuple[Head, dict[str, Tensor]]:
    """A head, and what it is asked: 60 decisions over 23 states, some with several, some with none."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    weight, offset = draw(ROWS, WIDTH).requires_grad_(trained), draw(ROWS).requires_grad_(trained)
    rows = torch.randint(0, STATES - 3, (60,), generator=generator).sort().values
    asked = {
        "hidden": draw(STATES, WIDTH).requires_grad_(),
        "rows": rows,
        "targets": torch.randint(0, ROWS, (60,), generator=generator),
        "inverse_temperature": torch.rand(STATES, generator=generator, dtype=torch.float64).to(dtype) * 2 + 0.3,
    }
    return Head(weight, offset if bias else None, softcap, scale), asked


def plain(head: Head, asked: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """All logits at once."""
    logits = asked["hidden"] @ head.weight.T
    if head.bias is not None:
        logits = logits + head.bias
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    log_probs = torch.log_softmax(logits * asked["inverse_temperature"][:, None], -1)
    return log_probs[asked["rows"], asked["targets"]], -(log_probs.exp() * log_probs).sum(-1)


def leaves(head: Head, asked: dict[str, Tensor]) -> list[Tensor]:
    return [t for t in (asked["hidden"], head.weight, head.bias) if t is not None and t.requires_grad]


@pytest.mark.parametrize("chunk", [1, 7, STATES, 256])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(("bias", "softcap", "scale"), [(False, None, 1.0), (True, None, 0.5), (True, 2.0, 1.0)])
@pytest.mark.parametrize("entropy", [False, True])
def test_equals_plain_log_softmax(
    chunk: int,
    trained: bool,
    bias: bool,
    softcap: float | None,
    scale: float,
    entropy: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(head_module, "CHUNK", chunk)
    head, asked = case(trained=trained, bias=bias, softcap=softcap, scale=scale)
    log_probs, bits = decision_log_probs(head, **asked, entropy=entropy)
    wanted, wanted_bits = plain(head, asked)
    assert (log_probs - wanted).abs().max() <= 1e-12
    generator = torch.Generator().manual_seed(4)
    outer = torch.randn(len(wanted), generator=generator, dtype=torch.float64)
    bit_outer = torch.randn(STATES, generator=generator, dtype=torch.float64)
    ours, theirs = (log_probs * outer).sum(), (wanted * outer).sum()
    if entropy:
        assert bits is not None and (bits - wanted_bits).abs().max() <= 1e-12
        ours, theirs = ours + (bits * bit_outer).sum(), theirs + (wanted_bits * bit_outer).sum()
    else:
        assert bits is None
    inputs = leaves(head, asked)
    for mine, theirs_too in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        assert (mine - theirs_too).abs().max() <= 1e-11


def test_without_gradients_the_numbers_are_the_same() -> None:
    head, asked = case(trained=True, bias=True, softcap=None)
    with torch.no_grad():
        log_probs, bits = decision_log_probs(head, **asked, entropy=True)
    wanted, wanted_bits = plain(head, asked)
    assert bits is not None and (log_probs - wanted).abs().max() <= 1e-12 and (bits - wanted_bits).abs().max() <= 1e-12
    assert not log_probs.requires_grad


def test_a_trained_bias_learns_even_where_all_else_is_frozen() -> None:
    head, asked = case(trained=False, bias=True, softcap=None)
    assert head.bias is not None
    head.bias.requires_grad_()
    asked["hidden"] = asked["hidden"].detach()
    (mine,) = torch.autograd.grad(decision_log_probs(head, **asked)[0].sum(), [head.bias])
    (wanted,) = torch.autograd.grad(plain(head, asked)[0].sum(), [head.bias])
    assert (mine - wanted).abs().max() <= 1e-12


def test_low_precision_heads_give_fp32_log_probs() -> None:
    head, asked = case(trained=False, bias=False, softcap=None, dtype=torch.bfloat16)
    asked["inverse_temperature"] = asked["inverse_temperature"].float()
    log_probs, _ = decision_log_probs(head, **asked)
    assert log_probs.dtype == torch.float32
    (gradient,) = torch.autograd.grad(log_probs.sum(), [asked["hidden"]])
    assert gradient.dtype == torch.bfloat16 and bool(gradient.isfinite().all())


def test_no_decisions_give_nothing_and_a_zero_gradient() -> None:
    head, asked = case(trained=False, bias=False, softcap=None)
    nothing = torch.zeros(0, dtype=torch.long)
    asked |= {"hidden": asked["hidden"][:0], "rows": nothing, "targets": nothing}
    asked["inverse_temperature"] = asked["inverse_temperature"][:0]
    log_probs, bits = decision_log_probs(head, **asked, entropy=True)
    assert log_probs.shape == (0,) and bits is not None and bits.shape == (0,)
    log_probs.sum().backward()


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_only_one_chunk_of_logits_is_alive(
    trained: bool, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing as wide as the vocabulary is kept for the backward pass, and no operation sees more than a chunk."""
    monkeypatch.setattr(head_module, "CHUNK", 4)
    head, asked = case(trained=trained, bias=False, softcap=softcap)
    saved: list[tuple[int, ...]] = []
    seen: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), watch_rows(seen):
        log_probs, bits = decision_log_probs(head, **asked, entropy=True)
        kept = list(saved)
        (log_probs.sum() + bits.sum()).backward()  # type: ignore[union-attr]
    assert max(seen) <= 4
    assert not [shape for shape in kept if ROWS in shape and shape != tuple(head.weight.shape)]


def watch_rows(seen: list[int]) -> Any:
    """Notes the rows of every tensor over the vocabulary that any operation returns; the turned weight is none."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.dim() == 2 and result.shape[1] == ROWS and len(result) != WIDTH:
                seen.append(result.shape[0])
            return result

    return Watch()
