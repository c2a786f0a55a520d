"""every durable write: a folder or file is the old one or the new one, never a mixture

A folder is written under a temporary name, its files are synced, a manifest with their sha256 comes last, then the
folder is renamed into place and its parent synced. A draft bears the number of the thread that writes it, which no
other thread of the machine has: where several write one file, the last one's stands, whole. `failpoint` numbers the
moments at which a test may fail or kill.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_native_id
from typing import IO

from melior.errors import CheckpointError

MANIFEST = "manifest.json"
failpoint: Callable[[str], None] = lambda moment: None  # noqa: E731  a test puts its own function here


@contextmanager
def durable_folder(path: Path) -> Iterator[Path]:
    """A draft folder to write into; on leaving it becomes `path`, whole, or nothing changes.

    Raises:
        CheckpointError: if the disk refuses; what was at `path` before is still there.
    """
    path = path.absolute()
    draft = path.parent / f".{path.name}.draft-{get_native_id()}"
    aside = path.parent / f".{path.name}.old-{get_native_id()}"
    placed = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        if aside.exists():  # left by a killed process that had the same number
            _put_back(aside, path)
        draft.mkdir()
        failpoint("draft made")
        yield draft
        failpoint("files written")
        _seal(draft)
        if path.exists():
            os.rename(path, aside)
            failpoint("old one aside")
        os.rename(draft, path)
        placed = True
        failpoint("renamed")
        _sync(path.parent)
        failpoint("synced")
    except BaseException as error:
        if placed:  # whole, but perhaps not durable: what is told to have failed must not be there
            os.rename(path, draft)
        shutil.rmtree(draft, ignore_errors=True)
        if aside.exists() and not path.exists():
            os.rename(aside, path)
        if isinstance(error, OSError):
            raise _unwritable(path, error) from error
        raise
    shutil.rmtree(aside, ignore_errors=True)


def write_file(path: Path, content: bytes | str) -> None:
    """Replaces a file atomically.

    Raises:
        CheckpointError: if the disk refuses; the old file is still there, or the new one is, whole.
    """
    with durable_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def durable_file(path: Path) -> Iterator[IO[bytes]]:
    """A draft to write bytes into, piece by piece; on leaving it replaces `path`, whole, or nothing changes.

    Raises:
        CheckpointError: if the disk refuses; the old file is still there, or the new one is, whole.
    """
    draft = path.with_name(f".{path.name}.draft-{get_native_id()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            yield file
            failpoint("file written")
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
        failpoint("file replaced")
        _sync(path.parent)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise _unwritable(path, error) from error
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def append_file(path: Path, content: str) -> None:
    """Adds text to a file. Not synced: for logs, whose last lines a crash may cost.

    Raises:
        CheckpointError: if the disk refuses.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(content)
            failpoint("lines written")
    except OSError as error:
        raise _unwritable(path, error) from error


def verify_folder(path: Path) -> None:
    """Passes when every file of a durable folder is bitwise what was written.

    Raises:
        CheckpointError: naming the first file that is missing, changed or unexpected; hidden files do not count.
    """
    try:
        manifest = dict(json.loads((path / MANIFEST).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} has no readable {MANIFEST}: melior did not write it to its end; save it again, or use another"
        ) from error
    for name, digest in manifest.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; use an older checkpoint")
        if file_digest(file) != digest:
            raise CheckpointError(f"{file} is damaged: its sha256 is not the recorded one; use an older checkpoint")
    for name in _files(path):
        if name not in manifest and not name.startswith("."):
            raise CheckpointError(f"{path / name} was not there when the folder was written; take it away")


def file_digest(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_drafts(folder: Path) -> None:
    """Removes what killed writers left behind, and puts back an old folder whose replacement never came."""
    for entry in folder.glob(".*.old-*") if folder.is_dir() else ():
        _put_back(entry, folder / entry.name[1:].rpartition(".old-")[0])
    for entry in folder.glob(".*.draft-*") if folder.is_dir() else ():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"Cannot write {path}: {error.strerror or error}; free some space and try again")


def _seal(folder: Path) -> None:
    """Syncs every file and directory and writes the manifest last."""
    digests = {}
    for name in _files(folder):
        _sync(folder / name)
        digests[name] = file_digest(folder / name)
        failpoint("file synced")
    with (folder / MANIFEST).open("w") as manifest:
        json.dump(digests, manifest, indent=1)
        failpoint("manifest written")
        manifest.flush()
        os.fsync(manifest.fileno())
    for inner in [entry for entry in folder.rglob("*") if entry.is_dir()] + [folder]:
        _sync(inner)
    failpoint("draft synced")


def _files(folder: Path) -> list[str]:
    """Names of all files in and below a folder but its own manifest."""
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    return [name for name in names if name != MANIFEST]


def _put_back(aside: Path, original: Path) -> None:
    """An old folder returns to its place, or goes if another one stands there."""
    if original.exists():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.rename(aside, original)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
