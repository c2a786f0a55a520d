"""token sequences packed as a forest, so that a shared prefix is computed once

Insert every sequence into a trie and lay its nodes out in depth-first order. Four integer arrays say everything:
`tokens[n]`, `positions[n]` (depth), `parents[n]` (-1 for a root) and `ends[n]` (one past the last descendant).
Attention is one rule: query q sees key k iff k <= q < ends[k]. It is causal attention for a single sequence,
block-diagonal attention for packed ones, and tree attention for shared prefixes. The log-probability of node n comes
from the logits at `parents[n]`.

Attention is computed block by block. In depth-first order the nodes a, …, b - 1 see only the path above a and one
another, so a block of 128 queries needs depth + 128 keys and not all N: packing many trees into one row costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

BLOCK = 128  # most queries that share one gathered set of keys; 64 gave the same times (docs/experiments.md)


@dataclass(frozen=True)
class Forest:
    """Sequences as one depth-first row of nodes. `paths[s][i]` is the node of token i of sequence s."""

    tokens: Tensor  # [N] int
    positions: Tensor  # [N] int, depth in the tree
    parents: Tensor  # [N] int, -1 for a root
    ends: Tensor  # [N] int, one past the last descendant
    paths: list[np.ndarray] = field(repr=False)  # one array of nodes per sequence, in the caller's order

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def plan(self) -> AttentionPlan:
        """Which keys each block of queries needs; the same for every layer."""
        return AttentionPlan.of(self)

    def to(self, device: torch.device | str) -> Forest:
        """The same forest with its arrays on a device."""
        arrays = (self.tokens, self.positions, self.parents, self.ends)
        tokens, positions, parents, ends = (array.to(device) for array in arrays)
        return Forest(tokens, positions, parents, ends, self.paths)


def grow(sequences: Sequence[Sequence[int]]) -> Forest:
    """The forest of the given token sequences; equal prefixes, from the first token on, become the same nodes.

    Sorting the sequences puts the trie in depth-first order: each one adds the nodes behind the prefix that it shares
    with the one before.
    """
    order = sorted(range(len(sequences)), key=lambda row: tuple(sequences[row]))
    tokens: list[int] = []
    positions: list[int] = []
    parents: list[int] = []
    ends: list[int] = []
    paths: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(sequences)
    stack: list[int] = []  # the nodes of the sequence inserted last
    previous: Sequence[int] = ()
    for row in order:
        sequence = sequences[row]
        shared = common_prefix(previous, sequence)
        for node in stack[shared:]:
            ends[node] = len(tokens)
        del stack[shared:]
        for depth in range(shared, len(sequence)):
            parents.append(stack[-1] if stack else -1)
            stack.append(len(tokens))
            tokens.append(int(sequence[depth]))
            positions.append(depth)
            ends.append(0)
        paths[row] = np.array(stack[: len(sequence)], dtype=np.int64)
        previous = sequence
    for node in stack:
        ends[node] = len(tokens)
    return Forest(torch.tensor(tokens), torch.tensor(positions), torch.tensor(parents), torch.tensor(ends), paths)


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading tokens two sequences share.

    >>> common_prefix([5, 7, 9], [5, 7, 8, 9])
    2
    """
    length = min(len(first), len(second))
    if tuple(first[:length]) == tuple(second[:length]):
        return length
    return next(i for i in range(length) if first[i] != second[i])


@dataclass(frozen=True)
class Blocks:
    """Blocks of queries with about equally many keys, attended in one call."""

    queries: Tensor  # [K, Q] node of each query, Q at most BLOCK; the last node stands in where a block is short
    keys: Tensor  # [K, M] node of each key, 0 where padded
    real: Tensor  # [K, M] bool, False where padded


