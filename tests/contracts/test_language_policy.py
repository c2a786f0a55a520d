"""the laws every language policy keeps, for every family of models

Layouts agree in log-probs and gradients; batch mates and cuts change nothing; the sampler's log-probs are the scorer's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FORESTS, VOCABULARY, AllDouble
from torch import Tensor

from melior.errors import ModelError
from melior.policies.base import Want, score_all
from melior.policies.forest import BLOCK
from melior.policies.language import LanguagePolicy
from melior.policies.weights import resolve
from melior.types import Demonstration, Record, Sampling

Shared = Callable[..., LanguagePolicy]
BOTH = frozenset({Want.LOG_PROBS, Want.ENTROPY})
EXACT = 1e-9  # relative, in fp64


@pytest.fixture(autouse=True)
def all_double() -> Iterator[None]:
    with AllDouble():
        yield


def record(context: Sequence[int], decisions: Sequence[int], temperature: float = 1.0, group: str = "") -> Record:
    return Record(
        inputs="",
        output="",
        context=tuple(context),
        decisions=tuple(decisions),
        sampling=Sampling(temperature=temperature),
        group=group,
    )


def draw(count: int, seed: int) -> list[int]:
    return [random.Random(seed * 1000 + place).randrange(VOCABULARY) for place in range(count)]


def mixed() -> list[Record]:
    """Shared prompts, a shared system prompt, a duplicate, a lone row; sequences outgrow the windows of 5."""
    system, first, second = draw(8, 1), draw(7, 2), draw(11, 3)
    return [
        record(system + first, draw(9, 4)),
        record(system + first, draw(3, 5), temperature=0.7),
        record(system + second, draw(14, 6)),
        record(system + first, draw(9, 4)),
        record(draw(1, 7), draw(1, 8)),
        record(system, first + draw(2, 9), temperature=1.3),
        record(draw(30, 10), draw(6, 11)),
    ]


@contextmanager
def laid_out(policy: LanguagePolicy, layout: str) -> Iterator[None]:
    """A policy whose layout is "forest", "alone", "right" or "left" inside."""
    backbone = policy.backbone
    before = backbone.layout, backbone.side
    backbone.layout = "forest" if layout in ("forest", "alone") else "padded"
    backbone.side = "left" if layout == "left" else "right"
    try:
        yield
    finally:
        backbone.layout, backbone.side = before


def scored(policy: LanguagePolicy, records: Sequence[Record], layout: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Log-probs, entropies, and the gradient of a fixed random combination of both."""
    batch = policy.encode(records)
    weights = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with laid_out(policy, layout):
        # Scored row by row, no prefix is shared; `test_packed_rows…` has unshared rows in one forest.
        parts = [[row] for row in range(len(batch))] if layout == "alone" else [list(range(len(batch)))]
        log_probs, entropy = torch.zeros_like(weights), torch.zeros_like(weights)
        for rows in parts:
            part = batch.select(rows)
            width = part.mask.shape[1]
            found = policy.score(part, BOTH)
            assert found.entropy is not None
            log_probs = log_probs.index_put(
                (torch.tensor(rows)[:, None], torch.arange(width)), found.log_probs.double()
            )
            entropy = entropy.index_put((torch.tensor(rows)[:, None], torch.arange(width)), found.entropy.double())
        loss = (weights * (log_probs + 0.1 * entropy)).sum()
        gradients = torch.autograd.grad(loss, [p for _, p in policy.backbone.trainable()])
    return log_probs.detach(), entropy.detach(), list(gradients)


