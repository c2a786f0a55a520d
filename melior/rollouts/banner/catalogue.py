"""what the shop sells, which products go together, and the rates they start from

Ten types of product, four brands each. Prices, display and advertisements are drawn; the appeal of a product is a draw
from the posterior of an Open Bandit item's click rate; brand, price, display and advertisement act with the weights of
the catsup logit. Which types go together (complements) is assumed, and so is that two products of a type replace each
other (substitutes): no public data set says it for slates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from melior.rollouts.banner.rates import RATES, Rates
from melior.types import Item

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TYPES = ("phone", "case", "charger", "laptop", "mouse", "bag", "shoes", "socks", "jacket", "scarf")
TYPICAL_PRICE = (500.0, 20.0, 25.0, 900.0, 30.0, 60.0, 80.0, 10.0, 120.0, 25.0)  # currency units
TECH = ("phone", "case", "charger", "laptop", "mouse")
COMPLEMENTS = {  # bought together; strength, 1 is the strongest
    ("phone", "case"): 1.0,
    ("phone", "charger"): 0.8,
    ("case", "charger"): 0.5,
    ("laptop", "mouse"): 1.0,
    ("laptop", "bag"): 0.8,
    ("mouse", "bag"): 0.5,
    ("shoes", "socks"): 1.0,
    ("jacket", "scarf"): 1.0,
    ("shoes", "jacket"): 0.5,
}
BRANDS = ("alder", "birch", "cedar", "dogwood")  # in the place of catsup's heinz41, heinz32, heinz28, hunts32
DISPLAYED, ADVERTISED = 0.2, 0.15  # shares of products; in catsup 2–10 % and 3–7 % of the weeks


@dataclass(frozen=True)
class Catalogue:
    """Products as items that a policy sees, and as the arrays that the truth is made of; I products."""

    items: tuple[Item, ...]
    type: Ints  # [I] into TYPES
    brand: Ints  # [I] into BRANDS
    price: Floats  # [I] cents per ounce, as in catsup: what the price coefficient multiplies
    appeal: Floats  # [I] log of the click rate over the shop's mean
    worth: Floats  # [I] log-odds of choice from brand, price, display and advertisement, centred
    together: Floats  # [I, I] strength of complements
    alike: Floats  # [I, I] 1 where two products are of one type, a product with itself included

    def index(self) -> dict[str, int]:
        """Place of every item by its id."""
        return {item.id: place for place, item in enumerate(self.items)}


def make_catalogue(seed: int, size: int = len(TYPES) * len(BRANDS), rates: Rates = RATES) -> Catalogue:
    """The first `size` products of the shop that `seed` draws; small sizes are for enumeration."""
    random = np.random.default_rng((seed, 1))
    pairs = [(kind, brand) for brand in range(len(BRANDS)) for kind in range(len(TYPES))]
    if size < len(pairs):  # few types, so that a small shop has substitutes and complements too
        few = max(2, -(-size // 3))
        pairs = sorted(pair for pair in pairs if pair[0] < few)[:size]
    kind, brand = (np.array(column) for column in zip(*pairs))
    price = np.array(rates.brand_price)[brand] * random.uniform(0.85, 1.15, len(pairs))
    display, advertised = random.random(len(pairs)) < DISPLAYED, random.random(len(pairs)) < ADVERTISED
    worth = np.array(rates.brand)[brand] + rates.price * price + rates.display * display + rates.feature * advertised
    relative = price / np.mean(rates.brand_price)
    items = tuple(
        Item(
            id=f"{TYPES[kind[i]]}-{BRANDS[brand[i]]}",
            features={
                "type": TYPES[kind[i]],
                "brand": BRANDS[brand[i]],
                "price": round(float(TYPICAL_PRICE[kind[i]] * relative[i]), 2),
                "relative_price": round(float(relative[i]), 3),
                "display": "yes" if display[i] else "no",
                "advertised": "yes" if advertised[i] else "no",
            },
        )
        for i in range(len(pairs))
    )
    together = TYPE_PAIRS[kind][:, kind]
    alike = (kind[:, None] == kind[None, :]).astype(np.float64)
    return Catalogue(
        items, kind, brand, price, _appeal(random, len(pairs), rates), worth - worth.mean(), together, alike
    )


def _type_pairs() -> Floats:
    pairs = np.zeros((len(TYPES), len(TYPES)))
    for (one, other), strength in COMPLEMENTS.items():
        pairs[TYPES.index(one), TYPES.index(other)] = pairs[TYPES.index(other), TYPES.index(one)] = strength
    return pairs


TYPE_PAIRS = _type_pairs()  # [types, types]


def _appeal(random: np.random.Generator, size: int, rates: Rates) -> Floats:
    """Logs of click rates drawn from Gamma posteriors: prior clicks 1 / spread, prior mean the published rate."""
    prior = 1.0 / rates.item_spread
    share = np.array(rates.items_by_clicks, dtype=float)
    counted = random.choice(len(share), size=size, p=share / share.sum())
    rate = random.gamma(prior + counted) / (prior / rates.click + rates.item_impressions)
    return np.asarray(np.log(rate / rate.mean()))
