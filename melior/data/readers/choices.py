"""which split of a source is meant, and which file belongs to which"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from melior.errors import DataError

# How files of a folder are shared out, as the `datasets` library does it by their names.
SPLIT_WORDS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
    "heldout": ("heldout", "holdout", "held"),  # melior's own word, also as held-out
}


def chosen_split(splits: Sequence[str], wanted: str, source: str) -> str:
    """The split wanted, or the only one there is.

    Raises:
        DataError: naming the splits, if there is no such one or none is chosen.
    """
    if wanted and wanted not in splits:
        raise DataError(f"{source} has no split {wanted!r}; it has {', '.join(splits)}")
    if not wanted and len(splits) != 1:
        raise DataError(f"{source} has {len(splits)} splits ({', '.join(splits)}); choose one: {source}@{splits[0]}")
    return wanted or splits[0]


def split_of(name: Path) -> str:
    """The split that a file's path tells; "train" where it tells none."""
    words = re.split(r"[^a-z]+", str(name.with_suffix("")).lower())  # test2.jsonl is a test file too
    return next((split for split, known in SPLIT_WORDS.items() if any(word in words for word in known)), "train")
