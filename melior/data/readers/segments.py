"""rows of .npz archives of labelled pairs of segments: two stretches of episodes, and which one a person preferred

Source: the arrays obs_1, obs_2 [rows, t, D], action_1, action_2 [rows, t, A] and label [rows] of Kim et al. 2023,
arXiv:2303.00957, and Hejna and Sadigh 2023, arXiv:2305.15363; a label of 1 prefers the second segment, 0.5 neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from melior.data.readers.rows import Line
from melior.errors import DataError
from melior.types import Segment

ARRAYS = frozenset({"obs_1", "obs_2", "action_1", "action_2", "label"})
PREFERRED = {0.0: "first", 0.5: "neither", 1.0: "second"}


def holds_pairs(names: list[str]) -> bool:
    """Whether the arrays of an archive are pairs of segments."""
    return set(names) >= ARRAYS


def segment_pairs(arrays: Mapping[str, Any], name: str) -> Iterator[Line]:
    """One row per pair, counted from 1: the preferred segment, the other, how probable that is, and which came first.

    Raises:
        DataError: if the arrays do not fit one another or a label is none.
    """
    first, second = (_steps(arrays, side, name) for side in ("1", "2"))
    labels = np.asarray(arrays["label"], dtype=np.float64).reshape(-1)
    if not len(first) == len(second) == len(labels) or not len(labels):
        raise DataError(f"{name} has {len(first)} and {len(second)} segments and {len(labels)} labels; give one each")
    if not np.isin(labels, list(PREFERRED)).all():
        raise DataError(f"{name} has labels other than 0 (the first is preferred), 0.5 (neither) and 1 (the second)")
    for number, label in enumerate(labels.tolist(), start=1):
        pair = [_segment(steps[number - 1]) for steps in (first, second)]
        chosen, rejected = pair[::-1] if label == 1 else pair
        yield Line(
            number,
            {
                "chosen_segment": chosen,
                "rejected_segment": rejected,
                "probability": 0.5 if label == 0.5 else 1.0,
                "preferred": PREFERRED[label],
            },
        )


def _steps(arrays: Mapping[str, Any], side: str, name: str) -> Any:  # [rows, t, D + A]
    """What was observed and done, side by side."""
    observed, done = (np.asarray(arrays[f"{part}_{side}"], dtype=np.float32) for part in ("obs", "action"))
    if observed.ndim != 3 or observed.shape[:2] != done.shape[:2] or done.ndim != 3:
        raise DataError(f"{name} has obs_{side} {observed.shape} and action_{side} {done.shape}; give [rows, t, width]")
    both = np.concatenate([observed, done], axis=2)
    if not np.isfinite(both).all():
        amiss = int((~np.isfinite(both)).sum())
        raise DataError(
            f"{name} has {amiss} numbers in obs_{side} or action_{side} that are not finite; leave them out"
        )
    return both


def _segment(steps: Any) -> Segment:
    return Segment(np.ascontiguousarray(steps).tobytes(), steps.shape)
