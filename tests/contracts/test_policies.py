"""the laws every policy keeps, whatever it decides: words, labels or slates

A policy joins by one `Case` in CASES. What language models alone have to keep (layouts, packing, templates) stands in
test_language_policy.py.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tabular import Reward
from tiny import ROWS, AllDouble, tiny_encoder
from torch import Tensor

from melior.errors import ConfigError
from melior.policies.adapters import LoRA
from melior.policies.base import Batch, Rates, Want, score_all
from melior.policies.classifier import Classifier, ClassifierPolicy
from melior.policies.images import Pictures
from melior.policies.kinds import load_policy
from melior.policies.language import LanguagePolicy
from melior.policies.slate import SlatePolicy
from melior.policies.slate_network import Slate
from melior.policies.tables import Table
from melior.policies.texts import Texts
from melior.trainers.loop import FitConfig, fit
from melior.trainers.reinforcement import Rollouts, reinforcement
from melior.trainers.supervised import Examples, supervised
from melior.types import Demonstration, Image, Interaction, Item, Record, Sampling, Score, SlateRequest, Task

Policy = Any  # of the protocol, and its torch module beside it
EVERYTHING = frozenset(Want)
EXACT = 1e-12  # in fp64


@dataclass(frozen=True)
class Case:
    """One kind of policy: how it is made anew, and what it decides."""

    name: str
    make: Callable[[Callable[..., Path], str], Policy]  # of the folders of tiny models, and "float64" or "float32"
    module: Callable[[Policy], torch.nn.Module]
    rows: Sequence[Demonstration]  # eight or more
    every: Callable[[Policy, Any], list[Any]]  # examples of all outputs of an input, or of all first decisions
    round_trips: bool = True  # whether an output, encoded again, is the same decisions (text may be split otherwise)
    listed: bool = True  # whether what could have been decided is a short list
    greedy_has_chances: bool = False
    exact: float = EXACT
    learner: Callable[[Callable[..., Path]], Policy] | None = None  # as it is first made, to be trained
    learning_rate: float = 0.01
    rft_elsewhere: str = ""  # where learning from rewards is tested, for a case too large for this one


def generator(seed: int) -> random.Random:
    return random.Random(seed)


# ---------------------------------------------------------------------- the cases


def table_rows(several: bool = False) -> list[Demonstration]:
    """Numbers and categories, some missing."""
    drawn = generator(1)
    rows = []
    for number in range(12):
        age = None if number == 3 else drawn.uniform(18, 80)
        inputs = {"age": age, "purpose": drawn.choice(["car", "house", None]), "open": number % 2 == 0}
        label = ("good", "bad", "ask")[number % 3]
        rows.append(Demonstration(inputs, (label,) if several and number % 4 else () if several else label))
    return rows


def picture(seed: int, height: int = 16, width: int = 16, channels: int = 1) -> Image:
    """Noise over stripes, as broad as the seed says."""
    drawn = generator(seed)
    shade = [(row // (seed + 1)) % 2 * 200 for row in range(height) for _ in range(width * channels)]
    pixels = bytes(stripe + drawn.randrange(56) for stripe in shade)
    return Image(pixels=pixels, shape=(height, width, channels))


PICTURES = [picture(number, height=16 + number % 3, channels=3 if number == 5 else 1) for number in range(8)]
IMAGE_ROWS = [Demonstration(one, "ab"[number % 2]) for number, one in enumerate(PICTURES)]
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "what", "is", "that", "hat", "of", "man"]
TEXT_ROWS = [
    Demonstration(" ".join(generator(number).choices(WORDS, k=1 + 3 * number)), "xyz"[number % 3])
    for number in range(9)
]
LANGUAGE_ROWS = [Demonstration(f"say {row.inputs}", generator(7).choice(WORDS)) for row in TEXT_ROWS]


def classifier(config: Classifier, rows: Sequence[Demonstration], dtype: str) -> ClassifierPolicy:
    policy = ClassifierPolicy.make(config, rows, seed=1, device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(2)
        for _, parameter in policy.candidates():  # a head that tells inputs apart, as after some training
            parameter.data += 0.2 * torch.randn_like(parameter)
        policy.start = {name: tensor.detach().clone() for name, tensor in policy.candidates()}
    policy.network.to(getattr(torch, dtype))
    return policy


def every_label(policy: ClassifierPolicy, inputs: Any) -> list[Demonstration]:
    names = policy.labels.names
    if not policy.labels.several:
        return [Demonstration(inputs, name) for name in names]
    sets = itertools.product((False, True), repeat=len(names))
    return [Demonstration(inputs, tuple(itertools.compress(names, chosen))) for chosen in sets]


def classifier_case(
    name: str, config: Callable[[Callable[..., Path]], Classifier], rows: Sequence[Demonstration], **more: Any
) -> Case:
    """A classifier with noise; as a learner without."""

    def learner(folder_of: Callable[..., Path]) -> ClassifierPolicy:
        quiet = replace(config(folder_of), dropout=0.0, table=QUIET, image=Pictures(size=16))
        return ClassifierPolicy.make(quiet, rows, seed=1, device="cpu")

    return Case(
        name,
        learner=learner,
        make=lambda folder_of, dtype: classifier(config(folder_of), rows, dtype),
        module=lambda policy: policy.network,
        rows=rows,
        every=every_label,
        **more,
    )


def language(folder_of: Callable[..., Path], dtype: str) -> LanguagePolicy:
    policy = LanguagePolicy.load(folder_of("smollm"), adapter=LoRA(r=2), dtype=dtype, device="cpu")  # type: ignore[arg-type]
    return policy


def every_token(policy: LanguagePolicy, inputs: Any) -> list[Record]:
    context = tuple(policy.renderer.context(inputs))
    return [Record(inputs=inputs, output="", context=context, decisions=(token,)) for token in range(ROWS)]


ITEMS = [Item(f"item {n}", {"kind": "ab"[n % 2], "price": float(n) if n else None}) for n in range(5)]
SLATE_ROWS = [
    Demonstration(
        SlateRequest(
            context={"age": 20.0 + number, "sex": "mf"[number % 2]},
            viewed="" if number % 3 else f"item {number % 5}",
            history=tuple(Interaction(f"item {n}", ("click", "purchase")[n % 2], 10.0**n) for n in range(number % 5)),
            candidates=None if number % 4 else tuple(item.id for item in ITEMS[::-1]),
        ),
        [f"item {(number + n) % 5}" for n in range(3)],
    )
    for number in range(10)
]


def slate_case(name: str, **settings: Any) -> Case:
    def fresh(**more: Any) -> SlatePolicy:
        how = {"positions": 3, "width": 16, "exploration": 0.1, **settings, **more}
        return SlatePolicy.make(Slate(**how), ITEMS, [row.inputs for row in SLATE_ROWS], seed=1)

    def make(_: Callable[..., Path], dtype: str) -> SlatePolicy:
        policy = fresh(precision=dtype)
        source = torch.Generator().manual_seed(2)
        for _, parameter in policy.candidates():  # what says nothing at first says something
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=source, dtype=parameter.dtype)
        policy.reference.load_state_dict(policy.network.state_dict())
        return policy

    return Case(
        name,
        learner=lambda _: fresh(hidden=0.0, exploration=0.005),  # it would cap what can be learnt by heart
        make=make,
        module=lambda policy: policy.network,
        rows=SLATE_ROWS,
        every=lambda _, inputs: [
            Demonstration(inputs, list(ids)) for ids in itertools.permutations([item.id for item in ITEMS], 3)
        ],
        learning_rate=0.02,
        rft_elsewhere="what stands outside a shortlist is hardly ever tried" if "shortlist" in settings else "",
    )


TABLE = Table(width=16, embedding=4, dropout=0.3, hidden=0.2)
QUIET = replace(TABLE, dropout=0.0, hidden=0.0)
CASES = [
    classifier_case("labels of a table", lambda _: Classifier(table=TABLE), table_rows()),
    classifier_case(
        "several labels",
        lambda _: Classifier(several=True, labels=("good", "bad", "ask"), table=TABLE),
        table_rows(True),
    ),
    classifier_case(
        "pictures",
        lambda _: Classifier(image=Pictures(size=16, shift=0.2, rotate=20, flip=True, brightness=0.3), dropout=0.2),
        IMAGE_ROWS,
        exact=1e-10,  # three layers of convolutions deep
    ),
    classifier_case(
        "texts",
        lambda folder_of: Classifier(backbone=str(tiny_encoder(folder_of)), text=Texts(max_length=20), dropout=0.2),
        TEXT_ROWS,
    ),
    Case(
        "language",
        make=language,
        module=lambda policy: policy.backbone.model,
        rows=LANGUAGE_ROWS,
        every=every_token,
        round_trips=False,
        listed=False,
        greedy_has_chances=True,
    ),
    slate_case("slates"),
    slate_case("slates of Plackett and Luce", combinations=False),
    slate_case("slates in two stages", shortlist=3),
]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def policy(case: Case, folder_of: Callable[..., Path]) -> Iterator[Policy]:
    with AllDouble():
        yield case.make(folder_of, "float64")


def inputs_of(case: Case, count: int = 4) -> list[Any]:
    return [row.inputs for row in case.rows[:count]]


def sampled(policy: Policy, case: Case, **how: Any) -> list[Record]:
    return policy.sample(inputs_of(case), Sampling(**{"n": 3, "max_tokens": 6, "seed": 5, **how}))


def gradients(policy: Policy, batch: Batch, cuts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Of a fixed random combination of log-probs and entropies, summed over micro-batches."""
    weights = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    parameters = [parameter for _, parameter in policy.candidates() if parameter.requires_grad]
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for rows in cuts:
        part = batch.select(rows)
        scored = policy.score(part, frozenset({Want.LOG_PROBS, Want.ENTROPY}))
        chosen = weights[list(rows)][:, : part.mask.shape[1]]
        loss = (chosen * torch.where(part.mask, scored.log_probs + 0.1 * scored.entropy, 0.0)).sum()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        total = [t if g is None else t + g for t, g in zip(total, found, strict=True)]
    return total


