"""log-probs and entropy of chosen tokens, in chunks; nobody else ever sees logits

A head maps hidden states to logits over the vocabulary. What training needs of them is one log-probability per
decision, so logits exist for one chunk of positions at a time and are gone before the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 256  # positions whose logits exist at once: 50 MB at a vocabulary of 49,152 in fp32


@dataclass(frozen=True)
class Head:
    """The output layer of a language model: logits = cap(hidden @ weight.T + bias) * scale."""

    weight: Tensor  # [V, D]
    bias: Tensor | None = None  # [V]
    softcap: float | None = None  # Gemma 2: cap * tanh(logits / cap)
    scale: float = 1.0  # Granite and Cohere scale their logits

    def logits(self, hidden: Tensor) -> Tensor:  # [P, D] -> [P, V] fp32, or fp64 for an fp64 model
        """Logits of the whole vocabulary; for sampling, and for one chunk at a time."""
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    @property
    def trained(self) -> bool:
        """Whether any of its tensors takes gradients."""
        return self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)


def decision_log_probs(
    head: Head,
    hidden: Tensor,  # [P, D] states that decide
    rows: Tensor,  # [J] which state each decision reads, ascending
    targets: Tensor,  # [J] the token decided
    inverse_temperature: Tensor,  # [P]
    *,
    entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:  # [J], [P] or None
    """Log-probability of each decision, and the entropy of each state if wanted, in nats.

    With a frozen linear head the gradient with respect to a state is a fixed vector times the incoming scalar, so the
    forward pass computes these vectors while a chunk's probabilities are at hand and no logits are computed twice.
    """
    chosen, entropies = [], []
    bounds = torch.searchsorted(rows, torch.arange(0, len(hidden) + CHUNK, CHUNK, device=rows.device))
    for number, start in enumerate(range(0, len(hidden), CHUNK)):
        span = slice(int(bounds[number]), int(bounds[number + 1]))
        part = (
            hidden[start : start + CHUNK],
            rows[span] - start,
            targets[span],
            inverse_temperature[start : start + CHUNK],
        )
        if not (torch.is_grad_enabled() and (hidden.requires_grad or head.trained)):
            log_probs, bits = _chunk(head, *part, entropy)
        elif not head.trained and head.softcap is None:
            log_probs, bits = _FrozenHead.apply(head, *part, entropy)
        else:
            log_probs, bits = checkpoint(_chunk, head, *part, entropy, use_reentrant=False)
        chosen.append(log_probs)
        entropies.append(bits)
    if not chosen:
        nothing = hidden.sum() * 0.0
        return nothing.expand(0), nothing.expand(0) if entropy else None
    return torch.cat(chosen), torch.cat(entropies) if entropy else None


@torch.no_grad()
def likeliest_tokens(
    head: Head,
    hidden: Tensor,  # [P, D] states that decide
    inverse_temperature: Tensor,  # [P]
    k: int,
    *,
    known: int,  # ids from here on are rows of the matrix that no text has
) -> tuple[Tensor, Tensor]:  # [P, k] ids, [P, k] nats
    """The k likeliest tokens behind each state and their log-probs among all tokens, the likeliest first."""
    ids, log_probs = [], []
    for start in range(0, len(hidden), CHUNK):
        logits = head.logits(hidden[start : start + CHUNK]) * inverse_temperature[start : start + CHUNK, None]
        normaliser = torch.logsumexp(logits, dim=-1, keepdim=True)
        found, places = logits[:, :known].topk(min(k, known, logits.shape[1]), dim=-1)
        ids.append(places)
        log_probs.append(found - normaliser)
    if not ids:
        return hidden.new_zeros(0, k, dtype=torch.long), hidden.new_zeros(0, k)
    return torch.cat(ids), torch.cat(log_probs)


def _chunk(
    head: Head, hidden: Tensor, rows: Tensor, targets: Tensor, inverse_temperature: Tensor, entropy: bool
) -> tuple[Tensor, Tensor]:
    logits = head.logits(hidden) * inverse_temperature[:, None]
    normaliser = torch.logsumexp(logits, dim=-1)
    log_probs = logits[rows, targets] - normaliser[rows]
    if not entropy:
        return log_probs, normaliser.new_zeros(0)
    probabilities = torch.exp(logits - normaliser[:, None])
    return log_probs, normaliser - (probabilities * logits).sum(-1)


class _FrozenHead(torch.autograd.Function):
    """`_chunk` for a head without trainable weights; saves two [P, D] tensors instead of logits."""

    @staticmethod
    def forward(
        ctx: Any,
        head: Head,
        hidden: Tensor,  # [P, D]
        rows: Tensor,  # [J]
        targets: Tensor,  # [J]
        inverse_temperature: Tensor,  # [P]
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        logits = head.logits(hidden)
        slope = inverse_temperature.to(logits.dtype) * head.scale  # of the scaled logits by hidden @ weight.T
        if not bool((inverse_temperature == 1).all()):
            logits.mul_(inverse_temperature[:, None])
        peak = logits.amax(-1, keepdim=True)
        chosen = logits[rows, targets] - peak[rows, 0]
        # One pass over the vocabulary for each line: the weights are probabilities but for the factor `total`.
        shifted = logits.sub_(peak)
        weights = torch.exp(shifted) if entropy else shifted.exp_()
        total = weights.sum(-1)
        bits = total.new_zeros(0)
        weighted = None
        if entropy:
            mean = (weights * shifted).sum(-1) / total
            bits = total.log() - mean
            # dH/dz_v = -p_v (z_v - E[z]), carried on to the hidden state.
            centred = shifted.sub_(mean[:, None]).mul_(weights)
            weighted = -(centred.to(head.weight.dtype) @ head.weight) * (slope / total)[:, None]
        expected = (weights.to(head.weight.dtype) @ head.weight) / total[:, None]  # [P, D], E_p[w]
        log_probs = chosen - total.log()[rows]
        ctx.save_for_backward(head.weight, rows, targets, slope, expected, weighted)
        ctx.dtype = hidden.dtype
        return log_probs, bits

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_log_probs, grad_entropy = gradients
        weight, rows, targets, slope, expected, weighted = ctx.saved_tensors
        gradient = torch.zeros_like(expected, dtype=slope.dtype)
        gradient.index_add_(0, rows, grad_log_probs[:, None] * weight[targets].to(slope.dtype))
        share = torch.zeros_like(slope).index_add_(0, rows, grad_log_probs)
        gradient = (gradient - share[:, None] * expected) * slope[:, None]
        if weighted is not None:
            gradient = gradient + grad_entropy[:, None] * weighted
        return None, gradient.to(ctx.dtype), None, None, None, None
