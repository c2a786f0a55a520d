"""what a slate policy must beat, and the best there is"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from melior.errors import ConfigError
from melior.rollouts.banner.catalogue import Floats, Ints
from melior.rollouts.banner.families import POSITIONS
from melior.rollouts.banner.outcomes import expected_points, position_means
from melior.rollouts.banner.visits import Visits
from melior.rollouts.banner.world import Banner
from melior.types import Record, Sampling, Score, SlateRequest

NOISE = 0.7  # standard deviation of a visitor's personal log-odds, as a half-informed recommender would have
SHARPNESS = 1.0  # times the logarithm of popularity
ENUMERATED = 20_000  # slates at most


@dataclass(frozen=True)
class SoftmaxPopularity:
    """The logging policy: draws items without replacement by softmax of popularity and personal noise.

    The personal part is a fixed random linear function of what the shop knows of the visitor: it makes the policy
    depend on the visitor without being right about him.
    """

    world: Banner
    popularity: Floats  # [I] log-odds
    taste: Floats  # [context, I]

    def log_odds(self, requests: Sequence[SlateRequest]) -> Floats:  # [N, I]
        """The scores whose softmax is drawn from."""
        visits = self.world.visits(requests)
        return np.asarray(self.popularity + _known(visits) @ self.taste)

    def sample(self, inputs: Sequence[Any], settings: Sampling, *, step: int = 0) -> list[Record]:
        """Slates with exact log-probs; Plackett–Luce by Gumbel noise, at temperature 1.

        Source: Yellott 1977: adding Gumbel noise and sorting samples Plackett–Luce.
        """
        if settings.temperature != 1:
            raise ConfigError(f"The logging policy has temperature 1, not {settings.temperature}")
        inputs = [each for each in inputs for _ in range(settings.n)]
        scores = self.log_odds(inputs)
        random = np.random.default_rng((settings.seed, step, 5))
        slates = (-(scores + random.gumbel(size=scores.shape))).argsort(1)[:, :POSITIONS]
        return _records(self.world, inputs, slates, self.log_probs(scores, slates), settings)

    @staticmethod
    def log_probs(scores: Floats, slates: Ints) -> Floats:  # [N, K]
        """Log-probs of each position of the slates, given the scores [N, I]."""
        chosen = np.take_along_axis(scores, slates, 1)
        left = np.exp(scores - scores.max(1, keepdims=True))
        taken = np.take_along_axis(left, slates, 1)
        rest = left.sum(1, keepdims=True) - np.concatenate([np.zeros((len(slates), 1)), taken.cumsum(1)[:, :-1]], 1)
        return np.asarray(chosen - scores.max(1, keepdims=True) - np.log(rest))


@dataclass(frozen=True)
class Ranking:
    """Shows the items with the highest scores, best first."""

    world: Banner
    scores: Floats  # [I], or [N, I] for the very requests that will be sampled

    def slates(self, requests: Sequence[SlateRequest]) -> list[list[str]]:
        """One slate per request."""
        order = np.broadcast_to((-self.scores).argsort(-1, kind="stable"), (len(requests), len(self.world.catalogue)))
        return to_ids(self.world, order[:, :POSITIONS])

    def sample(self, inputs: Sequence[Any], settings: Sampling, *, step: int = 0) -> list[Record]:
        """The one slate per request, without propensities."""
        return [Record(inputs=each, output=slate) for each, slate in zip(inputs, self.slates(inputs))]


def logging_policy(world: Banner) -> SoftmaxPopularity:
    """The policy whose log everything is learnt from: popularity as the shop saw it, and personal noise."""
    random = np.random.default_rng((world.seed, 6))
    requests = world.requests(2_000, seed=71)
    popular = single_item_points(world, requests).mean(0)
    taste = NOISE / np.sqrt(3) * random.normal(size=(_known(world.visits(requests[:1])).shape[1], len(popular)))
    return SoftmaxPopularity(world, SHARPNESS * np.log(popular / popular.mean()), taste)


def popularity(world: Banner, records: Sequence[Record], scores: Sequence[Score]) -> Ranking:
    """The items that earned most per showing in the log."""
    total, shown = np.zeros(len(world.catalogue)), np.zeros(len(world.catalogue))
    places = world.places([record.output for record in records])
    np.add.at(total, places, np.array([score.decisions for score in scores]))
    np.add.at(shown, places, 1.0)
    return Ranking(world, total / np.maximum(shown, 1.0))


def marginal_ranking(world: Banner, requests: Sequence[SlateRequest], *, company: int = 0, seed: int = 0) -> Ranking:
    """Ranking by each item's true marginal rate for each visitor: points alone, or averaged over random company.

    Nobody has these numbers outside a simulation. With `company` the item stands at a random position among random
    others, `company` times; the marginal rate is what it earned there, the others' gain or loss left out.
    """
    if not company:
        return Ranking(world, single_item_points(world, requests))
    visits, items = world.visits(requests), len(world.catalogue)
    random = np.random.default_rng((world.seed, seed, 7))
    total = np.zeros((len(requests), items))
    for _ in range(company):
        for item in range(items):
            others = random.random((len(requests), items))
            others[:, item] = np.inf  # never drawn as company
            slates = others.argsort(1)[:, :POSITIONS]
            at = random.integers(0, POSITIONS, len(requests))
            slates[np.arange(len(requests)), at] = item
            total[:, item] += _own_points(world, visits, slates, at)
    return Ranking(world, total / company)


def single_item_points(world: Banner, requests: Sequence[SlateRequest]) -> Floats:  # [N, I]
    """Expected points of a page that shows one item only."""
    visits = world.visits(requests)
    columns = [np.full((len(requests), 1), item) for item in range(len(world.catalogue))]
    return np.stack([expected_points(world.chances(visits, each), world.points) for each in columns], 1)


def best_slates(world: Banner, requests: Sequence[SlateRequest], *, rounds: int = 6) -> list[list[str]]:
    """The best slate of each request: by enumeration in a small shop, else the best that exchanges can reach.

    The second builds a slate greedily and then tries every other item in every place, and every swap of two places,
    until nothing improves: a lower bound of the best there is.
    """
    items = len(world.catalogue)
    ordered = np.prod(np.arange(items - POSITIONS + 1, items + 1, dtype=float))
    visits = world.visits(requests)
    return to_ids(world, enumerated(world, visits) if ordered <= ENUMERATED else searched(world, visits, rounds))


def searched(world: Banner, visits: Visits, rounds: int = 6) -> Ints:  # [N, K]
    """Slates that no exchange of one item and no swap of two places makes better."""
    slates, items = _greedy(world, visits), len(world.catalogue)
    for _ in range(rounds):
        before = slates.copy()
        for place in range(POSITIONS):
            slates = _best_of(world, visits, slates, [_replaced(slates, place, item) for item in range(items)])
        swaps = [_swapped(slates, a, b) for a, b in itertools.combinations(range(POSITIONS), 2)]
        slates = _best_of(world, visits, slates, swaps)
        if (before == slates).all():
            break
    return slates


def all_slates(world: Banner) -> Ints:  # [slates, K]
    """Every ordered slate of a small shop."""
    return np.array(list(itertools.permutations(range(len(world.catalogue)), POSITIONS)))


def to_ids(world: Banner, slates: Ints) -> list[list[str]]:
    """Places in the catalogue as ids."""
    names = [item.id for item in world.catalogue]
    return [[names[item] for item in slate] for slate in slates.tolist()]


def enumerated(world: Banner, visits: Visits) -> Ints:  # [N, K]
    """The best of all ordered slates of a small shop."""
    every = all_slates(world)
    found = []
    for row in range(len(visits)):
        one = _repeated(visits, np.full(len(every), row))
        found.append(every[expected_points(world.chances(one, every), world.points).argmax()])
    return np.array(found)


def _greedy(world: Banner, visits: Visits) -> Ints:
    slates = np.zeros((len(visits), 0), dtype=np.int64)
    for _ in range(POSITIONS):
        options = [np.append(slates, np.full((len(visits), 1), item), 1) for item in range(len(world.catalogue))]
        slates = _best_of(world, visits, options[0], options)
    return slates


def _best_of(world: Banner, visits: Visits, slates: Ints, options: Sequence[Ints]) -> Ints:
    best, value = slates.copy(), np.full(len(visits), -np.inf)
    if all(len(set(slate)) == slates.shape[1] for slate in slates.tolist()):
        value = expected_points(world.chances(visits, slates), world.points)
    for option in options:
        fresh = expected_points(world.chances(visits, option), world.points)
        ordered = np.sort(option, 1)
        distinct = (ordered[:, 1:] != ordered[:, :-1]).all(1)
        better = distinct & (fresh > value + 1e-12)
        best[better], value[better] = option[better], fresh[better]
    return best


def _replaced(slates: Ints, place: int, item: int) -> Ints:
    changed = slates.copy()
    changed[:, place] = item
    return changed


def _swapped(slates: Ints, a: int, b: int) -> Ints:
    changed = slates.copy()
    changed[:, [a, b]] = changed[:, [b, a]]
    return changed


def _own_points(world: Banner, visits: Visits, slates: Ints, at: Ints) -> Floats:
    """Expected points [N] of the item at place `at`, each event counted as the first of its kind."""
    rows, total = np.arange(len(slates)), np.zeros(len(slates))
    means = position_means(world.chances(visits, slates))
    for name, value in world.points.items():
        worth = value["one"] if not isinstance(value, float | int) else value
        total += worth * means[name][rows, at]
    return total


def _repeated(visits: Visits, rows: Ints) -> Visits:
    return Visits(**{name: getattr(visits, name)[rows] for name in visits.__dataclass_fields__})


def _known(visits: Visits) -> Floats:  # [N, features]
    """What the logging policy reads: device, thrift, interest, what is viewed and what was bought, standardised."""
    one = np.stack([visits.phone - 0.5, visits.thrift, visits.interest == 0, visits.interest == 1], 1)
    return np.concatenate([one, np.tanh(visits.bought), visits.viewed[:, None] == np.arange(visits.bought.shape[1])], 1)


def _records(
    world: Banner, inputs: Sequence[SlateRequest], slates: Ints, log_probs: Floats, settings: Sampling
) -> list[Record]:
    outputs = to_ids(world, slates)
    return [
        Record(
            inputs=request,
            output=output,
            decisions=tuple(decisions),
            behavior_log_probs=tuple(chances),
            sampling=settings,
            policy_version="logging",
            finish="stop",
        )
        for request, output, decisions, chances in zip(inputs, outputs, slates.tolist(), log_probs.tolist())
    ]
