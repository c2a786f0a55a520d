"""laws of a classification: intervals hold, absences are told, groups are compared fairly, and JSON keeps everything"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from melior.errors import DataError
from melior.evaluation.classification import Classification, classification
from melior.evaluation.groups import Shares, group_gaps
from melior.evaluation.judging import cost_matrix
from melior.metrics import auc, average_precision, counts, macro
from melior.statistics import percentile_interval, resampled_weights

COSTS = {"bad": {"good": 5.0}, "good": {"bad": 1.0}}


def two(seed: int, rows: int, *, slope: float = 1.5) -> tuple[list[str], Any]:
    """Truth and probabilities of (good, bad) that are right."""
    chance = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-slope * chance.normal(size=rows)))
    return ["bad" if hit else "good" for hit in chance.random(rows) < p], np.stack([1 - p, p], 1)


def many(seed: int, rows: int, labels: int) -> tuple[list[str], list[str], Any]:
    chance = np.random.default_rng(seed)
    names = [f"intent {number}" for number in range(labels)]
    truth = chance.integers(labels, size=rows)
    logits = chance.normal(size=(rows, labels))
    logits[np.arange(rows), truth] += 2
    probabilities = np.exp(logits)
    return names, [names[index] for index in truth], probabilities / probabilities.sum(1, keepdims=True)


def test_two_labels_have_every_measure() -> None:
    truth, probabilities = two(0, 200)
    sexes = ["f", "m"] * 100
    found = classification(["good", "bad"], truth, probabilities, costs=COSTS, groups={"sex": sexes})
    assert {"accuracy", "precision", "recall", "f1", "macro_f1", "auc", "log_loss", "brier", "cost"} <= set(
        found.measures
    )
    for name, interval in found.measures.items():
        assert interval.low <= interval.estimate <= interval.high, name
        assert interval.low < interval.high
    assert found.positive == "bad" and found.measures["recall"] == found.by_label[1].recall
    assert found.measures["cost_by_probability"].estimate < found.measures["cost"].estimate
    assert found.curve is not None and found.curve.fair == pytest.approx(1 / 6)
    assert min(found.curve.costs) <= found.measures["cost"].estimate
    assert found.notes == () and found.calibration is not None and "nothing says" in found.calibration.sentence
    assert found.groups[0].sentence.startswith("sex: ")


def test_the_label_that_is_looked_for_can_be_named() -> None:
    truth, probabilities = two(0, 60)
    seen = {
        positive: classification(["good", "bad"], truth, probabilities, positive=positive, costs=COSTS)
        for positive in ("good", "bad")
    }
    assert seen["good"].measures["auc"].estimate == pytest.approx(seen["bad"].measures["auc"].estimate)
    assert seen["good"].measures["recall"] == seen["bad"].by_label[0].recall
    fair = [found.curve.fair for found in seen.values() if found.curve]
    assert sum(fair) == pytest.approx(1)  # a threshold on the other label's probability
    with pytest.raises(DataError, match="cannot be looked for"):
        classification(["good", "bad"], truth, probabilities, positive="ugly")


@pytest.mark.parametrize("kind", ["two", "many", "several", "outputs", "weighted", "clustered"])
def test_json_keeps_everything(kind: str) -> None:
    truth, probabilities = two(1, 60)
    labels: list[str] = ["good", "bad"]
    more: dict[str, Any] = {}
    if kind == "two":
        more = {
            "costs": COSTS,
            "groups": {"sex": (["f"] * 31 + ["m"] * 28 + [None])},
            "items": [f"row {i}" for i in range(60)],
        }
    if kind == "many":
        labels, truth, probabilities = many(0, 60, 5)
    if kind == "several":
        truth, more = [("good",), ("good", "bad"), ()] * 20, {"several": True}  # type: ignore[assignment]
    if kind == "outputs":
        probabilities, more = None, {"outputs": ["bad"] * 60}
    if kind == "weighted":
        more = {"weights": [0.5, 2.0] * 30}
    if kind == "clustered":
        more = {"clusters": [row // 4 for row in range(60)]}
    found = classification(labels, truth, probabilities, **more)
    again = Classification.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found
    with pytest.raises(DataError, match="not a classification"):
        Classification.from_json({"labels": []})


def test_values_by_item_are_what_the_measures_are_means_of() -> None:
    truth, probabilities = two(2, 50)
    items = [f"row {number}" for number in range(50)]
    found = classification(["good", "bad"], truth, probabilities, costs=COSTS, items=items)
    values = found.values()
    for metric, measure, sign in (("correct", "accuracy", 1), ("log_prob", "log_loss", -1), ("cost", "cost", 1)):
        assert list(values[metric]) == items
        mean = np.mean([value for (value,) in values[metric].values()])
        assert sign * mean == pytest.approx(found.measures[measure].estimate)
    assert found.bounds() == {"correct": (0.0, 1.0), "cost": (0.0, 5.0)}


def test_what_was_never_decided_or_never_true_is_told() -> None:
    found = classification(["a", "b", "c"], ["a", "a", "b"], outputs=["a", "a", "a"])
    by_label = {row.label: row for row in found.by_label}
    assert by_label["b"].precision is None and by_label["b"].f1 is not None and by_label["b"].f1.estimate == 0
    assert by_label["c"].recall is None and by_label["c"].f1 is None
    assert any("(c) have no row" in note for note in found.notes)
    assert any("(b) were never decided" in note for note in found.notes)
    assert found.measures["macro_precision"].estimate == pytest.approx(2 / 3)
    one_class = classification(["good", "bad"], ["good"] * 5, np.full((5, 2), 0.5))
    assert "auc" not in one_class.measures and one_class.by_label[1].recall is None


def test_a_probability_of_zero_for_the_truth_is_counted() -> None:
    found = classification(["a", "b"], ["a", "b"], [[0.0, 1.0], [0.5, 0.5]])
    assert any("1 rows had a probability of 0" in note for note in found.notes)
    assert math.isfinite(found.measures["log_loss"].estimate)


def test_intervals_hold_their_level() -> None:
    """Measures of 150 rows, resampled by weights as a classification does, against their values in a large sample."""
    large = _measured(*two(10_000, 200_000))
    held = dict.fromkeys(large, 0)
    for seed in range(300):
        truth, probabilities = two(150_000 + seed, 150)
        estimates = _resampled(truth, probabilities, np.ones(150))
        parts = [_resampled(truth, probabilities, weights) for weights in resampled_weights(150, resamples=500)]
        for name, value in large.items():
            draws = np.concatenate([part[name] for part in parts])
            found = percentile_interval(float(estimates[name]), draws, 150, 500, bounds=(0, 1))
            held[name] += found.low <= value <= found.high
    assert all(0.92 <= count / 300 <= 0.985 for count in held.values()), held


def _resampled(truth: list[str], probabilities: Any, weights: Any) -> dict[str, Any]:
    positive, scores = np.array(truth) == "bad", probabilities[:, 1]
    tally = counts(np.stack([~positive, positive], 1), np.stack([scores <= 0.5, scores > 0.5], 1), weights)
    return {
        "auc": auc(scores, positive, weights),
        "average_precision": average_precision(scores, positive, weights),
        "f1": tally.f1[..., 1],
        "balanced_accuracy": macro(tally.recall),
    }


def _measured(truth: list[str], probabilities: Any) -> dict[str, float]:
    from sklearn import metrics as peer

    y, z = np.array(truth) == "bad", probabilities[:, 1] > 0.5
    return {
        "auc": peer.roc_auc_score(y, probabilities[:, 1]),
        "f1": peer.f1_score(y, z),
        "balanced_accuracy": peer.balanced_accuracy_score(y, z),
        "average_precision": peer.average_precision_score(y, probabilities[:, 1]),
    }


def test_clusters_widen_what_copies_would_narrow() -> None:
    truth, probabilities = two(3, 80)
    copied = [np.repeat(probabilities, 5, 0), [label for label in truth for _ in range(5)]]
    once = classification(["good", "bad"], truth, probabilities).measures["auc"]
    blind = classification(["good", "bad"], copied[1], copied[0]).measures["auc"]
    seen = classification(["good", "bad"], copied[1], copied[0], clusters=[row // 5 for row in range(400)]).measures[
        "auc"
    ]
    width = once.high - once.low
    assert blind.high - blind.low < 0.6 * width and seen.high - seen.low == pytest.approx(width, rel=0.1)


def test_rows_that_belong_together_are_not_called_badly_calibrated() -> None:
    """Probabilities are right, but 25 rows at a time share their luck."""
    chance = np.random.default_rng(0)
    luck, foretold = (np.repeat(chance.random(40), 25) for _ in range(2))
    truth, owners = np.where(luck < foretold, "bad", "good").tolist(), np.repeat(np.arange(40), 25).tolist()
    columns = np.stack([1 - foretold, foretold], 1)
    blind = classification(["good", "bad"], truth, columns).calibration
    seen = classification(["good", "bad"], truth, columns, clusters=owners).calibration
    alone = classification(["good", "bad"], truth, columns, clusters=list(range(1000))).calibration
    assert blind is not None and "they are off" in blind.sentence and blind == alone
    assert seen is not None and not seen.independent and "cannot say" in seen.sentence


def test_the_brier_score_of_two_labels_that_a_row_may_both_have_counts_both() -> None:
    found = classification(["a", "b"], [("a",), ("a", "b")], [[0.9, 0.4], [0.6, 0.7]], several=True)
    assert found.measures["brier"].estimate == pytest.approx((0.01 + 0.16 + 0.16 + 0.09) / 2)


def test_weights_are_rows_so_many_times() -> None:
    truth, probabilities = two(4, 40)
    weights = [1.0 + row % 3 for row in range(40)]
    times = [row for row in range(40) for _ in range(1 + row % 3)]
    heavy = classification(["good", "bad"], truth, probabilities, weights=weights, costs=COSTS)
    often = classification(["good", "bad"], [truth[row] for row in times], probabilities[times], costs=COSTS)
    for name, interval in heavy.measures.items():
        assert interval.estimate == pytest.approx(often.measures[name].estimate), name
    assert heavy.confusion == often.confusion and heavy.baselines == pytest.approx(often.baselines)


def test_a_gap_between_groups_is_found_where_there_is_one_and_not_where_there_is_none() -> None:
    called = 0
    for seed in range(120):
        chance = np.random.default_rng(seed)
        right, positive = chance.random((2, 240)) < [[0.8], [0.3]]
        shares = Shares(rates={"accuracy": (right, np.ones(240, dtype=bool)), "share found": (right, positive)})
        found = group_gaps("town", chance.choice(["north", "south", "east", "west"], 240).tolist(), shares)
        called += any(gap.beyond_chance for gap in found.gaps)
    assert called / 120 <= 0.06
    truth, probabilities = two(0, 400)
    wrong = probabilities.copy()
    wrong[200:] = 0.5 + 0.5 * (probabilities[200:, ::-1] - 0.5)  # the second half is told the opposite
    sexes = ["m"] * 200 + ["f"] * 200
    found = classification(["good", "bad"], truth, wrong, groups={"sex": sexes}).groups[0]
    gap = next(gap for gap in found.gaps if gap.measure == "accuracy")
    assert gap.beyond_chance and (gap.high, gap.low) == ("m", "f") and "more than chance alone" in found.sentence


def test_groups_too_small_to_say_are_named_and_compared_with_nobody() -> None:
    truth, probabilities = two(0, 100)
    regions = ["a"] * 60 + ["b"] * 33 + ["c"] * 5 + [None, math.nan]
    found = classification(["good", "bad"], truth, probabilities, groups={"region": regions}).groups[0]
    assert [(group.name, group.rows) for group in found.groups] == [("a", 60), ("b", 33), ("c", 5), ("unknown", 2)]
    assert [warning.split()[0] for warning in found.warnings] == ["c", "unknown"]
    assert all({gap.high, gap.low} <= {"a", "b"} for gap in found.gaps)
    with pytest.raises(DataError, match="100 different values"):
        classification(["good", "bad"], truth, probabilities, groups={"age": list(range(100))})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"probabilities": [[0.5, 0.5]]}, r"shape \[1, 2\] for \[3, 2\]"),
        ({"probabilities": [[0.5, math.nan]] * 3}, "3 of 3 rows have probabilities outside 0 to 1, or NaN"),
        ({"probabilities": [[0.5, 0.4]] * 3}, "do not add up to 1"),
        ({"truth": ["a", "b", "z"]}, "row 2 has the label 'z'"),
        ({"truth": []}, "0 rows"),
        ({"probabilities": None}, "neither probabilities nor outputs"),
        ({"outputs": ["a"]}, "1 outputs for 3 rows"),
        ({"labels": ["a", "a"]}, "1 different labels of 2"),
        ({"costs": {"a": {"c": 1.0}}}, "the costs name 'c'"),
        ({"costs": {"a": {"b": math.inf}}}, "give a finite number"),
        ({"weights": [1.0]}, "weights of shape"),
        ({"items": ["x", "x", "y"]}, "2 different items for 3 rows"),
        ({"groups": {"sex": ["f"]}}, "1 values of 'sex' for 3 rows"),
        ({"truth": [("a", "b"), "a", "b"]}, "say several=True"),
    ],
)
def test_what_cannot_be_judged_is_refused(change: dict[str, Any], told: str) -> None:
    given: dict[str, Any] = {"labels": ["a", "b"], "truth": ["a", "b", "a"], "probabilities": [[0.5, 0.5]] * 3}
    with pytest.raises(DataError, match=told):
        classification(**{**given, **change})


def test_a_cost_matrix_reads_truth_then_decision() -> None:
    assert cost_matrix(["good", "bad"], COSTS).tolist() == [[0.0, 1.0], [5.0, 0.0]]
