"""two ways in which people could look, click and buy

Both give, for each position of a slate, the chance of a click once the position is reached, of a cart once clicked and
of an order once in the cart, and how likely a visitor goes on to the next position. They agree in the rates they are
calibrated to and in which types go together, and in no functional form:

| question            | "logit"                                   | "cascade"                                  |
| ------------------- | ----------------------------------------- | ------------------------------------------ |
| who reaches a place | everybody, less attention further down    | one after the other; a click may end it    |
| substitutes         | share the demand, wherever they stand     | each one already seen halves the appetite  |
| complements         | pairwise utilities, nearer is stronger    | a basket, from a threshold on              |
| history             | recent counts more, own type is satisfied | interest from two purchases of a type on   |
| price, brand        | log-odds, by thrift                       | a linear budget that cuts off              |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from melior.rollouts.banner.catalogue import Catalogue, Floats, Ints
from melior.rollouts.banner.rates import RATES, Rates
from melior.rollouts.banner.visits import Visits

POSITIONS = 5
FLOOR, CEILING = 1e-4, 0.95  # of any chance
CLICK_SHARE = 0.35  # of the purchase's log-odds acts at the click already; the rest once clicked. Assumed


@dataclass(frozen=True)
class Intercepts:
    """What calibration chooses so that the shop's means are those of `Rates`."""

    click: float = 0.0
    cart: float = 0.0
    order: float = 0.0


@dataclass(frozen=True)
class Chances:
    """Of N slates at K positions, each given that the position was reached."""

    click: Floats  # [N, K]
    cart: Floats  # [N, K] given a click
    order: Floats  # [N, K] given a cart
    after_click: float = 1.0  # the chance to go on to the next position
    after_pass: float = 1.0


class Family(Protocol):
    """How people behave."""

    def chances(self, visits: Visits, slates: Ints, intercepts: Intercepts) -> Chances:
        """The chances at every position of the slates [N, K] of catalogue indices, one per visit."""
        ...


@dataclass(frozen=True)
class Logit:
    """Examination by position, a conditional logit with nests of substitutes, pairwise utilities of complements."""

    catalogue: Catalogue
    rates: Rates = RATES
    rivalry: float = 3.0  # how much more a substitute takes than another item
    distraction: float = 0.3  # share of every other item's attraction that competes
    pair_click: float = 0.45  # log-odds of a click from a complement next to it
    pair_cart: float = 0.6  # and of a cart
    reach: float = 0.7  # of a complement's effect, one place further away
    phone: float = 2.0  # times the decay on a phone; half of it on a desktop

    def chances(self, visits: Visits, slates: Ints, intercepts: Intercepts) -> Chances:
        shop, rows = self.catalogue, np.arange(len(visits))[:, None]
        kind = shop.type[slates]
        worth = self._worth(visits, slates)
        pairs = self._pairs(slates)
        utility = shop.appeal[slates] + CLICK_SHARE * worth + self._need(visits)[rows, kind]
        slope = np.log(self.rates.decay) * np.where(visits.phone > 0, self.phone, 0.5)
        seen = np.exp(slope[:, None] * np.arange(slates.shape[1]))
        pull = np.exp(intercepts.click + utility + self.pair_click * pairs)
        alike = shop.alike[slates[:, :, None], slates[:, None, :]]  # [N, K, K]
        weight = np.where(alike > 0, self.rivalry, self.distraction)
        weight[:, np.arange(slates.shape[1]), np.arange(slates.shape[1])] = 1.0
        rivals = (weight * (seen * pull)[:, None, :]).sum(2)
        return Chances(
            click=np.clip(seen * pull / (1.0 + rivals), FLOOR, CEILING),
            cart=_chance(intercepts.cart + (1 - CLICK_SHARE) * worth + self.pair_cart * pairs),
            order=_chance(intercepts.order + 0.5 * self.pair_cart * pairs),
        )

    def _worth(self, visits: Visits, slates: Ints) -> Floats:  # [N, K]
        shop = self.catalogue
        dear = self.rates.price * (shop.price[slates] - np.mean(shop.price))
        loyal = self.rates.loyalty * (shop.brand[slates] == visits.brand[:, None])
        return np.asarray(shop.worth[slates] + 0.5 * visits.thrift[:, None] * dear + loyal)

    def _need(self, visits: Visits) -> Floats:  # [N, types]
        same = np.where(visits.viewed[:, None] == np.arange(visits.owned.shape[1]), 1.0, 0.0)
        history = (
            1.2 * visits.complements() - 0.8 * np.minimum(visits.bought, 1.0) + 0.5 * np.minimum(visits.clicked, 2)
        )
        return np.asarray(0.7 * visits.interesting() + 1.3 * same + 1.0 * visits.goes_with_viewed() + history)

    def _pairs(self, slates: Ints) -> Floats:  # [N, K]
        """The strength of each position's complements in the slate, nearer ones more."""
        places = np.arange(slates.shape[1])
        near = self.reach ** np.maximum(np.abs(places[:, None] - places[None, :]) - 1, 0)
        together = self.catalogue.together[slates[:, :, None], slates[:, None, :]]
        return np.asarray(np.minimum((together * near).sum(2), 2.0))


