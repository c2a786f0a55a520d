"""choices: exact against enumeration, sampled as scored, and clear where a list cannot be used"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from tiny import AllDouble
from torch import Tensor

from melior.errors import ConfigError, DataError
from melior.policies.adapters import LoRA
from melior.policies.base import Want
from melior.policies.language import LanguagePolicy
from melior.trainers.loop import FitConfig, fit
from melior.trainers.reinforcement import Rollouts, reinforcement
from melior.types import Demonstration, Record, Sampling, Score, Task

Shared = Callable[..., LanguagePolicy]
PROMPTS = ["hi", "what is the hat of the man?", "12"]
CHOICES = ("the cat", "the cat sat", "the", "a hat", "", "12", "what is that", "x")  # prefixes of one another, empty
LIKELY = ("the", "man", "that", "hat", "th", "t")  # several of them are probable, so that samples differ
BOTH = frozenset({Want.LOG_PROBS, Want.ENTROPY})


@pytest.fixture(autouse=True)
def all_double() -> Iterator[None]:
    with AllDouble():
        yield


def totals(policy: LanguagePolicy, inputs: Any, choices: Sequence[str]) -> Tensor:
    """The log-prob of each choice as a free completion, one at a time."""
    return torch.stack([policy.log_probs([Demonstration(inputs, choice)])[0].sum() for choice in choices])


def chosen(inputs: Any, output: str, choices: Sequence[str] = CHOICES, **how: Any) -> Record:
    return Record(inputs=inputs, output=output, sampling=Sampling(choices=tuple(choices), **how))


# ---------------------------------------------------------------------- against enumeration


@pytest.mark.parametrize(("family", "template"), [("llama", "chatml"), ("gemma3", "gemma"), ("llama", None)])
def test_probabilities_are_those_of_whole_choices(family: str, template: str | None, shared_policy: Shared) -> None:
    policy = shared_policy(family, template)
    found = policy.choice_log_probs(PROMPTS, CHOICES)
    assert found.shape == (len(PROMPTS), len(CHOICES)) and found.dtype == torch.float64
    for row, prompt in zip(found, PROMPTS, strict=True):
        wanted = torch.log_softmax(totals(policy, prompt, CHOICES), -1).detach()
        torch.testing.assert_close(row, wanted, rtol=0, atol=1e-9)
        assert row.exp().sum().item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("family", ["gpt2", "mamba"])
def test_probabilities_hold_for_padded_rows(family: str, shared_policy: Shared) -> None:
    policy = shared_policy(family, dtype="float32", layout="padded")
    found = policy.choice_log_probs(PROMPTS[:1], CHOICES)[0]
    wanted = torch.log_softmax(totals(policy, PROMPTS[0], CHOICES), -1).detach().double()
    assert (found - wanted).abs().max() <= 1e-4


def test_every_choice_scores_its_share(shared_policy: Shared) -> None:
    """As records that were chosen: log-probs of decisions add up to the choice's, which sum to one."""
    policy = shared_policy("llama")
    for temperature in (1.0, 0.4):
        rows = policy.log_probs([chosen(PROMPTS[1], choice, temperature=temperature) for choice in CHOICES])
        wanted = torch.log_softmax(totals(policy, PROMPTS[1], CHOICES) / temperature, -1)
        torch.testing.assert_close(torch.stack([row.sum() for row in rows]), wanted, rtol=0, atol=1e-9)


def test_what_nothing_competes_with_is_certain(shared_policy: Shared) -> None:
    policy = shared_policy("llama")
    (alone,) = policy.log_probs([chosen("hi", "the cat", ["the cat"])])
    assert len(alone) > 1 and not alone.any()
    decided, (found,) = policy.encode([chosen("hi", "the cat")]), policy.log_probs([chosen("hi", "the cat")])
    stop = policy.renderer.stop_id
    assert decided.outputs[0].decisions[-1] == stop and found[-1] < 0, "the stop token is a decision: it could go on"


def test_entropies_are_those_of_the_choices_left(shared_policy: Shared) -> None:
    """In expectation over choices, the entropies of the decisions add up to the entropy of the whole choice."""
    policy = shared_policy("llama")
    batch = policy.encode([chosen(PROMPTS[0], choice, temperature=0.7) for choice in CHOICES])
    scored = policy.score(batch, BOTH)
    assert scored.entropy is not None
    whole = scored.log_probs.sum(1)
    expected = (whole.exp() * scored.entropy.sum(1)).sum()
    assert expected.item() == pytest.approx(-(whole.exp() * whole).sum().item(), abs=1e-9)
    first = scored.entropy[:, 0]
    assert torch.allclose(first, first[:1].expand_as(first))


