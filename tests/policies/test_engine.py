"""samples are drawn from the policy's distribution, alone or in company, and every request is answered"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from tiny import VOCABULARY
from torch import Tensor
from transformers import AutoModelForCausalLM

from melior.policies.decoding import GROUP_ROWS
from melior.policies.engine import Engine, Request, Sample, choose, invert, truncate
from melior.policies.language import LanguagePolicy
from melior.types import Record, Sampling

Shared = Callable[..., LanguagePolicy]
PROMPTS = ["hi", "what is that on the mat?", "the cat sat on the mat", "the cat sat on the hat", "1 2 3"]


def run(policy: LanguagePolicy, requests: list[Request], **limits: int) -> dict[tuple[int, int], Sample]:
    engine = policy.engine(**limits)
    for request in requests:
        engine.submit(request)
    engine.run()
    return {(sample.request, sample.number): sample for sample in engine.collect()}


def asked(policy: LanguagePolicy, how: Sampling, prompts: list[str] = PROMPTS) -> list[Request]:
    return [Request(id=n, context=policy.renderer.context(text), settings=how) for n, text in enumerate(prompts)]


def as_record(request: Request, sample: Sample) -> Record:
    return Record(inputs="", output="", context=request.context, decisions=sample.decisions, sampling=request.settings)


def check_scores(policy: LanguagePolicy, requests: list[Request], samples: dict[tuple[int, int], Sample]) -> None:
    """The log-probs kept are those of the scorer."""
    kept = list(samples.values())
    with torch.no_grad():
        scored = policy.log_probs([as_record(requests[sample.request], sample) for sample in kept])
    for sample, found in zip(kept, scored, strict=True):
        assert sample.log_probs is not None and len(sample.log_probs) == len(sample.decisions)
        assert (found.double() - torch.tensor(sample.log_probs).double()).abs().max() <= 1e-5


# ---------------------------------------------------------------------- traffic


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
@pytest.mark.parametrize("max_rows", [1, 3, 7, 128])
def test_refilled_places_sample_and_score_alike(family: str, max_rows: int, shared_policy: Shared) -> None:
    policy = shared_policy(family, dtype="float32")
    requests = asked(policy, Sampling(n=3, max_tokens=11, seed=5))
    requests = [
        Request(id=r.id, context=r.context, settings=Sampling(n=1 + r.id, max_tokens=4 + 5 * r.id, seed=5))
        for r in requests
    ]
    samples = run(policy, requests, max_rows=max_rows)
    assert sorted(samples) == [(r.id, number) for r in requests for number in range(r.settings.n)]
    check_scores(policy, requests, samples)
    decisions = {key: sample.decisions for key, sample in samples.items()}
    assert decisions == {key: sample.decisions for key, sample in run(policy, requests).items()}


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_sample_does_not_depend_on_its_company(family: str, shared_policy: Shared) -> None:
    policy = shared_policy(family, dtype="float32")
    requests = asked(policy, Sampling(n=2, max_tokens=10, seed=9, temperature=0.9, top_p=0.95))
    together = run(policy, requests)
    for request in requests:
        for key, sample in run(policy, [request]).items():
            assert together[key].decisions == sample.decisions
            assert together[key].log_probs == pytest.approx(sample.log_probs, abs=1e-5)


def test_more_samples_than_a_group_holds(shared_policy: Shared) -> None:
    policy = shared_policy("smollm", dtype="float32")
    requests = asked(policy, Sampling(n=2 * GROUP_ROWS + 5, max_tokens=5, seed=1), PROMPTS[:2])
    samples = run(policy, requests)
    assert len(samples) == 2 * (2 * GROUP_ROWS + 5)
    check_scores(policy, requests, samples)
    assert len({sample.decisions for sample in samples.values()}) > GROUP_ROWS


def test_a_request_larger_than_the_engine_still_runs(shared_policy: Shared) -> None:
    policy = shared_policy("llama", dtype="float32")
    assert len(run(policy, asked(policy, Sampling(n=6, max_tokens=3)), max_rows=2)) == 6 * len(PROMPTS)


@pytest.mark.parametrize("max_rows", [1, 2, 4])
def test_one_token_answers_leave_nobody_waiting(max_rows: int, shared_policy: Shared) -> None:
    """All that was admitted ends at its first token, and the queue must go on."""
    policy = shared_policy("llama", dtype="float32")
    assert len(run(policy, asked(policy, Sampling(n=2, max_tokens=1)), max_rows=max_rows)) == 2 * len(PROMPTS)


def test_cancelling_ends_one_request_and_disturbs_no_other(shared_policy: Shared) -> None:
    policy = shared_policy("llama", dtype="float32")
    requests = asked(policy, Sampling(n=2, max_tokens=12, seed=3))
    engine = policy.engine(max_rows=6)
    told: list[Sample] = []
    engine.on_finish = told.append
    for request in requests:
        engine.submit(request)
    for _ in range(4):
        engine.step()
    engine.cancel(1)  # under way
    engine.cancel(4)  # still waiting
    engine.run()
    samples = engine.collect()
    assert told == samples and engine.collect() == []
    whole = run(policy, requests)
    assert len(samples) == len(whole)
    for sample in samples:
        full = whole[sample.request, sample.number].decisions
        if sample.request == 4:
            assert (sample.finish, sample.decisions, sample.text) == ("cancelled", (), "")
        elif sample.request == 1:
            assert sample.finish == "cancelled" or sample.decisions == full
            assert sample.decisions == full[: len(sample.decisions)]
        else:
            assert sample.decisions == full
    assert any(sample.request == 1 and sample.finish == "cancelled" for sample in samples)


def test_requests_may_be_submitted_while_others_run(shared_policy: Shared) -> None:
    policy = shared_policy("gemma2", dtype="float32")
    requests = asked(policy, Sampling(n=2, max_tokens=9, seed=8))
    engine = policy.engine(max_rows=4)
    for request in requests:
        engine.submit(request)
        engine.step()
    engine.run()
    found = {(sample.request, sample.number): sample for sample in engine.collect()}
    assert {k: s.decisions for k, s in found.items()} == {k: s.decisions for k, s in run(policy, requests).items()}
    check_scores(policy, requests, found)


# ---------------------------------------------------------------------- seeds


def test_seed_step_and_number_make_the_sample(shared_policy: Shared) -> None:
    policy = shared_policy("llama", dtype="float32")
    how = Sampling(n=3, max_tokens=8, seed=4)

    def drawn(seed: int = 4, step: int = 0) -> list[Any]:
        return [
            record.decisions for record in policy.sample(PROMPTS, Sampling(n=3, max_tokens=8, seed=seed), step=step)
        ]

    assert drawn() == drawn()
    assert drawn() != drawn(seed=5) and drawn() != drawn(step=1)
    assert len({record.decisions for record in policy.sample(PROMPTS[:1], how)}) == 3
    more = policy.sample(PROMPTS[:1], Sampling(n=5, max_tokens=8, seed=4))
    assert [record.decisions for record in more[:3]] == [record.decisions for record in policy.sample(PROMPTS[:1], how)]


def test_equal_prompts_in_one_call_get_different_samples(shared_policy: Shared) -> None:
    policy = shared_policy("llama", dtype="float32")
    twice = policy.sample(["hi", "hi"], Sampling(n=2, max_tokens=8))
    once = policy.sample(["hi"], Sampling(n=4, max_tokens=8))
    assert [record.decisions for record in twice] == [record.decisions for record in once]
    first, second = dict.fromkeys(record.group for record in twice)
    assert [record.group for record in twice] == [first, first, second, second]


def test_records_of_two_calls_never_share_a_group_by_accident(shared_policy: Shared) -> None:
    policy = shared_policy("llama", dtype="float32")
    how = Sampling(n=2, max_tokens=4)
    records = [record for prompt in PROMPTS[:2] for record in policy.sample([prompt], how)]
    assert policy.encode(records).groups.tolist() == [0, 0, 1, 1]
    again = policy.sample(PROMPTS[:1], Sampling(n=2, max_tokens=4, seed=9))
    assert {record.group for record in again} == {records[0].group}  # of one input


# ---------------------------------------------------------------------- when a sample ends


def test_stop_tokens_length_and_text(shared_policy: Shared) -> None:
    policy = shared_policy("llama", dtype="float32")
    how = Sampling(n=60, max_tokens=40, seed=2, temperature=1.5)
    records = policy.sample(PROMPTS[:2], how)
    stop = policy.renderer.stop_id
    assert {record.finish for record in records} == {"stop", "length"}
    for record in records:
        assert record.decisions is not None
        ended = record.decisions[-1] == stop
        assert record.finish == ("stop" if ended else "length")
        assert stop not in record.decisions[:-1]
        assert ended or len(record.decisions) == how.max_tokens
        assert record.output == policy.renderer.text(record.decisions)
        assert not str(record.output).endswith("<|im_end|>")


def test_stop_strings_end_the_text_before_them(shared_policy: Shared) -> None:
    policy = shared_policy("llama", dtype="float32")
    free = policy.sample(PROMPTS, Sampling(n=8, max_tokens=30, seed=2))
    stopped = policy.sample(PROMPTS, Sampling(n=8, max_tokens=30, seed=2, stop=("a", "th")))
    reached = 0
    for one, whole in zip(stopped, free, strict=True):
        assert one.decisions == whole.decisions[: len(one.decisions)]
        assert "a" not in one.output and "th" not in one.output
        if "a" in policy.renderer.text(whole.decisions) or "th" in policy.renderer.text(whole.decisions):
            reached += 1
            assert one.finish == "stop"
            before = policy.renderer.text(one.decisions[:-1])
            assert "a" not in before and "th" not in before, "it ends at the first stop string"
    assert reached > 10


# ---------------------------------------------------------------------- greedy


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gemma3"])
def test_greedy_is_transformers_greedy(family: str, shared_policy: Shared, folder_of: Callable[..., Any]) -> None:
    policy = shared_policy(family, dtype="float32")
    attention = "eager" if family == "gemma2" else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(folder_of(family), attn_implementation=attention)
    records = policy.sample(PROMPTS, Sampling(max_tokens=16, temperature=0, n=2))
    for record in records:
        wanted = model.generate(
            torch.tensor([record.context]), do_sample=False, max_new_tokens=16,
            eos_token_id=sorted(policy.renderer.stop_ids), pad_token_id=1,
        )  # fmt: skip
        assert record.context is not None
        assert list(record.decisions or ()) == wanted[0, len(record.context) :].tolist()
        assert record.behavior_log_probs is None


# ---------------------------------------------------------------------- the distribution


@pytest.mark.parametrize("how", [{}, {"temperature": 0.6}, {"top_k": 12}, {"top_p": 0.7}])
def test_frequencies_are_the_probabilities(how: dict[str, Any], shared_policy: Shared) -> None:
    """20,000 first tokens against exact probabilities, by a chi-square test with a fixed seed."""
    policy = shared_policy("llama")
    settings_ = Sampling(max_tokens=1, seed=11, **how)
    context = policy.renderer.context(PROMPTS[1])
    states, paths = policy.backbone.states([context])
    logits = policy.backbone.head.logits(states[int(paths[0][-1])][None])[0].double()
    exact = truncated_plainly(torch.softmax(logits.detach() / settings_.temperature, -1), settings_)
    engine = Engine(policy.backbone, policy.renderer)
    engine.submit(Request(id=0, context=context, settings=Sampling(**{**vars(settings_), "n": 20_000})))
    engine.run()
    counts = Counter(sample.decisions[0] for sample in engine.collect())
    observed = np.array([counts[token] for token in range(len(exact))])
    assert observed[exact.numpy() == 0].sum() == 0
    expected = exact.numpy() * 20_000
    order = np.argsort(expected)
    rare = order[np.cumsum(expected[order]) <= 5]  # too few for the test's approximation; counted as one
    common = np.setdiff1d(np.flatnonzero(expected), rare)
    tail = [observed[rare].sum()], [expected[rare].sum()]
    keep = expected[common] >= 5
    seen = np.concatenate([observed[common][keep], [observed[common][~keep].sum() + tail[0][0]]])
    wanted = np.concatenate([expected[common][keep], [expected[common][~keep].sum() + tail[1][0]]])
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    assert chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue > 0.001


def truncated_plainly(probabilities: Tensor, how: Sampling) -> Tensor:
    """Top-k, then top-p, of one distribution, token by token."""
    order = sorted(range(len(probabilities)), key=lambda token: -float(probabilities[token]))
    order = order[: how.top_k or len(order)]
    mass = float(sum(probabilities[token] for token in order))
    kept, reached = [], 0.0
    for token in order:
        kept.append(token)
        reached += float(probabilities[token]) / mass
        if how.top_p < 1 and reached >= how.top_p:
            break
    result = torch.zeros_like(probabilities)
    result[kept] = probabilities[kept] / probabilities[kept].sum()
    return result


distributions = st.lists(st.floats(-8, 8), min_size=2, max_size=40)
shares = st.floats(0, 1, exclude_max=True)


@settings(deadline=None)
@given(distributions, st.integers(0, 50), st.floats(0.05, 1))
def test_truncation_keeps_the_smallest_sufficient_set(logits: list[float], top_k: int, top_p: float) -> None:
    log_probs = torch.log_softmax(torch.tensor([logits], dtype=torch.float64), -1)
    how = Sampling(top_k=top_k, top_p=top_p)
    found = torch.softmax(truncate(log_probs, [how]), -1)[0]
    wanted = truncated_plainly(log_probs[0].exp(), how)
    # At an exact tie with top_p rounding may keep one token more or less; the mass outside is then that tie's.
    assert (found - wanted).abs().max() <= 1e-9 or abs(int((found > 0).sum()) - int((wanted > 0).sum())) == 1
    assert int((found > 0).sum()) >= 1
    assert not top_k or int((found > 0).sum()) <= max(1, top_k)


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, 1), (0.5 + 1e-9, 2), (0.75, 2), (0.8, 3), (1.0, 4)])
def test_a_set_that_just_reaches_top_p_is_enough(top_p: float, kept: int) -> None:
    halves = torch.tensor([[0.25, 0.5, 0.125, 0.125]], dtype=torch.float64).log()
    assert int(truncate(halves, [Sampling(top_p=top_p)]).isfinite().sum()) == kept


@settings(deadline=None)
@given(st.integers(1, 700), st.integers(0, 10_000), shares)
def test_inverting_finds_the_token_under_the_uniform(size: int, seed: int, uniform: float) -> None:
    """Any vocabulary size, many zeros: the token's interval of cumulative probability holds the uniform number."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(size, generator=generator, dtype=torch.float64)
    weights = torch.where(torch.rand(size, generator=generator) < 0.6, 0.0, weights)
    weights[seed % size] += 0.1
    probabilities = weights / weights.sum()
    tokens, total = invert(probabilities[None], torch.tensor([uniform], dtype=torch.float64))
    token = int(tokens[0])
    assert float(total[0]) == pytest.approx(1.0)
    assert probabilities[token] > 0
    upper = float(probabilities[: token + 1].sum())
    assert upper - float(probabilities[token]) - 1e-9 <= uniform <= upper + 1e-9


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 49_152])
def test_the_largest_uniform_finds_the_last_possible_token(size: int) -> None:
    probabilities = torch.zeros(3, size)
    probabilities[0, 0] = 1
    probabilities[1, size // 2] = 1
    probabilities[2] = 1 / size
    last = torch.full((3,), np.nextafter(1.0, 0.0), dtype=torch.float64)
    assert invert(probabilities, last)[0].tolist() == [0, size // 2, size - 1]
    assert invert(probabilities, torch.zeros(3, dtype=torch.float64))[0].tolist() == [0, size // 2, 0]


def test_choosing_mixes_settings_row_by_row() -> None:
    """Each row of a batch gets what it gets alone, and its log-prob is that of its own distribution."""
    logits = torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(1)) * 3
    each = [Sampling(), Sampling(temperature=0), Sampling(temperature=0.3), Sampling(top_k=3), Sampling(top_p=0.4)]
    uniforms = torch.rand(5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    tokens, log_probs = choose(logits, each, uniforms)
    for row, how in enumerate(each):
        alone, own = choose(logits[row : row + 1], [how], uniforms[row : row + 1])
        assert int(alone[0]) == int(tokens[row])
        assert float(own[0]) == pytest.approx(float(log_probs[row]), abs=1e-6)
        exact = torch.softmax(logits[row].double() / (how.temperature or 1.0), -1)
        exact = exact if how.temperature == 0 else truncated_plainly(exact, how)
        assert float(exact[tokens[row]].log()) == pytest.approx(float(log_probs[row]), abs=1e-5)
    assert int(tokens[1]) == int(logits[1].argmax())


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 10.0, 1e3])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1)) * 20
    tokens, log_probs = choose(logits, [Sampling(temperature=temperature)] * 4, torch.rand(4, dtype=torch.float64))
    assert bool(log_probs.isfinite().all())
    if temperature == 1e-3:
        assert tokens.tolist() == logits.argmax(-1).tolist()
