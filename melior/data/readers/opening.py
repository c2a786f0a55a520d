"""files opened for reading, decompressed where they are compressed"""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from melior.errors import DataError

COMPRESSED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
SUFFIXES = (".gz", ".bz2", ".xz")  # left away to see what the file holds
PEEKED = 1 << 16  # bytes: enough to see past a long run of white space


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, without a compression its first bytes tell.

    Raises:
        DataError: if it cannot be opened or read, or its compression is damaged.
    """
    try:
        with path.open("rb") as raw:
            start = raw.read(8)
        opener = next((opener for magic, opener in COMPRESSED.items() if start.startswith(magic)), open)
        with opener(path, "rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise DataError(f"{path} is damaged or cut short: {error}; fetch or compress it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}; check the path") from error


def beginning(path: Path) -> bytes:
    """The first bytes of a file, decompressed, without byte order mark.

    Raises:
        DataError: if it cannot be read or is UTF-16.
    """
    with opened(path) as file:
        return without_mark(file.read(PEEKED), path)


def has_mark(path: Path) -> bool:
    """Whether a text begins with UTF-8's byte order mark."""
    with opened(path) as file:
        return file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8


def without_mark(start: bytes, path: Path) -> bytes:
    """The first bytes of a text without its byte order mark.

    Raises:
        DataError: if the text is UTF-16.
    """
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path} is UTF-16; save it as UTF-8")
    return start.removeprefix(codecs.BOM_UTF8)
