"""agreement of scores with labels: the libraries' numbers, intervals that cover, and no confidence from few rows"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melior.errors import DataError
from melior.evaluation.agreement import (
    agreement,
    auc,
    best_threshold,
    cohen_kappa,
    label_value,
    ranks,
    spearman,
)
from melior.statistics import bootstrap


def sample(rows: int, seed: int, shift: float = 1.0) -> tuple[list[float], list[float]]:
    chance = np.random.default_rng(seed)
    labels = (chance.random(rows) < 0.5).astype(float)
    return list(np.round(chance.normal(size=rows) + shift * labels, 1)), list(labels)


@pytest.mark.parametrize("seed", range(4))
def test_numbers_are_those_of_scikit_learn(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores, labels = sample(60, seed)
    x, y = np.array(scores), np.array(labels)
    assert auc(x, y) == pytest.approx(metrics.roc_auc_score(y, x))
    threshold = best_threshold(x, y)
    assert cohen_kappa(x >= threshold, y > 0) == pytest.approx(metrics.cohen_kappa_score(x >= threshold, y > 0))
    stats = pytest.importorskip("scipy.stats")
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert ranks(x).tolist() == stats.rankdata(x).tolist()
    rights = [metrics.accuracy_score(y, x >= candidate) for candidate in [*x, math.inf]]
    assert float(((x >= threshold) == (y > 0)).mean()) == pytest.approx(max(rights))


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=30))
def test_turning_scores_round_turns_the_area_round(pairs: list[tuple[int, bool]]) -> None:
    x, y = np.array([float(score) for score, _ in pairs]), np.array([float(label) for _, label in pairs])
    if 0 < y.sum() < len(y):
        assert auc(x, y) + auc(-x, y) == pytest.approx(1.0)
        assert auc(3 * x + 2, y) == pytest.approx(auc(x, y))
    else:
        assert math.isnan(auc(x, y))


def test_booleans_have_an_area_and_numbers_have_ranks() -> None:
    scores, labels = sample(80, 0)
    found = agreement(scores, labels)
    assert found.boolean and found.rows == 80 and found.auc and found.accuracy and found.kappa
    for interval in (found.auc, found.accuracy, found.kappa, found.spearman, found.kendall):
        assert interval is not None and interval.low < interval.estimate < interval.high
    ratings = [1.0, 2.0, 3.0, 4.0, 5.0] * 4
    ranked = agreement([rating**3 for rating in ratings], ratings)
    assert not ranked.boolean and ranked.auc is None and ranked.accuracy is None
    assert ranked.spearman and ranked.spearman.estimate == pytest.approx(1.0)
    assert ranked.to_json()["auc"] is None and ranked.to_json()["kendall"]["estimate"] == pytest.approx(1.0)


def test_perfect_agreement_of_few_rows_proves_little() -> None:
    found = agreement([0.1, 0.2, 0.8, 0.9], [0.0, 0.0, 1.0, 1.0])
    assert found.auc and (found.auc.estimate, found.auc.high) == (1.0, 1.0) and found.auc.low < 0.5


def test_rows_of_one_input_count_as_one() -> None:
    scores, labels = sample(40, 1)
    alone = agreement(scores, labels).auc
    repeated = agreement(scores * 5, labels * 5, clusters=list(range(40)) * 5).auc
    naive = agreement(scores * 5, labels * 5).auc
    assert alone and repeated and naive
    assert repeated.high - repeated.low == pytest.approx(alone.high - alone.low, rel=0.25)
    assert naive.high - naive.low < 0.7 * (alone.high - alone.low)


@pytest.mark.parametrize(
    ("label", "value"),
    [
        (True, 1.0),
        (False, 0.0),
        (3, 3.0),
        (0.5, 0.5),
        ("Good", 1.0),
        ("no", 0.0),
        (" 4 ", 4.0),
        (None, None),
        ("", None),
        ("NaN", None),
        (" nan", None),
        (math.nan, None),
        ("inf", None),
    ],
)
def test_labels_are_read(label: object, value: float | None) -> None:
    assert label_value(label) == value


def test_labels_that_say_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="is no number, boolean or one of"):
        label_value("perhaps")
    with pytest.raises(DataError, match="all 3 labels are 1"):
        agreement([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    with pytest.raises(DataError, match="1 scores and 1 labels"):
        agreement([1.0], [1.0])


def test_constant_scores_agree_with_nothing() -> None:
    found = agreement([0.5] * 10, [0.0, 1.0] * 5)
    assert found.auc and found.auc.estimate == 0.5
    assert found.spearman and math.isnan(found.spearman.estimate) and found.spearman.high == 1.0


def test_the_bootstrap_covers_what_it_estimates() -> None:
    covered = 0
    truth = 0.7602  # P(N(1, 1) > N(0, 1)) = Φ(1/√2)
    for seed in range(60):
        chance = np.random.default_rng(seed)
        x, y = np.concatenate([chance.normal(size=40), chance.normal(1, 1, 40)]), np.repeat([0.0, 1.0], 40)
        found = bootstrap(lambda rows, x=x, y=y: auc(x[rows], y[rows]), 80, resamples=200, bounds=(0.0, 1.0))
        covered += found.low <= truth <= found.high
    assert covered >= 51  # 95 % of 60 less three standard deviations
    assert bootstrap(lambda rows: float(rows.mean()), 1).high == math.inf


def test_two_rows_are_enough() -> None:
    found = agreement([1.0, 0.0], [True, False])
    assert found.auc is not None and found.kendall is not None
    assert found.auc.estimate == found.kendall.estimate == 1.0