def gap(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest number of its tensor."""
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("family", FORESTS)
@pytest.mark.parametrize("layout", ["alone", "right", "left"])
def test_layouts_give_the_same_log_probs_and_gradients(family: str, layout: str, shared_policy: Shared) -> None:
    policy = shared_policy(family)
    log_probs, entropy, gradients = scored(policy, mixed(), "forest")
    others = scored(policy, mixed(), layout)
    assert (log_probs - others[0]).abs().max() <= EXACT
    assert (entropy - others[1]).abs().max() <= EXACT
    assert gap(gradients, others[2]) <= EXACT


@pytest.mark.parametrize("family", FORESTS)
def test_packed_rows_that_share_nothing_are_as_alone(family: str, shared_policy: Shared) -> None:
    """Rows that differ from their first token on: one forest of separate trees, many of them in one attention block."""
    policy = shared_policy(family)
    records = [record([20 + place, *draw(6 + 9 * place, place)], draw(5 + place, 90 + place)) for place in range(6)]
    packed, alone = (scored(policy, records, layout) for layout in ("forest", "alone"))
    assert (packed[0] - alone[0]).abs().max() <= EXACT
    assert gap(packed[2], alone[2]) <= EXACT


@pytest.mark.parametrize("family", ["smollm", "gemma3"])
def test_layouts_agree_beyond_one_block_of_attention(family: str, shared_policy: Shared) -> None:
    stem = draw(BLOCK + 20, 1)
    records = [record(stem, draw(10 + 30 * place, 2 + place)) for place in range(3)] + [record(stem[:50], draw(9, 9))]
    policy = shared_policy(family)
    forest, right = (scored(policy, records, layout) for layout in ("forest", "right"))
    assert (forest[0] - right[0]).abs().max() <= EXACT
    assert gap(forest[2], right[2]) <= EXACT


def test_log_probs_are_those_of_the_transformers_model_alone(shared_policy: Shared) -> None:
    policy = shared_policy("qwen3")
    (found,) = policy.log_probs([record(draw(9, 1), draw(5, 2), temperature=0.5)])
    with laid_out(policy, "right"), policy.backbone._attention("sdpa"):
        logits = policy.backbone.inner(input_ids=torch.tensor([draw(9, 1) + draw(5, 2)])).logits[0]
    wanted = torch.log_softmax(logits / 0.5, -1)[8:13].gather(-1, torch.tensor(draw(5, 2))[:, None])[:, 0]
    assert (found - wanted).abs().max() <= EXACT


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
@pytest.mark.parametrize("layout", ["forest", "right"])
def test_batch_mates_change_nothing(family: str, layout: str, shared_policy: Shared) -> None:
    policy = shared_policy(family)
    with laid_out(policy, layout), torch.no_grad():
        together = policy.log_probs(mixed())
        alone = [policy.log_probs([one])[0] for one in mixed()]
    for first, second in zip(together, alone, strict=True):
        assert (first - second).abs().max() <= EXACT


@pytest.mark.parametrize("family", ["smollm", "gemma2", "gemma3"])
def test_another_document_leaves_not_one_bit(family: str, shared_policy: Shared) -> None:
    """Packed beside A or beside a changed A, B's log-probs and input gradients are bitwise the same."""
    policy = shared_policy(family)
    results = []
    for seed in (1, 50):
        # The first tokens keep their order, so that B's place in the forest stays and only A's content moves.
        batch = policy.encode([record([3, *draw(11, seed)], draw(9, seed + 1)), record([4, *draw(12, 3)], draw(10, 4))])
        log_probs = policy.score(batch).log_probs
        (gradient,) = torch.autograd.grad(log_probs[1].sum(), [policy.backbone.inner.get_input_embeddings().weight])
        results.append((log_probs.detach(), gradient))
    (first, gradient), (second, gradient_again) = results
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], second[0])
    assert (gradient - gradient_again).abs().max() <= 1e-12


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 120),
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 25), st.booleans()), min_size=1, max_size=7),
)
def test_every_cut_gives_the_same_numbers(
    shared_policy: Shared, budget: int, rows: list[tuple[int, int, bool]]
) -> None:
    policy = shared_policy("smollm")
    prompts = [draw(10, 60), draw(10, 60)[:6] + draw(5, 61), draw(3, 62)]
    records = [
        record(prompts[which], draw(length, 70 + place), group=str(which) if grouped else "")
        for place, (which, length, grouped) in enumerate(rows)
    ]
    batch = policy.encode(records)
    weight = policy.backbone.inner.get_input_embeddings().weight
    whole = policy.score(batch).log_probs
    (wanted,) = torch.autograd.grad(whole.sum(), [weight])
    gradient = torch.zeros_like(wanted)
    seen: list[int] = []
    for cut in policy.cut(batch, budget):
        part = batch.select(cut)
        log_probs = policy.score(part).log_probs
        assert (log_probs - whole[cut, : log_probs.shape[1]]).abs().max() <= EXACT
        gradient += torch.autograd.grad(log_probs.sum(), [weight])[0]
        seen += cut
        nodes = {tuple(s[: i + 1]) for s in (policy._sequence(batch, row) for row in cut) for i in range(len(s))}
        assert len(nodes) <= budget or len(cut) == 1
    assert sorted(seen) == list(range(len(batch)))
    assert gap([gradient], [wanted]) <= EXACT
    assert (score_all(policy, batch, budget) - whole).abs().max() <= EXACT


def test_a_mask_taken_back_is_not_scored(shared_policy: Shared) -> None:
    """An objective may drop rows by their mask; the other rows' numbers stay where they belong."""
    policy = shared_policy("llama")
    batch = policy.encode(mixed())
    dropped = replace(batch, mask=batch.mask & (torch.arange(len(batch)) % 2 == 0)[:, None])
    wanted = torch.where(dropped.mask, policy.score(batch).log_probs, 0.0)
    assert (policy.score(dropped).log_probs - wanted).abs().max() <= 1e-12


def test_a_batch_without_decisions_scores_to_zeros(shared_policy: Shared) -> None:
    policy = shared_policy("llama")
    batch = policy.encode(mixed())
    found = policy.score(replace(batch, mask=torch.zeros_like(batch.mask)), BOTH)
    assert not found.log_probs.any() and found.entropy is not None and not found.entropy.any()


# ---------------------------------------------------------------------- the sampler is the scorer


