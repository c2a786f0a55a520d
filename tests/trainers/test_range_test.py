"""laws of the range test: it leaves no trace, finds a rate at which training works, and admits when it sees nothing"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from melior.policies.language import LanguagePolicy
from melior.trainers.loop import FitConfig, fit
from melior.trainers.range_test import HIGHEST, LOWEST, SAFE, choose, range_test
from melior.trainers.supervised import Examples, HeldoutLoss, supervised
from melior.types import Demonstration

ROWS = [Demonstration(f"say {number}", "the cat") for number in range(48)]


def test_weights_and_randomness_are_bitwise_what_they_were(learner: Callable[..., LanguagePolicy]) -> None:
    policy = learner()
    before = {name: tensor.clone() for name, tensor in policy.state().items()}
    chance = torch.random.get_rng_state()
    found = range_test(policy, Examples(policy, ROWS, batch_size=2, epochs=2), supervised(), tests=12)
    assert min(found.changes) < -0.1 and found.rates[0] == LOWEST
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state().items())
    assert torch.equal(torch.random.get_rng_state(), chance)
    assert all(parameter.grad is None for _, parameter in policy.backbone.trainable())


def test_training_after_a_range_test_is_training_without_one(learner: Callable[..., LanguagePolicy]) -> None:
    states = []
    for tested in (False, True):
        policy = learner()
        steps = Examples(policy, ROWS, batch_size=8)
        if tested:
            range_test(policy, Examples(policy, ROWS, batch_size=2), supervised(), tests=8)
        fit(policy, steps, supervised(), FitConfig(learning_rate=1e-2))
        states.append({name: tensor.clone() for name, tensor in policy.state().items()})
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_the_rate_it_finds_learns_and_a_hundredth_of_it_hardly_does(learner: Callable[..., LanguagePolicy]) -> None:
    policy = learner()
    found = range_test(policy, Examples(policy, ROWS, batch_size=2, epochs=2), supervised())
    assert found.rate is not None and LOWEST < found.rate < HIGHEST
    falls = []
    for rate in (found.rate, found.rate / 100):
        policy = learner()
        heldout = HeldoutLoss(policy, [Demonstration("say 99", "the cat")])
        before = heldout(policy)["heldout_loss"]
        fit(policy, Examples(policy, ROWS, batch_size=4, epochs=2), supervised(), FitConfig(learning_rate=rate))
        falls.append(before - heldout(policy)["heldout_loss"])
    assert falls[0] > 0.5 * before and falls[0] > 3 * falls[1]


def test_the_edge_of_the_basin_decides() -> None:
    rates = [10.0**-power for power in (6, 5, 4, 3, 2, 1)]
    found = choose(rates, [0.0, -0.5, -2.0, -2.0, -1.9, 9.0], start=3.0)
    assert found.rate == pytest.approx(1e-3 / SAFE) and "kept learning" in found.reason


@pytest.mark.parametrize("changes", [[0.0, 0.01, -0.01, 0.02], [0.0, 1.0, float("nan")], []])
def test_where_nothing_was_learnt_no_rate_is_chosen(changes: list[float]) -> None:
    found = choose([1e-6] * len(changes), changes, start=3.0)
    assert found.rate is None and "within its noise" in found.reason


@pytest.mark.parametrize("start", [0.0, float("nan")], ids=["nothing to learn", "a broken model"])
def test_a_start_that_leaves_no_room_chooses_no_rate(start: float) -> None:
    assert choose([1e-6, 1e-5, 1e-4], [start] * 3, start=start).rate is None
