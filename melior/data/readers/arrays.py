"""rows of .npz archives: an array of pictures and an array of their labels, or pairs of segments

Source: MedMNIST v2, Yang et al. 2023 (`train_images`, `train_labels`); Keras' digits (`x_train`, `y_train`).
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from melior.data.readers.choices import chosen_split
from melior.data.readers.rows import Line, Problem
from melior.data.readers.segments import holds_pairs, segment_pairs
from melior.errors import DataError
from melior.types import Image

WORDS = {
    "images": "labels",
    "image": "label",
    "x": "y",
    "data": "target",
}  # names of arrays
CHANNELS = (1, 3, 4)


def read_arrays(path: str | Path, split: str = "") -> Iterator[Line | Problem]:
    """One row per picture, `{"image": Image, "label": …}`, or per pair of segments; no pickled array is ever loaded.

    They are counted from 1.

    Raises:
        DataError: if the file cannot be read, its arrays are no pictures and labels, or there are several splits and
            none is chosen.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            if holds_pairs(archive.files):
                yield from segment_pairs(archive, str(path))
                return
            pairs = _pairs(archive.files)
            if not pairs:
                found = ", ".join(archive.files) or "no array"
                raise DataError(f"{path} holds {found}; pictures and labels are called images and labels, or x and y")
            images, labels = pairs[chosen_split(list(pairs), split, str(path))]
            yield from _rows(archive[images], archive[labels], f"{path}: {images}")
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            f"{path} cannot be read as .npz: {str(error).splitlines()[0]:.120}; save plain arrays"
        ) from error


def _pairs(names: list[str]) -> Mapping[str, tuple[str, str]]:
    """Names of pictures and labels by their split."""
    pairs = {}
    for name in names:
        for images, labels in WORDS.items():
            if re.search(rf"(?:^|_){images}(?:_|$)", name):
                other = re.sub(rf"(^|_){images}(_|$)", rf"\g<1>{labels}\g<2>", name)
                split = re.sub(rf"^{images}_?|_?{images}$", "", name)
                if other in names:
                    pairs[split or "all"] = (name, other)
    return pairs


def _rows(images: Any, labels: Any, name: str) -> Iterator[Line | Problem]:
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in CHANNELS:
        raise DataError(
            f"{name} is {images.dtype} {images.shape}; pictures are uint8 [rows, height, width] or with 1, 3 or 4 "
            "channels behind it"
        )
    if len(images) != len(labels):
        raise DataError(f"{name} has {len(images)} pictures and {len(labels)} labels; they must be as many")
    if not len(images):
        raise DataError(f"{name} has no pictures; save at least one")
    labels = labels.reshape(len(labels), -1)
    for number, (pixels, row) in enumerate(zip(images, labels, strict=True), start=1):
        told = row.tolist()
        image = Image(pixels=pixels.tobytes(), shape=pixels.shape)
        yield Line(number, {"image": image, "label": told[0] if len(told) == 1 else list(map(str, told))})