def gap(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """The largest difference, over the largest number of all."""
    largest = max(float(tensor.abs().max()) for tensor in second)
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True)) / largest


# ---------------------------------------------------------------------- probabilities


def test_probabilities_of_everything_that_can_be_decided_add_up_to_one(policy: Policy, case: Case) -> None:
    for inputs in inputs_of(case):
        rows = case.every(policy, inputs)
        chances = torch.stack([log_probs.sum() for log_probs in policy.log_probs(rows)]).exp()
        assert chances.sum().item() == pytest.approx(1.0, abs=1e-9)
        assert chances.max() - chances.min() > 1e-3  # a uniform policy would hide a wrong order of its outputs


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_samplers_log_probs_are_the_scorers(temperature: float, policy: Policy, case: Case) -> None:
    records = sampled(policy, case, temperature=temperature)
    for record, found in zip(records, policy.log_probs(records), strict=True):
        assert record.behavior_log_probs is not None and record.decisions is not None
        assert len(record.behavior_log_probs) == len(record.decisions)
        assert (found - torch.tensor(record.behavior_log_probs, dtype=found.dtype)).abs().max() <= 1e-6


def test_samples_come_as_often_as_their_probability_says(policy: Policy, case: Case) -> None:
    """The share of first decisions, against their probability, within four standard errors."""
    (inputs, *_), n = inputs_of(case), 400
    records = policy.sample([inputs], Sampling(n=n, max_tokens=1, seed=8))
    first = [record.decisions[0] for record in records]
    chance = {record.decisions[0]: record.behavior_log_probs[0] for record in records}
    for decision, log_prob in chance.items():
        probability = float(torch.tensor(log_prob).exp())
        error = (probability * (1 - probability) / n) ** 0.5
        assert abs(first.count(decision) / n - probability) <= 4 * error + 2 / n


