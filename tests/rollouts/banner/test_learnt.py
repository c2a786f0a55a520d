"""tables of what was learnt find what a policy that knows the truth does"""

from __future__ import annotations

import numpy as np
import pytest

from melior.policies.slate import SlatePolicy
from melior.policies.slate_network import Slate
from melior.rollouts.banner import Banner, best_slates
from melior.rollouts.banner.learnt import after_history, together
from melior.trainers.loop import FitConfig, fit
from melior.trainers.supervised import Examples, supervised
from melior.types import Demonstration


@pytest.fixture(scope="module")
def world() -> Banner:
    return Banner("logit")


def policy_of(world: Banner, seed: int = 0) -> SlatePolicy:
    config = Slate(positions=5, width=16, blocks=0, hidden=0.0)
    return SlatePolicy.make(config, world.catalogue, world.requests(500, seed=1), seed=seed)


def test_a_policy_that_imitates_the_best_slates_agrees_with_the_truth_and_a_fresh_one_does_not(world: Banner) -> None:
    requests = world.requests(600, seed=2)
    rows = [Demonstration(r, s) for r, s in zip(requests, best_slates(world, requests, rounds=1))]
    policy, fresh = policy_of(world), world.requests(300, seed=3)
    before = after_history(world, policy, fresh)
    fit(policy, Examples(policy, rows, batch_size=64, epochs=10), supervised(), FitConfig(learning_rate=1e-2))
    after = after_history(world, policy, fresh)
    assert abs(before.correlation) < 0.4 < after.correlation
    assert np.array_equal(before.true, after.true)


def test_where_items_are_placed_apart_no_pair_has_an_effect(world: Banner) -> None:
    config = Slate(positions=5, width=16, blocks=0, combinations=False)
    requests = world.requests(500, seed=5)
    policy = SlatePolicy.make(config, world.catalogue, requests)
    rows = [Demonstration(r, s) for r, s in zip(requests, best_slates(world, requests, rounds=0))]
    fit(policy, Examples(policy, rows, batch_size=64, epochs=4), supervised(), FitConfig(learning_rate=1e-2))
    pairs = together(world, policy, requests[:10])
    assert pairs.rows == pairs.columns and pairs.learnt.shape == (10, 10)
    assert np.ptp(pairs.learnt, 1).max() < 0.05 < np.ptp(pairs.true, 1).min()
    assert np.diag(pairs.true).max() < 0 < pairs.true.max()  # substitutes take, complements add


def test_a_first_item_whose_second_is_fixed_has_the_strongest_effect(world: Banner) -> None:
    requests, names = world.requests(400, seed=6), [item.id for item in world.catalogue]
    draws = np.random.default_rng(0).integers(0, 20, (400, 2))
    slates = [["phone-alder", "socks-alder"] if a < 10 else [names[20 + a], names[b]] for a, b in draws.tolist()]
    policy = policy_of(world)
    rows = [Demonstration(request, slate) for request, slate in zip(requests, slates)]
    fit(policy, Examples(policy, rows, batch_size=64, epochs=8), supervised(), FitConfig(learning_rate=1e-2))
    row, column, learnt, _ = together(world, policy, requests[:10]).strongest(1)[0]
    assert (row, column) == ("phone", "socks") and learnt > 0.5


def test_effects_are_centred_and_told(world: Banner) -> None:
    effects = after_history(world, policy_of(world), world.requests(300, seed=4))
    assert np.abs(effects.learnt.mean(0)).max() < 1e-9 and np.abs(effects.true.mean(0)).max() < 1e-9
    strongest = effects.strongest(3)
    assert len(strongest) == 3 and strongest[0][2] == pytest.approx(effects.learnt.max())
    assert set(effects.to_json()) == {"rows", "columns", "correlation", "learnt", "true"}
