"""slates: their chances, what combinations can say, two stages, bad requests; the common laws are in contracts"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from melior.errors import ConfigError, DataError, ModelError
from melior.policies.base import Want
from melior.policies.slate import SlatePolicy
from melior.policies.slate_network import Slate, plackett_luce
from melior.trainers.loop import FitConfig, fit
from melior.trainers.reinforcement import Rollouts, reinforcement
from melior.trainers.supervised import Examples, supervised
from melior.types import Demonstration, Interaction, Item, Record, Sampling, Score, SlateRequest, Task

KINDS = ("tent", "stove", "lamp")
ITEMS = [Item(f"i{n}", {"kind": KINDS[n % 3], "price": float(n)}) for n in range(6)]
REQUESTS = [
    SlateRequest(context={"age": 30.0 + n, "sex": "mf"[n % 2]}, viewed=f"i{n % 6}" if n % 3 else "", history=history)
    for n, history in enumerate(
        [
            (),
            (Interaction("i1", "purchase", 60.0),),
            (Interaction("i2", "click", None), Interaction("gone", "purchase", 3600.0)),
            (Interaction("i0", "click", 1e6), Interaction("i5", "click", 10.0), Interaction("i0", "purchase", 1.0)),
        ]
    )
]
DOUBLE: dict[str, Any] = {"positions": 3, "width": 8, "precision": "float64"}


def shaken(policy: SlatePolicy, seed: int = 0, size: float = 0.3) -> SlatePolicy:
    """The policy with every weight moved, so that nothing is silent."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=source, dtype=parameter.dtype))
    return policy


def made(items: Sequence[Item] = ITEMS, requests: Sequence[SlateRequest] = REQUESTS, **settings: Any) -> SlatePolicy:
    return shaken(SlatePolicy.make(Slate(**{**DOUBLE, **settings}), items, requests))


def chances(policy: SlatePolicy, request: SlateRequest, slates: Sequence[Sequence[str]]) -> Tensor:
    """The probability of each slate."""
    found = policy.log_probs([Demonstration(request, list(slate)) for slate in slates])
    return torch.stack([each.sum() for each in found]).exp()


def slates_of(items: Sequence[Item], positions: int = 3) -> list[tuple[str, ...]]:
    return list(itertools.permutations([item.id for item in items], positions))


# ------------------------------------------------------------------ probabilities


@pytest.mark.parametrize("settings", [{"combinations": False}, {}, {"shortlist": 4, "exploration": 0.1}])
@pytest.mark.parametrize("request_", REQUESTS)
def test_chances_of_all_ordered_slates_sum_to_one(settings: dict[str, Any], request_: SlateRequest) -> None:
    found = chances(made(**settings), request_, slates_of(ITEMS))
    assert len(found) == 120 and float(found.min()) > 0
    assert float(found.sum()) == pytest.approx(1, abs=1e-12)


def test_a_whole_catalogue_can_be_ordered() -> None:
    policy = made(ITEMS[:3])
    found = chances(policy, REQUESTS[3], slates_of(ITEMS[:3]))
    assert float(found.sum()) == pytest.approx(1, abs=1e-12)
    batch = policy.encode([Demonstration(REQUESTS[3], ["i1", "i0", "i2"])])
    scored = policy.score(batch, frozenset(Want))
    scored.log_probs.sum().backward()
    assert scored.entropy is not None and scored.entropy[0, 2].item() == 0
    assert all(torch.isfinite(p.grad).all() for p in policy.parameters() if p.grad is not None)