def test_greedy_is_always_the_same_and_has_nothing_left_to_chance(policy: Policy, case: Case) -> None:
    once, again = sampled(policy, case, temperature=0, seed=1), sampled(policy, case, temperature=0, seed=2)
    assert [record.decisions for record in once] == [record.decisions for record in again]
    assert case.greedy_has_chances or all(record.behavior_log_probs is None for record in once)


def test_a_sample_is_a_function_of_seed_step_input_and_number(policy: Policy, case: Case) -> None:
    inputs = inputs_of(case)
    how = Sampling(n=4, max_tokens=6, seed=5, temperature=3.0)
    together = policy.sample(inputs, how, step=3)
    alone = [record for one in reversed(inputs) for record in policy.sample([one], how, step=3)]
    assert {r.decisions for r in together[:4]} == {r.decisions for r in alone[-4:]}
    for place in range(len(inputs)):
        mine = alone[4 * (len(inputs) - 1 - place) :][:4]
        assert [r.decisions for r in together[4 * place :][:4]] == [r.decisions for r in mine]
    others = [policy.sample(inputs, how, step=4), policy.sample(inputs, replace(how, seed=6), step=3)]
    for other in others:
        assert [r.decisions for r in other] != [r.decisions for r in together]
    twice = policy.sample([inputs[0], inputs[0]], replace(how, n=8))
    assert [r.decisions for r in twice[:8]] != [r.decisions for r in twice[8:]]