@dataclass(frozen=True)
class AttentionPlan:
    """The block structure of a forest's attention, and its masks."""

    forest: Forest
    buckets: list[Blocks]
    inverse: Tensor  # [N] where node n's output stands after the buckets' outputs are concatenated
    masks: dict[tuple[int | None, torch.dtype, int], list[Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, forest: Forest) -> AttentionPlan:
        """Cut the nodes into even blocks and bucket these by the number of keys they need."""
        size = len(forest)
        length = -(-size // -(-size // BLOCK))  # a preference pair of 140 nodes is two blocks of 70, not of 128 and 12
        owner = np.zeros(size, dtype=np.int64)
        for row, path in enumerate(forest.paths):
            owner[path] = row
        positions = forest.positions.cpu().numpy()
        blocks = []
        for start in range(0, size, length):
            above = forest.paths[owner[start]][: positions[start]]
            blocks.append((start, np.concatenate([above, np.arange(start, min(start + length, size))])))
        by_width: dict[int, list[tuple[int, np.ndarray]]] = {}
        for start, keys in blocks:
            by_width.setdefault(_bucket_width(len(keys)), []).append((start, keys))
        device = forest.tokens.device
        buckets = [_blocks(members, length, size, device) for _, members in sorted(by_width.items())]
        order = torch.cat([bucket.queries.reshape(-1) for bucket in buckets])
        inverse = torch.empty(size, dtype=torch.long, device=device)
        # Duplicates of the last node are written in any order: all of them hold the same output.
        inverse[order] = torch.arange(len(order), device=device)
        return cls(forest, buckets, inverse)

    def mask(self, window: int | None, dtype: torch.dtype, repeat: int) -> list[Tensor]:
        """Per bucket an additive mask [K, 1, repeat * Q, M]: 0 where a query sees a key, -inf elsewhere."""
        key = (window, dtype, repeat)
        if key not in self.masks:
            self.masks[key] = [self._bucket_mask(bucket, window, dtype, repeat) for bucket in self.buckets]
        return self.masks[key]

    def _bucket_mask(self, bucket: Blocks, window: int | None, dtype: torch.dtype, repeat: int) -> Tensor:
        queries, keys = bucket.queries[:, :, None], bucket.keys[:, None, :]
        sees = bucket.real[:, None, :] & (keys <= queries) & (queries < self.forest.ends[keys])
        if window is not None:
            sees &= self.forest.positions[queries] - self.forest.positions[keys] < window
        mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, -torch.inf)
        return mask.repeat(1, repeat, 1)[:, None]

    def attend(
        self,
        layer: int,  # a forest keeps nothing per layer; a decoding step does
        queries: Tensor,  # [1, H, N, hd]
        keys: Tensor,  # [1, Hkv, N, hd]
        values: Tensor,  # [1, Hkv, N, hd]
        *,
        scaling: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:  # [1, N, H, hd]
        """Attention of every node over its path."""
        heads, kv_heads, width = queries.shape[1], keys.shape[1], queries.shape[3]
        repeat = heads // kv_heads
        flat_queries = queries[0].transpose(0, 1)  # [N, H, hd]
        flat_keys, flat_values = keys[0].transpose(0, 1), values[0].transpose(0, 1)  # [N, Hkv, hd]
        outputs = []
        for bucket, mask in zip(self.buckets, self.mask(window, queries.dtype, repeat), strict=True):
            (count, size), length = bucket.keys.shape, bucket.queries.shape[1]
            # Query heads that share a key head are folded into the query axis: keys are never repeated.
            folded = flat_queries[bucket.queries].view(count, length, kv_heads, repeat, width)
            folded = folded.permute(0, 2, 3, 1, 4).reshape(count, kv_heads, repeat * length, width)
            seen = bucket.keys.reshape(-1)
            gathered_keys = flat_keys.index_select(0, seen).view(count, size, kv_heads, width).transpose(1, 2)
            gathered_values = flat_values.index_select(0, seen).view(count, size, kv_heads, width).transpose(1, 2)
            attended = attention(folded, gathered_keys, gathered_values, mask, scaling=scaling, softcap=softcap)
            attended = attended.view(count, kv_heads, repeat, length, width).permute(0, 3, 1, 2, 4)
            outputs.append(attended.reshape(count * length, heads, width))
        return torch.cat(outputs).index_select(0, self.inverse)[None]


def attention(
    queries: Tensor,  # [K, H, Q, hd]
    keys: Tensor,  # [K, H, M, hd]
    values: Tensor,  # [K, H, M, hd]
    mask: Tensor,  # [K, 1, Q, M] additive
    *,
    scaling: float,
    softcap: float | None = None,
) -> Tensor:  # [K, H, Q, hd]
    """Scaled dot-product attention, written out where the model caps its logits (Gemma 2)."""
    if softcap is None:
        return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scaling)
    logits = softcap * torch.tanh(queries @ keys.transpose(-1, -2) * scaling / softcap) + mask
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return torch.softmax(logits, dim=-1).to(values.dtype) @ values


def _bucket_width(keys: int) -> int:
    """The next of 1.5-spaced widths (128, 192, 256, 384, …), so that padding stays under a third."""
    width = BLOCK
    while width < keys:
        width = width * 3 // 2 if (width & (width - 1)) == 0 else width * 4 // 3
    return width


def _blocks(members: list[tuple[int, np.ndarray]], length: int, size: int, device: torch.device) -> Blocks:
    width = max(len(keys) for _, keys in members)
    queries = np.stack([np.minimum(np.arange(start, start + length), size - 1) for start, _ in members])
    padded = np.zeros((len(members), width), dtype=np.int64)
    real = np.zeros((len(members), width), dtype=bool)
    for row, (_, keys) in enumerate(members):
        padded[row, : len(keys)] = keys
        real[row, : len(keys)] = True
    return Blocks(*(torch.from_numpy(array).to(device) for array in (queries, padded, real)))
