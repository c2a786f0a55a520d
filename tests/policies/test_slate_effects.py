"""tables of what a slate policy learnt: planted effects are found, and nothing else"""

from __future__ import annotations

from functools import cache

import pytest
import torch

from melior.errors import DataError
from melior.policies.slate import SlatePolicy
from melior.policies.slate_effects import first_log_probs, history_effects, pair_effects
from melior.policies.slate_network import Slate
from melior.trainers.loop import FitConfig, fit
from melior.trainers.supervised import Examples, supervised
from melior.types import Demonstration, Interaction, Item, SlateRequest

NAMES = ("tent", "stove", "lamp", "mug", "rope", "book")
ITEMS = [Item(name) for name in NAMES]
PAIRS = {"tent": "stove", "stove": "tent", "lamp": "mug", "mug": "lamp", "rope": "book", "book": "rope"}
AFTER = {"tent": "lamp", "lamp": "rope", "rope": "tent", "stove": "mug", "mug": "book", "book": "stove"}


@cache
def learnt(combinations: bool) -> SlatePolicy:
    """Whatever was bought asks for one item first; what stands first asks for one beside it."""
    asked = [(SlateRequest(history=(Interaction(bought),)), first) for bought, first in AFTER.items()]
    asked += [(SlateRequest(), first) for first in NAMES]
    rows = [Demonstration(request, [first, PAIRS[first]]) for request, first in asked]
    settings = Slate(positions=2, width=16, combinations=combinations, hidden=0.0)
    policy = SlatePolicy.make(settings, ITEMS, [row.inputs for row in rows])
    fit(policy, Examples(policy, rows, batch_size=12, epochs=60), supervised(), FitConfig(learning_rate=2e-2))
    return policy


def test_planted_effects_are_the_strongest() -> None:
    policy = learnt(combinations=True)
    pairs = pair_effects(policy, [SlateRequest()])
    for first, second in PAIRS.items():
        row = pairs.values[NAMES.index(first)]
        assert NAMES[int(row.nan_to_num(-torch.inf).argmax())] == second
    noticed = dict(policy.noticed)
    after = history_effects(policy, [SlateRequest()])
    assert dict(policy.noticed) == noticed  # requests that were made up for a table are not told of
    for bought, first in AFTER.items():
        assert NAMES[int(after.values[NAMES.index(bought)].argmax())] == first
    assert str(pairs).count("\n") == 23 and "after tent" in str(pairs)


def test_effects_have_no_mean_and_no_item_beside_itself() -> None:
    policy = learnt(combinations=True)
    pairs = pair_effects(policy, [SlateRequest(), SlateRequest(history=(Interaction("mug"),))])
    assert torch.equal(torch.isnan(pairs.values), torch.eye(6, dtype=torch.bool))
    assert pairs.values.nanmean(0).abs().max() < 1e-12
    after = history_effects(policy, [SlateRequest()], ["tent", "mug", "book"])
    assert after.rows == ("tent", "mug", "book") and after.values.mean(0).abs().max() < 1e-12
    weakest, strongest = after.weakest(9), after.strongest(9)
    assert weakest == strongest[::-1] and weakest[0][2] <= weakest[1][2]


def test_without_combinations_no_item_asks_for_another() -> None:
    pairs = pair_effects(learnt(combinations=False), [SlateRequest()])
    assert not pairs.values[~torch.isnan(pairs.values)].any()


def test_first_log_probs_are_those_of_slates() -> None:
    policy = learnt(combinations=True)
    requests = [SlateRequest(), SlateRequest(candidates=("mug", "tent", "book"))]
    found = first_log_probs(policy, requests)
    assert torch.isneginf(found[1, 3:]).all()
    for place, name in enumerate(("mug", "tent", "book")):
        slates = [[name, other] for other in ("mug", "tent", "book") if other != name]
        chances = [each.sum().exp() for each in policy.log_probs([Demonstration(requests[1], s) for s in slates])]
        assert float(sum(chances)) == pytest.approx(float(found[1, place].exp()), abs=1e-6)


def test_what_cannot_be_compared() -> None:
    policy = learnt(combinations=True)
    with pytest.raises(DataError, match="0 requests"):
        pair_effects(policy, [])
    with pytest.raises(DataError, match="2 items"):
        history_effects(policy, [SlateRequest()], ["tent", "mug"])
