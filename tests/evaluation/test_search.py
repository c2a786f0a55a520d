"""laws of a search: settings that change nothing win in 5 % of searches at most, and a planted gain is found"""

from __future__ import annotations

import numpy as np
import pytest

from melior.errors import DataError
from melior.evaluation.compare import Comparison
from melior.evaluation.evaluate import REWARD
from melior.evaluation.search import Found, candidate, confirmed, corrected, judged

TRIALS, ROWS, SEEDS, SPREAD = 12, 100, 3, 0.4
SEARCHES = 240


def comparison(differences: np.ndarray) -> Comparison:
    by_row = {f"row {index}": float(value) for index, value in enumerate(differences)}
    return Comparison(differences={REWARD: by_row}, baseline={REWARD: 0.0}, items=len(by_row))


def search(seed: int, *, gain: float = 0.0, between_seeds: float) -> Found:
    """One search of trials whose truth is known: trial 3 gains, the others are the default under another name."""
    chance = np.random.default_rng(seed)
    default = chance.normal(0, between_seeds)  # the default's own luck shifts every difference

    def truth(number: int) -> float:
        return gain if number == 3 else 0.0

    seen = {
        number: truth(number) + chance.normal(0, between_seeds) - default + chance.normal(0, SPREAD, ROWS)
        for number in range(TRIALS)
    }
    best = max(seen, key=lambda number: seen[number].mean())  # the others' intervals cannot change the claim
    interval = comparison(seen[best]).interval(REWARD, level=1 - 0.05 / TRIALS)
    rows = chance.normal(0, SPREAD / 2**0.5, ROWS)  # how a row takes the change, whatever the seed
    pairs = [
        comparison(
            truth(best) + chance.normal(0, between_seeds * 2**0.5) + rows + chance.normal(0, SPREAD / 2**0.5, ROWS)
        )
        for _ in range(SEEDS)
    ]
    return judged({best: interval}, pairs)


@pytest.mark.parametrize("between_seeds", [0.0, 0.04, 0.4], ids=["none", "as large as the rows'", "ten times"])
def test_noise_is_not_called_a_win(between_seeds: float) -> None:
    wins = sum(search(seed, between_seeds=between_seeds).best is not None for seed in range(SEARCHES))
    assert wins / SEARCHES <= 0.05


def test_a_planted_gain_of_half_a_deviation_is_found() -> None:
    found = [search(seed, gain=0.5 * SPREAD, between_seeds=0.02) for seed in range(SEARCHES)]
    wins = [each for each in found if each.best == 3]
    assert len(wins) / SEARCHES >= 0.8
    reported = [each.gain.estimate for each in wins if each.gain]
    assert np.mean(reported) == pytest.approx(0.5 * SPREAD, rel=0.1)  # no winner's curse in what is reported


def test_more_trials_widen_every_interval() -> None:
    differences = np.random.default_rng(0).normal(0.2, 0.5, 60)
    one = corrected({1: comparison(differences)})[1]
    many = corrected({number: comparison(differences) for number in range(20)})[1]
    assert many.low < one.low and many.high > one.high and many.estimate == one.estimate


def test_trials_given_up_count_as_tried() -> None:
    """Who is left was chosen by the same rows, so five left of twenty are corrected as twenty."""
    differences = np.random.default_rng(0).normal(0.2, 0.5, 60)
    left = {number: comparison(differences) for number in range(5)}
    assert corrected(left, tried=20)[1] == corrected({number: comparison(differences) for number in range(20)})[1]
    assert corrected(left, tried=20)[1].low < corrected(left)[1].low


def test_where_no_trial_came_to_its_end_nothing_is_said_of_the_best() -> None:
    told = judged({}, []).sentence
    assert "0 trials came to their end" in told and "the best of" not in told


def test_settings_that_change_nothing_at_all_are_no_candidate() -> None:
    same = {number: comparison(np.zeros(50)) for number in range(5)}
    assert candidate(corrected(same)) is None and candidate({}) is None
    assert "No setting was better" in judged(corrected(same), []).sentence


def test_seeds_that_disagree_confirm_nothing() -> None:
    rows = np.random.default_rng(1).normal(0, 0.05, 80)
    agree = confirmed([comparison(rows + gain) for gain in (0.2, 0.21, 0.22)])
    disagree = confirmed([comparison(rows + gain) for gain in (0.6, -0.1, 0.1)])
    assert agree.low > 0 > disagree.low and agree.estimate == pytest.approx(disagree.estimate, abs=0.02)


def test_one_seed_speaks_of_two_models_only() -> None:
    found = judged(
        {1: comparison(np.full(50, 0.3) + np.arange(50) / 500).interval(REWARD)}, [comparison(np.arange(50))]
    )
    assert "these two models only" in found.sentence
    with pytest.raises(DataError, match="0 pairs"):
        confirmed([])
