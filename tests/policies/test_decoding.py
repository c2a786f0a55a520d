"""both decoders give the states of a full forward pass, whatever came and went before"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import VOCABULARY

from melior.policies.decoding import GROUP_ROWS, GROWTH, CachedDecoder, RecomputingDecoder
from melior.policies.language import LanguagePolicy

Shared = Callable[..., LanguagePolicy]
TOLERANCE = 1e-5  # of states of size about one, between fp32 norms inside fp64 models


def tokens_of(seed: int, count: int) -> list[int]:
    return random.Random(seed).choices(range(VOCABULARY), k=count)


class Mirror:
    """A decoder beside the sequences it stands for; every state is checked against a forward pass of the whole."""

    def __init__(self, policy: LanguagePolicy, kind: Callable[[Any], Any] = CachedDecoder) -> None:
        self.policy = policy
        self.decoder = kind(policy.backbone)
        self.sequences: list[list[int]] = []
        self.random = random.Random(0)

    def whole(self, sequences: list[list[int]]) -> torch.Tensor:
        rows = []
        for sequence in sequences:
            states, paths = self.policy.backbone.states([sequence])
            rows.append(states[int(paths[0][-1])])
        return torch.stack(rows)

    @torch.no_grad()
    def admit(self, *requests: tuple[list[int], int]) -> None:
        states = self.decoder.admit(list(requests))
        assert (states - self.whole([context for context, _ in requests])).abs().max() <= TOLERANCE
        self.sequences += [list(context) for context, n in requests for _ in range(n)]

    @torch.no_grad()
    def advance(self, steps: int = 1) -> None:
        for _ in range(steps):
            tokens = self.random.choices(range(VOCABULARY), k=len(self.sequences))
            for sequence, token in zip(self.sequences, tokens, strict=True):
                sequence.append(token)
            states = self.decoder.advance(tokens)
        assert (states - self.whole(self.sequences)).abs().max() <= TOLERANCE

    def keep(self, rows: list[int]) -> None:
        self.sequences = [self.sequences[row] for row in rows]
        self.decoder.keep(rows)


@pytest.mark.parametrize("kind", [CachedDecoder, RecomputingDecoder])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "mistral"])
def test_rows_come_and_go(family: str, kind: Callable[[Any], Any], shared_policy: Shared) -> None:
    mirror = Mirror(shared_policy(family), kind)
    mirror.admit((tokens_of(1, 9), 3), (tokens_of(1, 9)[:6] + tokens_of(2, 11), 1))
    mirror.advance(2)
    mirror.admit((tokens_of(3, 30), 2))
    mirror.advance()
    mirror.keep([0, 3, 5])
    mirror.advance()
    mirror.admit((tokens_of(4, 1), 5), (tokens_of(5, 3), 1))
    mirror.advance(8)
    mirror.keep([1, 2, 7])
    mirror.advance(2)


def test_a_request_larger_than_a_group_shares_its_prompt_in_several(shared_policy: Shared) -> None:
    mirror = Mirror(shared_policy("llama"))
    mirror.admit((tokens_of(1, 7), 2 * GROUP_ROWS + 3))
    assert len(mirror.decoder.prompt_lengths) == 3
    mirror.advance(2)


def test_the_cache_grows_past_its_first_width(shared_policy: Shared) -> None:
    mirror = Mirror(shared_policy("gemma3"))
    mirror.admit((tokens_of(1, 7), 2))
    mirror.advance(GROWTH - 1)
    mirror.advance(2)
    mirror.admit((tokens_of(2, 2), 1))
    mirror.advance(GROWTH)


def test_an_emptied_decoder_starts_anew(shared_policy: Shared) -> None:
    mirror = Mirror(shared_policy("llama"))
    mirror.admit((tokens_of(1, 7), 2))
    mirror.keep([])
    mirror.admit((tokens_of(2, 4), 2))
    mirror.advance(2)


def test_finished_rows_free_their_places(shared_policy: Shared) -> None:
    mirror = Mirror(shared_policy("llama"))
    for number in range(12):
        mirror.admit((tokens_of(number, 5), 4))
        mirror.advance()
        mirror.keep([len(mirror.sequences) - 1])
    assert mirror.decoder.own_lengths.numel() <= 4


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 4), st.integers(0, 3), st.randoms()), min_size=1, max_size=5)
)
def test_any_traffic(shared_policy: Shared, waves: list[tuple[int, int, int, Any]]) -> None:
    mirror = Mirror(shared_policy("gemma2"))
    for length, n, steps, chance in waves:
        mirror.admit((tokens_of(length % 3, length), n))
        if steps:
            mirror.advance(steps)
        mirror.keep(sorted(chance.sample(range(len(mirror.sequences)), chance.randint(0, len(mirror.sequences)))))
    if mirror.sequences:
        mirror.advance()
