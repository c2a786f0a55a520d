"""fingerprints of a folder's files, and what has changed since"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from melior.errors import StoreError


def hash_files(folder: Path) -> dict[str, str]:
    """The sha256 of every file under a folder, by its path inside it, sorted.

    Raises:
        StoreError: if there is no folder, no file in it, or a file cannot be read.
    """
    if not folder.is_dir():
        raise StoreError(f"there is no folder {folder}; save the policy there first")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if not paths:
        raise StoreError(f"the folder {folder} holds no files; save the policy there first")
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in paths}


def fingerprint(files: Mapping[str, str]) -> str:
    """One sha256 over the names and hashes of files, the same wherever their folder stands."""
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """How files differ, in words; empty where they do not."""
    changed = [name for name in before if name in now and before[name] != now[name]]
    missing = [name for name in before if name not in now]
    added = [name for name in now if name not in before]
    counted = (("changed", changed), ("missing", missing), ("added", added))
    return ", ".join(f"{len(names)} {what} ({names[0]}{' …' * (len(names) > 1)})" for what, names in counted if names)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
