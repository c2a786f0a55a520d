"""the forest is a trie, and its blockwise attention is dense masked attention"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from melior.policies.forest import BLOCK, AttentionPlan, Forest, attention, common_prefix, grow

sequence_sets = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=8)


def naive_trie(sequences: list[list[int]]) -> set[tuple[int, ...]]:
    """Every prefix of every sequence: one node each."""
    return {tuple(sequence[: depth + 1]) for sequence in sequences for depth in range(len(sequence))}


def spelled(forest: Forest, node: int) -> tuple[int, ...]:
    """The tokens from a root down to a node, by following parents."""
    tokens: list[int] = []
    while node != -1:
        tokens.insert(0, int(forest.tokens[node]))
        node = int(forest.parents[node])
    return tuple(tokens)


def dense(
    forest: Forest,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Attention over one N × N mask made from ancestry alone: a node sees itself and the nodes above it."""
    size = len(forest)
    sees = torch.zeros(size, size, dtype=torch.bool)
    for node in range(size):
        above, depth = node, int(forest.positions[node])
        while above != -1:
            if window is None or depth - int(forest.positions[above]) < window:
                sees[node, above] = True
            above = int(forest.parents[above])
    repeat = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(repeat, 1), values.repeat_interleave(repeat, 1)
    logits = queries @ keys.transpose(-1, -2) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    shares = torch.softmax(logits.masked_fill(~sees, -torch.inf), -1)
    return (shares @ values).transpose(1, 2)


def check_attention(sequences: list[list[int]], window: int | None = None, softcap: float | None = None) -> None:
    forest = grow(sequences)
    generator = torch.Generator().manual_seed(len(forest))
    shapes = [(1, 4, len(forest), 4), (1, 2, len(forest), 4), (1, 2, len(forest), 4)]
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]
    weights = torch.randn((1, len(forest), 4, 4), generator=generator, dtype=torch.float64)
    ours = forest.plan.attend(0, *inputs, scaling=0.7, window=window, softcap=softcap)
    theirs = dense(forest, *inputs, scaling=0.7, window=window, softcap=softcap)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-12
    for mine, wanted in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((theirs * weights).sum(), inputs),
        strict=True,
    ):
        assert (mine - wanted).abs().max() <= 1e-11


@given(sequence_sets)
def test_nodes_are_the_distinct_prefixes(sequences: list[list[int]]) -> None:
    forest = grow(sequences)
    assert len(forest) == len(naive_trie(sequences))
    assert {spelled(forest, node) for node in range(len(forest))} == naive_trie(sequences)


@given(sequence_sets)
def test_paths_spell_their_sequences_in_the_callers_order(sequences: list[list[int]]) -> None:
    forest = grow(sequences)
    for sequence, path in zip(sequences, forest.paths, strict=True):
        assert [int(forest.tokens[node]) for node in path] == sequence
        assert spelled(forest, int(path[-1])) == tuple(sequence)
        assert forest.positions[path].tolist() == list(range(len(sequence)))


@given(sequence_sets)
def test_descendants_are_the_nodes_up_to_the_end(sequences: list[list[int]]) -> None:
    forest = grow(sequences)
    names = [spelled(forest, node) for node in range(len(forest))]
    for node, name in enumerate(names):
        below = [other for other, longer in enumerate(names) if longer[: len(name)] == name]
        assert below == list(range(node, int(forest.ends[node])))
        assert int(forest.parents[node]) < node


@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), max_size=6))
def test_common_prefix_is_the_longest(first: list[int], second: list[int]) -> None:
    length = common_prefix(first, second)
    assert first[:length] == second[:length]
    assert length in (len(first), len(second)) or first[length] != second[length]


@settings(max_examples=40, deadline=None)
@given(sequence_sets, st.sampled_from([None, 1, 3]), st.sampled_from([None, 1.5]))
def test_attention_is_dense_attention_on_small_forests(
    sequences: list[list[int]], window: int | None, softcap: float | None
) -> None:
    check_attention(sequences, window, softcap)


@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 3])
@pytest.mark.parametrize("window", [None, 7])
def test_attention_around_the_block_size(length: int, window: int | None) -> None:
    check_attention([[index % 50 for index in range(length)]], window)


@pytest.mark.parametrize("length", [1, 70, BLOCK, BLOCK + 1, 3 * BLOCK + 50, 7 * BLOCK])
def test_blocks_are_even_so_that_none_computes_for_nobody(length: int) -> None:
    buckets = grow([list(range(length))]).plan.buckets
    blocks, queries = sum(len(bucket.queries) for bucket in buckets), sum(b.queries.numel() for b in buckets)
    assert blocks == -(-length // BLOCK)
    assert length <= queries < length + blocks


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (40, None), (5, 2.0), (None, 2.0)])
def test_attention_with_branches_inside_blocks_and_many_trees(window: int | None, softcap: float | None) -> None:
    stem = list(range(90))
    deep = [[*stem, *([fork] * 70), *range(leaf, leaf + 20)] for fork in (1, 2) for leaf in (3, 4)]
    trees = [[100 + tree] * (3 + 11 * tree) for tree in range(9)]
    check_attention([*deep, *trees, stem, stem[:40], stem], window, softcap)


def test_duplicates_and_prefixes_add_no_nodes() -> None:
    forest = grow([[5, 6, 7], [5, 6], [5, 6, 7], [5]])
    assert len(forest) == 3
    assert [path.tolist() for path in forest.paths] == [[0, 1, 2], [0, 1], [0, 1, 2], [0]]


def test_an_unseen_key_leaves_no_trace() -> None:
    """Values, gradients and outputs of one tree do not move by a bit when another tree's numbers become huge."""
    forest = grow([[1, 2, 3], [4, 5]])
    first, second = forest.paths
    queries, keys, values = (torch.randn(1, 2, 5, 4, dtype=torch.float64) for _ in range(3))
    before = forest.plan.attend(0, queries, keys, values, scaling=0.5)
    for tensor in (queries, keys, values):
        tensor[:, :, second] = 1e6
    after = forest.plan.attend(0, queries, keys, values, scaling=0.5)
    assert torch.equal(before[:, first], after[:, first])
    assert not torch.equal(before[:, second], after[:, second])


def test_a_plan_names_every_key_a_query_needs_once() -> None:
    forest = grow([[1] * 200, [1] * 150 + [2] * 100, [3] * 10])
    plan = AttentionPlan.of(forest)
    for bucket in plan.buckets:
        for keys, real in zip(bucket.keys, bucket.real, strict=True):
            assert len(keys[real].unique()) == int(real.sum())


def test_capped_attention_has_the_dtype_of_its_values() -> None:
    queries = torch.randn(1, 1, 2, 4).bfloat16()
    assert (
        attention(queries, queries, queries, torch.zeros(1, 1, 2, 2), scaling=1.0, softcap=3.0).dtype == torch.bfloat16
    )
