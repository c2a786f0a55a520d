"""the best of many choices is found exactly, and most are never computed"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FORESTS, AllDouble

from melior.policies.choices import Choices, weigh
from melior.policies.language import LanguagePolicy
from melior.policies.search import Growing, best_choices
from melior.types import Sampling

Shared = Callable[..., LanguagePolicy]
WORDS = ["the", "cat", "hat", "man", "that", "12", "sat", "x", "and", "what"]
MANY = tuple(f"{a} {b}" for a in WORDS for b in WORDS)
PROMPTS = ["hi", "what is the hat of the man?", "12", "the cat sat on the mat and"]


@pytest.fixture(autouse=True)
def all_double() -> Iterator[None]:
    with AllDouble():
        yield


@pytest.mark.parametrize("family", FORESTS)
def test_the_search_finds_the_best_of_all(family: str, shared_policy: Shared) -> None:
    policy = shared_policy(family)
    records = policy.sample(PROMPTS, Sampling(temperature=0, n=2, choices=MANY))
    best = policy.choice_log_probs(PROMPTS, MANY).argmax(-1).tolist()
    assert [record.output for record in records] == [MANY[choice] for choice in best for _ in range(2)]
    assert all(record.behavior_log_probs is None and record.finish == "stop" for record in records)


@settings(max_examples=15)
@given(st.lists(st.lists(st.integers(10, 13), min_size=1, max_size=5), min_size=1, max_size=12, unique_by=tuple))
def test_any_list_in_any_company(shared_policy: Shared, lists: list[list[int]]) -> None:
    policy = shared_policy("smollm")
    choices = Choices.of([(*ids, 1) for ids in lists])
    few = Choices.of([(10, 1), (1,)])
    questions = [((5, 6, 7), choices), ((5, 6), few), ((5, 6, 7), few), ((9,), choices)]
    wanted = [int(found.argmax()) for found in weigh(policy.backbone, questions)]
    assert best_choices(policy.backbone, questions) == wanted
    assert [best_choices(policy.backbone, [question])[0] for question in questions] == wanted


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
def test_a_grown_forest_has_the_states_of_whole_sequences(family: str, shared_policy: Shared) -> None:
    """Over the window's size, from several nodes at once."""
    policy, contexts = shared_policy(family), [[3, 4, 5, 6, 7, 8], [3, 4, 9]]
    with torch.no_grad():
        growing = Growing(policy.backbone)
        growing.plant(contexts)
        paths = list(growing.paths)
        sequences = [list(context) for context in contexts]
        for tokens in ([10, 11], [12, 13], [14, 15]):
            states, places = growing.extend(paths, tokens)
            paths = [np.append(path, place) for path, place in zip(paths, places, strict=True)]
            sequences = [[*sequence, token] for sequence, token in zip(sequences, tokens, strict=True)]
            whole, nodes = policy.backbone.states(sequences)
            for row, node in enumerate(nodes):
                torch.testing.assert_close(states[row], whole[int(node[-1])], rtol=0, atol=1e-9)


def test_most_of_many_choices_are_never_computed(shared_policy: Shared) -> None:
    """Even by a random model, for which many choices are nearly as good as the best."""
    policy = shared_policy("llama")
    turns = policy.renderer.choices(PROMPTS[0], MANY)
    choices = Choices.of([turn.decisions for turn in turns])
    computed: list[int] = []
    embedding = policy.backbone.inner.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda module, inputs, output: computed.append(inputs[0].numel()))
    best_choices(policy.backbone, [(turns[0].context, choices)])
    handle.remove()
    assert 0 < sum(computed) - len(turns[0].context) < choices.size / 2


def test_greedy_choices_of_padded_rows_are_computed_whole(shared_policy: Shared) -> None:
    policy = shared_policy("llama", dtype="float32", layout="padded")
    (record,) = policy.sample(PROMPTS[:1], Sampling(temperature=0, choices=MANY))
    assert record.output == MANY[int(policy.choice_log_probs(PROMPTS[:1], MANY).argmax())]
