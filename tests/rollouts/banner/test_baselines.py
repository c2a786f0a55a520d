"""the logging policy is exact, and ranking by true marginal rates loses to the best slate"""

from __future__ import annotations

import numpy as np
import pytest

from melior.rollouts.banner import Banner, best_slates, logging_policy, marginal_ranking, popularity
from melior.rollouts.banner.baselines import all_slates, enumerated, searched
from melior.rollouts.banner.outcomes import expected_points
from melior.types import Sampling

FAMILIES = ("logit", "cascade")


@pytest.fixture(scope="module", params=FAMILIES)
def small(request: pytest.FixtureRequest) -> Banner:
    return Banner(request.param, items=7)


def test_the_logging_policys_chances_sum_to_one_over_all_slates(small: Banner) -> None:
    policy, every = logging_policy(small), all_slates(small)
    scores = policy.log_odds(small.requests(1, seed=1)).repeat(len(every), 0)
    assert np.exp(policy.log_probs(scores, every).sum(1)).sum() == pytest.approx(1.0)


def test_the_logging_policy_samples_what_it_says(small: Banner) -> None:
    policy, request = logging_policy(small), small.requests(1, seed=1)
    records = policy.sample(request, Sampling(n=20_000))
    first = np.bincount([record.decisions[0] for record in records], minlength=7) / 20_000  # type: ignore[index]
    odds = np.exp(policy.log_odds(request)[0])
    assert first == pytest.approx(odds / odds.sum(), abs=0.02)
    scores = policy.log_odds(request).repeat(5, 0)
    slates = np.array([record.decisions for record in records[:5]])
    told = np.array([record.behavior_log_probs for record in records[:5]])
    assert policy.log_probs(scores, slates) == pytest.approx(told, abs=1e-12)


def test_ranking_by_true_marginal_rates_loses_to_the_best_slate(small: Banner) -> None:
    requests = small.requests(40, seed=2)
    best = small.expected(requests, best_slates(small, requests))  # of all 2,520 ordered slates, exactly
    for company in (0, 10):
        ranked = small.expected(requests, marginal_ranking(small, requests, company=company).slates(requests))
        assert (ranked <= best + 1e-12).all()
        assert best.mean() > 1.1 * ranked.mean()
        assert (best > 1.001 * ranked).double().mean() > 0.9


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_lost_is_lost_by_the_choice_of_items(family: str) -> None:
    """The best order of the items with the highest marginal rates is still worse than the best slate."""
    world = Banner(family, items=11)
    requests = world.requests(6, seed=3)
    visits, every = world.visits(requests), all_slates(world)
    chosen = world.places(marginal_ranking(world, requests).slates(requests))
    best = expected_points(world.chances(visits, enumerated(world, visits)))
    reordered = np.zeros(6)
    for row in range(6):
        same_set = every[(np.sort(every, 1) == np.sort(chosen[row])).all(1)]
        one = world.visits([requests[row]] * len(same_set))
        reordered[row] = expected_points(world.chances(one, same_set)).max()
    assert best.mean() > 1.05 * reordered.mean()


def test_exchanges_find_the_best_slate_of_a_small_shop_nearly_always(small: Banner) -> None:
    visits = small.visits(small.requests(40, seed=4))
    found = expected_points(small.chances(visits, searched(small, visits)))
    best = expected_points(small.chances(visits, enumerated(small, visits)))
    assert (found <= best + 1e-12).all()
    assert found.mean() > 0.99 * best.mean()


@pytest.mark.parametrize("family", FAMILIES)
def test_in_the_whole_shop_too(family: str) -> None:
    world = Banner(family)
    requests = world.requests(100, seed=5)
    ranked = world.expected(requests, marginal_ranking(world, requests).slates(requests)).mean()
    assert world.expected(requests, best_slates(world, requests, rounds=1)).mean() > 1.25 * ranked


def test_popularity_counts_points_per_showing() -> None:
    world = Banner("logit")
    records = world.log(logging_policy(world), 4_000, seed=6)
    scores = world.logged_scores(records)
    ranking = popularity(world, records, scores)
    item = world.catalogue[int(ranking.scores.argmax())].id
    earned = [s.decisions[r.output.index(item)] for r, s in zip(records, scores) if item in r.output]
    assert ranking.scores.max() == pytest.approx(sum(earned) / len(earned))
    assert len({tuple(slate) for slate in ranking.slates(world.requests(5, seed=7))}) == 1