def test_settings_may_differ_by_input(policy: Policy, case: Case) -> None:
    inputs = inputs_of(case, 2)
    each = [Sampling(n=2, max_tokens=6, seed=1), Sampling(n=3, max_tokens=6, temperature=0)]
    records = policy.sample(inputs, each)
    assert [record.inputs for record in records] == [inputs[0]] * 2 + [inputs[1]] * 3
    assert [record.sampling for record in records] == [each[0]] * 2 + [each[1]] * 3


def test_outputs_encoded_again_are_the_same_decisions(policy: Policy, case: Case) -> None:
    if not case.round_trips:
        pytest.skip("a text may be split into other tokens than it was sampled as")
    records = sampled(policy, case)
    given = policy.log_probs([Demonstration(record.inputs, record.output) for record in records])
    for one, other in zip(policy.log_probs(records), given, strict=True):
        assert (one - other).abs().max() <= case.exact


# ---------------------------------------------------------------------- entropy and candidates


def test_entropy_and_candidates_are_those_of_the_decisions(policy: Policy, case: Case) -> None:
    records = sampled(policy, case)
    batch = policy.encode(records)
    scored = policy.score(batch, EVERYTHING)
    if not case.listed:
        assert scored.candidates is None
        return
    chances = scored.candidates[batch.mask]  # [decisions, K]
    torch.testing.assert_close(chances.exp().sum(-1), torch.ones(len(chances), dtype=chances.dtype))
    bits = -torch.where(torch.isneginf(chances), 0.0, chances.exp() * chances.clamp(min=-1e9)).sum(-1)
    torch.testing.assert_close(scored.entropy[batch.mask], bits, rtol=0, atol=1e-12)
    decided = torch.tensor([decision for record in records for decision in record.decisions])
    torch.testing.assert_close(chances.gather(1, decided[:, None])[:, 0], scored.log_probs[batch.mask])


