"""measures say what scikit-learn says where both are defined, and NaN where nothing is"""

from __future__ import annotations

import math
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as peer

from melior.errors import DataError
from melior.metrics import (
    accuracy,
    auc,
    average_precision,
    brier_scores,
    calibration_by_chance,
    cheapest,
    cheapest_threshold,
    confusion_matrix,
    costs_of,
    counts,
    expected_calibration_error,
    fair_threshold,
    indicators,
    log_likelihoods,
    macro,
    ndcg,
    one_vs_rest,
    pass_at_k,
    reliability,
    squared_calibration_error,
    threshold_costs,
    weighted,
)

LABELS = ["a", "b", "c", "d"]
ROWS = st.integers(0, 2**32 - 1)


def drawn(seed: int, rows: int = 40, labels: int = 4) -> tuple[Any, Any, Any, Any]:
    """Truth [N, C], decisions [N, C], probabilities [N, C] with ties, weights [N]; some labels may be missing."""
    chance = np.random.default_rng(seed)
    probabilities = chance.dirichlet(np.ones(labels), rows).round(1) + 0.05
    probabilities /= probabilities.sum(1, keepdims=True)
    one = np.eye(labels, dtype=bool)
    truth, decided = one[chance.integers(chance.integers(1, labels + 1), size=rows)], one[probabilities.argmax(1)]
    return truth, decided, probabilities, chance.exponential(size=rows)


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_precision_recall_and_f1_are_scikit_learns(seed: int) -> None:
    truth, decided, _, weights = drawn(seed)
    y, z = truth.argmax(1), decided.argmax(1)
    told = {"labels": range(4), "sample_weight": weights, "zero_division": np.nan}
    found = counts(truth, decided, weights)
    for ours, theirs in zip(
        (found.precision, found.recall, found.f1),
        peer.precision_recall_fscore_support(y, z, average=None, **told)[:3],
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs)
    assert float(macro(found.f1)) == pytest.approx(peer.f1_score(y, z, average="macro", **told))
    assert float(weighted(found.f1, found.true)) == pytest.approx(peer.f1_score(y, z, average="weighted", **told))
    assert float(found.pooled.f1[0]) == pytest.approx(peer.f1_score(y, z, average="micro", **told))
    np.testing.assert_allclose(
        confusion_matrix(truth, decided, weights), peer.confusion_matrix(y, z, labels=range(4), sample_weight=weights)
    )


@pytest.mark.parametrize("area", [auc, average_precision])
def test_areas_read_truth_as_0_and_1_too(area: Any) -> None:
    scores, truth = np.array([0.1, 0.4, 0.3, 0.9]), np.array([0, 1, 0, 1])
    assert area(scores, truth) == area(scores, truth > 0) == 1.0


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_areas_are_scikit_learns_ties_and_weights_included(seed: int) -> None:
    truth, _, probabilities, weights = drawn(seed, labels=3)
    positive, scores = truth[:, 0], probabilities[:, 0]
    if positive.all():
        assert math.isnan(auc(scores, positive))
        return
    assert auc(scores, positive, weights) == pytest.approx(peer.roc_auc_score(positive, scores, sample_weight=weights))
    assert average_precision(scores, positive, weights) == pytest.approx(
        peer.average_precision_score(positive, scores, sample_weight=weights)
    )
    if truth.any(0).all():
        ours = float(macro(one_vs_rest(auc, probabilities, truth)))
        assert ours == pytest.approx(peer.roc_auc_score(truth.argmax(1), probabilities, multi_class="ovr"))


@settings(max_examples=25, deadline=None)
@given(ROWS)
def test_log_loss_and_brier_are_scikit_learns(seed: int) -> None:
    for labels in (2, 3):
        truth, _, probabilities, _ = drawn(seed, labels=labels)
        y = truth.argmax(1)
        ours = -float(log_likelihoods(probabilities, truth).mean())
        assert ours == pytest.approx(peer.log_loss(y, probabilities, labels=range(labels)))
        theirs = ((probabilities - truth) ** 2).sum(1).mean()
        if labels == 2:
            theirs = peer.brier_score_loss(y, probabilities[:, 1], labels=[0, 1], pos_label=1)
        assert float(brier_scores(probabilities, truth).mean()) == pytest.approx(theirs)