def replayed(policy: LanguagePolicy, record: Record) -> Tensor:
    """Log-probs of a record's decisions, from one full forward pass of the model alone and plain top-k and top-p."""
    assert record.context is not None and record.decisions is not None and record.sampling is not None
    ids, start = torch.tensor([record.context + record.decisions]), len(record.context)
    how = record.sampling
    with torch.no_grad(), laid_out(policy, "right"), policy.backbone._attention(policy.backbone.native):
        logits = policy.backbone.inner(input_ids=ids).logits[0, start - 1 : -1].double()
    probabilities = torch.softmax(logits / how.temperature, -1)
    if how.top_k:
        probabilities = probabilities * (probabilities >= probabilities.topk(how.top_k, -1).values[:, -1:])
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    if how.top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        kept = ordered.cumsum(-1) - ordered < how.top_p
        probabilities = probabilities * torch.zeros_like(probabilities, dtype=torch.bool).scatter(-1, order, kept)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities.log().gather(-1, ids[0, start:, None])[:, 0]


def check_replay(policy: LanguagePolicy, records: Sequence[Record], tolerance: float = 1e-5) -> None:
    for one in records:
        assert one.behavior_log_probs is not None
        difference = (replayed(policy, one) - torch.tensor(one.behavior_log_probs, dtype=torch.float64)).abs().max()
        assert difference <= tolerance, (one.sampling, float(difference))


PROMPTS = ["hi", "what is that on the mat?", "the cat sat on the mat and the hat of the man, 1234567890"]


@pytest.mark.parametrize("family", [*FORESTS, "gpt2"])
def test_the_samplers_log_probs_are_those_of_a_full_forward_pass(family: str, shared_policy: Shared) -> None:
    """Mixed lengths around sliding windows of 5, several settings at once, prompts longer than the window."""
    policy = shared_policy(family, dtype="float32", template=None)
    inputs: list[Any] = PROMPTS if family != "gpt2" else PROMPTS[:2]
    each = [Sampling(n=3, max_tokens=14, seed=3), Sampling(n=2, max_tokens=9, temperature=0.6, seed=4, top_k=20),
            Sampling(n=2, max_tokens=20, temperature=1.2, top_p=0.8, seed=5)][: len(inputs)]  # fmt: skip
    records = policy.sample(inputs, each)
    check_replay(policy, records)
    assert len(records) == sum(one.n for one in each)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_scorer_gives_back_the_samplers_log_probs(family: str, shared_policy: Shared) -> None:
    policy = shared_policy(family, dtype="float32")
    records = policy.sample(PROMPTS, Sampling(n=4, max_tokens=12, temperature=0.8, seed=2))
    for one, found in zip(records, policy.log_probs(records), strict=True):
        assert (found - torch.tensor(one.behavior_log_probs)).abs().max() <= 1e-5


# ---------------------------------------------------------------------- the real weights


@pytest.fixture(scope="module")
def smollm2() -> LanguagePolicy:
    try:
        folder = resolve("smollm2-135m-instruct")
    except ModelError as error:
        pytest.skip(str(error))
    assert isinstance(folder, Path)
    return LanguagePolicy.load(folder, dtype="float32", device="cpu")


@pytest.mark.slow
def test_smollm2_layouts_and_sampler_agree(smollm2: LanguagePolicy) -> None:
    policy = smollm2
    assert policy.backbone.layout == "forest"
    assert policy.renderer.tokenizer.convert_ids_to_tokens(policy.renderer.stop_id) == "<|im_end|>"
    assert [policy.renderer.text([token]) for token in policy.renderer._ids("2026")] == ["2", "0", "2", "6"]
    inputs = ["What is 17 + 25?", "Name a colour.", "Explain in one sentence why the sky is blue, to a child of six."]
    engine = policy.engine(max_rows=5)
    for number, given_ in enumerate(inputs):
        submitted = Sampling(n=3, max_tokens=10 + 8 * number, seed=number, temperature=0.9)
        engine.submit(request(policy, number, given_, submitted))
    engine.run()
    samples = engine.collect()
    records = [record(policy.renderer.context(inputs[one.request]), one.decisions, temperature=0.9) for one in samples]
    with torch.no_grad():
        forest = policy.log_probs(records)
        with laid_out(policy, "right"):
            padded = policy.log_probs(records)
    behaved = torch.cat([torch.tensor(one.log_probs) for one in samples])
    for found in (torch.cat(forest), torch.cat(padded)):
        gaps = (found - behaved).abs()
        assert float(gaps.mean()) <= 1e-5 and float(gaps.max()) <= 1e-4
    weight = policy.backbone.inner.get_decoder().layers[0].self_attn.q_proj.weight
    gradients = []
    for layout in ("forest", "right"):
        with laid_out(policy, layout):
            loss = policy.score(policy.encode([Demonstration(inputs[0], "42"), Demonstration(inputs[0], "41")]))
        gradients.append(torch.autograd.grad(loss.log_probs.sum(), [weight])[0])
    assert gap(gradients[:1], gradients[1:]) <= 1e-3


def request(policy: LanguagePolicy, number: int, given_: Any, how: Sampling) -> Any:
    from melior.policies.engine import Request

    return Request(id=number, context=policy.renderer.context(given_), settings=how)