@given(
    scores=st.lists(st.floats(-20, 20), min_size=2, max_size=7),
    order=st.randoms(use_true_random=False),
    temperature=st.floats(0.1, 3),
)
def test_plackett_luce_is_the_textbook_formula(scores: list[float], order: Any, temperature: float) -> None:
    slate = order.sample(range(len(scores)), order.randint(1, len(scores)))
    weights = [math.exp(score / temperature) for score in scores]
    expected, left = [], sum(weights)
    for place in slate:
        expected.append(math.log(weights[place] / left))
        left = sum(weight for other, weight in enumerate(weights) if other not in slate[: len(expected)])
    padded = torch.tensor([[*slate, 0]])
    mask = torch.tensor([[True] * len(slate) + [False]])
    table = torch.tensor([scores], dtype=torch.float64) / temperature
    found = plackett_luce(table, padded, mask)[0]
    torch.testing.assert_close(found[:-1], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)
    assert float(found[-1]) == 0


def test_without_combinations_scores_do_not_depend_on_what_was_placed() -> None:
    batch_of = [Demonstration(REQUESTS[3], [first, "i5"]) for first in ("i0", "i1", "i2")]
    policy = made(combinations=False)
    odds = policy.score(policy.encode(batch_of), frozenset({Want.CANDIDATES})).candidates
    assert odds is not None
    torch.testing.assert_close(odds[:, 1, 3] - odds[:, 1, 4], (odds[:, 0, 3] - odds[:, 0, 4]))
    policy = made()
    odds = policy.score(policy.encode(batch_of), frozenset({Want.CANDIDATES})).candidates
    assert odds is not None
    second = odds[:, 1, 3] - odds[:, 1, 4]
    assert float((second - second[0]).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("settings", [{"combinations": False}, {}, {"shortlist": 4}])
def test_the_order_of_candidates_changes_nothing(settings: dict[str, Any]) -> None:
    policy = made(**settings)
    ids = [item.id for item in ITEMS]
    slates = slates_of(ITEMS)[::7]
    there = chances(policy, replace(REQUESTS[2], candidates=tuple(ids)), slates)
    back = chances(policy, replace(REQUESTS[2], candidates=tuple(reversed(ids))), slates)
    torch.testing.assert_close(there, back, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(there, chances(policy, REQUESTS[2], slates), rtol=1e-12, atol=1e-14)


def test_the_order_of_what_was_placed_matters() -> None:
    policy = made()
    odds = policy.score(
        policy.encode([Demonstration(REQUESTS[1], [*first, "i5"]) for first in (("i0", "i1"), ("i1", "i0"))]),
        frozenset({Want.CANDIDATES}),
    ).candidates
    assert odds is not None and float((odds[0, 2, 2:] - odds[1, 2, 2:]).detach().abs().max()) > 1e-6


def test_the_order_of_a_history_matters_and_its_end_is_what_is_read() -> None:
    entries = tuple(Interaction(f"i{n}", "click") for n in range(5))
    policy = made(history=2)
    slate = [("i0", "i1", "i2")]

    def chance(*history: Interaction) -> float:
        return float(chances(policy, SlateRequest(history=history), slate))

    assert chance(*entries) == chance(*entries[3:]) != chance(*reversed(entries[3:]))
    assert policy.noticed["history cut to its latest 2 entries"] == 1


# ------------------------------------------------------------------ sampling


@pytest.mark.parametrize("settings", [{"combinations": False}, {}, {"shortlist": 3, "exploration": 0.3}])
def test_samples_come_as_often_as_their_chances_say(settings: dict[str, Any]) -> None:
    policy = made(ITEMS[:4], positions=2, **{**settings, "shortlist": settings.get("shortlist", 256)})
    slates = slates_of(ITEMS[:4], 2)
    records = policy.sample(REQUESTS[:1], Sampling(n=4000, seed=3))
    expected = chances(policy, REQUESTS[0], slates) * len(records)
    counts = [sum(record.output == list(slate) for record in records) for slate in slates]
    squares = (torch.tensor(counts, dtype=torch.float64) - expected).square() / expected
    assert float(squares.sum()) < 31.3  # chi squared with 11 degrees of freedom: one in a thousand is above


@pytest.mark.parametrize("settings", [{"combinations": False}, {}, {"shortlist": 4, "exploration": 0.1}])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_behavior_log_probs_are_what_one_pass_says(settings: dict[str, Any], temperature: float) -> None:
    policy = made(**settings)
    records = policy.sample(REQUESTS, Sampling(n=20, temperature=temperature))
    for record, found in zip(records, policy.log_probs(records), strict=True):
        assert len(set(record.output)) == 3
        torch.testing.assert_close(found, torch.tensor(record.behavior_log_probs, dtype=torch.float64))


def test_greedy_slates_take_the_likeliest_item_and_have_no_propensity() -> None:
    policy = made()
    (record,) = policy.sample(REQUESTS[:1], Sampling(temperature=0))
    assert record.behavior_log_probs is None
    batch = policy.encode([record])
    scored = policy.score(batch, frozenset({Want.CANDIDATES}))
    assert scored.candidates is not None
    assert scored.candidates[0].argmax(1).tolist() == list(record.decisions or ())


def test_a_sample_is_a_function_of_seed_step_request_and_number() -> None:
    policy = made()
    alone = policy.sample([REQUESTS[2]], Sampling(n=3, seed=5), step=7)
    among = policy.sample([REQUESTS[0], REQUESTS[2], REQUESTS[1]], Sampling(n=3, seed=5), step=7)[3:6]
    assert [record.output for record in alone] == [record.output for record in among]
    again = policy.sample([REQUESTS[2], replace(REQUESTS[2])], Sampling(n=3, seed=5), step=7)
    assert [record.output for record in again[:3]] == [record.output for record in alone]
    longer = policy.sample([REQUESTS[2]], Sampling(n=6, seed=5), step=7)
    assert [record.output for record in again] == [record.output for record in longer]  # equal requests share numbers
    other = policy.sample([REQUESTS[2]], Sampling(n=30, seed=5), step=8)
    assert [r.output for r in other] != [r.output for r in policy.sample([REQUESTS[2]], Sampling(n=30, seed=5), step=7)]


def test_fewer_candidates_than_positions_make_a_shorter_slate() -> None:
    policy = made()
    few = SlateRequest(candidates=("i0", "i4"))
    records = policy.sample([few, REQUESTS[0]], Sampling(n=2))
    assert [len(record.output) for record in records] == [2, 2, 3, 3]
    assert policy.noticed["request with fewer than 3 candidates"] == 1
    for record, found in zip(records, policy.log_probs(records), strict=True):
        torch.testing.assert_close(found, torch.tensor(record.behavior_log_probs, dtype=torch.float64))


@pytest.mark.parametrize("settings", [Sampling(top_k=2), Sampling(top_p=0.9)])
def test_truncated_sampling_is_refused(settings: Sampling) -> None:
    with pytest.raises(ConfigError, match="keeps a propensity"):
        made().sample(REQUESTS, settings)


# ------------------------------------------------------------------ two stages


def by_hand(policy: SlatePolicy, request: SlateRequest, slate: Sequence[int]) -> list[float]:
    """The mixture's log-probs, item by item, from scores read off policies that have one stage."""
    one = SlatePolicy.make(replace(policy.config, shortlist=256), ITEMS, REQUESTS)
    one.network.load_state_dict(policy.network.state_dict())
    plain = SlatePolicy.make(replace(policy.config, combinations=False), ITEMS, REQUESTS)
    plain.network.load_state_dict(policy.network.state_dict(), strict=False)
    ids = [item.id for item in ITEMS]

    def scores(of: SlatePolicy, placed: Sequence[int]) -> Tensor:
        """Log-probs of the free items, which differ from their scores by a constant."""
        free = next(n for n in range(len(ids)) if n not in placed)
        batch = of.encode([Demonstration(request, [ids[n] for n in [*placed, free]])])
        found = of.score(batch, frozenset({Want.CANDIDATES})).candidates
        assert found is not None
        return found[0, len(placed)].detach()

    first = scores(plain, [])
    shortlist = first.topk(policy.config.shortlist).indices.tolist()
    share, told = policy.config.exploration, []
    for position, item in enumerate(slate):
        free = [n for n in range(len(ids)) if n not in slate[:position]]
        second = scores(one, slate[:position]).exp()
        below = sum(float(second[n]) for n in free if n in shortlist)
        chance = (1 - share) * float(second[item]) / below if item in shortlist else 0.0
        chance += share * float(first[item].exp()) / sum(float(first[n].exp()) for n in free)
        told.append(math.log(chance))
    return told


@pytest.mark.parametrize("slate", [(0, 1, 2), (5, 4, 3), (2, 5, 0), (3, 1, 4)])
def test_two_stages_are_the_mixture_they_say(slate: tuple[int, ...]) -> None:
    policy = made(shortlist=3, exploration=0.1)
    (found,) = policy.log_probs([Demonstration(REQUESTS[3], [ITEMS[n].id for n in slate])])
    expected = torch.tensor(by_hand(policy, REQUESTS[3], slate), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_first_stage_learns_of_items_it_left_out() -> None:
    """A demonstrated item that no shortlist holds enters it, though the shortlist's edge has no gradient."""
    items = [Item(f"i{n}") for n in range(40)]
    rows = [Demonstration(SlateRequest(viewed=f"i{n}"), [f"i{39 - n}"]) for n in range(8)]
    policy = SlatePolicy.make(Slate(positions=1, shortlist=4, width=32, hidden=0.0), items, [r.inputs for r in rows])

    def held() -> int:
        found = policy.score(policy.encode(rows), frozenset({Want.CANDIDATES})).log_probs.exp()
        return int((found > policy.config.exploration).sum())  # beyond what the first stage alone can give

    before = held()
    fit(policy, Examples(policy, rows, batch_size=8, epochs=150), supervised(), FitConfig(learning_rate=1e-2))
    assert before < 8 and held() == 8


def test_ten_thousand_candidates_are_sampled_with_exact_log_probs() -> None:
    items = [Item(f"i{n}", {"price": float(n % 97), "kind": str(n % 31)}) for n in range(10_000)]
    policy = made(items, REQUESTS, positions=5, shortlist=256)
    records = policy.sample(REQUESTS, Sampling(n=2, temperature=1.5))
    batch = policy.encode(records)
    scored = policy.score(batch, frozenset({Want.CANDIDATES}))
    assert scored.candidates is not None
    torch.testing.assert_close(scored.candidates.exp().sum(2), torch.ones(8, 5, dtype=torch.float64))
    for record, found in zip(records, scored.log_probs, strict=True):
        torch.testing.assert_close(found, torch.tensor(record.behavior_log_probs, dtype=torch.float64))
    assert policy.cost(batch) == 8 * (10_000 + 5 * 256)


# ------------------------------------------------------------------ learning


SHOP = [Item(name) for name in ("tent", "stove", "lamp", "mug")]
PAIRS = slates_of(SHOP, 2)
ANYBODY = SlateRequest()


def points(slate: Sequence[str]) -> float:
    """Alone the tent earns most; the stove and the lamp earn more together than any slate with a tent."""
    alone = {"tent": 1.0, "stove": 0.6, "lamp": 0.6, "mug": 0.5}
    return sum(alone[item] for item in slate) + (2.0 if {"stove", "lamp"} <= set(slate) else 0.0)


def expected(policy: SlatePolicy, earned: Tensor, heat: float) -> Tensor:
    """The policy's expected reward plus `heat` times its entropy, exactly, over all slates."""
    batch = policy.encode([Demonstration(ANYBODY, list(slate)) for slate in PAIRS])
    told = policy.score(batch).log_probs.sum(1)
    return (told.exp() * (earned - heat * told)).sum()


def test_combinations_reach_an_optimum_that_plackett_luce_cannot() -> None:
    """Two pairs are worth something, each in one order: the best policy shows both, and mixes no item of one with one
    of the other. Its value is known: heat · log Σ exp(reward / heat)."""
    heat = 0.3
    earned = torch.tensor(
        [float(slate in {("tent", "mug"), ("stove", "lamp")}) for slate in PAIRS], dtype=torch.float64
    )
    best = heat * float((earned / heat).logsumexp(0))
    reached = {}
    for combinations in (True, False):
        policy = SlatePolicy.make(Slate(**{**DOUBLE, "positions": 2, "combinations": combinations}), SHOP, [ANYBODY])
        optimizer = torch.optim.Adam(list(policy.parameters()), lr=0.05)
        for _ in range(150):
            optimizer.zero_grad()
            (-expected(policy, earned, heat)).backward()
            optimizer.step()
        reached[combinations] = expected(policy, earned, heat).item()
    assert best - 0.002 < reached[True] < best
    assert reached[False] < best - 0.2


@pytest.mark.parametrize("seed", range(5))
def test_reinforcement_reaches_the_best_slate(seed: int) -> None:
    """The pair, where ranking by what each item earns alone would show the tent."""

    class Points:
        name = "points"

        def grade(self, records: Sequence[Record]) -> list[Score]:
            return [Score(value=points(record.output)) for record in records]

    policy = SlatePolicy.make(Slate(positions=2, width=16), SHOP, [ANYBODY], seed=seed)
    steps = Rollouts(policy, [Task(ANYBODY)], Points(), Sampling(n=32, seed=seed), seed=seed)
    fit(policy, steps, reinforcement(length=2), FitConfig(steps=60, learning_rate=2e-2))
    assert set(policy.sample([ANYBODY], Sampling(temperature=0))[0].output) == {"stove", "lamp"}
    earned = torch.tensor([points(slate) for slate in PAIRS], dtype=torch.float64)
    assert expected(policy, earned, heat=0.0).item() > 0.95 * 3.2


def test_demonstrations_are_learnt_by_context_viewed_item_and_history() -> None:
    rows = [
        Demonstration(SlateRequest(context={"sex": sex}, viewed=viewed, history=history), slate)
        for sex, viewed, history, slate in [
            ("m", "", (), ["i0", "i1", "i2"]),
            ("f", "", (), ["i1", "i2", "i0"]),
            ("m", "i0", (), ["i3", "i4", "i5"]),
            ("m", "i1", (), ["i5", "i4", "i3"]),
            ("f", "", (Interaction("i0", "click"),), ["i4", "i2", "i3"]),
            ("f", "", (Interaction("i0", "purchase"),), ["i2", "i4", "i3"]),
            ("f", "", (Interaction("i0", "click"), Interaction("i1", "click")), ["i5", "i0", "i2"]),
            ("f", "", (Interaction("i1", "click"), Interaction("i0", "click")), ["i2", "i0", "i5"]),
        ]
    ]
    policy = SlatePolicy.make(Slate(positions=3, width=32, hidden=0.0), ITEMS, [row.inputs for row in rows])
    run = fit(policy, Examples(policy, rows, batch_size=8, epochs=200), supervised(), FitConfig(learning_rate=2e-2))
    assert run.last("loss") < 0.01


# ------------------------------------------------------------------ unknown, unseen and wrong


def test_an_unseen_item_is_read_by_its_features() -> None:
    policy = made()
    new = SlateRequest(candidates=("i0", "i1", Item("new", {"kind": "tent", "price": 3.0}), Item("i9", {"price": 9e9})))
    found = chances(policy, new, list(itertools.permutations(("i0", "i1", "new", "i9"), 3)))
    assert float(found.sum()) == pytest.approx(1, abs=1e-12)
    twins = SlateRequest(candidates=(*(Item(n, ITEMS[2].features) for n in ("a", "b")), "i5"))
    one, other = chances(policy, twins, [("a", "i5", "b"), ("b", "i5", "a")])
    assert float(one) == pytest.approx(float(other), rel=1e-12)  # nothing tells them apart
    assert policy.noticed["candidates: new item, of an id unseen in training"] == 4


def test_another_catalogue_keeps_what_was_learnt_of_ids() -> None:
    policy = made()
    told = chances(policy, SlateRequest(candidates=("i1", "i3", "i5")), [("i1", "i3", "i5")])
    policy.restock([ITEMS[5], ITEMS[3], Item("new", {"kind": "lamp"}), ITEMS[1]])
    torch.testing.assert_close(
        chances(policy, SlateRequest(candidates=("i1", "i3", "i5")), [("i1", "i3", "i5")]), told, rtol=1e-12, atol=0
    )
    assert {item for record in policy.sample([ANYBODY], Sampling(n=50)) for item in record.output} == {
        "i5", "i3", "i1", "new"
    }  # fmt: skip


def test_what_is_unknown_is_noticed() -> None:
    policy = made()
    policy.log_probs(
        [
            Demonstration(
                SlateRequest(
                    context={"age": None, "sex": "x"},
                    viewed="gone",
                    history=(Interaction("lost", "stare"),),
                    candidates=("i0", "who"),
                ),
                ["who"],
            )
        ]
    )
    told = {
        "contexts: unknown category in column sex",
        "viewed: item not in the catalogue",
        "history: item not in the catalogue",
        "candidates: item not in the catalogue",
        "interaction of an unknown type",
        "request with fewer than 3 candidates",
    }
    assert told <= policy.noticed.keys()


@pytest.mark.parametrize(
    ("request_", "slate", "told"),
    [
        (SlateRequest(candidates=()), ["i0"], "0 candidates"),
        (SlateRequest(candidates=("i0", "i1", "i0")), ["i0"], "'i0' twice"),
        (SlateRequest(), ["i0", "i0"], "an item twice"),
        (SlateRequest(), [], "0 items"),
        (SlateRequest(), ["i0", "i1", "i2", "i3"], "4 items"),
        (SlateRequest(), ["i9"], "'i9', which is none of its 6 candidates"),
        (SlateRequest(candidates=("i1", "i2")), ["i0"], "none of its 2 candidates"),
        (SlateRequest(), "i0", "a list of item ids"),
        (SlateRequest(history=(Interaction("i0", age_s=-1.0),)), ["i0"], "negative"),
        (SlateRequest(context={"age": math.inf, "sex": "m"}), ["i0"], "age"),
        ("hello", ["i0"], "SlateRequest"),
    ],
)
def test_what_cannot_be_read_says_so(request_: Any, slate: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        made().encode([Demonstration(request_, slate)])


def test_catalogues_and_settings_that_cannot_be() -> None:
    with pytest.raises(DataError, match="'i0' twice"):
        SlatePolicy.make(Slate(), [ITEMS[0], ITEMS[0]], REQUESTS)
    with pytest.raises(DataError, match="0 items"):
        SlatePolicy.make(Slate(), [], REQUESTS)
    with pytest.raises(ConfigError, match="cannot fill 5 positions"):
        SlatePolicy.make(Slate(shortlist=4), ITEMS, REQUESTS)


def test_a_catalogue_may_come_with_the_requests() -> None:
    requests = [SlateRequest(candidates=(ITEMS[0], ITEMS[n])) for n in range(1, 6)]
    assert {item.id for item in SlatePolicy.make(Slate(), [], requests).catalogue} == {item.id for item in ITEMS}


def test_items_and_requests_without_a_feature() -> None:
    policy = made([Item("a"), Item("b"), Item("c")], [SlateRequest()], positions=2)
    found = chances(policy, SlateRequest(), slates_of(policy.catalogue, 2))
    assert float(found.sum()) == pytest.approx(1, abs=1e-12)


# ------------------------------------------------------------------ batches


def test_what_is_hidden_stands_in_the_batch() -> None:
    policy = made(hidden=0.5)
    batch = policy.encode(policy.sample(REQUESTS, Sampling(n=3)))
    shown = policy.perturb(batch, (0, 1))
    assert not torch.equal(policy.score(batch).log_probs, policy.score(shown).log_probs)
    assert torch.equal(policy.score(shown).log_probs, policy.score(policy.perturb(batch, (0, 1))).log_probs)
    assert not torch.equal(policy.score(shown).log_probs, policy.score(policy.perturb(batch, (0, 2))).log_probs)
    part = shown.select([7, 2])
    torch.testing.assert_close(policy.score(part).log_probs, policy.score(shown).log_probs[[7, 2]])


def test_rows_of_several_encodings_are_scored_together() -> None:
    policy = made()
    records = policy.sample(REQUESTS, Sampling(n=2))
    whole, first, second = policy.encode(records), policy.encode(records[:3]), policy.encode(records[3:])
    mixed = replace(whole, inputs=[*first.inputs, *second.inputs], outputs=[*first.outputs, *second.outputs])
    torch.testing.assert_close(policy.score(mixed).log_probs, policy.score(whole).log_probs)


def test_vectors_kept_while_serving_follow_the_weights() -> None:
    policy = made()
    rows = [Demonstration(REQUESTS[0], ["i0", "i1", "i2"])]
    before = policy.log_probs(rows)[0]
    fit(policy, Examples(policy, rows, epochs=2), supervised(), FitConfig(learning_rate=0.1))
    after = policy.log_probs(rows)[0]
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, policy.score(policy.encode(rows)).log_probs[0].detach())


def test_a_folder_that_holds_no_slate_policy(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no policy\.json"):
        SlatePolicy.load(tmp_path)


def test_equal_items_are_shortlisted_alike_whatever_stands_in_the_batch() -> None:
    """Up to a hundred candidates that are all alike, of which eight fit on the shortlist."""
    policy = made(shortlist=8, precision="float32")
    policy.restock([*ITEMS, *(Item(f"new {n}", {"kind": "tent", "price": 2.0}) for n in range(2000))])
    few = tuple(f"new {n}" for n in range(100, 200))
    asked = [replace(REQUESTS[n % 4], candidates=few[: 40 + 20 * (n % 4)]) for n in range(7)]
    records = policy.sample([*asked, REQUESTS[0]], Sampling(n=8))[:-8]  # the last one has 2006 candidates
    together = policy.log_probs(records)
    for record, found in zip(records, together, strict=True):
        (alone,) = policy.log_probs([record])
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-3)  # on the shortlist or not is 7 nats
        torch.testing.assert_close(found, torch.tensor(record.behavior_log_probs).double(), rtol=0, atol=1e-3)


def test_policies_that_began_otherwise_say_so() -> None:
    """A run goes on only from the weights it began with: its frozen ones and its reference are in no checkpoint."""
    first, again, other = (SlatePolicy.make(Slate(**DOUBLE), ITEMS, REQUESTS, seed=seed) for seed in (0, 0, 1))
    assert first.fingerprint() == other.fingerprint()
    assert first.origin == again.origin != other.origin


def test_numbers_of_numpy_are_kept_and_a_broken_folder_is_told(tmp_path: Path) -> None:
    items = [Item(f"item {i}", {"price": np.float64(i), "stock": np.int64(i), "colour": "red"}) for i in range(4)]
    policy = SlatePolicy.make(Slate(positions=2, width=8), items, [SlateRequest({"hour": np.float32(3)})])
    policy.save(tmp_path / "kept")
    assert SlatePolicy.load(tmp_path / "kept").catalogue == policy.catalogue
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "policy.json").write_text("{")
    with pytest.raises(ModelError, match="does not say what kind of policy"):
        SlatePolicy.load(broken)
