"""one decision with a known best policy: imitation, verdicts and fresh pairs find it, over five seeds

Those that learn from rewards are in test_known_optimum.py, from pairs that were collected in test_preference.py, from
logs in test_logged.py, from a teacher in test_distillation.py, and with best-of-n and mixtures beside these.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tabular import Reward, Tabular, tasks_for
from torch import Tensor

from melior.trainers.loop import FitConfig, fit
from melior.trainers.online import OnlinePairs, Pairing
from melior.trainers.preference import Dpo
from melior.trainers.prospect import Judged, kto
from melior.trainers.supervised import Examples, Supervised
from melior.types import Demonstration, Rated, Sampling, Score

SEEDS = pytest.mark.parametrize("seed", range(5))
ARMS = (0.2, 0.9, 0.5, 0.0, 0.7)


def start(seed: int, spread: float = 1.0) -> Tabular:
    return Tabular(vocabulary=len(ARMS), length=1, seed=seed, spread=spread)


def probabilities(policy: Tabular) -> Tensor:
    return torch.softmax(policy.logits[0, 0].detach(), 0)


@SEEDS
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_imitation_ends_at_how_often_each_was_shown(seed: int, smoothing: float) -> None:
    policy, often = start(seed), (1, 2, 3, 4, 2)
    rows = [Demonstration("a", (arm,)) for arm, times in enumerate(often) for _ in range(times)]
    steps = Examples(policy, rows, batch_size=len(rows), epochs=150, seed=seed)
    fit(policy, steps, Supervised(smoothing=smoothing), FitConfig(learning_rate=0.2, schedule="cosine"))
    best = (1 - smoothing) * torch.tensor(often).double() / sum(often) + smoothing / len(often)
    torch.testing.assert_close(probabilities(policy), best, rtol=0, atol=2e-3)


@SEEDS
def test_kto_decides_most_what_is_called_good_most_often_and_hardly_what_never_is(seed: int) -> None:
    policy = start(seed, spread=0.1)
    rows = [Rated("a", (arm,), float(number < 10 * good)) for arm, good in enumerate(ARMS) for number in range(10)]
    steps = Judged(policy, rows, batch_size=len(rows), epochs=80, seed=seed)
    fit(policy, steps, kto(), FitConfig(learning_rate=0.4, schedule="cosine"))
    found = probabilities(policy)
    assert int(found.argmax()) == 1 and float(found[1]) > 0.5
    assert float(found[0] + found[3]) < 0.01  # called bad more often than not


def fresh(policy: Tabular, seed: int, **how: Any) -> OnlinePairs:
    grader = Reward(lambda record: Score(value=ARMS[(record.decisions or ())[0]]))
    return OnlinePairs(policy, tasks_for(policy), grader, Sampling(n=16, max_tokens=1, seed=seed), seed=seed, **how)


@SEEDS
@pytest.mark.parametrize("pairing", ["best_worst", "all"])
def test_fresh_pairs_lead_to_the_best_arm(pairing: Pairing, seed: int) -> None:
    policy = start(seed, spread=0.1)
    settings = FitConfig(steps=40, learning_rate=0.3, schedule="constant")
    fit(policy, fresh(policy, seed, pairing=pairing), Dpo(), settings)
    assert float(probabilities(policy)[1]) >= 0.9


@SEEDS
def test_fresh_pairs_with_soft_labels_lead_to_the_reference_tilted_by_the_reward(seed: int) -> None:
    """Whoever samples them: every pair has its slope 0 there, so what is left to learn is no matter of chance."""
    policy = start(seed, spread=0.3)
    settings = FitConfig(steps=80, learning_rate=0.2, schedule="cosine")
    fit(policy, fresh(policy, seed, pairing="soft", scale=0.5), Dpo(beta=1.0), settings)
    best = torch.softmax(policy.reference[0, 0] + torch.tensor(ARMS).double() / 0.5, 0)
    torch.testing.assert_close(probabilities(policy), best, rtol=0, atol=1e-2)
