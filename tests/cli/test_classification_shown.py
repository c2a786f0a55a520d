"""what a terminal shows of a classifier holds every measure, few labels as a matrix, many as their worst confusions"""

from __future__ import annotations

import numpy as np
import pytest

from melior.cli.classification import show_classification, show_learning_curve
from melior.evaluation.classification import classification
from melior.evaluation.learning_curve import summary


def test_two_labels_with_costs_and_groups(capsys: pytest.CaptureFixture[str]) -> None:
    chance = np.random.default_rng(0)
    p = chance.random(120)
    truth = ["bad" if hit else "good" for hit in chance.random(120) < p]
    groups = {"sex": ["f"] * 50 + ["m"] * 65 + ["x"] * 5}
    costs = {"bad": {"good": 5.0}, "good": {"bad": 1.0}}
    found = classification(["good", "bad"], truth, np.stack([1 - p, p], 1), costs=costs, groups=groups)
    show_classification(found)
    shown = capsys.readouterr().out
    assert "120 rows, 2 labels, looking for bad" in shown and "true ↓ decided →" in shown
    for name, interval in found.measures.items():
        assert f"{interval.estimate:.3f} [{interval.low:.3f}" in shown, name
    assert "Threshold: 0.167 by the costs alone" in shown and "note: x has 5 rows" in shown
    assert found.calibration is not None and found.calibration.sentence in shown


def test_many_labels_and_hostile_names(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"intent {number}" for number in range(19)] + ["\x1b[31mred\nline"]
    truth = np.arange(200) % 20
    decided = np.where(np.arange(200) < 150, truth, (truth + 1) % 20)
    show_classification(classification(names, [names[i] for i in truth], outputs=[names[i] for i in decided]))
    shown = capsys.readouterr().out
    assert "taken for" in shown and "8 more with --json" in shown
    assert "\x1b" not in shown and max(map(len, shown.splitlines())) < 140


def test_learning_curves(capsys: pytest.CaptureFixture[str]) -> None:
    chance = np.random.default_rng(0)
    values = {name: {size: chance.random((3, 30)) for size in (10, 1000)} for name in ("pre-trained", "scratch")}
    found = summary(values, "accuracy", (0, 1, 2), {})
    show_learning_curve(found)
    shown = capsys.readouterr().out
    assert "accuracy on 30 held-out items, 3 seeds" in shown and found.comparisons[0].sentence in shown
    assert "1,000" in shown
