"""every durable write: a folder or file is the old one or the new one, never a mixture

A folder is written under a temporary name, its files are synced, a manifest with their sha256 comes last, then the
folder is renamed into place and its parent synced. `failpoint` numbers the moments at which a test may fail or kill.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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
    draft = path.parent / f".{path.name}.draft-{os.getpid()}"
    aside = path.parent / f".{path.name}.old-{os.getpid()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        failpoint("draft made")
        yield draft
        failpoint("files written")
        _seal(draft)
        if path.exists():
            os.rename(path, aside)
            failpoint("old one aside")
        os.rename(draft, path)
        failpoint("renamed")
        _sync(path.parent)
        failpoint("synced")
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        if aside.exists() and not path.exists():
            os.rename(aside, path)
        if isinstance(error, OSError):
            raise CheckpointError(f"Cannot write {path}: {error.strerror or error}; free some space and try again") from error
        raise
    shutil.rmtree(aside, ignore_errors=True)


def write_file(path: Path, content: bytes | str) -> None:
    """Replaces a file atomically.

    Raises:
        CheckpointError: if the disk refuses; the old file is still there.
    """
    data = content.encode() if isinstance(content, str) else content
    draft = path.with_name(f".{path.name}.draft-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            file.write(data)
            failpoint("file written")
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
        failpoint("file replaced")
        _sync(path.parent)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise CheckpointError(f"Cannot write {path}: {error.strerror or error}; free some space and try again") from error


def verify_folder(path: Path) -> None:
    """Passes when every file of a durable folder is bitwise what was written.

    Raises:
        CheckpointError: naming the first file that is missing, changed or unexpected.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} has no readable {MANIFEST}, so it was never finished; use an older one") from error
    for name, digest in manifest.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; use an older checkpoint")
        if file_digest(file) != digest:
            raise CheckpointError(f"{file} is damaged: its sha256 is not the recorded one; use an older checkpoint")


def file_digest(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_drafts(folder: Path) -> None:
    """Removes what killed writers left behind, and puts back an old folder whose replacement never came."""
    for entry in folder.glob(".*.old-*") if folder.is_dir() else ():
        original = folder / entry.name[1:].rpartition(".old-")[0]
        if original.exists():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            os.rename(entry, original)
    for entry in folder.glob(".*.draft-*") if folder.is_dir() else ():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)


def _seal(folder: Path) -> None:
    """Syncs every file and directory and writes the manifest last."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    digests = {}
    for file in files:
        _sync(file)
        digests[str(file.relative_to(folder))] = file_digest(file)
        failpoint("file synced")
    with (folder / MANIFEST).open("w") as manifest:
        json.dump(digests, manifest, indent=1)
        failpoint("manifest written")
        manifest.flush()
        os.fsync(manifest.fileno())
    for inner in [entry for entry in folder.rglob("*") if entry.is_dir()] + [folder]:
        _sync(inner)
    failpoint("draft synced")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
