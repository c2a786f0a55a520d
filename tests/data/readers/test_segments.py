"""pairs of segments: read from arrays and from JSON, the preferred one first, the same through a file and back"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from melior.data.formats import canonical, read_examples
from melior.data.formats.known import format_named
from melior.data.readers import read_rows
from melior.errors import DataError
from melior.types import Preference, Segment


def archive(path: Path, **changed: np.ndarray) -> Path:
    drawn = np.random.default_rng(0)
    arrays = {f"obs_{side}": drawn.normal(size=(3, 4, 2)) for side in (1, 2)}
    arrays |= {f"action_{side}": drawn.normal(size=(3, 4, 1)) for side in (1, 2)}
    np.savez(path, **{**arrays, "label": np.array([0.0, 0.5, 1.0]), **changed})
    return path


def test_the_preferred_segment_comes_first(tmp_path: Path) -> None:
    path = archive(tmp_path / "pairs.npz")
    found = read_examples(path)
    raw = np.load(path)
    sides = [np.concatenate([raw[f"obs_{side}"], raw[f"action_{side}"]], axis=2) for side in (1, 2)]
    assert found.kind == "preferences" and found.format == "segment-preference"
    for number, (row, side) in enumerate(zip(found.rows, (0, 0, 1), strict=True)):
        np.testing.assert_allclose(np.asarray(row.chosen), sides[side][number], rtol=1e-6)
        np.testing.assert_allclose(np.asarray(row.rejected), sides[1 - side][number], rtol=1e-6)
    assert [row.probability for row in found.rows] == [1.0, 0.5, 1.0]
    assert [row.item["preferred"] for row in found.rows] == ["first", "neither", "second"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"label": np.array([0.0, 0.7, 1.0])}, "labels other than 0"),
        ({"label": np.array([0.0, 1.0])}, "3 and 3 segments and 2 labels"),
        ({"obs_1": np.full((3, 4, 2), np.nan)}, "24 numbers in obs_1"),
        ({"action_2": np.zeros((3, 5, 1))}, "give .rows, t, width."),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, changed: dict[str, np.ndarray], told: str) -> None:
    with pytest.raises(DataError, match=told):
        list(read_rows(archive(tmp_path / "pairs.npz", **changed)))


def test_segments_go_through_json_lines(tmp_path: Path) -> None:
    rows = read_examples(archive(tmp_path / "pairs.npz")).rows
    written = [format_named("segment-preference").row(row, {}) for row in rows]  # type: ignore[arg-type]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, written)))
    again = read_examples(path).rows
    assert [(row.chosen, row.rejected, row.probability) for row in again] == [
        (row.chosen, row.rejected, row.probability) for row in rows
    ]


@pytest.mark.parametrize(
    ("value", "told"),
    [("[]", "list of steps"), ("[[1], [1, 2]]", "as many finite"), ('[["a"]]', "as many"), ("[[]]", "bytes")],
)
def test_what_is_no_segment_is_refused(tmp_path: Path, value: str, told: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(f'{{"chosen_segment": {value}, "rejected_segment": [[1.0]]}}')
    with pytest.raises(DataError, match=told):
        read_examples(path)


def test_equal_segments_are_one_value_whatever_made_them() -> None:
    steps = np.arange(6, dtype=np.float32).reshape(3, 2)
    one, two = Segment(steps.tobytes(), (3, 2)), Segment(steps.copy().tobytes(), (3, 2))
    assert one == two and hash(one) == hash(two) and len(one) == 3
    assert canonical(Preference(None, one, two)) == canonical(Preference(None, two, one))
    np.testing.assert_array_equal(np.asarray(one, dtype=np.float64), steps)
    with pytest.raises(DataError, match="24 bytes, got 20"):
        Segment(steps.tobytes()[:20], (3, 2))
