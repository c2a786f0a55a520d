"""rates of real shops, estimated from three public data sets

`RATES` holds what `estimate` found; the data stays where it is. `python -m melior.rollouts.banner.rates FOLDER` prints
the numbers again.

| number               | from                                      | method                                       |
| -------------------- | ----------------------------------------- | -------------------------------------------- |
| clicks of an item    | Open Bandit sample, random log, 38 clicks | Gamma–Poisson, shrunk to the published .35 % |
| decay over positions | the same log, positions 1 to 3            | Poisson regression on the position, log link |
| click : cart : order | OTTO, published counts of the full set    | ratios; 20 sample sessions are a check       |
| brand, price, ads    | catsup, 2,798 purchases, four brands      | conditional logit, maximum likelihood        |

Source: Saito et al. 2020, arXiv:2008.07146 (Open Bandit, CC BY 4.0); OTTO recommender systems dataset (CC BY 4.0);
Jain, Vilcassim and Chintagunta 1994, in Ecdat (GPL); McFadden 1974 for the conditional logit.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Floats = NDArray[np.float64]

PUBLISHED_RATE = 0.0035  # clicks per shown item, uniform random policy, full data (arXiv:2008.07146)
OTTO_MILLIONS = (195.0, 16.9, 5.1)  # clicks, carts, orders of the full OTTO set
BRANDS = ("heinz41", "heinz32", "heinz28", "hunts32")  # of catsup; the last is the logit's zero


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What the simulated shop takes from real ones."""

    click: float  # clicks per shown item
    items_by_clicks: tuple[int, ...]  # how many of the 80 items were clicked 0, 1, 2 … times in the random log
    item_impressions: float  # mean impressions per item; they hardly differ
    item_spread: float  # squared coefficient of variation of the items' true rates
    decay: float  # factor of the click rate from one position to the next
    decay_error: float  # standard error of its logarithm
    carts_per_click: float
    orders_per_cart: float
    brand: tuple[float, ...]  # log-odds of choice, one per brand
    brand_price: tuple[float, ...]  # mean price, cents per ounce
    price: float  # log-odds per cent per ounce
    display: float  # log-odds: on display in the shop
    feature: float  # log-odds: advertised in the newspaper
    loyalty: float  # log-odds: the brand this household bought last


# `estimate` of 2026-11-21; a test derives them again where the data is. The decay's logarithm is -.07 ± .20: three
# positions of 11 to 14 clicks cannot tell it from none.
RATES = Rates(
    click=0.0035,
    items_by_clicks=(51, 21, 7, 1),
    item_impressions=125.0,
    item_spread=0.0862,
    decay=0.931,
    decay_error=0.2002,
    carts_per_click=0.0867,
    orders_per_cart=0.3018,
    brand=(1.539, 1.1891, 2.3417, 0.0),
    brand_price=(4.6342, 3.1435, 4.3162, 3.3555),
    price=-1.4711,
    display=0.8863,
    feature=1.0047,
    loyalty=1.0657,
)


def estimate(folder: Path) -> Rates:
    """The rates that the data in `folder` (the one MELIOR_DATA names) gives."""
    clicks, shown, by_position = _open_bandit(folder / "obd_small" / "random_all.csv.gz")
    decay, error = _decay(by_position)
    brand, price, display, feature, loyalty, prices = _catsup(folder / "brand_choice" / "catsup.csv")
    click, cart, order = OTTO_MILLIONS
    return Rates(
        click=PUBLISHED_RATE,
        items_by_clicks=tuple(int(count) for count in np.bincount(clicks.astype(int))),
        item_impressions=float(shown.mean()),
        item_spread=_spread(clicks, shown),
        decay=decay,
        decay_error=error,
        carts_per_click=cart / click,
        orders_per_cart=order / cart,
        brand=brand,
        brand_price=prices,
        price=price,
        display=display,
        feature=feature,
        loyalty=loyalty,
    )


