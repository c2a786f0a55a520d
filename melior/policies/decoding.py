"""the model's side of sampling: keys and values are kept per group and per sample, never copied per sample"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from melior.policies.forest import grow

GROUP_ROWS = 16  # samples that share one copy of their prompt's keys; a larger request becomes several groups
GROWTH = 32  # tokens by which the samples' cache grows
COMPACT_BELOW = 0.7  # share of used places under which the cache is packed anew


class CachedDecoder:
    """Decodes with a cache in two parts: one prompt per group [G, …], and what each of its samples decided [G, S, …].

    Rows are the live samples, flat, in the order of admission; `place` says where each stands in [G, S]. The matrices
    see rows only; attention works on all places and wastes little there.
    """

    def __init__(self, backbone: Any) -> None:
        self.backbone = backbone
        self.place = torch.zeros(0, 2, dtype=torch.long)  # [R, 2] group and sample of each row
        self.prompt_lengths = torch.zeros(0, dtype=torch.long)  # [G]
        self.own_lengths = torch.zeros(0, 0, dtype=torch.long)  # [G, S]
        self.prompts: list[tuple[Tensor, Tensor]] = []  # per layer keys and values [G, Hkv, Mp, hd]
        self.own: list[tuple[Tensor, Tensor]] = []  # per layer keys and values [G, S, Hkv, Mo, hd]

    def admit(self, requests: Sequence[tuple[Sequence[int], int]]) -> Tensor:  # [requests, D]
        """Computes prompts, shared prefixes once; returns each prompt's last state. `n` rows per request are added."""
        forest = grow([context for context, _ in requests]).to(self.backbone.device)
        plan = Prefill(forest.plan)
        states = self.backbone.body(forest.tokens, forest.positions, plan)
        groups = [(path, size) for path, (_, n) in zip(forest.paths, requests, strict=True) for size in _sizes(n)]
        self._add_groups(plan, groups)
        return states[torch.tensor([int(path[-1]) for path in forest.paths], device=states.device)]

    def advance(self, tokens: Sequence[int]) -> Tensor:  # [R, D]
        """Appends one token to every row and returns the states that decide the next."""
        device = self.backbone.device
        group, sample = self.place.unbind(1)
        lengths = self.own_lengths[group, sample]
        if self.own and int(lengths.max()) >= self.own[0][0].shape[3]:
            self.own = [tuple(torch.nn.functional.pad(t, (0, 0, 0, GROWTH)) for t in pair) for pair in self.own]  # type: ignore[misc]
        self.own_lengths[group, sample] += 1
        positions = self.prompt_lengths[group] + lengths
        entering = torch.tensor(tokens, device=device)
        return self.backbone.body(entering, positions.to(device), _Decode(self, lengths))

    def keep(self, rows: Sequence[int]) -> None:
        """Forgets all other rows; their places are reused when the cache is packed."""
        self.place = self.place[torch.tensor(rows, dtype=torch.long)]
        if len(self.place) < COMPACT_BELOW * self.own_lengths.numel():
            self._pack()

    def _add_groups(self, plan: Prefill, groups: list[tuple[np.ndarray, int]]) -> None:
        old = len(self.prompt_lengths)
        device = self.backbone.device
        samples = max(self.own_lengths.shape[1], max(size for _, size in groups))
        longest = max([int(self.prompt_lengths.max()) if old else 0, *(len(path) for path, _ in groups)])
        nodes = torch.zeros(len(groups), longest, dtype=torch.long)
        for row, (path, _) in enumerate(groups):
            nodes[row, : len(path)] = torch.from_numpy(path)
        nodes = nodes.to(device)
        self.prompt_lengths = torch.cat([self.prompt_lengths, torch.tensor([len(path) for path, _ in groups])])
        lengths = torch.zeros(len(self.prompt_lengths), samples, dtype=torch.long)
        lengths[:old, : self.own_lengths.shape[1]] = self.own_lengths
        self.own_lengths = lengths
        fresh = [(old + row, sample) for row, (_, size) in enumerate(groups) for sample in range(size)]
        self.place = torch.cat([self.place, torch.tensor(fresh, dtype=torch.long)])
        for layer, pair in enumerate(plan.cache):
            # [1, Hkv, N, hd] at [G, Mp] gives [G, Hkv, Mp, hd]
            new = [tensor[0].transpose(0, 1)[nodes].transpose(1, 2) for tensor in pair]
            if old:
                new = [torch.cat([_widen(a, longest, 2), b]) for a, b in zip(self.prompts[layer], new, strict=True)]
            capacity = self.own[layer][0].shape[3] if old else GROWTH
            total, heads, width = len(self.prompt_lengths), new[0].shape[1], new[0].shape[3]
            own = [tensor.new_zeros(total, samples, heads, capacity, width) for tensor in new]
            if old:
                for target, source in zip(own, self.own[layer], strict=True):
                    target[:old, : source.shape[1]] = source
                self.prompts[layer], self.own[layer] = (new[0], new[1]), (own[0], own[1])
            else:
                if layer == 0:
                    self.prompts, self.own = [], []
                self.prompts.append((new[0], new[1]))
                self.own.append((own[0], own[1]))

    def _pack(self) -> None:
        """Groups without rows go, and samples move together."""
        if not len(self.place):
            self.__init__(self.backbone)  # type: ignore[misc]
            return
        groups, position = torch.unique(self.place[:, 0], return_inverse=True)
        order = torch.zeros(len(groups), dtype=torch.long)
        slots = torch.empty_like(position)
        for row, group in enumerate(position.tolist()):
            slots[row] = order[group]
            order[group] += 1
        samples = int(order.max())
        source = torch.zeros(len(groups), samples, dtype=torch.long)  # which old sample stands in each new place
        source[position, slots] = self.place[:, 1]
        length = int(self.prompt_lengths[groups].max())
        device = self.backbone.device
        where, which = groups.to(device), source.to(device)
        self.prompts = [(k[where, :, :length], v[where, :, :length]) for k, v in self.prompts]
        self.own = [(k[where[:, None], which], v[where[:, None], which]) for k, v in self.own]
        self.prompt_lengths = self.prompt_lengths[groups]
        self.own_lengths = self.own_lengths[groups[:, None], source]
        self.place = torch.stack([position, slots], 1)