def test_gradients_are_those_of_the_softmax_over_choices(shared_policy: Shared) -> None:
    policy = shared_policy("llama")
    weights = [parameter for _, parameter in policy.candidates()]
    batch = policy.encode([chosen("hi", "the cat", temperature=0.8), chosen("hi", "x", temperature=0.8)])
    found = torch.autograd.grad((policy.score(batch).log_probs.sum(1) * torch.tensor([1.0, -2.0])).sum(), weights)
    shares = torch.log_softmax(totals(policy, "hi", CHOICES) / 0.8, -1)
    wanted = torch.autograd.grad(shares[0] - 2 * shares[-1], weights)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


# ---------------------------------------------------------------------- batches


@settings(max_examples=12)
@given(st.integers(1, 160), st.lists(st.tuples(st.integers(0, 2), st.integers(0, 8)), min_size=1, max_size=7))
def test_every_cut_gives_the_same_numbers(shared_policy: Shared, budget: int, rows: list[tuple[int, int]]) -> None:
    """Rows with choices and rows without, in any company."""
    policy = shared_policy("smollm")
    records = [
        chosen(PROMPTS[prompt], CHOICES[which], temperature=0.5 + prompt)
        if which < len(CHOICES)
        else Record(inputs=PROMPTS[prompt], output="the hat")
        for prompt, which in rows
    ]
    batch = policy.encode(records)
    with torch.no_grad():
        whole = policy.score(batch, BOTH)
        seen: list[int] = []
        for part in policy.cut(batch, budget):
            scored = policy.score(batch.select(part), BOTH)
            width = scored.log_probs.shape[1]
            assert scored.entropy is not None and whole.entropy is not None
            assert (scored.log_probs - whole.log_probs[part, :width]).abs().max() <= 1e-9
            assert (scored.entropy - whole.entropy[part, :width]).abs().max() <= 1e-9
            seen += part
    assert sorted(seen) == list(range(len(records)))


def test_cuts_count_what_is_computed(shared_policy: Shared) -> None:
    """The nodes of a micro-batch are those its rows were counted with, so budgets hold."""
    policy = shared_policy("smollm")
    batch = policy.encode([chosen(prompt, choice) for prompt in PROMPTS for choice in CHOICES[:3]])
    for budget in (60, 100, 1000):
        for part in policy.cut(batch, budget):
            before = policy.backbone.nodes
            with torch.no_grad():
                policy.score(batch.select(part))
            assert policy.backbone.nodes - before <= budget or len(set(batch.inputs[row] for row in part)) == 1


def test_rows_of_one_prompt_compute_the_choices_once(shared_policy: Shared) -> None:
    policy = shared_policy("llama")

    def nodes(records: list[Record]) -> int:
        before = policy.backbone.nodes
        with torch.no_grad():
            policy.score(policy.encode(records))
        return policy.backbone.nodes - before

    assert nodes([chosen("hi", "x")]) == nodes([chosen("hi", choice) for choice in CHOICES])


def test_a_choice_beyond_the_context_decides_nothing(folder_of: Callable[..., Path]) -> None:
    policy = LanguagePolicy.load(folder_of("llama"), dtype="float64", device="cpu", max_length=14)
    (found,) = policy.log_probs([chosen("hi", "x", ["x", "the cat sat on the mat"])])
    assert len(found) == 0


# ---------------------------------------------------------------------- the sampler is the scorer


@pytest.mark.parametrize("how", [{}, {"temperature": 0.3}, {"temperature": 2.0}])
def test_samples_are_choices_with_the_log_probs_of_the_scorer(how: dict[str, Any], shared_policy: Shared) -> None:
    policy = shared_policy("llama")
    records = policy.sample(PROMPTS, Sampling(n=20, seed=3, choices=LIKELY, **how))
    assert {record.output for record in records} <= set(LIKELY) and len({record.output for record in records}) > 2
    assert {record.finish for record in records} == {"stop"}
    for record, found in zip(records, policy.log_probs(records), strict=True):
        assert record.decisions == policy.renderer.turn(record.inputs, record.output).decisions
        assert record.behavior_log_probs is not None
        assert (torch.tensor(record.behavior_log_probs, dtype=torch.float64) - found).abs().max() <= 1e-9


