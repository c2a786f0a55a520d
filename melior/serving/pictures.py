"""pictures that clients send: decoded within limits, and kept once, under the sha256 of their bytes

A picture comes with the request, as data:image/png;base64,…, for a path would be read with this server's rights. The
log names the file that is kept of it, as rows of pictures do, so that whatever is exported can be learnt from.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from melior.data.pictures import REFUSED, array_of, load_pillow
from melior.durable import write_file
from melior.errors import CheckpointError, DataError
from melior.serving.problems import Problem
from melior.types import Image

MOST_BYTES = 10 << 20  # of a picture's file
MOST_PIXELS = 1 << 24  # 4096 × 4096: a few kilobytes may unfold to far more
SUFFIXES: Mapping[str, str] = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp"}
HOW = "a picture comes as data:image/png;base64,…: a path would be read with this server's rights"

_writing = threading.Lock()  # drafts of one picture would have one name


@dataclass(frozen=True)
class Sent:
    """A picture that came with a request."""

    content: bytes  # of its file
    suffix: str
    image: Image  # its pixels

    @property
    def name(self) -> str:
        """What its file is called: no word of it is the client's."""
        return hashlib.sha256(self.content).hexdigest() + self.suffix


def is_picture(given: Any) -> bool:
    """Whether an input is meant as a picture."""
    return isinstance(given, Mapping) and given.keys() == {"image"}


def received(value: Any) -> Sent:
    """The picture in a data URL.

    Raises:
        Problem: if it is none, too large, or cannot be decoded.
    """
    if not isinstance(value, str) or not value.startswith("data:"):
        raise Problem(400, HOW, param="input")
    head, _, body = value.partition(",")
    if not head.endswith(";base64"):
        raise Problem(400, "a picture's data URL ends its head with ;base64, and this one does not", param="input")
    if len(body) // 4 * 3 > MOST_BYTES + 2:
        raise Problem(
            400, f"a picture has at most {MOST_BYTES:,} bytes, and this one more; scale it down", param="input"
        )
    try:
        content = base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise Problem(400, f"the picture is no base64 ({error})", param="input") from error
    return _decoded(content)


def keep(folder: Path, sent: Sent) -> Path:
    """Where the picture is kept; durable once this returns, and written once however often it is sent.

    Raises:
        Problem: if the disk refuses.
    """
    path = folder.absolute() / sent.name
    try:
        with _writing:
            if not path.exists():
                write_file(path, sent.content)
    except CheckpointError as error:
        raise Problem(507, f"the picture could not be kept, so nothing was decided: {error}") from error
    return path


def _decoded(content: bytes) -> Sent:
    try:
        pillow = load_pillow()
        with pillow.open(io.BytesIO(content), formats=tuple(SUFFIXES)) as opened:
            width, height = opened.size
            if width * height > MOST_PIXELS:
                told = f"the picture has {width} × {height} pixels, and at most {MOST_PIXELS:,} are read; scale it down"
                raise Problem(400, told, param="input")
            suffix = SUFFIXES[opened.format]
            array = array_of(opened)
    except DataError as error:
        raise Problem(400, str(error), param="input") from error
    except (*REFUSED, pillow.DecompressionBombError) as error:
        known = ", ".join(SUFFIXES)
        raise Problem(400, f"the picture cannot be decoded; it is one of {known}, whole", param="input") from error
    height, width, channels = array.shape
    return Sent(content, suffix, Image(pixels=array.tobytes(), shape=(height, width, channels)))
