"""slates and logs: whatever cannot be learnt from is told with its reason, never left out in silence"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from melior.data.catalogues import read_catalogue
from melior.data.formats import Reading, read_examples
from melior.errors import DataError
from melior.types import Image, Interaction, Item, SlateRequest

ASKED: dict[str, Any] = {"candidates": ["a", "b", "c"], "context": {"age": 31}}
LOGGED = {"request": ASKED, "slate": ["a", "b"], "propensities": [0.5, 0.25], "events": []}


def write(folder: Path, *rows: dict[str, Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_request_is_read_whole(tmp_path: Path) -> None:
    asked = {
        "context": {"age": 31, "plan": None},
        "viewed": 7,
        "history": ["x", {"item": 9, "type": "click", "age_s": 60}],
        "candidates": [1, {"id": "new", "features": {"price": 9.5}}],
    }
    (row,) = read_examples(write(tmp_path, {"request": asked, "slate": [1], "user": "u"})).rows
    assert row.inputs == SlateRequest(
        {"age": 31, "plan": None},
        "7",
        (Interaction("x"), Interaction("9", "click", 60.0)),
        ("1", Item("new", {"price": 9.5})),
    )
    assert row.output == ["1"] and row.item == {"user": "u"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"propensities": None}, "no propensity"),
        ({"propensities": [0.5, 0]}, "no chance"),
        ({"propensities": [0.5, 1.5]}, "at most 1"),
        ({"propensities": [0.5]}, "1 propensities for 2 decisions"),
        ({"propensities": None, "log_probs": [0.5, -1.0]}, "at most 0"),
        ({"slate": ["a", "z"]}, "not among the 3 candidates"),
        ({"slate": ["a", "a"]}, "'a' 2 times"),
        ({"slate": []}, "nothing was shown"),
        ({"request": {"candidates": []}}, "candidates is empty"),
        ({"request": {"candidates": ["a", "b", "a"]}}, "'a' 2 times"),
        ({"request": {"context": {"age": [1]}}}, "features are numbers, texts or null"),
        ({"request": {"contxt": {}}}, "'contxt'"),
        ({"events": [{"item": "a"}]}, "type such as click"),
        ({"events": [{"type": "click", "item": "c"}]}, "does not show"),
        ({"reward": "many"}, "reward must be a number"),
    ],
)
def test_rows_of_a_log_that_say_nothing_are_counted(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    found = read_examples(write(tmp_path, LOGGED, {**LOGGED, **change}), "logged", "skip")
    assert len(found) == 1 and [problem.line for problem in found.problems] == [2]
    assert told in found.problems[0].reason


def test_logs_of_classifiers(tmp_path: Path) -> None:
    row = {"inputs": {"age": 67}, "output": "grant", "propensity": 0.8, "reward": 1, "policy_version": "ver_2"}
    (record,) = read_examples(write(tmp_path, row), "logged").rows
    assert record.inputs == {"age": 67} and record.output == "grant" and record.item == {"reward": 1.0}
    assert record.behavior_log_probs == pytest.approx((-0.2231435513,)) and record.policy_version == "ver_2"


def test_preferences_and_ratings_of_any_output(tmp_path: Path) -> None:
    pair = read_examples(write(tmp_path, {"request": ASKED, "chosen": ["a", "b"], "rejected": ["b", "a"]})).rows[0]
    assert (pair.chosen, pair.rejected) == (["a", "b"], ["b", "a"])
    with pytest.raises(DataError, match="are the same"):
        read_examples(write(tmp_path, {"inputs": {"age": 1}, "chosen": "x", "rejected": "x"}))
    rated = read_examples(write(tmp_path, {"inputs": {"age": 1}, "output": ["x", "y"], "rating": 3})).rows[0]
    assert rated.output == ("x", "y") and rated.rating == 3.0


@pytest.mark.parametrize("name", ["items.csv", "items.jsonl"])
def test_a_catalogue_has_every_item_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rows = [{"item_id": 1, "price": 9.5, "brand": "x"}, {"item_id": 2, "price": "", "brand": "y"}]
    if name == "items.csv":
        path.write_text("item_id,price,brand\n1,9.5,x\n2,,y\n")
    else:
        path.write_text("\n".join(json.dumps({k: v for k, v in row.items() if v != ""}) for row in rows))
    assert read_catalogue(path) == (Item("1", {"price": 9.5, "brand": "x"}), Item("2", {"price": None, "brand": "y"}))
    path.write_text(path.read_text().rstrip() + "\n" + path.read_text().splitlines()[-1])
    with pytest.raises(DataError, match="'2' is there already"):
        read_catalogue(path)


# ---------------------------------------------------------------------- pictures


def save(path: Path, size: tuple[int, int] = (3, 2), mode: str = "RGB") -> Path:
    pillow = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    pillow.new(mode, size, 200).save(path)
    return path


def test_subfolders_are_labels(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/2.png", "dog/3.PNG"):
        save(tmp_path / name)
    (tmp_path / "dog" / "broken.png").write_bytes((tmp_path / "dog" / "2.png").read_bytes()[:40])
    save(tmp_path / "loose.png")
    found = read_examples(tmp_path, on_error="skip")
    assert [row.output for row in found.rows] == ["cat", "dog", "dog"]
    assert len(found.problems) == 2 and "no picture that can be read" in str(found.problems[0])
    assert "stands in no subfolder" in str(found.problems[1])
    splits = tmp_path / "splits"
    save(splits / "train" / "cat" / "1.png")
    save(splits / "test" / "dog" / "1.png")
    assert [row.output for row in read_examples(f"{splits}@test").rows] == ["dog"]
    with pytest.raises(DataError, match="choose one"):
        read_examples(splits)


def test_a_table_names_pictures_beside_it(tmp_path: Path) -> None:
    save(tmp_path / "scans" / "1.png")
    path = tmp_path / "scans.csv"
    path.write_text("image,label,age\nscans/1.png,ill,30\nscans/2.png,well,40\n")
    found = read_examples(path, on_error="skip")
    assert isinstance(found.rows[0].inputs, Image) and found.rows[0].inputs.sha256
    assert found.rows[0].item == {"label": "ill", "age": "30"}
    assert found.problems[0].line == 3 and "cannot be read" in found.problems[0].reason


def test_arrays_of_pictures(tmp_path: Path) -> None:
    import numpy as np

    path = tmp_path / "pictures.npz"
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    np.savez(path, train_images=pixels, train_labels=np.array([[0], [1]]), test_images=pixels, test_labels=[1, 0])
    rows = read_examples(f"{path}@train", reading=Reading(label_names={"0": "normal"})).rows
    assert [row.output for row in rows] == ["normal", "1"]
    assert rows[1].inputs == Image(pixels=pixels[1].tobytes(), shape=(3, 4, 1))
    with pytest.raises(DataError, match=r"2 splits \(train, test\)"):
        read_examples(path)
    np.savez(path, images=pixels.astype(float), labels=[0, 1])
    with pytest.raises(DataError, match="pictures are uint8"):
        read_examples(path)
    np.savez(path, images=np.array([None, {}], dtype=object), labels=[0, 1])
    with pytest.raises(DataError, match=r"cannot be read as .npz"):  # pickled: never loaded
        read_examples(path)
