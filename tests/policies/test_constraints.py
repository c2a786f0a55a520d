"""outputs follow their grammar, and what is logged of them is what they were really drawn from"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from melior.errors import ConfigError, MissingLogProbs
from melior.policies.constraints import ANY_OBJECT, Grammars, json_grammar, shaped
from melior.policies.engine import Request, Sample
from melior.policies.language import LanguagePolicy
from melior.rollouts.logged import usable
from melior.types import Record, Sampling, Score

Shared = Callable[..., LanguagePolicy]
SHORT: dict[str, Any] = {"enum": ["a", "the", "that", 12]}


def run(policy: LanguagePolicy, *asked: Sampling, told: int | None = None) -> list[list[Sample]]:
    """The samples of each settings, decoded together."""
    engine = policy.engine()
    context = policy.renderer.context("hi")
    for number, how in enumerate(asked):
        engine.submit(Request(id=number, context=context, settings=how, told=told))
    engine.run()
    found = sorted(engine.collect(), key=lambda sample: sample.number)
    return [[sample for sample in found if sample.request == number] for number in range(len(asked))]


def free_logits(policy: LanguagePolicy, decided: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        states, paths = policy.backbone.states([policy.renderer.context("hi") + decided])
        return policy.backbone.head.logits(states[int(paths[0][-1])][None])[0].double()


def every_output(policy: LanguagePolicy, how: Sampling) -> dict[tuple[int, ...], float]:
    """All outputs that the constraint allows, as tokens, and their log-probs under the renormalised distribution."""
    grammars = Grammars.of(policy.renderer, len(policy.backbone.head.weight))
    found: dict[tuple[int, ...], float] = {}
    open_ends: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    while open_ends:
        decided, so_far = open_ends.pop()
        follower = grammars.follow(how.constraint)
        for token in decided:
            follower.take(token)
        allowed = follower.allowed()
        logits = shaped(free_logits(policy, decided) / how.temperature, Sampling(), [], allowed)
        for token in allowed.nonzero()[:, 0].tolist():
            log_prob = so_far + float(torch.log_softmax(logits, -1)[token])
            (found.__setitem__ if token == policy.renderer.stop_id else lambda *end: open_ends.append(end))(
                (*decided, token), log_prob
            )
    return found


def test_samples_and_log_probs_are_those_of_the_renormalised_distribution(shared_policy: Shared) -> None:
    policy = shared_policy("llama")
    how = Sampling(n=2000, max_tokens=12, temperature=1.5, seed=4, constraint=json_grammar(SHORT))
    expected = every_output(policy, how)
    assert len(expected) > 8 and math.fsum(map(math.exp, expected.values())) == pytest.approx(1, abs=1e-9)
    (samples,) = run(policy, how)
    for sample in samples:
        assert sample.log_probs is not None
        assert math.fsum(sample.log_probs) == pytest.approx(expected[sample.decisions], abs=1e-9)
    counted = Counter(sample.decisions for sample in samples)
    usual = {ids for ids, log_prob in expected.items() if len(samples) * math.exp(log_prob) >= 5}
    seen = [*(counted[ids] for ids in usual), sum(counted[ids] for ids in expected if ids not in usual)]
    chances = [
        *(math.exp(expected[ids]) for ids in usual),
        math.fsum(math.exp(expected[i]) for i in set(expected) - usual),
    ]
    wanted = [len(samples) * chance / math.fsum(chances) for chance in chances]
    assert chisquare([s for s, w in zip(seen, wanted) if w], [w for w in wanted if w]).pvalue > 1e-3


def test_top_p_acts_on_what_the_constraint_left(shared_policy: Shared) -> None:
    policy = shared_policy("llama")
    how = Sampling(n=64, max_tokens=12, seed=4, top_k=1, constraint=json_grammar(SHORT))
    (samples, greedy) = run(policy, how, replace(how, top_k=0, temperature=0.0, n=1))
    assert {sample.decisions for sample in samples} == {greedy[0].decisions} and greedy[0].log_probs is None
    assert samples[0].log_probs == (0.0,) * len(samples[0].decisions)


def test_company_changes_nothing_for_free_rows_nor_for_constrained_ones(shared_policy: Shared) -> None:
    policy = shared_policy("llama")
    free = Sampling(n=3, max_tokens=20, seed=1)
    held = Sampling(
        n=3, max_tokens=40, seed=2, constraint=json_grammar({"type": "array", "items": SHORT, "maxItems": 3})
    )
    other = Sampling(n=2, max_tokens=40, seed=2, constraint=json_grammar({"type": "integer"}), presence_penalty=1.0)
    together = run(policy, free, held, other)
    for how, found in zip((free, held, other), together, strict=True):
        (alone,) = run(policy, how)
        assert [sample.decisions for sample in alone] == [sample.decisions for sample in found]
        for one, two in zip(alone, found, strict=True):
            assert one.log_probs == pytest.approx(two.log_probs, abs=1e-9)


def test_an_output_ends_where_its_value_ends_or_is_told_to_be_cut(shared_policy: Shared) -> None:
    policy = shared_policy("llama", dtype="float32")
    schema = {
        "type": "object",
        "properties": {"a": SHORT, "b": SHORT},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    how = Sampling(n=20, max_tokens=60, seed=3, constraint=json_grammar(schema))
    ((*whole,),) = run(policy, how)
    assert all(sample.finish == "stop" and set(json.loads(sample.text)) == {"a", "b"} for sample in whole)
    assert all(sample.decisions[-1] == policy.renderer.stop_id for sample in whole)
    (cut,) = run(policy, replace(how, max_tokens=5))
    assert {sample.finish for sample in cut} == {"length"} and {len(sample.decisions) for sample in cut} == {5}
    shortest = min(len(sample.decisions) for sample in whole)
    (exact,) = run(policy, replace(how, max_tokens=shortest - 1))  # room for the value, and not for the stop token
    ended = [sample for sample in exact if sample.finish == "stop"]
    assert ended and all(json.loads(sample.text) for sample in ended)


NAMES = st.sampled_from(["name", "n", "é", "a b", 'q"'])
PLAIN: list[Any] = [
    {"type": "boolean"},
    {"type": "null"},
    {"const": {"x": [1]}},
    {"enum": ["a", 1, None]},
    {"type": "string", "pattern": "^[a-c]{1,3}$"},
    {"type": "string", "format": "date"},
    {"type": "number", "minimum": 0, "exclusiveMaximum": 1, "multipleOf": 0.25},
]
LOW, MORE = st.integers(-99, 99), st.integers(0, 99)
LEAVES = st.one_of(
    st.sampled_from(PLAIN),
    st.builds(lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more}, LOW, MORE),
    st.builds(
        lambda least, more: {"type": "string", "minLength": least, "maxLength": least + more},
        st.integers(0, 3),
        st.integers(0, 4),
    ),
)


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def made(properties: dict[str, Any], needed: list[bool], least: int | None) -> dict[str, Any]:
        required = [name for name, need in zip(properties, needed) if need]
        size = {} if least is None else {"minProperties": min(least, len(properties))}
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False, **size}

    pieces = st.dictionaries(NAMES, inner, max_size=3)
    return st.builds(made, pieces, st.lists(st.booleans(), min_size=3, max_size=3), st.none() | st.integers(0, 2))


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        _objects(inner),
        st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 3)),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=5,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=SCHEMAS, seed=st.integers(0, 1000))
def test_every_whole_output_is_valid(shared_policy: Shared, schema: dict[str, Any], seed: int) -> None:
    policy = shared_policy("llama", dtype="float32")
    how = Sampling(n=4, max_tokens=150, seed=seed, constraint=json_grammar(schema))
    (samples,) = run(policy, how)
    for sample in samples:
        if sample.finish == "stop":
            jsonschema.validate(json.loads(sample.text), schema)
    assert {sample.finish for sample in samples} <= {"stop", "length"}


def test_any_object_is_an_object(shared_policy: Shared) -> None:
    policy = shared_policy("llama", dtype="float32")
    (samples,) = run(policy, Sampling(n=60, max_tokens=120, seed=1, constraint=json_grammar(ANY_OBJECT)))
    whole = [json.loads(sample.text) for sample in samples if sample.finish == "stop"]
    assert len(whole) > 3 and all(isinstance(value, dict) for value in whole) and any(whole)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "object", "not": {}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "format": "phone"}, "phone"),
        ({"$ref": "https://example.com/a.json"}, "example.com"),
        ({"type": "objekt"}, "objekt"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "x-guidance"),
        ({"type": "object", "properties": {"a": {"x-guidance": {"lenient": True}}}}, "x-guidance"),
        ({"type": "string", "minLength": 5, "maxLength": 3}, "minLength"),
    ],
)
def test_what_cannot_be_followed_is_named(shared_policy: Shared, schema: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        run(shared_policy("llama", dtype="float32"), Sampling(constraint=json_grammar(schema)))
    assert named in str(error.value) and "start:" not in str(error.value) and "\n" not in str(error.value)


def test_biases_and_penalties_are_what_they_are_said_to_be(shared_policy: Shared) -> None:
    policy = shared_policy("llama")
    how = Sampling(
        n=4, max_tokens=15, seed=2, temperature=1.3, logit_bias=((20, 2.5), (21, 3.0)), frequency_penalty=0.7,
        presence_penalty=1.1,
    )  # fmt: skip
    for sample in run(policy, how)[0]:
        assert sample.log_probs is not None
        for place, log_prob in enumerate(sample.log_probs):
            before = sample.decisions[:place]
            logits = free_logits(policy, before)
            logits[20] += 2.5
            logits[21] += 3.0
            for token, count in Counter(before).items():
                logits[token] -= 0.7 * count + 1.1
            wanted = float(torch.log_softmax(logits / 1.3, -1)[sample.decisions[place]])
            assert log_prob == pytest.approx(wanted, abs=1e-7)
    (banned,) = run(policy, Sampling(n=50, max_tokens=9, logit_bias=[[20, -100], [21, 100]]))  # type: ignore[arg-type]
    assert {token for sample in banned for token in sample.decisions} == {21}
    with pytest.raises(ConfigError, match="99999"):
        run(policy, Sampling(logit_bias=((99999, 1.0),)))


def test_what_is_told_of_a_token_is_what_the_policy_itself_thought(shared_policy: Shared) -> None:
    policy = shared_policy("llama")
    held = Sampling(n=2, max_tokens=9, temperature=0.3, top_k=5, constraint=json_grammar(SHORT))
    for how in (Sampling(n=2, max_tokens=9, temperature=0.5), Sampling(temperature=0, max_tokens=9), held):
        for sample in run(policy, how, told=3)[0]:
            record = Record(inputs="", output="", context=policy.renderer.context("hi"), decisions=sample.decisions)
            with torch.no_grad():
                (scored,) = policy.log_probs([record])
            assert [thought.log_prob for thought in sample.thoughts] == pytest.approx(scored.tolist(), abs=1e-6)
            for place, thought in enumerate(sample.thoughts):
                own = torch.log_softmax(free_logits(policy, sample.decisions[:place]), -1)[
                    : len(policy.renderer.tokenizer)
                ]
                assert [token for token, _ in thought.likeliest] == own.topk(3).indices.tolist()
                assert thought.likeliest[0][1] >= thought.likeliest[1][1] >= thought.likeliest[2][1]
    assert run(policy, Sampling(max_tokens=3))[0][0].thoughts == ()


def test_tokens_that_are_half_a_character_have_their_own_bytes(shared_policy: Shared) -> None:
    policy = shared_policy("llama")
    grammars = Grammars.of(policy.renderer, len(policy.backbone.head.weight))
    for text in ("é 🦜 the cat", "\x00\t\n"):
        ids = policy.renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert b"".join(map(grammars.bytes_of, ids)) == text.encode()
    assert grammars.bytes_of(policy.renderer.stop_id) == b"<|im_end|>"


def test_a_constraint_and_choices_do_not_go_together() -> None:
    for more in ({"constraint": json_grammar(SHORT)}, {"presence_penalty": 1.0}, {"logit_bias": ((1, 1.0),)}):
        with pytest.raises(ConfigError, match="choices"):
            Sampling(choices=("a", "b"), **more)  # type: ignore[arg-type]
    assert Sampling(constraint=json_grammar(SHORT)).truncated and Sampling(frequency_penalty=0.1).truncated


def test_what_was_held_to_a_constraint_or_broken_off_is_not_weighed_as_the_policys_own(shared_policy: Shared) -> None:
    policy = shared_policy("llama")
    held = policy.sample(["hi"], Sampling(n=3, max_tokens=12, constraint=json_grammar(SHORT)))
    free = policy.sample(["hi"], Sampling(n=3, max_tokens=12))
    left = [replace(record, finish="cancelled") for record in free[:1]]
    log = usable([*held, *free[1:], *left], [Score(value=1.0)] * 6, incomplete="drop")
    assert log.rows == (3, 4) and sorted(log.excluded.values()) == [1, 3]
    with pytest.raises(MissingLogProbs, match="constraint"):
        usable(held, [Score(value=1.0)] * 3)