def test_states_are_of_what_was_read_and_decided_so_far(policy: Policy, case: Case) -> None:
    records = sampled(policy, case, n=2, seed=3)
    batch = policy.encode(records)
    states = policy.score(batch, frozenset({Want.STATES})).states
    assert states.shape == (len(batch), batch.mask.shape[1] + 1, policy.state_size)
    assert states.dtype == policy.score(batch).log_probs.dtype
    assert torch.allclose(states, policy.score(batch, EVERYTHING).states, rtol=0, atol=case.exact)
    decided = batch.mask.sum(1)
    for row, count in enumerate(decided.tolist()):
        alone = batch.select([row])
        own = policy.score(alone, frozenset({Want.STATES})).states[0]
        assert torch.allclose(own, states[row, : count + 1], rtol=0, atol=case.exact)
        assert not states[row, count + 1 :].any()
    firsts = {group: states[row, 0] for row, group in enumerate(batch.groups.tolist())}
    for row, group in enumerate(batch.groups.tolist()):  # before the first decision only the input is known
        assert torch.allclose(states[row, 0], firsts[group], rtol=0, atol=case.exact)


def test_joined_batches_score_as_they_do_apart(policy: Policy, case: Case) -> None:
    first, second = (policy.encode(sampled(policy, case, n=n, seed=n)) for n in (2, 1))
    first = first.with_columns(only=torch.arange(len(first)) + 1.0, each=first.mask.double())
    joined = Batch.join([first, second])
    apart = torch.cat([policy.score(part).log_probs.sum(1) for part in (first, second)])
    assert torch.allclose(policy.score(joined).log_probs.sum(1), apart, rtol=0, atol=case.exact)
    assert joined.columns["only"].tolist() == [*range(1, len(first) + 1), *[0.0] * len(second)]
    assert torch.equal(joined.columns["each"][: len(first)] > 0, joined.mask[: len(first)])
    assert not set(joined.groups[: len(first)].tolist()) & set(joined.groups[len(first) :].tolist())
    assert len(joined.groups.unique()) == len(first.groups.unique()) + len(second.groups.unique())


def test_what_was_not_decided_is_zero(policy: Policy, case: Case) -> None:
    batch = policy.encode(case.rows)
    kept = (torch.arange(len(batch)) % 2 == 0)[:, None]
    dropped = replace(batch, mask=batch.mask & kept)
    wanted = torch.where(dropped.mask, policy.score(batch).log_probs, 0.0)
    torch.testing.assert_close(policy.score(dropped).log_probs, wanted, rtol=0, atol=case.exact)
    nothing = policy.score(replace(batch, mask=torch.zeros_like(batch.mask)), frozenset({Want.LOG_PROBS, Want.ENTROPY}))
    assert not nothing.log_probs.any() and not nothing.entropy.any()


# ---------------------------------------------------------------------- rows are alone in a batch


def test_batch_mates_and_order_change_nothing(policy: Policy, case: Case) -> None:
    together = policy.log_probs(case.rows)
    backwards = policy.log_probs(case.rows[::-1])[::-1]
    alone = [policy.log_probs([row])[0] for row in case.rows]
    for one, other, third in zip(together, backwards, alone, strict=True):
        assert (one - third).abs().max() <= max(case.exact, 1e-11)
        assert (other - third).abs().max() <= max(case.exact, 1e-11)


@pytest.mark.parametrize("budget", [1, 7, 40])
def test_how_a_batch_is_cut_changes_neither_log_probs_nor_gradients(budget: int, policy: Policy, case: Case) -> None:
    batch = policy.encode(sampled(policy, case))
    cuts = list(policy.cut(batch, budget))
    assert sorted(row for rows in cuts for row in rows) == list(range(len(batch)))
    assert all(len(rows) == 1 or policy.cost(batch.select(rows)) <= 3 * budget for rows in cuts)
    assert (score_all(policy, batch, budget) - policy.score(batch).log_probs).abs().max() <= max(case.exact, 1e-11)
    wanted = gradients(policy, batch, [list(range(len(batch)))])
    assert gap(gradients(policy, batch, cuts), wanted) <= 1e-9


def test_groups_that_are_to_stay_whole_are_never_parted(policy: Policy, case: Case) -> None:
    batch = policy.encode(sampled(policy, case))
    for rows in policy.cut(replace(batch, whole=True), 1):
        assert {int(group) for group in batch.groups[rows]} == {int(batch.groups[rows[0]])}
        assert len(rows) == int((batch.groups == batch.groups[rows[0]]).sum())


