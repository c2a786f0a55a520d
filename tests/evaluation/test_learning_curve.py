"""laws of learning curves: subsets nest, intervals hold over seeds and items, and nothing is trained twice"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from melior.errors import DataError
from melior.evaluation.learning_curve import Contestant, crossed_interval, learning_curve, nested_order, summary

ROWS = [(number, "abc"[number % 7 % 3]) for number in range(70)]


def label(row: tuple[int, str]) -> str:
    return row[1]


def learner(name: str, reach: Callable[[int], float], log: list[tuple[str, int, int]], **settings: Any) -> Contestant:
    """Is right about 40 items as often as `reach` of the number of rows says."""

    def train(rows: Sequence[Any], seed: int) -> Mapping[str, float]:
        log.append((name, len(rows), seed))
        chance = np.random.default_rng((seed, len(rows), len(name)))
        return {f"item {number}": float(chance.random() < reach(len(rows))) for number in range(40)}

    return Contestant(name, train, settings)


def test_subsets_are_nested_and_keep_the_shares_of_labels() -> None:
    order = nested_order(ROWS, 3, label)
    assert sorted(order) == list(range(70))
    assert len({label(ROWS[index]) for index in order[:3]}) == 3
    whole = Counter(map(label, ROWS))
    for size in (14, 28, 56):
        found = Counter(label(ROWS[index]) for index in order[:size])
        assert all(abs(found[each] - size * whole[each] / 70) <= 1.5 for each in whole)
    assert order == nested_order(ROWS, 3, label) != nested_order(ROWS, 4, label)
    assert nested_order(ROWS, 3) != list(range(70))


def test_rare_labels_come_first_and_once() -> None:
    rows = [(number, "common") for number in range(50)] + [(50, "rare")]
    assert 50 in nested_order(rows, 0, label)[:2]


@pytest.mark.parametrize(("by_seed", "by_item"), [(0.1, 0.3), (0.0, 0.4), (0.3, 0.1)])
def test_intervals_cover_the_mean_over_new_seeds_and_new_items(by_seed: float, by_item: float) -> None:
    held = 0
    for trial in range(400):
        chance = np.random.default_rng((trial, int(100 * by_seed)))
        values = (
            0.5
            + by_seed * chance.normal(size=(3, 1))
            + by_item * chance.normal(size=(1, 60))
            + 0.2 * chance.normal(size=(3, 60))
        )
        interval = crossed_interval(values)
        held += interval.low <= 0.5 <= interval.high
    assert held / 400 >= 0.93


def test_equal_values_are_no_certainty() -> None:
    assert crossed_interval(np.ones((3, 40)), bounds=(0.0, 1.0)).low == pytest.approx(1 - (1 - 0.025 ** (1 / 39)))
    assert crossed_interval(np.ones((3, 40))).low == -np.inf
    ones = {10: np.ones((3, 40))}
    (comparison,) = summary({"a": ones, "b": ones}, "accuracy", (0, 1, 2), {}).comparisons
    assert comparison.differences[10].low < -0.05 and comparison.differences[10].high > 0.05


def test_one_seed_has_no_interval() -> None:
    with pytest.raises(DataError, match="1 seeds and 9 items"):
        crossed_interval(np.zeros((1, 9)))


def test_contestants_are_compared_and_the_sentence_says_from_where_on_nothing_tells_them_apart() -> None:
    log: list[tuple[str, int, int]] = []
    contestants = [
        learner("pre-trained", lambda size: 0.9, log),
        learner("scratch", lambda size: min(0.9, 0.1 + 0.02 * size), log),
    ]
    found = learning_curve(contestants, ROWS, [5, 20, 70], label_of=label)
    (comparison,) = found.comparisons
    assert comparison.differences[5].low > 0 and comparison.indistinguishable_from == 70
    assert comparison.sentence.startswith("From 70 labels on nothing tells pre-trained and scratch apart")
    assert "5 labels with pre-trained reach what scratch reaches with" in comparison.sentence
    assert len(log) == 18 and found.heldout == 40 and set(found.seconds["scratch"]) == {5, 20, 70}


def test_what_is_always_ahead_and_what_never_is_are_told() -> None:
    ones, zeros = np.ones((3, 50)), np.zeros((3, 50))
    zeros[:, ::7] = 1
    ahead = summary({"a": {10: ones, 20: ones}, "b": {10: zeros, 20: zeros}}, "accuracy", (0, 1, 2), {})
    assert ahead.comparisons[0].sentence.startswith("a is ahead of b in accuracy by")
    assert "more than 20" in ahead.comparisons[0].sentence and ahead.comparisons[0].indistinguishable_from is None
    behind = summary({"b": {10: zeros, 20: zeros}, "a": {10: ones, 20: ones}}, "accuracy", (0, 1, 2), {})
    assert behind.comparisons[0].sentence.startswith("a is ahead of b")
    same = summary({"a": {10: zeros}, "b": {10: zeros}}, "accuracy", (0, 1, 2), {})
    assert same.comparisons[0].sentence.startswith("Nothing tells a and b apart")


def test_a_stopped_run_goes_on_and_changed_settings_are_trained_anew(tmp_path: Path) -> None:
    path, log = tmp_path / "curve.json", list[tuple[str, int, int]]()

    class Killed(Exception):
        pass

    def killed(done: int, total: int) -> None:
        if done == 3:
            raise Killed

    contestants = [learner("a", lambda size: 0.5, log), learner("b", lambda size: 0.6, log)]
    with pytest.raises(Killed):
        learning_curve(contestants, ROWS, [5, 20], path=path, progress=killed)
    again = learning_curve(contestants, ROWS, [5, 20], path=path)
    assert len(log) == 12 and len(set(log)) == 12
    whole = learning_curve(contestants, ROWS, [5, 20])
    assert again.points == whole.points
    changed = [contestants[0], learner("b", lambda size: 0.6, log, rate=2)]
    before = len(log)
    learning_curve(changed, ROWS, [5, 20], path=path)
    assert [name for name, _, _ in log[before:]] == ["b"] * 6


def test_results_of_other_rows_are_refused(tmp_path: Path) -> None:
    path, log = tmp_path / "curve.json", list[tuple[str, int, int]]()
    learning_curve([learner("a", lambda size: 0.5, log)], ROWS, [5], path=path)
    with pytest.raises(DataError, match="holds results of"):
        learning_curve([learner("a", lambda size: 0.5, log)], ROWS[1:], [5], path=path)
    path.write_text("{")
    with pytest.raises(DataError, match="holds no results"):
        learning_curve([learner("a", lambda size: 0.5, log)], ROWS, [5], path=path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sizes": [5, 71]}, "between 1 and 70"),
        ({"sizes": [5, 5]}, "give different ones"),
        ({"seeds": [0]}, "give two or more"),
        ({"contestants": []}, "0 different names"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: dict[str, Any], told: str) -> None:
    given: dict[str, Any] = {"contestants": [learner("a", lambda size: 0.5, [])], "rows": ROWS, "sizes": [5]}
    with pytest.raises(DataError, match=told):
        learning_curve(**{**given, **change})


def test_contestants_measured_on_other_items_are_refused() -> None:
    other = Contestant("other", lambda rows, seed: {"x": 1.0, "y": 0.0})
    with pytest.raises(DataError, match="measure all on the same"):
        learning_curve([learner("a", lambda size: 0.5, []), other], ROWS, [5])
    broken = Contestant("broken", lambda rows, seed: {"x": 1.0, "y": float("nan")})
    with pytest.raises(DataError, match="not finite, first of 'y'"):
        learning_curve([broken], ROWS, [5])


def test_json_is_what_reports_read() -> None:
    found = learning_curve([learner("a", lambda size: 0.5, []), learner("b", lambda size: 0.5, [])], ROWS, [5, 20])
    told = json.loads(json.dumps(found.to_json()))
    assert [point["x"] for point in told["lines"][0]["points"]] == [5, 20]
    assert told["comparisons"][0]["sentence"] == found.comparisons[0].sentence
