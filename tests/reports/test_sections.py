"""laws of the sections: pictures say in words what they show, no text is markup, a wrong file costs itself alone"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import metrics, write_run
from test_page import HOSTILE, Parsed, parsed

from melior.evaluation.classification import classification
from melior.evaluation.learning_curve import summary
from melior.reports.classification import classification_section
from melior.reports.document import Part, document, listed, paragraph, write_document
from melior.reports.learning import learning_section
from melior.reports.matrix import confusion_chart, confusions
from melior.reports.plots import band_chart, estimates_chart, table
from melior.reports.schema import Line, Named, Point
from melior.reports.slates import (
    CurveShown,
    Grid,
    Pair,
    RequestShown,
    Slates,
    SlateShown,
    slates_section,
    write_slates,
)


def judged(labels: int = 2, rows: int = 80, name: str = "label") -> dict[str, Any]:
    """A classification of made-up rows, as its file has it."""
    chance = np.random.default_rng(labels)
    names = [f"{name} {number}" for number in range(labels)]
    truth = chance.integers(labels, size=rows)
    probabilities = chance.dirichlet(np.ones(labels), rows)
    costs = {names[1]: {names[0]: 5.0}, names[0]: {names[1]: 1.0}} if labels == 2 else None
    groups = {f"{name} group": chance.choice([f"{name} m", f"{name} f"], rows).tolist()}
    found = classification(names, [names[index] for index in truth], probabilities, costs=costs, groups=groups)
    return json.loads(json.dumps(found.to_json()))


def slates(name: str = "tea") -> Slates:
    """Every part of the section."""
    point = Point(x=1000, estimate=0.1, low=-0.1, high=0.3)
    later = Point(x=10_000, estimate=0.3, low=0.2, high=0.4)
    return Slates(
        notes=(name,),
        baseline=name,
        policies=(Named(name=name, estimate=0.5, low=0.4, high=0.6), Named(name="trained", estimate=0.7)),
        pairs=(Pair(first=name, second="milk", learned=0.2, low=0.1, high=0.3, true=0.25),),
        after=Grid(what=f"chance of {name}", rows=(name, "none"), columns=("a", name), values=((0.1, 0.9), (0.5, 0.5))),
        curves=(
            CurveShown(
                title=name, across="impressions", logarithmic=True, lines=(Line(name=name, points=(point, later)),)
            ),
        ),
        examples=(RequestShown(request=name, slates=(SlateShown(name=name, items=(name, "b"), value=0.4),)),),
    )


def curve(name: str = "pre-trained") -> dict[str, Any]:
    chance = np.random.default_rng(0)
    values = {each: {size: chance.random((3, 20)) for size in (10, 100)} for each in (name, "scratch")}
    return summary(values, "accuracy", (0, 1, 2), {}).to_json()


def full(folder: Path, name: str = "label") -> Path:
    write_run(folder, metrics(3), classification=judged(name=name))
    (folder / "learning_curve.json").write_text(json.dumps(curve(name)))
    write_slates(folder, slates(name))
    return folder


def test_a_run_shows_every_section_it_has(tmp_path: Path) -> None:
    found = parsed(full(tmp_path))
    named = {str(a["id"]) for tag, a in found.elements if tag == "section"}
    assert {"classes", "labels", "slates"} <= named
    for told in (
        "Confusion matrix",
        "Calibration",
        "Cost by threshold",
        "Accuracy by number of labels",
        "tea" * 0 + "milk",
    ):
        assert told in found.text
    plots = [a for tag, a in found.elements if tag == "svg" and a.get("role") == "img"]
    assert all(a["aria-label"] for a in plots) and [tag for tag, _ in found.elements].count("desc") == len(plots)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_name_becomes_markup(tmp_path: Path, hostile: str) -> None:
    calm, wild = parsed(full(tmp_path / "calm")), parsed(full(tmp_path / "wild", hostile))
    assert {tag for tag, _ in wild.elements} <= {tag for tag, _ in calm.elements}
    assert len(wild.elements) == len(calm.elements)


@pytest.mark.parametrize("name", ["classification", "learning_curve", "slates"])
@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "null",
        '{"labels": 3}',
        '{"lines": [{"name": "x", "points": [{"x": "far", "estimate": 1}]}], "metric": "m"}',
        '{"policies": [{"name": "x", "estimate": NaN}]}',
        '{"labels": ["a"], "rows": 1, "measures": {}, "confusion": [[1, 2], [3]], "by_label": []}',
        '{"labels": ["a", "b"], "rows": 1, "measures": {"auc": {"estimate": 1e999}}}',
        '{"labels": ["a"], "rows": 2, "measures": {}, "calibration": {"of": "x", "bins": [{"rows": 0, "foretold": 0,'
        ' "happened": 9}], "error": 0}}',
    ],
)
def test_a_damaged_file_costs_no_more_than_its_section(tmp_path: Path, name: str, content: str) -> None:
    folder = full(tmp_path)
    (folder / f"{name}.json").write_text(content)
    found = parsed(folder)
    others = {"classification": "milk", "learning_curve": "milk", "slates": "Confusion matrix"}
    assert others[name] in found.text


@pytest.mark.parametrize("labels", [2, 5, 12, 13, 77])
def test_confusions_can_be_read_at_any_number_of_labels(labels: int) -> None:
    told = judged(labels, rows=400)
    found = Parsed(classification_section(told))
    matrix = np.array(told["confusion"])
    cells = [a for tag, a in found.elements if tag == "rect" and str(a.get("class", "")).startswith("cell")]
    assert len(cells) == (labels**2 if labels <= 12 else np.count_nonzero(matrix))
    assert ("What was taken for what" in found.text) == (labels > 12)
    pairs = confusions(told["labels"], told["confusion"])
    off = matrix - np.diag(np.diag(matrix))
    assert len(pairs) == min(20, np.count_nonzero(off)) and float(pairs[0][2]) == off.max()


def test_nothing_confused_is_told_and_an_empty_row_divides_by_nothing() -> None:
    assert "2 of 2 rows on the diagonal" in Parsed(confusion_chart(["a", "b"], [[2, 0], [0, 0]])).text


def test_limits_that_are_unknown_are_drawn_to_the_edge() -> None:
    rows = [Named(name="a", estimate=0.5), Named(name="b", estimate=0.7, low=0.6, high=0.8)]
    found = Parsed(estimates_chart("gain", "", rows, level=("zero", 0.0)))
    whiskers = [a for tag, a in found.elements if tag == "line" and "whisker" in str(a.get("class"))]
    ends = [float(str(a["x2"])) - float(str(a["x1"])) for a in whiskers]
    assert ends[0] > ends[1] and "The dashed line is zero" in found.text
    assert estimates_chart("gain", "", []) == "" == band_chart("gain", "", [], across="x")


def test_one_point_and_equal_points_are_drawn() -> None:
    for points in ((Point(x=0, estimate=0),), (Point(x=5, estimate=1), Point(x=5, estimate=1))):
        text = band_chart("flat", "", [Line(name="a", points=points)], across="x", logarithmic=True)
        assert "nan" not in text and "inf" not in text
        Parsed(text)


def test_a_logarithmic_axis_has_round_places_within_reach() -> None:
    points = tuple(Point(x=float(x), estimate=math.log(x)) for x in (10, 100, 4000))
    found = Parsed(band_chart("log", "", [Line(name="a", points=points)], across="labels", logarithmic=True))
    assert {"10", "100", "1000"} <= set(found.texts) and "5000" not in found.texts


def test_a_script_writes_a_page_of_its_own(tmp_path: Path) -> None:
    parts = [
        Part("Result", [paragraph("a < b"), table(("model", "cost"), [("ours", ".49")]), listed(["mind <this>"])]),
        Part("Result", [learning_section(curve(), title="X-rays"), classification_section(judged())]),
        Part("Empty", []),
    ]
    path = write_document(tmp_path / "page.html", "Credit & co", parts, lead="ten folds", verdict=("reject", "missed"))
    text = path.read_text(encoding="utf-8")
    found = Parsed(text)
    anchors = [str(a["id"]) for tag, a in found.elements if tag == "section"]
    assert anchors == ["part-result", "part-result-2"]
    assert "a < b" in found.text and "mind <this>" in found.text and "missed" in found.text
    assert [tag for tag, _ in found.elements].count("script") == 1 and "default-src 'none'" in text
    assert document("x", [])


def test_slates_without_anything_are_nothing() -> None:
    assert slates_section({}) == "" and slates_section({"pairs": "many"}) == ""
    assert Parsed(slates_section(Slates())).text == ""
