"""pictures as rows name them: a file that is looked at but not decoded, or pixels

Pillow reads the files; it is an extra. A file's header is read and its checksums are verified when the row is, so that
a broken picture is told with its line; its pixels are decoded when a policy asks for them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melior.errors import DataError
from melior.types import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels → Pillow's name of the mode
MOST_PIXELS = 1 << 26  # of one picture: 8192 × 8192; a small file may unfold to far more
REFUSED = (OSError, SyntaxError, ValueError, EOFError)  # what Pillow raises at a broken file, of whatever kind it is


def load_pillow() -> Any:
    """Pillow's module of images, which is an extra.

    Raises:
        DataError: if it is not installed.
    """
    try:
        import PIL.Image
    except ImportError as error:
        raise DataError(
            f"pictures in files need Pillow, which cannot be imported; pip install 'melior[vision]' ({error})"
        ) from error
    return PIL.Image


def picture(path: str | Path) -> Image:
    """The picture in a file, with the hash of its bytes; header and checksums are looked at, pixels are not decoded.

    Raises:
        DataError: if there is no such file, it is no picture, or a broken or enormous one.
    """
    path = Path(path)
    pillow = load_pillow()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"the picture {path} cannot be read: {error.strerror or error}") from error
    if not content:
        raise DataError(f"the picture {path} is an empty file")
    try:
        with pillow.open(io.BytesIO(content)) as opened:
            width, height = opened.size
            opened.verify()
    except REFUSED as error:
        raise DataError(f"{path} is no picture that can be read ({_told(error)}); save it again as PNG") from error
    except pillow.DecompressionBombError as error:
        raise DataError(f"{path} is too large a picture: {error}; scale it down") from error
    if width * height > MOST_PIXELS:
        raise DataError(f"{path} has {width} × {height} pixels, at most {MOST_PIXELS:,} are read; scale it down")
    return Image(str(path), sha256=hashlib.sha256(content).hexdigest())


def pixels(image: Image, channels: int = 0) -> NDArray[np.uint8]:  # [height, width, channels]
    """The pixels of a picture, decoded; in grey (1), colour (3) or as it is (0: grey or colour, transparency dropped).

    Raises:
        DataError: if its file cannot be decoded, or changed since it was read.
    """
    if image.pixels:
        array = np.frombuffer(image.pixels, np.uint8).reshape(image.shape)
        if channels in (0, array.shape[2]):
            return array
        mode = MODES.get(array.shape[2])
        if mode is None:
            raise DataError(f"a picture of {array.shape[2]} channels cannot be made one of {channels}")
        grey = array[:, :, 0] if mode == "L" else array
        return array_of(load_pillow().fromarray(np.ascontiguousarray(grey), mode), channels)
    try:
        content = Path(image.path).read_bytes()
        if image.sha256 and hashlib.sha256(content).hexdigest() != image.sha256:
            raise DataError(f"{image.path} is another picture than when the rows were read; read them again")
        with load_pillow().open(io.BytesIO(content)) as opened:
            return array_of(opened, channels)
    except REFUSED as error:
        raise DataError(f"{image.path} cannot be decoded ({_told(error)}); save it again, or leave it out") from error


def array_of(opened: Any, channels: int = 0) -> NDArray[np.uint8]:  # [height, width, channels]
    """The pixels of a picture that Pillow has opened, upright; see `pixels`.

    Raises:
        DataError: if it has more than 8 bits a pixel.
    """
    wanted = channels or (1 if opened.mode in ("1", "L", "I", "I;16", "F", "LA") else 3)
    if opened.mode in ("I", "I;16", "F"):  # Pillow would cut off what is above 255
        raise DataError(f"a picture of mode {opened.mode} has more than 8 bits a pixel; save it with 8")
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(opened)  # as the camera was held
    array = np.asarray(upright.convert(MODES[wanted]), np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def image_of(value: Any, name: str, folder: str = "", sha256: str = "") -> Image:
    """The picture that a cell writes: a file's path, or `{"pixels": base64, "shape": [height, width, channels]}`.

    Raises:
        DataError: if it writes none.
    """
    if isinstance(value, Image):
        return value
    if isinstance(value, Mapping) and {"pixels", "shape"} <= value.keys():
        try:
            return Image(pixels=base64.b64decode(value["pixels"], validate=True), shape=tuple(map(int, value["shape"])))  # type: ignore[arg-type]
        except (binascii.Error, TypeError, ValueError) as error:
            raise DataError(f"{name} holds pixels that are no base64 of such a shape ({error})") from error
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{name} must be the path of a picture, got {value!r:.40}")
    found = picture(Path(folder) / value.strip())
    if sha256 and sha256 != found.sha256:
        raise DataError(f"{found.path} has sha256 {found.sha256[:12]}…, its row says {sha256[:12]}…; it was changed")
    return found


def written(image: Image) -> Any:
    """A picture as JSON holds it; `image_of` reads it back. Paths become absolute, for rows move between folders."""
    if image.path:
        return str(Path(image.path).absolute())
    return {"pixels": base64.b64encode(image.pixels).decode(), "shape": list(image.shape)}


def _told(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