def test_weights_and_examples_stand_in_the_batch(policy: Policy, case: Case) -> None:
    rows = [replace(row, weight=0.5 + number) for number, row in enumerate(case.rows)]
    batch = policy.encode(rows)
    assert batch.columns["examples"].tolist() == list(range(len(rows)))
    for number in range(len(rows)):
        assert batch.weights[number][batch.mask[number]].tolist() == [0.5 + number] * int(batch.mask[number].sum())
    assert len(set(batch.groups.tolist())) == len(rows)


# ---------------------------------------------------------------------- nothing but the batch


def test_training_mode_scores_as_evaluation_mode(policy: Policy, case: Case) -> None:
    batch = policy.encode(case.rows)
    case.module(policy).train()
    training = policy.score(batch, frozenset({Want.LOG_PROBS, Want.ENTROPY}))
    case.module(policy).eval()
    evaluating = policy.score(batch, frozenset({Want.LOG_PROBS, Want.ENTROPY}))
    assert torch.equal(training.log_probs, evaluating.log_probs)
    assert torch.equal(training.entropy, evaluating.entropy)
    assert torch.equal(policy.score(batch).log_probs, evaluating.log_probs)


def test_noise_stands_in_the_batch_and_nowhere_else(policy: Policy, case: Case) -> None:
    batch = policy.encode(case.rows)
    clean = policy.score(batch).log_probs
    noisy = policy.perturb(batch, (1, 2))
    if noisy is batch:
        return
    found = policy.score(noisy).log_probs
    assert torch.equal(policy.score(noisy).log_probs, found)
    assert torch.equal(policy.score(policy.perturb(batch, (1, 2))).log_probs, found)
    assert not torch.equal(policy.score(policy.perturb(batch, (1, 3))).log_probs, found)
    assert not torch.equal(found, clean)
    assert torch.equal(policy.score(batch).log_probs, clean)
    rows = list(range(1, len(batch), 2))
    torch.testing.assert_close(policy.score(noisy.select(rows)).log_probs, found[rows], rtol=0, atol=1e-9)


def test_gradients_are_finite_differences(policy: Policy, case: Case) -> None:
    batch = policy.encode(case.rows[:5])
    parameters = [parameter for _, parameter in policy.candidates()]
    source = torch.Generator().manual_seed(4)
    # Not from where an adapter starts: half of it is zero there.
    start = [p.detach() + 0.05 * torch.randn(p.shape, generator=source, dtype=p.dtype) for p in parameters]
    direction = [torch.randn(p.shape, generator=source, dtype=p.dtype) for p in parameters]
    weights = torch.randn(batch.mask.shape, generator=source, dtype=torch.float64)

    def value(step: float) -> Tensor:
        for parameter, origin, towards in zip(parameters, start, direction, strict=True):
            parameter.data = origin + step * towards
        return (weights * torch.where(batch.mask, policy.score(batch).log_probs, 0.0)).sum()

    found = torch.autograd.grad(value(0.0), parameters, allow_unused=True)
    slope = sum(float((g * towards).sum()) for g, towards in zip(found, direction, strict=True) if g is not None)
    step = 1e-6
    with torch.no_grad():
        measured = float(value(step) - value(-step)) / (2 * step)
    assert measured == pytest.approx(slope, rel=1e-4, abs=1e-6)
    assert abs(slope) > 1e-3


# ---------------------------------------------------------------------- keeping


def test_a_saved_policy_comes_back_as_what_it_was(case: Case, folder_of: Callable[..., Path], tmp_path: Path) -> None:
    policy = case.make(folder_of, "float32")
    policy.save(tmp_path / "saved")
    loaded: Any = load_policy(tmp_path / "saved", device="cpu")
    assert loaded.kind == policy.kind and loaded.fingerprint() == policy.fingerprint()
    for one, other in zip(policy.log_probs(case.rows), loaded.log_probs(case.rows), strict=True):
        assert (one - other).abs().max() <= 1e-6
    records = sampled(policy, case)
    assert [r.decisions for r in sampled(loaded, case)] == [r.decisions for r in records]
    for record, found in zip(records, loaded.log_probs(records), strict=True):
        assert (found - torch.tensor(record.behavior_log_probs)).abs().max() <= 1e-5


