"""who comes to the shop: requests as a policy gets them, and as arrays"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from melior.errors import DataError
from melior.rollouts.banner.catalogue import TECH, TYPE_PAIRS, TYPES, Catalogue, Floats, Ints
from melior.types import Interaction, SlateRequest

LONGEST = 10  # purchases of a history
VIEWED, HISTORY = 0.4, 0.45  # shares of visits with a product being viewed, with a history; the rest come new
UNTOLD = 0.3  # share of visitors whose interest the shop does not know, and of unknown thrift
RECENCY = 0.75  # weight of a purchase against the one after it
DAY = 86_400.0  # seconds
GROUPS = ("tech", "fashion")
DEVICES = ("phone", "desktop")


@dataclass(frozen=True)
class Visits:
    """What the truth depends on, N visits."""

    phone: Floats  # [N] 1 on a small screen
    thrift: Floats  # [N] how much more than usual a price counts; 0 where unknown
    interest: Ints  # [N] into GROUPS, -1 unknown
    viewed: Ints  # [N] type of the product being viewed, -1 none
    viewed_item: Ints  # [N] the product itself, -1 none
    bought: Floats  # [N, types] purchases, recent ones more: RECENCY to the power of how many came later
    clicked: Floats  # [N, types] clicks of the history, weighted likewise
    owned: Floats  # [N, types] purchases, counted
    brand: Ints  # [N] of the last purchase, -1 none

    def __len__(self) -> int:
        return len(self.phone)

    def complements(self) -> Floats:  # [N, types]
        """How well each type goes with what was bought before, recent purchases more."""
        return np.asarray(np.minimum(self.bought @ TYPE_PAIRS, 1.5))

    def goes_with_viewed(self) -> Floats:  # [N, types]
        """How well each type goes with the product being viewed."""
        return np.where(self.viewed[:, None] >= 0, TYPE_PAIRS[self.viewed], 0.0)

    def interesting(self) -> Floats:  # [N, types]
        """1 where a type belongs to the visitor's interest, 0 elsewhere and where it is unknown."""
        tech = np.array([kind in TECH for kind in TYPES])
        mine = np.where((self.interest == 0)[:, None], tech, ~tech) & (self.interest >= 0)[:, None]
        return mine.astype(np.float64)


def draw_requests(catalogue: Catalogue, n: int, key: Sequence[int]) -> list[SlateRequest]:
    """`n` visits, a function of the key; everyone sees the whole catalogue."""
    random = np.random.default_rng((*key, 2))
    kinds = sorted(set(catalogue.type.tolist()))
    of_type = [np.flatnonzero(catalogue.type == kind).tolist() for kind in range(len(TYPES))]
    tech = [kind for kind in kinds if TYPES[kind] in TECH] or kinds
    fashion = [kind for kind in kinds if TYPES[kind] not in TECH] or kinds
    way, device, known = random.random(n), random.random(n), random.random((n, 2))
    thrift, group = np.clip(random.normal(size=n), -2, 2), random.integers(0, 2, n)
    length, draws = random.integers(1, LONGEST + 1, n), random.random((n, LONGEST + 1, 4))
    requests = []
    for row in range(n):
        liked = tech if group[row] == 0 else fashion

        def product(draw: Floats, liked: Sequence[int] = liked) -> int:
            among = liked if draw[0] < 0.8 else kinds  # people mostly buy what they like
            members = of_type[among[int(draw[1] * len(among))]]
            return int(members[int(draw[2] * len(members))])

        context: dict[str, object] = {"device": DEVICES[int(device[row] < 0.5)]}
        context["interest"] = GROUPS[group[row]] if known[row, 0] >= UNTOLD else None
        context["thrift"] = round(float(thrift[row]), 3) if known[row, 1] >= UNTOLD else None
        viewed, history = "", []
        if way[row] < VIEWED:
            viewed = catalogue.items[product(draws[row, 0])].id
        elif way[row] < VIEWED + HISTORY:
            for step in range(length[row], 0, -1):
                draw = draws[row, step]
                kind = "purchase" if draw[3] < 0.7 else "click"
                item = catalogue.items[product(draw)].id
                history.append(Interaction(item=item, type=kind, age_s=round(step * DAY * (0.5 + draw[3]), 0)))
            history.sort(key=lambda entry: -(entry.age_s or 0.0))
        requests.append(SlateRequest(context=context, viewed=viewed, history=tuple(history)))
    return requests


def encode_visits(catalogue: Catalogue, requests: Sequence[SlateRequest], index: dict[str, int]) -> Visits:
    """The arrays of the given requests; what a request leaves out is unknown, never an error.

    Raises:
        DataError: if a request narrows the candidates, which this shop never does.
    """
    n = len(requests)
    narrowed = sum(request.candidates is not None for request in requests)
    if narrowed:
        raise DataError(f"{narrowed} of {n} requests name candidates, but the banner shows the whole catalogue")
    phone, thrift = np.zeros(n), np.zeros(n)
    interest, viewed, viewed_item, brand = (np.full(n, -1) for _ in range(4))
    bought, clicked, owned = (np.zeros((n, len(TYPES))) for _ in range(3))
    for row, request in enumerate(requests):
        told = request.context
        phone[row] = told.get("device") == "phone"
        thrift[row] = told.get("thrift") or 0.0
        interest[row] = GROUPS.index(told["interest"]) if told.get("interest") else -1
        if request.viewed in index:
            viewed_item[row] = index[request.viewed]
            viewed[row] = catalogue.type[viewed_item[row]]
        weight = 1.0
        for entry in reversed(request.history):
            item = index.get(entry.item)
            if item is None:
                continue
            kind = catalogue.type[item]
            if entry.type == "purchase":
                bought[row, kind] += weight
                owned[row, kind] += 1
                if brand[row] < 0:
                    brand[row] = catalogue.brand[item]
            else:
                clicked[row, kind] += weight
            weight *= RECENCY
    return Visits(phone, thrift, interest, viewed, viewed_item, bought, clicked, owned, brand)