class Prefill:
    """A forest's attention that keeps the keys and values of every layer."""

    def __init__(self, plan: Any) -> None:
        self.plan = plan
        self.cache: list[tuple[Tensor, Tensor]] = []

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, **how: Any) -> Tensor:
        assert layer == len(self.cache), "layers attend in order, each once"
        self.cache.append((keys, values))
        return self.plan.attend(layer, queries, keys, values, **how)


class _Decode:
    """One decoding step: every row attends to its group's prompt and to what it decided itself."""

    def __init__(self, decoder: CachedDecoder, lengths: Tensor) -> None:
        self.decoder = decoder
        device = decoder.backbone.device
        self.group, self.sample = decoder.place.to(device).unbind(1)
        self.lengths = lengths.to(device)  # [R] where the new key goes
        self.own_width = int(lengths.max()) + 1
        places = decoder.own_lengths.to(device)  # [G, S]
        self.prompt_lengths = decoder.prompt_lengths.to(device)
        self.own_lengths = places
        self.masks: dict[int | None, Tensor] = {}

    def mask(self, window: int | None, prompt_width: int) -> Tensor:  # [G, 1, S, 1, Mp + Mo] bool, True where unseen
        """Which keys lie beyond each row's prompt, beyond its own tokens, or behind its window."""
        if window not in self.masks:
            device = self.own_lengths.device
            groups, samples = self.own_lengths.shape
            at = torch.arange(prompt_width, device=device)
            prompt = (at >= self.prompt_lengths[:, None])[:, None, :].expand(groups, samples, -1)
            own_at = torch.arange(self.own_width, device=device)
            # A place without a row has no token of its own; letting it see one keeps its softmax finite.
            own = own_at >= self.own_lengths[:, :, None].clamp(min=1)
            if window is not None:
                last = (self.prompt_lengths[:, None] + self.own_lengths - 1)[:, :, None]  # position of the query
                prompt = prompt | (last - at >= window)
                own = own | (last - (self.prompt_lengths[:, None, None] + own_at) >= window) & (last >= 0)
            self.masks[window] = torch.cat([prompt, own], -1)[:, None, :, None, :]
        return self.masks[window]

    def attend(
        self,
        layer: int,
        queries: Tensor,  # [1, H, R, hd]
        keys: Tensor,  # [1, Hkv, R, hd]
        values: Tensor,  # [1, Hkv, R, hd]
        *,
        scaling: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:  # [1, R, H, hd]
        heads, kv_heads, width = queries.shape[1], keys.shape[1], queries.shape[3]
        repeat = heads // kv_heads
        prompt_keys, prompt_values = self.decoder.prompts[layer]
        own_keys, own_values = self.decoder.own[layer]
        own_keys[self.group, self.sample, :, self.lengths] = keys[0].transpose(0, 1)
        own_values[self.group, self.sample, :, self.lengths] = values[0].transpose(0, 1)
        own_keys, own_values = own_keys[:, :, :, : self.own_width], own_values[:, :, :, : self.own_width]
        groups, samples = own_keys.shape[:2]
        placed = queries.new_zeros(groups, samples, kv_heads, repeat, width)
        placed[self.group, self.sample] = (queries[0] * scaling).transpose(0, 1).view(-1, kv_heads, repeat, width)
        by_head = placed.transpose(1, 2)  # [G, Hkv, S, rep, hd]
        prompt_logits = by_head.reshape(groups, kv_heads, samples * repeat, width) @ prompt_keys.transpose(-1, -2)
        own_logits = (placed @ own_keys.transpose(-1, -2)).transpose(1, 2)  # [G, Hkv, S, rep, Mo]
        prompt_logits = prompt_logits.view(groups, kv_heads, samples, repeat, -1)
        logits = torch.cat([prompt_logits, own_logits], -1)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        logits = logits.masked_fill(self.mask(window, prompt_keys.shape[2]), -torch.inf)
        shares = torch.softmax(logits, -1).to(values.dtype)
        to_prompt, to_own = shares.split([prompt_keys.shape[2], self.own_width], -1)
        out = (to_prompt.reshape(groups, kv_heads, samples * repeat, -1) @ prompt_values).view(by_head.shape)
        out = out.transpose(1, 2) + to_own.transpose(1, 2) @ own_values  # [G, S, Hkv, rep, hd]
        return out[self.group, self.sample].reshape(1, -1, heads, width)


class RecomputingDecoder:
    """Decodes by computing every sequence anew; for models whose attention cannot be planned. Slow and right."""

    def __init__(self, backbone: Any) -> None:
        self.backbone = backbone
        self.sequences: list[list[int]] = []

    def admit(self, requests: Sequence[tuple[Sequence[int], int]]) -> Tensor:
        states, paths = self.backbone.states([context for context, _ in requests])
        self.sequences += [list(context) for context, n in requests for _ in range(n)]
        return states[torch.tensor([int(path[-1]) for path in paths], device=states.device)]

    def advance(self, tokens: Sequence[int]) -> Tensor:
        for sequence, token in zip(self.sequences, tokens, strict=True):
            sequence.append(token)
        states, paths = self.backbone.states(self.sequences)
        return states[torch.tensor([int(path[-1]) for path in paths], device=states.device)]

    def keep(self, rows: Sequence[int]) -> None:
        self.sequences = [self.sequences[row] for row in rows]


def _sizes(n: int) -> list[int]:
    return [min(GROUP_ROWS, n - start) for start in range(0, n, GROUP_ROWS)]


def _widen(tensor: Tensor, width: int, dim: int) -> Tensor:
    if tensor.shape[dim] == width:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = width - shape[dim]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)