def otto_sample(folder: Path) -> dict[str, int]:
    """Events by type in the OTTO sample: the check that the published ratios are of this kind of data."""
    with (folder / "otto_sample" / "train.jsonl").open(encoding="utf-8") as file:
        return dict(Counter(event["type"] for line in file for event in json.loads(line)["events"]))


def _open_bandit(path: Path) -> tuple[Floats, Floats, Floats]:
    """Clicks [80] and impressions [80] by item, and [3, 2] both by position."""
    clicks, shown, by_position = np.zeros(80), np.zeros(80), np.zeros((3, 2))
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            item, position, click = int(row["item_id"]), int(row["position"]) - 1, int(row["click"])
            clicks[item] += click
            shown[item] += 1
            by_position[position] += (click, 1)
    return clicks, shown, by_position


def _spread(clicks: Floats, shown: Floats) -> float:
    """How much true rates differ between items, by moments: what the counts vary beyond Poisson noise."""
    expected = shown * clicks.sum() / shown.sum()
    return float(((clicks - expected) ** 2 - expected).sum() / (expected**2).sum())


def _decay(by_position: Floats) -> tuple[float, float]:
    """Factor per position and the standard error of its logarithm: log rate = a + b · position."""
    design = np.stack([np.ones(3), np.arange(3.0)], 1)

    def loss(weights: Floats) -> float:
        expected = by_position[:, 1] * np.exp(design @ weights)
        return float((expected - by_position[:, 0] * np.log(expected)).sum())

    fitted = minimize(loss, np.array([np.log(PUBLISHED_RATE), 0.0]), method="BFGS", options={"gtol": 1e-7}).x
    expected = by_position[:, 1] * np.exp(design @ fitted)
    covariance = np.linalg.inv(design.T @ (expected[:, None] * design))
    return float(np.exp(fitted[1])), float(np.sqrt(covariance[1, 1]))


def _catsup(path: Path) -> tuple[tuple[float, ...], float, float, float, float, tuple[float, ...]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = ("disp", "feat", "price")
    seen = np.array([[[float(row[f"{kind}.{brand}"]) for kind in kinds] for brand in BRANDS] for row in rows])
    choice = np.array([BRANDS.index(row["choice"]) for row in rows])
    last = np.zeros((len(rows), len(BRANDS), 1))
    for index in range(1, len(rows)):
        if rows[index]["id"] == rows[index - 1]["id"]:  # rows of a household stand together, in order
            last[index, choice[index - 1], 0] = 1.0
    constants = np.broadcast_to(np.eye(4)[:, :3], (len(rows), 4, 3))
    weights = _conditional_logit(np.concatenate([seen, last, constants], 2), choice)
    display, feature, price, loyalty = (float(weight) for weight in weights[:4])
    prices = tuple(float(mean) for mean in seen[:, :, 2].mean(0))
    return (*(float(weight) for weight in weights[4:]), 0.0), price, display, feature, loyalty, prices


def _conditional_logit(features: Floats, choice: NDArray[np.int64]) -> Floats:
    """Weights [D] of the likeliest conditional logit; features [N, alternatives, D], choice [N]."""
    rows = np.arange(len(choice))

    def loss(weights: Floats) -> tuple[float, Floats]:
        utility = features @ weights
        utility -= utility.max(1, keepdims=True)
        chance = np.exp(utility)
        chance /= chance.sum(1, keepdims=True)
        gradient = (chance[..., None] * features).sum((0, 1)) - features[rows, choice].sum(0)
        return float(-np.log(chance[rows, choice]).sum()), gradient

    start = np.zeros(features.shape[-1])
    return np.asarray(minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-6}).x)


def printed(rates: Rates) -> str:
    """The rates as JSON, rounded to what is committed."""
    rounded = {
        name: [round(each, 4) for each in value] if isinstance(value, tuple) else round(value, 4)
        for name, value in asdict(rates).items()
    }
    return json.dumps(rounded)


if __name__ == "__main__":
    print(printed(estimate(Path(sys.argv[1]))))
    print("OTTO sample:", otto_sample(Path(sys.argv[1])))