@settings(max_examples=25, deadline=None)
@given(ROWS, st.integers(1, 6))
def test_ndcg_is_scikit_learns(seed: int, k: int) -> None:
    gains = np.random.default_rng(seed).exponential(size=(3, 6))
    places = np.arange(6, 0, -1.0)[None].repeat(3, 0)  # the order shown
    assert float(ndcg(gains, k).mean()) == pytest.approx(peer.ndcg_score(gains, places, k=k))
    assert ndcg(np.sort(gains[0])[::-1], k) == pytest.approx(1.0) and math.isnan(ndcg([0.0, 0.0]))
    assert ndcg([0.0, 1.0], ideal=[3.0, 1.0, 0.0]) < ndcg([0.0, 1.0])


@settings(max_examples=25, deadline=None)
@given(ROWS)
def test_many_weightings_at_once_are_each_of_them_alone(seed: int) -> None:
    truth, decided, probabilities, _ = drawn(seed, labels=3)
    weights = np.random.default_rng(seed).integers(0, 3, (5, len(truth))).astype(float)
    at_once = counts(truth, decided, weights).f1
    for row, drawn_weights in enumerate(weights):
        kept = np.repeat(np.arange(len(truth)), drawn_weights.astype(int))  # a weighting is rows drawn so often
        np.testing.assert_allclose(at_once[row], counts(truth[kept], decided[kept]).f1)
        for measure in (auc, average_precision):
            found = one_vs_rest(measure, probabilities, truth, weights)[row]
            np.testing.assert_allclose(found, one_vs_rest(measure, probabilities[kept], truth[kept]))


def test_what_is_undefined_is_nan_and_never_zero() -> None:
    truth, decided = indicators(["a", "a", "b"], LABELS), indicators(["a", "c", "c"], LABELS)
    found = counts(truth, decided)
    np.testing.assert_equal(found.precision, [1.0, np.nan, 0.0, np.nan])
    np.testing.assert_equal(found.recall, [0.5, 0.0, np.nan, np.nan])
    np.testing.assert_equal(found.f1, [2 / 3, 0.0, 0.0, np.nan])
    assert float(macro(found.precision)) == 0.5 and math.isnan(macro(np.array([np.nan])))
    assert math.isnan(average_precision(np.array([0.1, 0.2]), np.array([False, False])))


def test_several_labels_a_row() -> None:
    held = indicators([("a", "c"), (), ["b"]], LABELS)
    assert held.tolist() == [[True, False, True, False], [False] * 4, [False, True, False, False]]
    probabilities = np.full((3, 4), 0.25)
    expected = [math.log(0.25**2 * 0.75**2), math.log(0.75**4), math.log(0.25 * 0.75**3)]
    np.testing.assert_allclose(log_likelihoods(probabilities, held, several=True), expected)
    with pytest.raises(DataError, match="row 1 has the label 'z'"):
        indicators(["a", "z"], LABELS)


def test_bins_hold_as_many_rows_each_and_never_part_equals() -> None:
    chance = np.random.default_rng(0)
    probabilities, happened = chance.random(1000), chance.random(1000) < 0.3
    table = reliability(probabilities, happened)
    assert [each.rows for each in table] == [100] * 10
    assert sum(each.rows * each.happened for each in table) == pytest.approx(happened.sum())
    error = sum(each.rows / 1000 * abs(each.foretold - each.happened) for each in table)
    assert error == pytest.approx(float(expected_calibration_error(probabilities, happened)))
    (one,) = reliability(np.full(50, 0.7), np.arange(50) < 10)
    assert (one.low, one.high, one.rows, one.happened) == (0.7, 0.7, 50, pytest.approx(0.2))


