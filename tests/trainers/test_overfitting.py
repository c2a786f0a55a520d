"""laws of the fitting gap: zero before training, blind to how hard rows are, and seen when rows are learnt by heart"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from melior.evaluation.overfitting import overfitting
from melior.policies.language import LanguagePolicy
from melior.trainers.loop import FitConfig, fit
from melior.trainers.overfitting import FittingGap, fitting_gap
from melior.trainers.supervised import Examples, supervised
from melior.types import Demonstration

WORDS = ["cat", "hat", "mat", "man", "what", "the", "sat", "user"]


def noise(seed: int, count: int) -> list[Demonstration]:
    """Answers that nothing in the question foretells, so what is learnt of them is learnt by heart."""
    chance = np.random.default_rng(seed)
    return [Demonstration(f"say {seed} {number}", " ".join(chance.choice(WORDS, 6))) for number in range(count)]


def test_the_gap_is_zero_before_training(learner: Callable[..., LanguagePolicy]) -> None:
    policy = learner()
    measured = FittingGap(policy, noise(0, 8), noise(1, 8))(policy)
    assert measured["fitting_gap"] == 0 and measured["heldout_loss"] > 0 and measured["probe_loss"] > 0


def test_learning_by_heart_is_seen_stopped_and_undone(learner: Callable[..., LanguagePolicy], tmp_path: Path) -> None:
    policy = learner()
    train, heldout = noise(0, 8), noise(1, 24)
    gap = FittingGap(policy, train, heldout)
    config = FitConfig(
        learning_rate=2e-2, evaluate_every=4, best_metric="heldout_loss", best_is="min", patience=3, folder=tmp_path
    )
    run = fit(policy, Examples(policy, train, batch_size=8, epochs=200), supervised(), config, evaluation=gap)
    sentence = overfitting(run.metrics, restored=True)
    assert run.steps < 200 and "heldout_loss has not improved for 3 evaluations" in run.stopped
    assert run.best_step is not None and f"after step {run.best_step} " in sentence and "are kept" in sentence
    assert run.metrics[-1]["fitting_gap_low"] > 0
    assert gap(policy)["heldout_loss"] == pytest.approx(run.best_value)


def test_both_losses_are_means_over_decisions(learner: Callable[..., LanguagePolicy]) -> None:
    rows = [Demonstration("say a", "cat"), Demonstration("say b", "the cat sat on the mat, the man sat on the hat")]
    policy = learner()
    measured = FittingGap(policy, rows, rows)(policy)
    assert measured["probe_loss"] == pytest.approx(measured["heldout_loss"], rel=1e-6)


def test_a_rise_within_noise_is_not_called_over_fitting() -> None:
    gap = {"fitting_gap": 0.5, "fitting_gap_low": 0.4, "fitting_gap_high": 0.6}
    looks = [{"step": 9.0, "heldout_loss": 1.0, "probe_loss": 1.0, **gap}]
    for last, told in ((1.001, False), (1.1, True)):
        more = [*looks, {"step": 19.0, "heldout_loss": last, "probe_loss": 0.5, **gap}]
        assert overfitting(more, restored=True).startswith("over-fitting") == told


def test_without_training_rows_beside_it_a_rise_takes_three_looks() -> None:
    looks = [{"step": float(step), "heldout_loss": loss} for step, loss in enumerate((1.0, 0.5, 0.8))]
    assert overfitting(looks[1:], restored=False) == ""
    told = overfitting(looks, restored=False)
    assert told.startswith("over-fitting: held-out loss was lowest after step 2 (0.500) and rose by 0.300; stop there")


def test_what_is_general_is_not_called_over_fitting(learner: Callable[..., LanguagePolicy]) -> None:
    policy = learner()
    rows = [Demonstration(f"say {number}", "the cat") for number in range(32)]
    gap = FittingGap(policy, rows[:16], rows[16:])
    config = FitConfig(learning_rate=1e-2, evaluate_every=4)
    run = fit(policy, Examples(policy, rows[:16], batch_size=4, epochs=6), supervised(), config, evaluation=gap)
    assert run.last("heldout_loss") < 0.75 * run.metrics[3]["heldout_loss"]
    assert overfitting(run.metrics, restored=False) == ""


def test_the_interval_holds_its_level_and_ignores_how_hard_rows_are() -> None:
    held = 0
    for seed in range(300):
        chance = np.random.default_rng(seed)
        gap = fitting_gap(list(chance.normal(-1, 0.5, 30)), list(chance.normal(-0.8, 0.7, 40)))
        held += gap.low <= 0.2 <= gap.high
    assert 0.92 <= held / 300 <= 0.99


def test_one_look_or_none_says_nothing() -> None:
    assert overfitting([], restored=False) == "" == overfitting([{"step": 3.0, "loss": 1.0}] * 4, restored=False)
