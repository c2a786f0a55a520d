"""a shop is calibrated to real rates, deterministic, and its events have the expected points"""

from __future__ import annotations

import numpy as np
import pytest

from melior.errors import ConfigError, DataError
from melior.rewards.graders import load_grader
from melior.rollouts.banner import Banner, logging_policy
from melior.rollouts.banner.outcomes import EVENTS, position_means
from melior.rollouts.banner.rates import RATES
from melior.rollouts.banner.world import SCALE
from melior.types import Record, Sampling, SlateRequest

FAMILIES = ("logit", "cascade")


@pytest.fixture(scope="module", params=FAMILIES)
def world(request: pytest.FixtureRequest) -> Banner:
    return Banner(request.param)


def random_slates(world: Banner, n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((n, len(world.catalogue))).argsort(1)[:, :5]


def test_random_slates_have_the_real_rates(world: Banner) -> None:
    requests = world.requests(8_000, seed=99)
    means = position_means(world.chances(world.visits(requests), random_slates(world, 8_000, 1)))
    click, cart, order = (means[event].sum() for event in EVENTS)
    assert click / 40_000 == pytest.approx(RATES.click * SCALE, rel=0.05)
    assert cart / click == pytest.approx(RATES.carts_per_click, rel=0.08)
    assert order / cart == pytest.approx(RATES.orders_per_cart, rel=0.05)


def test_attention_falls_from_place_to_place(world: Banner) -> None:
    requests = world.requests(2_000, seed=98)
    visits = world.visits(requests)
    alone = world.chances(visits, np.zeros((2_000, 5), dtype=int))  # one item in every place: only the place differs
    means = position_means(alone)["click"].mean(0)
    assert (np.diff(means) < 0).all()
    if world.family == "logit":  # on a phone twice as fast, on a desktop half as fast as in the log
        assert (means[1:] / means[:-1]) == pytest.approx(RATES.decay, rel=0.05)


def test_requests_are_a_function_of_the_seed(world: Banner) -> None:
    assert world.requests(50, seed=1) == world.requests(50, seed=1) != world.requests(50, seed=2)
    every = world.requests(3_000, seed=3)
    shares = [sum(bool(r.viewed) for r in every), sum(bool(r.history) for r in every)]
    assert shares == pytest.approx([1_200, 1_350], rel=0.1)
    assert {len(r.history) for r in every} == set(range(11))
    assert all(a.age_s >= b.age_s for r in every for a, b in zip(r.history, r.history[1:]))  # type: ignore[operator]


def test_grades_are_a_function_of_the_record_and_nothing_else(world: Banner) -> None:
    records = world.log(logging_policy(world), 200, seed=4)
    scores = world.grade(records)
    assert world.grade(records[::-1])[::-1] == scores
    assert [world.grade([record])[0] for record in records[:20]] == scores[:20]
    assert Banner(world.family, seed=world.seed).grade(records) == scores
    other = [Record(inputs=r.inputs, output=r.output, group="another") for r in records]
    assert world.grade(other) != scores


def test_mean_grades_are_the_expected_points(world: Banner) -> None:
    request = world.requests(30, seed=5)[7]
    slate = [item.id for item in world.catalogue[3:8]]
    n = 20_000
    scores = world.grade([Record(inputs=request, output=slate, group=str(row)) for row in range(n)])
    values = np.array([score.value for score in scores])
    assert abs(values.mean() - world.expected([request], [slate]).item()) < 4 * values.std() / n**0.5
    assert values == pytest.approx(np.array([score.decisions for score in scores]).sum(1))


def test_logged_events_have_the_expected_points(world: Banner) -> None:
    records = world.log(logging_policy(world), 10_000, seed=6)
    scores = world.logged_scores(records)
    values = np.array([score.value for score in scores])
    truth = world.expected([record.inputs for record in records], [record.output for record in records]).numpy()
    assert abs((values - truth).mean()) < 4 * (values - truth).std() / 100
    event = next(event for record in records for event in record.item["events"])
    assert set(event) == {"type", "position", "item", "time"}


def test_bad_requests_and_slates_are_refused(world: Banner) -> None:
    slate = [item.id for item in world.catalogue[:5]]
    with pytest.raises(DataError, match="not in the shop"):
        world.expected([SlateRequest()], [[*slate[:4], "sofa"]])
    with pytest.raises(DataError, match="whole catalogue"):
        world.expected([SlateRequest(candidates=tuple(slate))], [slate])
    assert world.expected([SlateRequest()], [slate]).item() > 0  # nothing known is a normal visitor
    with pytest.raises(ConfigError, match="family"):
        Banner("poisson")
    with pytest.raises(ConfigError, match="at least 5"):
        Banner("logit", items=4)
    with pytest.raises(ConfigError, match="temperature 1"):
        logging_policy(world).sample([SlateRequest()], Sampling(temperature=0.0))


def test_the_grader_of_events_gives_logged_slates_the_same_points(world: Banner) -> None:
    records = world.log(logging_policy(world), 2_000, seed=8)
    grader = load_grader({"type": "events", "points": dict(world.points)})
    told = [grader.grade(record) for record in records]
    mine = world.logged_scores(records)
    assert [score.value for score in told] == pytest.approx([score.value for score in mine])
    assert np.array([s.decisions for s in told]) == pytest.approx(np.array([s.decisions for s in mine]))
    assert sum(len(record.item["events"]) > 3 for record in records) > 5
