"""outputs that are one of a list, with exact probabilities of the whole choice

A model gives a log-prob to every token of every choice, the stop token included; their sum is the choice's, and a
softmax over the choices (at the sampling temperature) is the distribution that is sampled, scored and trained. A
choice is still decided token by token: the log-prob of a token is what the choices behind it weigh together, divided
by what those behind the tokens before it weigh. So the log-probs of an output add up to its choice's, and a token
that nothing competes with has log-prob 0.

The other way, masking each step's logits, gives choices that begin alike with improbable texts more than they are
worth, and the best sample need not be the best choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from melior.policies.forest import grow
from melior.policies.reads import Reads

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Choices:
    """A list of choices as a trie of their tokens: a node is the token that leads to it, node N is the root."""

    ids: tuple[Ids, ...]  # tokens of each choice, the stop token included
    tokens: np.ndarray  # [N]
    parents: Tensor  # [N]
    owner: np.ndarray  # [N] a choice that the node belongs to
    depth: np.ndarray  # [N] 0 for a first token
    nodes: Tensor  # [P] every node of every choice, the root too, as pairs with …
    members: Tensor  # [P] … the choice
    paths: tuple[np.ndarray, ...]  # nodes of each choice, without the root

    @staticmethod
    def of(ids: Sequence[Ids]) -> Choices:
        """The trie; equal lists give the same object."""
        return _choices(tuple(ids))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def root(self) -> int:
        """The node before every first token."""
        return len(self.tokens)

    @cached_property
    def children(self) -> list[list[int]]:
        """The nodes behind each node, the root's last."""
        found: list[list[int]] = [[] for _ in range(self.root + 1)]
        for node, parent in enumerate(self.parents.tolist()):
            found[parent].append(node)
        return found

    @cached_property
    def leaves(self) -> dict[int, int]:
        """The last node of each choice → its number."""
        return {int(path[-1]): choice for choice, path in enumerate(self.paths)}

    @property
    def longest(self) -> int:
        """Tokens of the longest choice."""
        return max(map(len, self.ids))

    def path(self, ids: Ids) -> np.ndarray:
        """The nodes of the choice with these tokens."""
        return self.paths[self.ids.index(ids)]

    @property
    def size(self) -> int:
        """Nodes whose state is computed behind a context: all but the leaves."""
        return len(self.tokens) - len(self.ids)

    def ask(self, reads: Reads, context: Ids) -> slice:
        """Asks for the log-prob of every node behind the context."""
        sequences = [context + ids[:-1] for ids in self.ids]
        return reads.add(sequences, self.owner, len(context) - 1 + self.depth, self.tokens)

    def totals(self, log_probs: Tensor) -> Tensor:  # [N] -> [C] fp64
        """The log-prob of each choice, of its tokens' log-probs."""
        inner = self.nodes < self.root
        nodes, members = self.nodes[inner].to(log_probs.device), self.members[inner].to(log_probs.device)
        total = torch.zeros(len(self), dtype=torch.float64, device=log_probs.device)
        return total.index_add(0, members, log_probs.double()[nodes])

    def branches(self, weights: Tensor) -> Tensor:  # [C] -> [N]
        """The log-prob of each node given its parent, where choices have these log-weights.

        A weight of -inf takes its choice out.
        """
        nodes, members = self.nodes.to(weights.device), self.members.to(weights.device)
        there = weights.detach()[members]
        peaks = weights.new_full((self.root + 1,), -torch.inf).scatter_reduce(0, nodes, there, "amax")
        peaks = peaks.clamp(min=torch.finfo(weights.dtype).min)  # a node without choices; -inf less -inf is no number
        sums = torch.zeros_like(peaks).index_add(0, nodes, torch.exp(weights[members] - peaks[nodes]))
        below = peaks + torch.log(sums)
        return below[:-1] - below[self.parents.to(weights.device)]

    def entropies(self, branches: Tensor) -> Tensor:  # [N] -> [N]
        """The entropy in nats of the decision that each node is one outcome of."""
        parents = self.parents.to(branches.device)
        bits = branches.new_zeros(self.root + 1).index_add(0, parents, -branches.exp() * branches)
        return bits[parents]


Question = tuple[Ids, Choices]  # a context, and what may follow it


def portions(questions: Sequence[Question], budget: int) -> Iterator[list[Question]]:
    """The questions in order, as many at once as compute at most `budget` tokens, shared prefixes not counted."""
    part: list[Question] = []
    tokens = 0
    for context, choices in questions:
        cost = len(context) + choices.size
        if part and tokens + cost > budget:
            yield part
            part, tokens = [], 0
        part.append((context, choices))
        tokens += cost
    if part:
        yield part


@torch.no_grad()
def weigh(backbone: Any, questions: Sequence[Question]) -> list[Tensor]:  # of [C] fp64
    """The log-prob in nats of each choice behind each context, in one forward pass."""
    reads = Reads()
    places = [choices.ask(reads, context) for context, choices in questions]
    found = reads.answer(backbone).log_probs
    return [choices.totals(found[place]) for (_, choices), place in zip(questions, places, strict=True)]


@lru_cache(maxsize=4096)
def _choices(ids: tuple[Ids, ...]) -> Choices:
    forest = grow(ids)
    owner = np.zeros(len(forest), dtype=np.int64)
    for choice, path in enumerate(forest.paths):
        owner[path] = choice
    root = len(forest)
    pairs = [(root, choice) for choice in range(len(ids))]
    pairs += [(int(node), choice) for choice, path in enumerate(forest.paths) for node in path]
    nodes, members = torch.tensor(pairs).unbind(1)
    return Choices(
        ids=ids,
        tokens=forest.tokens.numpy(),
        parents=torch.where(forest.parents < 0, root, forest.parents),
        owner=owner,
        depth=forest.positions.numpy(),
        nodes=nodes,
        members=members,
        paths=tuple(forest.paths),
    )