def test_a_state_is_what_trains_and_comes_back(policy: Policy, case: Case) -> None:
    batch = policy.encode(case.rows)
    before = {name: tensor.clone() for name, tensor in policy.state().items()}
    assert set(before) == {name for name, parameter in policy.candidates() if parameter.requires_grad}
    clean = policy.score(batch).log_probs.detach()
    policy.load_state({name: tensor + 0.1 for name, tensor in before.items()})
    assert not torch.equal(policy.score(batch).log_probs, clean)
    policy.load_state(before)
    assert torch.equal(policy.score(batch).log_probs, clean)


def test_what_is_frozen_is_in_no_state_and_no_group(policy: Policy) -> None:
    names = [name for name, _ in policy.candidates()]
    grouped = [name for group in policy.parameter_groups(Rates(1.0)) for name in group.names]
    assert sorted(grouped) == sorted(names)
    frozen = names[0]
    pattern = "^" + frozen.replace(".", r"\.") + "$"
    assert policy.freeze({pattern: 0.0}) == {}
    assert frozen not in policy.state() and set(policy.state()) == set(names) - {frozen}
    grouped = [name for group in policy.parameter_groups(Rates(1.0, factors={names[1]: 0.5})) for name in group.names]
    assert sorted(grouped) == sorted(set(names) - {frozen})
    halved = [g for g in policy.parameter_groups(Rates(1.0, factors={names[1]: 0.5})) if g.learning_rate == 0.5]
    assert names[1] in {name for group in halved for name in group.names}
    with pytest.raises(ConfigError, match="matches no"):
        policy.freeze({"no such parameter": 0.0})
    policy.freeze({})
    assert set(policy.state()) == set(names)


def test_the_reference_stays_where_the_policy_began(policy: Policy, case: Case) -> None:
    batch = policy.encode(case.rows)
    start = policy.score(batch).log_probs.detach()
    fit(policy, Examples(policy, case.rows, batch_size=4), supervised(), FitConfig(steps=3, learning_rate=0.01))
    moved = policy.score(batch).log_probs.detach()
    assert (moved - start).abs().max() > 1e-3
    torch.testing.assert_close(policy.reference_log_probs(batch), start.double(), rtol=0, atol=1e-9)
    assert torch.equal(policy.score(batch).log_probs, moved)


def test_training_passes_are_counted_and_others_are_not(policy: Policy, case: Case) -> None:
    batch = policy.encode(case.rows)
    with torch.no_grad():
        policy.score(batch)
    before = dict(policy.computed)
    policy.score(batch)
    assert set(policy.computed) == set(before) and all(policy.computed[name] > before[name] for name in before)


# ---------------------------------------------------------------------- learning


@pytest.fixture
def learner(case: Case, folder_of: Callable[..., Path]) -> Policy:
    if case.learner is None:
        pytest.skip("tests/trainers has this for language models")
    return case.learner(folder_of)