@dataclass(frozen=True)
class Cascade:
    """One position after the other, appetite that saturates, baskets that build from a threshold on."""

    catalogue: Catalogue
    rates: Rates = RATES
    after_click: float = 0.7  # share of visitors who come back from a product's page
    saturation: float = 0.5  # of the appetite for a type, for each product of it already passed
    threshold: float = 0.8  # complements passed before a basket begins to build
    basket_click: float = 1.8  # times the clicks of an item that completes a basket
    basket_cart: float = 2.2  # times its carts
    enough: int = 2  # purchases or clicks of a type that make an interest

    def chances(self, visits: Visits, slates: Ints, intercepts: Intercepts) -> Chances:
        shop, rows, width = self.catalogue, np.arange(len(visits))[:, None], slates.shape[1]
        earlier = np.tril(np.ones((width, width)), -1)
        passed = (shop.alike[slates[:, :, None], slates[:, None, :]] * earlier).sum(2)
        begun = (shop.together[slates[:, :, None], slates[:, None, :]] * earlier).sum(2) >= self.threshold
        budget = self._budget(visits, slates)
        taste = np.exp(shop.appeal[slates]) * budget * self._interest(visits)[rows, shop.type[slates]]
        click = np.exp(intercepts.click) * taste * self.saturation**passed * np.where(begun, self.basket_click, 1.0)
        cart = np.exp(intercepts.cart) * budget * np.where(begun, self.basket_cart, 1.0)
        order = np.exp(intercepts.order) * np.sqrt(budget)
        return Chances(
            click=np.clip(click, FLOOR, CEILING),
            cart=np.clip(cart, FLOOR, CEILING),
            order=np.clip(order, FLOOR, CEILING),
            after_click=self.after_click,
            after_pass=self.rates.decay,
        )

    def _budget(self, visits: Visits, slates: Ints) -> Floats:  # [N, K]
        """Linear in what a product is worth to this visitor, and next to nothing below a limit."""
        shop = self.catalogue
        dear = self.rates.price * (shop.price[slates] - np.mean(shop.price))
        loyal = self.rates.loyalty * (shop.brand[slates] == visits.brand[:, None])
        return np.clip(1.0 + 0.3 * (shop.worth[slates] + 0.8 * visits.thrift[:, None] * dear + loyal), 0.1, 2.5)

    def _interest(self, visits: Visits) -> Floats:  # [N, types]
        types = np.arange(visits.owned.shape[1])
        same = visits.viewed[:, None] == types
        fan = visits.owned + np.minimum(visits.clicked, self.enough) >= self.enough
        completes = visits.complements() >= self.threshold
        wanted = 2.0 * same + 1.2 * visits.goes_with_viewed() + 1.0 * fan + 1.5 * completes
        return np.asarray(0.6 + wanted + 0.6 * visits.interesting())


FAMILIES: Mapping[str, type[Logit] | type[Cascade]] = {"logit": Logit, "cascade": Cascade}


def _chance(log_odds: Floats) -> Floats:
    return np.clip(1.0 / (1.0 + np.exp(-log_odds)), FLOOR, CEILING)