@pytest.mark.parametrize("how", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.6}])
def test_frequencies_are_the_probabilities(how: dict[str, Any], shared_policy: Shared) -> None:
    policy = shared_policy("llama")
    settings = Sampling(n=4000, seed=5, choices=LIKELY, **how)
    counts = Counter(record.output for record in policy.sample(PROMPTS[:1], settings))
    shares = torch.softmax(policy.choice_log_probs(PROMPTS[:1], LIKELY)[0] / settings.temperature, -1)
    order = shares.argsort(descending=True).tolist()
    kept = order[: settings.top_k or None]
    mass, reached = [float(shares[choice]) for choice in kept], 0.0
    for place, share in enumerate(mass):
        reached += share
        if settings.top_p < 1 and reached >= settings.top_p:
            kept = kept[: place + 1]
            break
    assert set(counts) <= {LIKELY[choice] for choice in kept}
    expected = shares[kept] / shares[kept].sum() * settings.n
    seen = torch.tensor([float(counts[LIKELY[choice]]) for choice in kept])
    common = expected >= 5
    if int(common.sum()) > 1:
        scale = seen[common].sum() / expected[common].sum()
        assert chisquare(seen[common], expected[common] * scale).pvalue > 1e-3


def test_truncated_samples_keep_the_log_probs_of_what_was_sampled_from(shared_policy: Shared) -> None:
    policy = shared_policy("llama")
    shares = policy.choice_log_probs(["hi"], LIKELY)[0]
    best = shares.topk(2)
    kept = torch.log_softmax(best.values, -1)
    for record in policy.sample(["hi"], Sampling(n=10, top_k=2, choices=LIKELY)):
        assert record.behavior_log_probs is not None
        place = best.indices.tolist().index(LIKELY.index(record.output))
        assert sum(record.behavior_log_probs) == pytest.approx(float(kept[place]), abs=1e-9)


def test_greedy_is_the_best_whole_choice(shared_policy: Shared) -> None:
    """Token by token another choice would win, at least somewhere."""
    policy = shared_policy("llama")
    prompts = [f"{word} {number}" for word in ("the", "what", "man") for number in range(8)]
    records = policy.sample(prompts, Sampling(temperature=0, choices=CHOICES))
    best = policy.choice_log_probs(prompts, CHOICES).argmax(-1).tolist()
    assert [record.output for record in records] == [CHOICES[choice] for choice in best]
    assert all(record.behavior_log_probs is None for record in records)
    assert any(stepwise(policy, prompt) != record.output for prompt, record in zip(prompts, records, strict=True))


def stepwise(policy: LanguagePolicy, prompt: str) -> str:
    """What the best token at each step leads to."""
    turns = policy.renderer.choices(prompt, CHOICES)
    left = dict(zip(CHOICES, (turn.decisions for turn in turns), strict=True))
    depth = 0
    while len(left) > 1:
        prefix = next(iter(left.values()))[:depth]
        states, paths = policy.backbone.states([turns[0].context + prefix])
        logits = policy.backbone.head.logits(states[int(paths[0][-1])][None])[0]
        best = max({ids[depth] for ids in left.values()}, key=lambda token: logits[token].item())
        left = {choice: ids for choice, ids in left.items() if ids[depth] == best}
        depth += 1
    return next(iter(left))


def test_a_sample_does_not_depend_on_its_batch_mates(shared_policy: Shared) -> None:
    policy = shared_policy("llama")
    free, bound = Sampling(n=2, max_tokens=5, seed=1), Sampling(n=3, seed=1, choices=LIKELY)
    prompts, each = [*PROMPTS, "the hat", "man"], [bound, free, bound, free, bound]
    together = policy.sample(prompts, each)
    alone = [record for prompt, how in zip(prompts, each, strict=True) for record in policy.sample([prompt], how)]
    for one, other in zip(together, alone, strict=True):
        assert (one.output, one.decisions) == (other.output, other.decisions)
    again = policy.sample(PROMPTS, bound, step=1)
    assert [record.output for record in again] != [r.output for r in policy.sample(PROMPTS, bound)]


def test_a_cancelled_request_never_chooses(shared_policy: Shared) -> None:
    from melior.policies.choices import Choices
    from melior.policies.engine import Request

    policy = shared_policy("llama")
    context = policy.renderer.context("hi")
    choices = Choices.of([turn.decisions for turn in policy.renderer.choices("hi", CHOICES)])
    engine = policy.engine()
    for number in range(2):
        engine.submit(Request(id=number, context=context, settings=Sampling(choices=CHOICES), choices=choices))
    engine.cancel(1)
    engine.run()
    assert {sample.request: sample.finish for sample in engine.collect()} == {0: "stop", 1: "cancelled"}


