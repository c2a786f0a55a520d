"""the simulated shop: visits, logged banners, sampled events, and exact expected points"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from melior.errors import ConfigError, DataError
from melior.rollouts.banner.catalogue import Floats, Ints, make_catalogue
from melior.rollouts.banner.families import FAMILIES, POSITIONS, Chances, Family, Intercepts
from melior.rollouts.banner.outcomes import EVENTS, POINTS, Drawn, Levels, draw, earned, expected_points, position_means
from melior.rollouts.banner.rates import RATES, Rates
from melior.rollouts.banner.visits import Visits, draw_requests, encode_visits
from melior.types import Item, Record, Sampling, Score, SlateRequest, Task

SCALE = 20.0  # clicks of this page over those of the Open Bandit: an active shopper's page, .35 % becomes 7 %
CALIBRATION = 2_000  # visits with random slates that the intercepts are chosen on
CHUNK = 20_000  # visits at once
SEVERAL_DAYS = 7 * 86_400  # seconds over which logged events spread


class Samples(Protocol):
    """A policy that fills slates."""

    def sample(self, inputs: Sequence[Any], settings: Sampling, *, step: int = 0) -> list[Record]: ...


class Banner:
    """A shop with five places on its page; `family` says how people behave ("logit" or "cascade").

    Its truth is a function of the request and the slate. Uniformly random slates have the click rate of the Open
    Bandit times `scale`, and OTTO's carts per click and orders per cart. As a grader it scores a record by events it
    draws; the draw is a function of (seed, group, request, slate).
    """

    def __init__(
        self,
        family: str = "logit",
        seed: int = 0,
        *,
        items: int = 40,
        scale: float = SCALE,
        points: Mapping[str, float | Levels] = POINTS,
        rates: Rates = RATES,
    ) -> None:
        """Raises ConfigError for an unknown family, or fewer items than positions."""
        if family not in FAMILIES:
            raise ConfigError(f"There is no family {family!r} of shops; choose one of {', '.join(FAMILIES)}")
        if items < POSITIONS:
            raise ConfigError(f"A banner of {POSITIONS} needs at least {POSITIONS} items, got {items}")
        self.name, self.family, self.seed, self.points = f"banner-{family}", family, seed, points
        self.shop = make_catalogue(seed, items, rates)
        self.index = self.shop.index()
        self._people: Family = FAMILIES[family](self.shop, rates)
        self._goal = (rates.click * scale, rates.carts_per_click, rates.orders_per_cart)

    @property
    def catalogue(self) -> tuple[Item, ...]:
        return self.shop.items

    # ------------------------------------------------------------------ visits

    def requests(self, n: int, seed: int) -> list[SlateRequest]:
        """`n` visits; different seeds are different visitors."""
        return draw_requests(self.shop, n, (self.seed, seed))

    def tasks(self, n: int, seed: int) -> list[Task]:
        """`n` visits to fill a banner for."""
        return [Task(request, id=f"{seed}:{row}") for row, request in enumerate(self.requests(n, seed))]

    # ------------------------------------------------------------------ truth

    def visits(self, requests: Sequence[SlateRequest]) -> Visits:
        """What the truth reads of the requests."""
        return encode_visits(self.shop, requests, self.index)

    def chances(self, visits: Visits, slates: Ints) -> Chances:
        """The chances of every event for slates [N, K] of places in the catalogue, one per visit."""
        return self._people.chances(visits, slates, self.intercepts)

    def expected(self, requests: Sequence[SlateRequest], slates: Sequence[Sequence[str]]) -> Tensor:  # [N]
        """Exact expected points of each slate; for evaluation, never for training."""
        return torch.from_numpy(expected_points(self.chances(self.visits(requests), self.places(slates)), self.points))

    def places(self, slates: Sequence[Sequence[str]]) -> Ints:  # [N, K]
        """Slates of ids as places in the catalogue.

        Raises:
            DataError: for an id the shop does not sell, or slates of different lengths.
        """
        unknown = {item for slate in slates for item in slate} - self.index.keys()
        if unknown:
            raise DataError(f"{len(unknown)} items are not in the shop, first {sorted(unknown)[0]!r}")
        if len({len(slate) for slate in slates}) > 1:
            raise DataError(f"Slates have {sorted({len(slate) for slate in slates})} items; give them one length")
        return np.array([[self.index[item] for item in slate] for slate in slates], dtype=np.int64)

    @cached_property
    def intercepts(self) -> Intercepts:
        """Chosen so that the means over random slates are the real ones, one after the other: each moves one mean."""
        visits = self.visits(self.requests(CALIBRATION, seed=-1 % 2**31))
        random = np.random.default_rng((self.seed, 3))
        slates = random.random((CALIBRATION, len(self.catalogue))).argsort(1)[:, :POSITIONS]
        found = Intercepts()
        for name, goal in zip(("click", "cart", "order"), self._goal):
            low, high = -25.0, 10.0
            for _ in range(40):
                middle = (low + high) / 2
                means = position_means(self._people.chances(visits, slates, replace(found, **{name: middle})))
                totals = [CALIBRATION * POSITIONS, *(means[event].sum() for event in EVENTS)]
                at = ("click", "cart", "order").index(name)
                low, high = (middle, high) if totals[at + 1] / totals[at] < goal else (low, middle)
            found = replace(found, **{name: (low + high) / 2})
        return found

    # ------------------------------------------------------------------ events

    def log(self, policy: Samples, n: int, seed: int, sampling: Sampling | None = None) -> list[Record]:
        """`n` impressions of a policy, with what visitors did in item["events"] and with behavior log-probs."""
        requests = self.requests(n, seed)
        settings = sampling or Sampling(seed=seed)
        records: list[Record] = []
        for start in range(0, n, CHUNK):
            part = policy.sample(requests[start : start + CHUNK], settings, step=start)
            uniforms = np.random.default_rng((self.seed, seed, 4, start)).random((len(part), 4, POSITIONS))
            records += self._with_events(part, self._draw(part, uniforms), f"{seed}:{start}")
        return records

    def grade(self, records: Sequence[Record]) -> list[Score]:
        """Points of events drawn for each record; what each position earned is in `decisions`."""
        drawn = self._draw(records, uniforms_of(self.seed, records))
        return [
            Score(value=float(sum(row)), name=self.name, decisions=tuple(row))
            for row in earned(drawn, self.points).tolist()
        ]

    def logged_scores(self, records: Sequence[Record]) -> list[Score]:
        """Points of the events that the records hold."""
        flags = {name: np.zeros((len(records), POSITIONS), dtype=bool) for name in EVENTS}
        for row, record in enumerate(records):
            for event in record.item["events"]:
                flags[event["type"]][row, event["position"]] = True
        points = earned(Drawn(**flags), self.points)
        return [Score(value=float(sum(row)), name=self.name, decisions=tuple(row)) for row in points.tolist()]

    def _draw(self, records: Sequence[Record], uniforms: Floats) -> Drawn:
        visits = self.visits([record.inputs for record in records])
        return draw(self.chances(visits, self.places([record.output for record in records])), uniforms)

    def _with_events(self, records: Sequence[Record], drawn: Drawn, name: str) -> list[Record]:
        events: list[list[dict[str, Any]]] = [[] for _ in records]
        for kind in EVENTS:
            for row, position in zip(*np.nonzero(getattr(drawn, kind))):
                item = records[row].output[position]
                told = {"type": kind, "position": int(position), "item": item, "time": int(row) % SEVERAL_DAYS}
                events[row].append(told)
        return [
            replace(record, item={"events": happened}, group=f"{name}:{row}")
            for row, (record, happened) in enumerate(zip(records, events))
        ]


def uniforms_of(seed: int, records: Sequence[Record]) -> Floats:
    """Uniforms [N, 4, K], a function of (seed, group, request, slate)."""
    keys = np.frombuffer(b"".join(_key(seed, record) for record in records), dtype=np.uint64)
    counters = np.arange(1, 4 * POSITIONS + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):  # arithmetic of 64 bits wraps
        bits = _mixed(keys[:, None] + counters * np.uint64(0x9E3779B97F4A7C15))
    return np.asarray((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(-1, 4, POSITIONS)


def _key(seed: int, record: Record) -> bytes:
    request: SlateRequest = record.inputs
    told = (seed, record.group, sorted(request.context.items()), request.viewed, request.history, tuple(record.output))
    return hashlib.blake2b(repr(told).encode(), digest_size=8).digest()


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
