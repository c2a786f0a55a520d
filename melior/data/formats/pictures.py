"""rows with one picture and its label

Source: the Hugging Face `datasets` library calls the column of an image folder's table `file_name`.
"""

from __future__ import annotations

from typing import Any

from melior.data.formats.labels import LABELS, label_column, labels_of, written
from melior.data.formats.rows import Format, Lost, Reading, Row, RowError, given, opened
from melior.data.pictures import image_of
from melior.data.pictures import written as written_image
from melior.errors import DataError
from melior.types import Image

IMAGES = ("image", "image_path", "file_name")
NOT_ALONE = ("prompt", "messages", "text", "request", "inputs")  # columns beside which a picture is something else


def _image_column(row: Row, reading: Reading) -> str | None:
    names = (reading.image,) if reading.image else IMAGES
    return next((name for name in names if name in row), None)


def _read(row: Row, reading: Reading) -> dict[str, Any]:
    image, label = _image_column(row, reading), label_column(row, reading)
    if image is None or label is None:
        raise RowError(f"needs a column {' or '.join(IMAGES)} and one called {' or '.join(LABELS)}; name them")
    try:
        found = image_of(opened(row[image]), image, reading.folder, str(given(row, "sha256", "")))
    except DataError as error:
        raise RowError(str(error)) from error
    output = labels_of(row[label], label, reading)
    return {"inputs": found, "output": output, "item": {"label": written(output)}, "used": (image, label, "sha256")}


def _write(example: Any, item: dict[str, Any], lost: Lost) -> dict[str, Any]:
    if not isinstance(example.inputs, Image):
        raise RowError("its input is no picture")
    item.pop("label", None)
    hashed = {"sha256": example.inputs.sha256} if example.inputs.path and example.inputs.sha256 else {}
    return {"image": written_image(example.inputs), "label": written(example.output), **hashed}


def _fits(row: Row, reading: Reading) -> bool:
    found = _image_column(row, reading) is not None and label_column(row, reading) is not None
    return found and (bool(reading.image) or not any(name in row for name in NOT_ALONE))


FORMATS = (
    Format(
        "image-label",
        "demonstrations",
        ("image", "label"),
        (),
        _read,
        _write,
        {"image": {"pixels": "AP8A/w==", "shape": [2, 2, 1]}, "label": "stripes"},
        _fits,
    ),
)
