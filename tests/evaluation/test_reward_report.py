"""reports of reward models: figures against closed forms, parts of the rows, and temperatures"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from melior.errors import DataError
from melior.evaluation.calibration import calibrate, temperature_of
from melior.evaluation.reward_model import reward_report
from melior.reports.files import read_run
from melior.reports.reward_model import reward_section
from melior.reports.write import write_report
from melior.types import Preference, Rated, Segment


@dataclass
class Told:
    """A reward that a function of the output gives."""

    of: Callable[[Any], float]
    names: tuple[str, ...] = ("reward",)
    units: list[tuple[float, float]] = field(default_factory=list)

    def rewards(self, examples: Sequence[Any]) -> Any:
        told = np.array([[self.of(each.output)] * len(self.names) for each in examples])
        for location, spread in self.units:
            told = location + spread * told
        return told

    def rescale(self, head: str, *, location: float, spread: float) -> None:
        self.units.append((location, spread))


def pairs(count: int = 200, seed: int = 0) -> list[Preference]:
    """Texts whose length is said before "|", and whose worth behind it; people prefer by worth, and not surely."""
    drawn = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        worth = drawn.normal(size=2)
        lengths = drawn.integers(5, 60, size=2)
        sides = [f"{'x' * int(length)}|{value:.6f}" for length, value in zip(lengths, worth, strict=True)]
        first = drawn.random() < 1 / (1 + math.exp(worth[1] - worth[0]))
        sides = sides if first else sides[::-1]
        item = {"annotator": "abc"[number % 3]}
        rows.append(Preference("", *sides, item=item, group=f"g{number // 2}"))
    return rows


def worth(output: str) -> float:
    return float(output.rpartition("|")[2])


def test_accuracy_is_the_share_ordered_as_people_did_with_half_for_equal_rewards() -> None:
    rows = pairs()
    report = reward_report(Told(worth), rows)
    expected = np.mean([worth(row.chosen) > worth(row.rejected) for row in rows])
    assert report.measures["accuracy"].estimate == pytest.approx(expected)
    assert report.measures["accuracy"].low < expected < report.measures["accuracy"].high
    gaps = np.array([worth(row.chosen) - worth(row.rejected) for row in rows])
    assert report.measures["log_loss"].estimate == pytest.approx(np.log1p(np.exp(-gaps)).mean())
    flat = reward_report(Told(lambda output: 1.0), rows)
    assert flat.measures["accuracy"].estimate == 0.5 and "length_correlation" not in flat.measures


def test_which_side_a_preference_is_written_on_changes_nothing() -> None:
    rows = pairs()
    turned = [Preference("", row.rejected, row.chosen, probability=0.0, item=row.item, group=row.group) for row in rows]
    one, other = reward_report(Told(worth), rows), reward_report(Told(worth), turned)
    assert one.to_json() == other.to_json()


def test_ties_and_rows_of_other_heads_are_left_out_and_counted() -> None:
    rows = pairs(60)
    ties = [Preference("", "a|1", "b|2", probability=0.5) for _ in range(4)]
    others = [Preference("", "a|1", "b|2", item={"head": "safety"}) for _ in range(3)]
    report = reward_report(Told(worth, names=("reward", "safety")), [*rows, *ties, *others])
    assert report.rows == 60 and report.left_out == {"of another head": 3, "ties": 4}
    beyond = reward_report(Told(lambda output: math.nan if output.startswith("xxxxxx|") else worth(output)), rows)
    assert beyond.rows + beyond.left_out.get("beyond the context", 0) == 60


def test_rows_of_a_group_stand_or_fall_together() -> None:
    rows = [row for row in pairs(50) for _ in range(4)]
    grouped = [Preference("", row.chosen, row.rejected, group=f"g{n // 4}") for n, row in enumerate(rows)]
    alone = [Preference("", row.chosen, row.rejected) for row in rows]
    wide = reward_report(Told(worth), grouped)
    narrow = reward_report(Told(worth), alone)
    assert wide.clusters == 50 and narrow.clusters is None
    widths = [found.measures["accuracy"].high - found.measures["accuracy"].low for found in (wide, narrow)]
    assert widths[0] > 1.6 * widths[1]  # twice, but for chance
    assert wide.calibration is not None and not wide.calibration.independent


def test_a_model_of_length_is_seen_by_length() -> None:
    """It is right where the longer output is preferred, and wrong where it is not."""
    rows = pairs(300)
    report = reward_report(Told(lambda output: float(len(output))), rows)
    assert [share.rows for share in report.by_length] == pytest.approx([60] * 5, abs=12)
    first, last = report.by_length[0], report.by_length[-1]
    assert first.found.estimate == 0.0 and last.found.estimate == 1.0 and first.high is not None and first.high < 0
    assert report.measures["length_correlation"].estimate == pytest.approx(1.0)
    accuracy = report.measures["accuracy"].estimate
    (base,) = report.baselines.items()
    assert base[0] == "preferring the " + ("longer" if accuracy >= 0.5 else "shorter")
    assert base[1] == pytest.approx(max(accuracy, 1 - accuracy))
    against = reward_report(Told(lambda output: -float(len(output))), rows)
    assert against.baselines == report.baselines
    assert against.measures["accuracy"].estimate == pytest.approx(1 - accuracy)
    fair = reward_report(Told(worth), rows)
    assert abs(fair.measures["length_correlation"].estimate) < 0.2


def test_an_annotator_who_judges_otherwise_stands_first_and_is_named() -> None:
    rows = [
        Preference("", row.rejected, row.chosen, item=row.item) if row.item["annotator"] == "b" else row
        for row in pairs(300)
    ]
    report = reward_report(Told(worth), rows)
    assert report.by_annotator[0].name == "b" and len(report.by_annotator) == 3
    assert len(report.notes) == 1 and report.notes[0].startswith("b agrees with the model less")


def test_ratings_have_an_area_or_a_rank_correlation() -> None:
    drawn = np.random.default_rng(1)
    scores = drawn.normal(size=120)
    good = drawn.random(120) < 1 / (1 + np.exp(-2 * scores))
    yes = [
        Rated("", f"{'x' * (n % 9)}|{score:.6f}", rating=float(is_good), item={"annotator": "ab"[n % 2]})
        for n, (score, is_good) in enumerate(zip(scores, good, strict=True))
    ]
    report = reward_report(Told(worth), yes)
    better = [(a > b) + (a == b) / 2 for a in scores[good] for b in scores[~good]]
    assert report.measure == "auc" and report.measures["auc"].estimate == pytest.approx(np.mean(better), abs=1e-6)
    assert report.calibration is not None and report.calibration.of == "the probability of a good rating"
    assert {share.name for share in report.by_annotator} == {"a", "b"} and report.by_length
    stars = [Rated("", row.output, rating=float(np.round(worth(row.output)))) for row in yes]
    graded = reward_report(Told(worth), stars)
    assert graded.measure == "spearman" and graded.measures["spearman"].estimate > 0.8 and graded.calibration is None


def test_segments_have_lengths_too() -> None:
    def stretch(steps: int, value: float) -> Segment:
        return Segment(np.full((steps, 2), value, dtype=np.float32).tobytes(), (steps, 2))

    rows = [Preference(None, stretch(2 + n % 7, 1.0 + n), stretch(2 + n % 5, float(n))) for n in range(40)]
    report = reward_report(Told(lambda output: float(np.asarray(output)[0, 0])), rows)
    assert report.measures["accuracy"].estimate == 1.0 and report.by_length


def test_a_run_s_page_shows_what_was_written(tmp_path: Path) -> None:
    report = reward_report(Told(worth), pairs())
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 0.7}\n')
    report.write(tmp_path)
    assert read_run(tmp_path).reward_model == json.loads(json.dumps(report.to_json()))
    assert "pairs ordered as people order them" in write_report(tmp_path).read_text()


def test_the_json_is_the_section_s() -> None:
    for rows in (pairs(), [Rated("", f"|{n % 7}", rating=float(n % 2)) for n in range(40)]):
        told = json.loads(json.dumps(reward_report(Told(worth), rows).to_json(), allow_nan=False))
        page = reward_section(told)
        assert "How sure it may be" in page and "held-out" in page
    assert "By annotator" in reward_section(json.loads(json.dumps(reward_report(Told(worth), pairs()).to_json())))
    nasty = reward_report(Told(worth), [*pairs(20), *[Preference("", "a|2", "b|1", item={"annotator": "<b>"})] * 12])
    assert "<b> (" not in reward_section(json.loads(json.dumps(nasty.to_json()))) and reward_section({}) == ""


def test_a_temperature_is_found_again_and_right_rewards_keep_theirs() -> None:
    rows = pairs(2000, seed=3)  # their labels are drawn from the worths' own Bradley–Terry model
    for factor in (0.2, 1.0, 5.0):
        model = Told(lambda output, factor=factor: factor * worth(output))  # type: ignore[misc]
        found = calibrate(model, rows)
        assert found.temperature == pytest.approx(factor, rel=0.15) and found.pairs == 2000
        assert found.after <= found.before
        again = calibrate(model, rows)
        assert again.temperature == pytest.approx(1.0, abs=1e-3) and again.before == pytest.approx(found.after)
        assert reward_report(model, rows[:600]).calibration.error < 0.08  # type: ignore[union-attr]


def test_soft_labels_and_weights_count_in_a_temperature() -> None:
    gaps = np.array([2.0, 2.0])
    shares = np.array([0.7, 0.7])
    found = temperature_of(gaps, shares, np.ones(2))
    assert 2.0 / found == pytest.approx(math.log(0.7 / 0.3), abs=1e-3)
    heavy = temperature_of(np.array([2.0, 2.0]), np.array([0.6, 0.9]), np.array([3.0, 0.0]))
    assert 2.0 / heavy == pytest.approx(math.log(0.6 / 0.4), abs=1e-3)


def test_what_cannot_be_judged_is_refused() -> None:
    model = Told(worth)
    with pytest.raises(DataError, match="got none"):
        reward_report(model, [])
    with pytest.raises(DataError, match="got Preference, Rated"):
        reward_report(model, [*pairs(2), Rated("", "a|1", 1.0)])  # type: ignore[list-item]
    with pytest.raises(DataError, match="no head 'x'"):
        reward_report(model, pairs(2), head="x")
    with pytest.raises(DataError, match="2 ties"):
        reward_report(model, [Preference("", "a|1", "b|1", probability=0.5)] * 2)
    with pytest.raises(DataError, match="None of 3 pairs"):
        calibrate(Told(lambda output: math.nan), pairs(3))