# ---------------------------------------------------------------------- learning


class Prefers:
    """A grader that pays for one word."""

    name = "prefers"

    def grade(self, records: Sequence[Record]) -> list[Score]:
        return [Score(value=float(record.output == "hat")) for record in records]


def test_reinforcement_finds_the_choice_that_is_paid(folder_of: Callable[..., Path]) -> None:
    policy = LanguagePolicy.load(folder_of("llama"), dtype="float32", device="cpu", adapter=LoRA(r=4))
    steps = Rollouts(policy, [Task(prompt) for prompt in PROMPTS], Prefers(), Sampling(n=16, choices=LIKELY))
    before = policy.choice_log_probs(PROMPTS, LIKELY)[:, 3].exp()
    run = fit(policy, steps, reinforcement(), FitConfig(steps=20, learning_rate=2e-2, schedule="constant"))
    assert run.metrics[0]["policy/ratio"] == pytest.approx(1.0, abs=1e-4), (
        "on-policy: what was sampled is what is scored"
    )
    assert max(row.get("policy/sampler_gap", 0.0) for row in run.metrics) <= 1e-4
    after = policy.choice_log_probs(PROMPTS, LIKELY)[:, 3].exp()
    assert before.mean() < 0.5 and after.min() > 0.9
    assert {r.output for r in policy.sample(PROMPTS, Sampling(temperature=0, choices=LIKELY))} == {"hat"}


# ---------------------------------------------------------------------- lists that cannot be used


def test_lists_are_checked_when_settings_are_made() -> None:
    with pytest.raises(ConfigError, match="'yes' 2 times"):
        Sampling(choices=("yes", "no", "yes"))
    with pytest.raises(ConfigError, match="list of texts, got 'yes'"):
        Sampling(choices="yes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="stop strings"):
        Sampling(choices=("yes", "no"), stop=("o",))
    assert Sampling(choices=["yes", "no"]).choices == ("yes", "no")  # type: ignore[arg-type]


def test_choices_that_the_template_writes_alike_are_refused(shared_policy: Shared) -> None:
    with pytest.raises(DataError, match=r"'the cat' and ' the cat ' are the same \d+ tokens"):
        shared_policy("llama", "gemma").sample(["hi"], Sampling(choices=("the cat", " the cat ")))


def test_a_choice_longer_than_max_tokens_is_named(shared_policy: Shared) -> None:
    policy = shared_policy("llama")
    tokens = len(policy.renderer.turn("hi", "the cat sat on").decisions)
    with pytest.raises(DataError, match=f"'the cat sat on' has {tokens} tokens.* max_tokens is {tokens - 1}"):
        policy.sample(["hi"], Sampling(choices=("x", "the cat sat on"), max_tokens=tokens - 1))
    assert policy.sample(["hi"], Sampling(choices=("x", "the cat sat on"), max_tokens=tokens))


def test_a_prompt_has_to_leave_room_for_the_longest_choice_only(folder_of: Callable[..., Path]) -> None:
    policy = LanguagePolicy.load(folder_of("llama"), dtype="float32", device="cpu", max_length=20)
    assert policy.sample(["hi"], Sampling(choices=("x", "the cat")))  # max_tokens is 128
    with pytest.raises(DataError, match=r"Prompt 0 has \d+ tokens; with a choice of 2 tokens .* context of 20"):
        policy.sample(["the man " * 20], Sampling(choices=("x", "y")))
    with pytest.raises(DataError, match="Prompt 1"):
        policy.choice_log_probs(["hi", "the man " * 20], ["x", "y"])


def test_a_choice_with_a_stop_token_inside_is_refused(shared_policy: Shared) -> None:
    with pytest.raises(DataError, match="ends an answer"):
        shared_policy("llama").choice_log_probs(["hi"], ["yes", "yes<|im_end|> no"])


def test_an_output_that_is_no_choice_is_refused(shared_policy: Shared) -> None:
    with pytest.raises(DataError, match="'dog' is none of the 8 choices"):
        shared_policy("llama").encode([chosen("hi", "dog")])
    (record,) = shared_policy("llama").sample(["hi"], Sampling(choices=CHOICES))
    with pytest.raises(DataError, match="none of the 1 choices"):
        shared_policy("llama").encode([replace(record, sampling=Sampling(choices=("zz",)))])
