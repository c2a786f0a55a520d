"""what happens to slates: events drawn, and what they are worth in expectation, exactly

Positions are visited in order, and whether the next is reached depends on the last alone. So the number of clicks,
carts or orders of a slate is a Markov chain of a few states, and expected points need no simulation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from melior.rollouts.banner.catalogue import Floats
from melior.rollouts.banner.families import Chances

Bools = NDArray[np.bool_]

EVENTS = ("click", "cart", "purchase")
Levels = Mapping[str, float]  # {"one": …, "several": …}
POINTS: Mapping[str, float | Levels] = {
    "click": {"one": 1.0, "several": 2.0},
    "cart": 3.0,
    "purchase": {"one": 10.0, "several": 15.0},
}


@dataclass(frozen=True)
class Drawn:
    """Events of N slates at K positions; every order has a cart and every cart a click."""

    click: Bools
    cart: Bools
    purchase: Bools


def draw(chances: Chances, uniforms: Floats) -> Drawn:
    """Events from uniforms [N, 4, K]: click, cart, order, going on."""
    click = uniforms[:, 0] < chances.click
    goes_on = uniforms[:, 3] < np.where(click, chances.after_click, chances.after_pass)
    reached = np.concatenate([np.ones_like(click[:, :1]), np.logical_and.accumulate(goes_on, 1)[:, :-1]], 1)
    click = click & reached
    cart = click & (uniforms[:, 1] < chances.cart)
    return Drawn(click, cart, cart & (uniforms[:, 2] < chances.order))


def earned(drawn: Drawn, points: Mapping[str, float | Levels] = POINTS) -> Floats:
    """Points [N, K] of every position; what "several" gives is shared by the positions it came from."""
    total = np.zeros(drawn.click.shape)
    for name, value in points.items():
        happened = getattr(drawn, name)
        if isinstance(value, Mapping):
            count = happened.sum(1, keepdims=True)
            worth = np.where(count > 1, value["several"] / np.maximum(count, 1), value["one"])
        else:
            worth = np.full((len(happened), 1), float(value))
        total += np.where(happened, worth, 0.0)
    return total


def expected_points(chances: Chances, points: Mapping[str, float | Levels] = POINTS) -> Floats:
    """Expected points [N] of each slate, exact."""
    total = np.zeros(len(chances.click))
    for name, value in points.items():
        none, one, mean = counts(chances, name)
        if isinstance(value, Mapping):
            total += value["one"] * one + value["several"] * (1.0 - none - one)
        else:
            total += value * mean
    return total


def counts(chances: Chances, event: str) -> tuple[Floats, Floats, Floats]:
    """P(no such event), P(exactly one) and the expected number, each [N]."""
    happens = event_chances(chances)[event]  # [N, K] given reached
    n, width = happens.shape
    here = np.zeros((n, 3))  # still looking, with 0, 1, 2 and more events
    here[:, 0] = 1.0
    gone, mean = np.zeros((n, 3)), np.zeros(n)
    for place in range(width):
        p, click = happens[:, place, None], chances.click[:, place, None]
        mean += p[:, 0] * here.sum(1)
        more = np.stack([np.zeros(n), here[:, 0], here[:, 1] + here[:, 2]], 1) * p  # the event, and so a click
        only = here * (click - p)  # a click without the event
        past = here * (1.0 - click)
        gone += (more + only) * (1 - chances.after_click) + past * (1 - chances.after_pass)
        here = (more + only) * chances.after_click + past * chances.after_pass
    total = here + gone
    return total[:, 0], total[:, 1], mean


def event_chances(chances: Chances) -> dict[str, Floats]:
    """The chance [N, K] of each event at each position, given that the position is reached."""
    cart = chances.click * chances.cart
    return {"click": chances.click, "cart": cart, "purchase": cart * chances.order}


def position_means(chances: Chances) -> dict[str, Floats]:
    """The expected number [N, K] of each event at each position of the slate."""
    goes_on = chances.click * chances.after_click + (1.0 - chances.click) * chances.after_pass
    reached = np.concatenate([np.ones_like(goes_on[:, :1]), np.cumprod(goes_on, 1)[:, :-1]], 1)
    return {name: reached * chance for name, chance in event_chances(chances).items()}