def test_sft_learns_eight_rows_by_heart(case: Case, learner: Policy) -> None:
    rows = list(case.rows[:8])
    config = FitConfig(steps=100, learning_rate=case.learning_rate, schedule="linear")
    fit(learner, Examples(learner, rows, batch_size=8, epochs=100), supervised(), config)
    assert -sum(float(one.sum()) for one in learner.log_probs(rows)) / len(rows) < 0.05


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rft_finds_the_best_output_of_every_input(seed: int, case: Case, learner: Policy) -> None:
    """One output of each input earns 1, others the share of decisions they have in common with it."""
    if case.rft_elsewhere:
        pytest.skip(case.rft_elsewhere)
    inputs = inputs_of(case)
    outputs = [case.every(learner, one) for one in inputs]
    wanted = learner.encode([every[(3 * place + 1) % len(every)] for place, every in enumerate(outputs)])
    best = {id(one): decided for one, decided in zip(inputs, decisions_of(learner, wanted), strict=True)}

    def reward(record: Record) -> Score:
        right = [mine == meant for mine, meant in zip(record.decisions, best[id(record.inputs)], strict=True)]
        return Score(value=sum(right) / len(right))

    rollouts = Rollouts(learner, [Task(one) for one in inputs], Reward(reward), Sampling(n=32, seed=seed), seed=seed)
    config = FitConfig(steps=120, learning_rate=0.01, schedule="linear")
    fit(learner, rollouts, reinforcement(entropy=0.1), config)  # without the bonus it settles before it knows
    assert [reward(record).value for record in learner.sample(inputs, Sampling(temperature=0))] == [1.0] * len(inputs)


def decisions_of(policy: Policy, batch: Batch) -> list[tuple[int, ...]]:
    """The decisions of a batch's rows: the candidates whose log-probs are those of the rows."""
    scored = policy.score(batch, EVERYTHING)
    near = (scored.candidates - scored.log_probs[:, :, None]).abs().argmin(-1)
    return [tuple(ids[mask].tolist()) for ids, mask in zip(near, batch.mask, strict=True)]


@pytest.mark.parametrize("want", [{Want.CANDIDATES}, {Want.CANDIDATES, Want.LOG_PROBS}, set(Want)])
def test_candidates_at_given_ids_are_log_probs_of_those_decisions(policy: Policy, case: Case, want: set[Want]) -> None:
    """The likeliest are answered with the log-probs that `likeliest` gave them; the decided one with its own."""
    batch = policy.encode(list(case.rows[:4]))
    ids, log_probs = policy.likeliest(batch, 3)
    assert ids.shape == log_probs.shape == (*batch.mask.shape, 3)
    assert torch.equal(ids < 0, torch.isneginf(log_probs)) and bool((ids[~batch.mask] == -1).all())
    assert bool((log_probs[batch.mask][:, 0] >= log_probs[batch.mask][:, 1]).all())
    shuffled = batch.with_columns(candidate_ids=ids.flip(-1))
    found = policy.score(shuffled, frozenset(want))
    torch.testing.assert_close(
        found.candidates.detach().double().flip(-1)[batch.mask], log_probs.double()[batch.mask], rtol=0, atol=case.exact
    )
    parts = [shuffled.select([row]) for row in range(len(batch))]
    alone = torch.cat([policy.score(part, frozenset(want)).candidates[0] for part in parts])
    there = torch.cat([found.candidates[row][: int(batch.mask[row].sum())] for row in range(len(batch))])
    torch.testing.assert_close(alone, there, rtol=0, atol=1e-9 if case.exact < 1e-9 else 1e-5)


def test_candidates_share_the_gradient_of_the_decision(policy: Policy, case: Case) -> None:
    """A candidate that is the decision has its log-prob's gradient."""
    batch = policy.encode(list(case.rows[:3]))
    ids, _ = policy.likeliest(batch, 1)
    chosen = [parameter for _, parameter in policy.candidates() if parameter.requires_grad]
    asked = frozenset({Want.LOG_PROBS, Want.CANDIDATES})
    scored = policy.score(batch.with_columns(candidate_ids=ids), asked)
    same = (scored.candidates[:, :, 0] == scored.log_probs) & batch.mask.to(scored.log_probs.device)
    if not bool(same.any()):
        pytest.skip("none of the rows decides the likeliest")
    one = torch.autograd.grad(scored.log_probs[same].sum(), chosen, retain_graph=True, allow_unused=True)
    other = torch.autograd.grad(scored.candidates[:, :, 0][same].sum(), chosen, allow_unused=True)
    for mine, theirs in zip(one, other, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert (mine - theirs).abs().max() <= 1e-9
