"""the best of many choices, without computing most of them

A prefix is at least as probable as anything behind it, so a choice need not be read further once what has been read of
it is less probable than some whole choice. What is found is exactly the most probable choice; a model that knows its
labels reads little more than the answer (docs/experiments.md).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from melior.policies.choices import Choices, Question
from melior.policies.decoding import Prefill
from melior.policies.forest import attention, grow

NEAR = 1.0  # nats below the most probable prefix that are read in the same forward pass, so that passes are few


@torch.no_grad()
def best_choices(backbone: Any, questions: Sequence[Question]) -> list[int]:
    """The number of the most probable choice behind each context; needs the forest layout."""
    growing = Growing(backbone)
    states = growing.plant([context for context, _ in questions])
    searches = [_Search(choices, path) for (_, choices), path in zip(questions, growing.paths, strict=True)]
    asked = [(search, search.choices.root) for search in searches]
    while asked:
        log_probs = torch.log_softmax(backbone.head.logits(states), -1)
        for (search, node), row in zip(asked, log_probs, strict=True):
            search.read(node, row)
        asked = [(search, node) for search in searches for node in search.ahead()]
        if asked:
            tokens = [int(search.choices.tokens[node]) for search, node in asked]
            states, places = growing.extend([search.above(node) for search, node in asked], tokens)
            for (search, node), place in zip(asked, places, strict=True):
                search.paths[node] = np.append(search.above(node), place)
    return [search.best for search in searches]


class _Search:
    """The search of one context: its prefixes not read yet, the most probable first."""

    def __init__(self, choices: Choices, context: np.ndarray) -> None:
        self.choices = choices
        self.best = 0
        self.reached = -math.inf  # log-prob of the best whole choice so far
        self.unread: list[tuple[float, int]] = []  # heap of minus a prefix's log-prob, and its node
        self.so_far = {choices.root: 0.0}  # log-prob of the prefixes being read
        self.paths = {choices.root: context}  # where the states of a prefix and of all before it stand

    def above(self, node: int) -> np.ndarray:
        """Where the states before a node stand."""
        return self.paths[int(self.choices.parents[node])]

    def read(self, node: int, log_probs: Tensor) -> None:  # [V], of what follows the node
        """Notes how probable each continuation is, and whether it is a choice."""
        children = self.choices.children[node]
        before = self.so_far.pop(node)
        tokens = torch.from_numpy(self.choices.tokens[children]).to(log_probs.device)
        for child, log_prob in zip(children, log_probs[tokens].tolist(), strict=True):
            total = before + log_prob
            if child not in self.choices.leaves:
                heapq.heappush(self.unread, (-total, child))
            elif total > self.reached:
                self.best, self.reached = self.choices.leaves[child], total

    def ahead(self) -> list[int]:
        """The prefixes to read next: none where no unread one can lead to a better choice."""
        floor = self.reached
        if self.unread:
            floor = max(floor, -self.unread[0][0] - NEAR)
        found = []
        while self.unread and -self.unread[0][0] > floor:
            below, node = heapq.heappop(self.unread)
            self.so_far[node] = -below
            found.append(node)
        return found


class Growing:
    """A forest that grows at any node: every node is computed once, and sees the keys of its path."""

    def __init__(self, backbone: Any) -> None:
        self.backbone = backbone
        self.paths: list[np.ndarray] = []  # of the contexts
        self.cache: list[tuple[Tensor, Tensor]] = []  # per layer keys and values [N, Hkv, hd] of all nodes
        self.size = 0

    def plant(self, contexts: Sequence[Sequence[int]]) -> Tensor:  # [contexts, D]
        """Computes contexts, shared prefixes once, and returns the last state of each."""
        forest = grow(contexts).to(self.backbone.device)
        plan = Prefill(forest.plan)
        states = self.backbone.body(forest.tokens, forest.positions, plan)
        self.cache = [(keys[0].transpose(0, 1), values[0].transpose(0, 1)) for keys, values in plan.cache]
        self.paths, self.size = forest.paths, len(forest)
        return states[torch.tensor([int(path[-1]) for path in forest.paths], device=states.device)]

    def extend(self, above: Sequence[np.ndarray], tokens: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Appends one token behind each path; returns the new states [N, D] and their places."""
        device = self.backbone.device
        places = list(range(self.size, self.size + len(tokens)))
        self.size += len(tokens)
        positions = torch.tensor([len(path) for path in above], device=device)
        seen = torch.zeros(len(above), int(positions.max()) + 1, dtype=torch.long)
        for row, path in enumerate(above):
            seen[row, : len(path)] = torch.from_numpy(path)
            seen[row, len(path)] = places[row]
        plan = _Extension(self, seen.to(device), positions)
        return self.backbone.body(torch.tensor(tokens, device=device), positions, plan), places


class _Extension:
    """One growth: every new node attends to its path and to itself."""

    def __init__(self, growing: Growing, seen: Tensor, positions: Tensor) -> None:
        self.growing = growing
        self.seen = seen  # [N, M] places of each new node's path, 0 where padded
        self.positions = positions  # [N]

    def attend(
        self,
        layer: int,
        queries: Tensor,  # [1, H, N, hd]
        keys: Tensor,  # [1, Hkv, N, hd]
        values: Tensor,  # [1, Hkv, N, hd]
        *,
        scaling: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:  # [1, N, H, hd]
        kept_keys, kept_values = self.growing.cache[layer]
        every_key = torch.cat([kept_keys, keys[0].transpose(0, 1)])
        every_value = torch.cat([kept_values, values[0].transpose(0, 1)])
        self.growing.cache[layer] = every_key, every_value
        path_keys = every_key[self.seen].transpose(1, 2)  # [N, Hkv, M, hd]
        path_values = every_value[self.seen].transpose(1, 2)
        heads, count, width = queries.shape[1:]
        kv_heads = keys.shape[1]
        folded = queries[0].transpose(0, 1).reshape(count, kv_heads, heads // kv_heads, width)
        at = torch.arange(self.seen.shape[1], device=queries.device)
        hidden = at > self.positions[:, None]
        if window is not None:
            hidden |= self.positions[:, None] - at >= window
        mask = torch.zeros(hidden.shape, dtype=queries.dtype, device=queries.device).masked_fill_(hidden, -torch.inf)
        mask = mask[:, None, None, :].expand(-1, 1, heads // kv_heads, -1)
        out = attention(folded, path_keys, path_values, mask, scaling=scaling, softcap=softcap)
        return out.reshape(1, count, heads, width)