def test_the_debiased_calibration_error_is_unbiased_and_the_plain_one_is_not() -> None:
    plain, debiased, off = [], [], []
    for seed in range(400):
        chance = np.random.default_rng(seed)
        probabilities = chance.random(300)
        happened = chance.random(300) < probabilities
        plain.append(float(expected_calibration_error(probabilities, happened)))
        debiased.append(squared_calibration_error(probabilities, happened))
        off.append(squared_calibration_error(probabilities / 2, happened))
    spread = np.std(debiased) / math.sqrt(len(debiased))
    assert abs(np.mean(debiased)) < 3 * spread and np.mean(plain) > 0.04
    # half of a uniform probability is off by p/2: its mean square over the unit interval is 1/12, less what bins hide
    assert np.mean(off) == pytest.approx(1 / 12, rel=0.03)
    chance = np.random.default_rng(1)
    expected, high = calibration_by_chance(chance.random(300))
    assert expected == pytest.approx(np.mean(plain), rel=0.1) and 0.03 < np.mean(np.array(plain) > high) < 0.09


COSTS = np.array([[0.0, 1.0], [5.0, 0.0]])  # a bad one called good costs 5


@settings(max_examples=25, deadline=None)
@given(ROWS)
def test_thresholds_cost_what_deciding_by_them_costs(seed: int) -> None:
    chance = np.random.default_rng(seed)
    scores, positive = chance.random(30).round(1), chance.random(30) < 0.4
    thresholds, found = threshold_costs(scores, positive, COSTS)

    def cost(threshold: float) -> float:
        return float(COSTS[positive.astype(int), (scores >= threshold).astype(int)].mean())

    assert found.tolist() == pytest.approx([cost(each) for each in thresholds])
    every = min(cost(each) for each in [*np.linspace(-0.05, 1.05, 23), math.inf])
    assert cost(cheapest_threshold(scores, positive, COSTS)) == pytest.approx(every)


def test_costs_decide_where_probabilities_do_not() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    assert cheapest(probabilities, COSTS).tolist() == [0, 1, 1]
    assert fair_threshold(COSTS) == pytest.approx(1 / 6)
    truth, decided = np.eye(2, dtype=bool)[[1, 0, 1]], np.eye(2, dtype=bool)[[0, 1, 1]]
    assert costs_of(truth, decided, COSTS).tolist() == [5.0, 1.0, 0.0]
    with pytest.raises(DataError, match="dearer"):
        fair_threshold(np.zeros((2, 2)))


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_pass_at_k_counts_the_subsets_with_a_success(samples: int) -> None:
    for successes in range(samples + 1):
        outcomes = [1] * successes + [0] * (samples - successes)
        for k in range(1, samples + 1):
            subsets = list(combinations(outcomes, k))
            assert pass_at_k(samples, successes, k) == pytest.approx(sum(map(max, subsets)) / len(subsets))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_pass_at_k_is_unbiased(p: float) -> None:
    samples, k = 5, 3
    expected = sum(
        p ** sum(draw) * (1 - p) ** (samples - sum(draw)) * pass_at_k(samples, sum(draw), k)
        for draw in product((0, 1), repeat=samples)
    )
    assert expected == pytest.approx(1 - (1 - p) ** k)


@pytest.mark.parametrize(("samples", "successes", "k"), [(2, 3, 1), (2, 1, 3), (2, 1, 0), (0, 0, 1), (2, -1, 1)])
def test_pass_at_k_refuses_what_cannot_be_drawn(samples: int, successes: int, k: int) -> None:
    with pytest.raises(DataError):
        pass_at_k(samples, successes, k)


def test_accuracy() -> None:
    assert accuracy(["a", "b", "c", "d"], ["a", "b", "x", "d"]) == 0.75
    with pytest.raises(DataError, match="2 outputs for 1"):
        accuracy(["a", "b"], ["a"])
    with pytest.raises(DataError):
        accuracy([], [])
