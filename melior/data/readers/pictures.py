"""rows of a folder of pictures: the name of the subfolder is the label

photos/cat/1.png, photos/dog/2.png            or, with splits, photos/train/cat/1.png, photos/test/dog/9.png
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from melior.data.pictures import SUFFIXES
from melior.data.readers.choices import SPLIT_WORDS, chosen_split
from melior.data.readers.rows import Line, Problem
from melior.errors import DataError

SPLITS = {word: split for split, words in SPLIT_WORDS.items() for word in words}


def has_pictures(folder: Path) -> bool:
    """Whether there is a picture in the folder or below it."""
    return next(_pictures(folder), None) is not None


def read_pictures(folder: Path, split: str = "") -> Iterator[Line | Problem]:
    """One row per picture, `{"image": path, "label": subfolder}`, in the order of their paths; counted from 1.

    A picture that stands in no subfolder has no label and is told.

    Raises:
        DataError: if there are several splits and none is chosen.
    """
    files = sorted(file.relative_to(folder) for file in _pictures(folder))
    named = all(len(file.parts) > 1 and file.parts[0].lower() in SPLITS for file in files)
    parts: dict[str, list[Path]] = {}
    for file in files:
        parts.setdefault(SPLITS[file.parts[0].lower()] if named else "train", []).append(file)
    if split and not named:
        raise DataError(f"{folder} has no splits, so not {split!r}; leave @{split} out")
    for number, file in enumerate(parts[chosen_split(list(parts), split, str(folder))], start=1):
        if len(file.parts) < 2 + named:
            yield Problem(number, f"{file} stands in no subfolder, and its name is the label; move it into one")
        else:
            yield Line(number, {"image": str((folder / file).absolute()), "label": file.parts[-2]}, str(file))


def _pictures(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.suffix.lower() in SUFFIXES and not hidden and file.is_file():
            yield file
