"""what another policy would have earned: against enumeration, against obp, and against the truth in simulation"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from melior.errors import ConfigError, DataError, ShapeError
from melior.off_policy import (
    cascade_doubly_robust,
    clipped,
    direct_method,
    doubly_robust,
    effective_sample_size,
    ips,
    output_weights,
    overlap,
    prefix_weights,
    pseudo_inverse_weights,
    self_normalized_doubly_robust,
    shrunk,
    slate_gram,
    slate_ips,
    slate_marginals,
    slate_snips,
    snips,
    switched,
    uniform_gram,
    unsupported_share,
)
from melior.statistics import mean_interval

GOLDEN = json.loads((Path(__file__).parent / "golden" / "obp.json").read_text())
DATA = Path(os.environ.get("MELIOR_DATA", Path(__file__).parents[1] / "../shared/data")) / "obd_small"


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- the obp package, on the Open Bandit sample


def logged(name: str) -> dict[str, Tensor]:
    path = DATA / f"{name}.csv.gz"
    if not path.is_file():
        pytest.skip(f"no Open Bandit sample at {path}; set MELIOR_DATA")
    with gzip.open(path, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        "item": torch.tensor([int(row["item_id"]) for row in rows]),
        "position": torch.tensor([int(row["position"]) - 1 for row in rows]),
        "reward": torch.tensor([float(row["click"]) for row in rows], dtype=torch.float64),
        "propensity": torch.tensor([float(row["propensity_score"]) for row in rows], dtype=torch.float64),
    }


def target(items: int = 80, positions: int = 3) -> Tensor:  # [A, P]
    item, position = torch.arange(items)[:, None], torch.arange(positions)[None, :]
    return torch.softmax(torch.sin(item.double() * (1.0 + position.double())), 0)


def click_rates(log: dict[str, Tensor]) -> Tensor:  # [A, P]
    shown, clicked = torch.zeros(80, 3, dtype=torch.float64), torch.zeros(80, 3, dtype=torch.float64)
    place = (log["item"], log["position"])
    shown.index_put_(place, torch.ones_like(log["reward"]), accumulate=True)
    clicked.index_put_(place, log["reward"], accumulate=True)
    return (clicked + 1) / (shown + 200)


@pytest.mark.parametrize("name", ["random_all", "bts_all"])
def test_estimates_of_single_decisions_agree_with_obp(name: str) -> None:
    log, golden = logged(name), GOLDEN[name]
    assert (len(log["reward"]), int(log["reward"].sum())) == (golden["rows"], golden["clicks"])
    policy, model = target(), click_rates(log)
    chance = policy[log["item"], log["position"]]
    weights = output_weights(*(x.log()[:, None] for x in (chance, log["propensity"])), torch.ones(len(chance), 1) > 0)
    predicted, expected = model[log["item"], log["position"]], (policy * model).sum(0)[log["position"]]
    reward = log["reward"]
    found = {
        "ips": ips(reward, weights),
        "snips": snips(reward, weights),
        "dm": direct_method(expected),
        "dr": doubly_robust(reward, weights, predicted, expected),
        "sndr": self_normalized_doubly_robust(reward, weights, predicted, expected),
        "switch_dr": doubly_robust(reward, switched(weights, limit=GOLDEN["switch"]), predicted, expected),
        "dr_shrinkage": doubly_robust(reward, shrunk(weights, strength=GOLDEN["shrinkage"]), predicted, expected),
    }
    assert found.keys() == golden["single"].keys()
    for estimator, contributions in found.items():
        assert float(contributions.mean()) == pytest.approx(golden["single"][estimator], abs=1e-9), estimator


@pytest.mark.parametrize("name", ["random_all", "bts_all"])
def test_estimates_of_slates_agree_with_obp(name: str) -> None:
    log, golden = logged(name), GOLDEN[name]["slates"]
    places = [(log["position"] == position).nonzero()[:, 0] for position in range(3)]
    rows = torch.stack([place[: min(map(len, places))] for place in places], 1)  # [S, P]
    behavior, reward = log["propensity"][rows].log(), log["reward"][rows]
    chances = target()[log["item"][rows], log["position"][rows]].log()
    mask = torch.ones_like(reward) > 0
    weights = {
        "standard": output_weights(chances, behavior, mask)[:, None].expand_as(reward),
        "cascade": prefix_weights(chances, behavior, mask),
        "independent": (chances - behavior).exp(),
    }
    for estimator, each in weights.items():
        assert float(slate_ips(reward, each, mask).mean()) == pytest.approx(golden[estimator], abs=1e-9), estimator


# ---------------------------------------------------------------- exact expectations over all slates

ITEMS, POSITIONS = 4, 2
SLATES = torch.tensor(list(itertools.permutations(range(ITEMS), POSITIONS)))  # [S, T]
MASK = torch.ones(SLATES.shape, dtype=torch.bool)


class Slates:
    """A distribution over all slates: any, or that of a Plackett–Luce sampler."""

    def __init__(self, seed: int) -> None:
        self.chances = torch.softmax(draw(len(SLATES), seed=seed), 0)  # [S]
        first = torch.stack([self.chances[SLATES[:, 0] == item].sum() for item in SLATES[:, 0]])
        self.log_probs = torch.stack([first.log(), (self.chances / first).log()], 1)  # [S, T] given what is before

    def value(self, rewards: Tensor) -> float:
        return float((self.chances[:, None] * rewards).sum())


LOGGING, POLICY = Slates(1), Slates(2)
OUTPUT = output_weights(POLICY.log_probs, LOGGING.log_probs, MASK)
PREFIX = prefix_weights(POLICY.log_probs, LOGGING.log_probs, MASK)
ANY = draw(len(SLATES), POSITIONS, seed=3).abs()  # a reward that depends on the whole slate
CASCADE = torch.stack([draw(ITEMS, seed=4)[SLATES[:, 0]], draw(ITEMS, ITEMS, seed=5)[SLATES[:, 0], SLATES[:, 1]]], 1)
OWN = draw(POSITIONS, ITEMS, seed=6)[torch.arange(POSITIONS), SLATES]  # depends on position and item alone


def expectation(contributions: Tensor) -> float:
    """Under the logging policy, exactly."""
    return float((LOGGING.chances * contributions).sum())


def marginals(slates: Slates) -> Tensor:  # [T, K]
    return slate_marginals(SLATES, slates.chances, ITEMS)


def independent() -> Tensor:  # [S, T]
    ratios = marginals(POLICY) / marginals(LOGGING)
    return ratios[torch.arange(POSITIONS), SLATES]


def test_weights_of_outputs_are_ratios_of_their_probabilities() -> None:
    torch.testing.assert_close(OUTPUT, POLICY.chances / LOGGING.chances)
    torch.testing.assert_close(PREFIX[:, -1], OUTPUT)
    assert expectation(OUTPUT) == pytest.approx(1, abs=1e-12) == expectation(PREFIX[:, 0])


@pytest.mark.parametrize("rewards", [ANY, CASCADE, OWN], ids=["any", "cascade", "own"])
def test_inverse_propensities_are_unbiased_for_any_reward(rewards: Tensor) -> None:
    assert expectation(ips(rewards.sum(1), OUTPUT)) == pytest.approx(POLICY.value(rewards), abs=1e-12)
    whole = OUTPUT[:, None].expand_as(rewards)
    assert expectation(slate_ips(rewards, whole, MASK)) == pytest.approx(POLICY.value(rewards), abs=1e-12)


def test_each_slate_estimator_is_unbiased_exactly_under_its_assumption() -> None:
    for weights, right, wrong in [(PREFIX, (CASCADE, OWN), ANY), (independent(), (OWN,), CASCADE)]:
        for rewards in right:
            assert expectation(slate_ips(rewards, weights, MASK)) == pytest.approx(POLICY.value(rewards), abs=1e-12)
        assert abs(expectation(slate_ips(wrong, weights, MASK)) - POLICY.value(wrong)) > 0.01


def test_the_pseudo_inverse_is_unbiased_for_sums_over_positions_whatever_logs() -> None:
    gram = slate_gram(SLATES, LOGGING.chances, ITEMS)
    weights = pseudo_inverse_weights(SLATES, marginals(POLICY).expand(len(SLATES), -1, -1), gram)
    assert expectation(ips(OWN.sum(1), weights)) == pytest.approx(POLICY.value(OWN), abs=1e-10)
    assert abs(expectation(ips(ANY.sum(1), weights)) - POLICY.value(ANY)) > 0.01


def test_the_gram_of_uniform_slates_has_a_closed_form() -> None:
    even = torch.full((len(SLATES),), 1 / len(SLATES), dtype=torch.float64)
    torch.testing.assert_close(uniform_gram(POSITIONS, ITEMS), slate_gram(SLATES, even, ITEMS))
    torch.testing.assert_close(uniform_gram(1, 1), torch.ones(1, 1, dtype=torch.float64))
    with pytest.raises(ConfigError, match="at most 4 positions here, not 5"):
        uniform_gram(5, 4)


def test_with_one_position_the_pseudo_inverse_is_the_ratio() -> None:
    chances, propensities = torch.softmax(draw(5, seed=7), 0), torch.softmax(draw(5, seed=8), 0)
    slates = torch.arange(5)[:, None]
    gram = slate_gram(slates, propensities, 5)
    weights = pseudo_inverse_weights(slates, chances.expand(5, 1, 5), gram)
    torch.testing.assert_close(weights, chances / propensities)


def test_a_gram_per_row_may_differ() -> None:
    gram = slate_gram(SLATES, LOGGING.chances, ITEMS)
    wanted = marginals(POLICY).expand(len(SLATES), -1, -1)
    torch.testing.assert_close(
        pseudo_inverse_weights(SLATES, wanted, gram.expand(len(SLATES), -1, -1)),
        pseudo_inverse_weights(SLATES, wanted, gram),
    )


def test_doubly_robust_is_right_where_weights_or_model_are() -> None:
    rewards = ANY.sum(1)
    value, wrong = POLICY.value(ANY), draw(len(SLATES), seed=9)
    told = (POLICY.chances * wrong).sum().expand_as(wrong)
    assert expectation(doubly_robust(rewards, OUTPUT, wrong, told)) == pytest.approx(value, abs=1e-12)
    exact = (POLICY.chances * rewards).sum().expand_as(rewards)
    for weights in (wrong.abs(), clipped(OUTPUT, limit=0.5), shrunk(OUTPUT, strength=0.1), switched(OUTPUT, limit=1.0)):
        assert expectation(doubly_robust(rewards, weights, rewards, exact)) == pytest.approx(value, abs=1e-12)
        assert abs(expectation(doubly_robust(rewards, weights, wrong, told)) - value) > 1e-3


def test_cascade_doubly_robust_is_unbiased_whatever_the_model_and_sharp_where_it_is_right() -> None:
    second = (SLATES[:, :1] == SLATES[:, 0]).double() * POLICY.chances  # [S, S'] joint of slates with the same first
    given_first = second / second.sum(1, keepdim=True)

    def expected(model: Tensor) -> Tensor:  # [S, T]
        first = (POLICY.chances * model[:, 0]).sum().expand(len(SLATES))
        return torch.stack([first, given_first @ model[:, 1]], 1)

    anything = draw(len(SLATES), POSITIONS, seed=10)
    anything[:, 0] = draw(ITEMS, seed=11)[SLATES[:, 0]]  # a model at a position knows nothing of what comes behind
    for rewards, model in [(CASCADE, anything), (CASCADE, CASCADE), (CASCADE, torch.zeros_like(CASCADE))]:
        rows = cascade_doubly_robust(rewards, PREFIX, model, expected(model), MASK)
        assert expectation(rows) == pytest.approx(POLICY.value(rewards), abs=1e-12)
    plain = slate_ips(CASCADE, PREFIX, MASK)
    sharp = cascade_doubly_robust(CASCADE, PREFIX, CASCADE, expected(CASCADE), MASK)
    assert expectation((sharp - expectation(sharp)) ** 2) < 0.5 * expectation((plain - expectation(plain)) ** 2)


# ---------------------------------------------------------------- laws of weights and of self-normalisation

WEIGHTS = st.lists(st.floats(0, 50), min_size=2, max_size=20).filter(lambda found: sum(found) > 1e-3)


@given(WEIGHTS, st.floats(-5, 5))
def test_adding_to_every_reward_adds_to_a_self_normalised_estimate(weights: list[float], shift: float) -> None:
    w = torch.tensor(weights, dtype=torch.float64)
    rewards = torch.linspace(-1, 2, len(w), dtype=torch.float64)
    rows = snips(rewards, w)
    assert float(rows.mean()) == pytest.approx(float((w * rewards).sum() / w.sum()), abs=1e-9)
    assert float(snips(rewards + shift, w).mean()) == pytest.approx(float(rows.mean()) + shift, abs=1e-8)
    assert float(rows.mean()) <= 2 + 1e-9 and float(rows.mean()) >= -1 - 1e-9  # never outside the rewards


def test_slates_of_several_lengths_count_the_positions_they_have() -> None:
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    rewards = torch.tensor([[1.0, 4.0], [2.0, 99.0], [3.0, 8.0]], dtype=torch.float64)
    even = torch.ones(3, 2, dtype=torch.float64)
    for estimate in (slate_ips, slate_snips):
        assert float(estimate(rewards, even, mask).mean()) == pytest.approx(2 + (4 + 8) / 3)


def test_weights_do_not_see_what_is_masked() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    ours, theirs = -draw(2, 3).abs(), -draw(2, 3, seed=1).abs()
    clean = output_weights(ours, theirs, mask)
    dirty = output_weights(ours.masked_fill(~mask, math.nan), theirs.masked_fill(~mask, -math.inf), mask)
    assert torch.equal(clean, dirty)
    assert torch.equal(prefix_weights(ours, theirs, mask)[:, -1], clean)


def test_what_the_policy_never_decides_weighs_nothing() -> None:
    ours = torch.tensor([[-1.0, -math.inf, -1.0]], dtype=torch.float64)
    weights = prefix_weights(ours, torch.full((1, 3), -1.0, dtype=torch.float64), torch.ones(1, 3) > 0)
    assert weights.tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("propensity", [-math.inf, math.nan, 0.7])
def test_propensities_that_are_none_are_refused_with_their_number(propensity: float) -> None:
    recorded = torch.full((3, 2), -1.0, dtype=torch.float64)
    recorded[1, 1] = propensity
    with pytest.raises(DataError, match="1 of 6 logged decisions"):
        output_weights(torch.zeros(3, 2, dtype=torch.float64), recorded, torch.ones(3, 2) > 0)


@given(st.floats(0, 1e4), st.floats(0.01, 1e6))
def test_shrinking_never_raises_a_weight_and_keeps_half_the_root(weight: float, strength: float) -> None:
    found = float(shrunk(torch.tensor([weight], dtype=torch.float64), strength=strength))
    assert 0 <= found <= min(weight, math.sqrt(strength) / 2) * (1 + 1e-9)


def test_shrinkage_goes_from_the_direct_method_to_plain_doubly_robust() -> None:
    weights, rewards, predicted = draw(50, seed=1).abs() * 5, draw(50, seed=2), draw(50, seed=3)
    expected = draw(50, seed=4)
    none, all_of_it = shrunk(weights, strength=1e-12), shrunk(weights, strength=1e12)
    torch.testing.assert_close(doubly_robust(rewards, none, predicted, expected), expected, atol=1e-9, rtol=0)
    plain = doubly_robust(rewards, weights, predicted, expected)
    torch.testing.assert_close(doubly_robust(rewards, all_of_it, predicted, expected), plain, atol=1e-6, rtol=0)


@given(WEIGHTS)
def test_effective_rows_lie_between_one_and_all(weights: list[float]) -> None:
    found = effective_sample_size(torch.tensor(weights, dtype=torch.float64))
    assert 1 - 1e-9 <= found <= len(weights) + 1e-9
    assert effective_sample_size(torch.full((7,), 0.3)) == pytest.approx(7)


def test_overlap_says_what_is_wrong_and_nothing_where_all_is_well() -> None:
    assert overlap(torch.ones(500)).warnings() == []
    rounded = 1 - 1e-6 * torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert overlap(rounded).warnings() == []  # the logging policy itself, whose log-probs were rounded
    lone = torch.zeros(500, dtype=torch.float64)
    lone[3], lone[4] = 250.0, 250.0
    told = overlap(lone)
    assert (told.effective, told.unused, told.dominant) == (2.0, 498, 0.5)
    for key in ("as much as 2 rows", "50% of the weight"):
        assert any(key in line for line in told.warnings())
    unsupported = overlap(torch.full((500,), 0.6) + 0.01 * draw(500))
    assert unsupported.missing == pytest.approx(0.4, abs=0.01)
    assert any("decides what was never logged" in line for line in unsupported.warnings())
    assert any("propensities that are too low" in line for line in overlap(torch.full((500,), 1.4)).warnings())
    assert overlap(torch.zeros(0)).effective == 0
    rare = torch.zeros(500)
    rare[:20] = 1.0
    found = overlap(torch.ones(500), rare)
    assert found.rewarded == pytest.approx(20) and any("what 20 rows earned" in line for line in found.warnings())


def test_unsupported_probability_is_what_lies_where_nothing_is_logged() -> None:
    found = unsupported_share(torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.9, 0.0, 0.1]]))
    assert found.tolist() == pytest.approx([0.3])


def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(DataError, match="all 3 weights are 0"):
        snips(torch.ones(3), torch.zeros(3))
    with pytest.raises(DataError, match="all 3 weights at position 1 are 0"):
        slate_snips(torch.ones(3, 2), torch.tensor([[1.0, 0.0]] * 3), torch.ones(3, 2) > 0)
    with pytest.raises(ShapeError, match=r"\(2,\)"):
        ips(torch.ones(3), torch.ones(2))
    with pytest.raises(ShapeError, match="do not fit"):
        pseudo_inverse_weights(SLATES, marginals(POLICY).expand(len(SLATES), -1, -1), torch.eye(3))
    for change in (clipped, switched):
        with pytest.raises(ConfigError, match="limit must be above 0, got 0"):
            change(torch.ones(2), limit=0)
    with pytest.raises(ConfigError, match="strength must be above 0"):
        shrunk(torch.ones(2), strength=-1.0)


# ---------------------------------------------------------------- intervals, against the truth

COVERAGE = 0.93
TRIALS = 400


@pytest.mark.parametrize(("rows", "spread", "rate"), [(300, 1.0, 0.3), (800, 0.7, 0.1)])
def test_intervals_hold_the_truth_as_often_as_they_say(rows: int, spread: float, rate: float) -> None:
    """95 % intervals over 400 logs: of ten actions, weights up to 5 or 3, and 80 rewarded rows or more."""
    source = np.random.default_rng(4)
    behavior, policy = (np.exp(spread * source.normal(size=10)) for _ in range(2))
    behavior, policy = behavior / behavior.sum(), policy / policy.sum()
    chances = np.clip(rate * np.exp(0.5 * source.normal(size=10)), 0, 0.95)
    model = chances * np.exp(0.5 * source.normal(size=10))
    truth, expected = float(policy @ chances), torch.full((rows,), float(policy @ model), dtype=torch.float64)
    held: dict[str, int] = {}
    for _ in range(TRIALS):
        actions = source.choice(10, size=rows, p=behavior)
        reward = torch.from_numpy((source.random(rows) < chances[actions]).astype(float))
        weights, predicted = torch.from_numpy((policy / behavior)[actions]), torch.from_numpy(model[actions])
        found = {
            "ips": ips(reward, weights),
            "snips": snips(reward, weights),
            "dr": doubly_robust(reward, weights, predicted, expected),
            "shrunk": doubly_robust(reward, shrunk(weights, strength=rows), predicted, expected),
        }
        for name, contributions in found.items():
            interval = mean_interval(contributions.numpy())
            held[name] = held.get(name, 0) + (interval.low <= truth <= interval.high)
    assert min(held.values()) >= COVERAGE * TRIALS, held
