"""where rows come from: a file of any kind, a folder, or the hub"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from melior.data.readers.arrays import read_arrays
from melior.data.readers.choices import chosen_split, split_of
from melior.data.readers.delimited import DELIMITERS, delimiter_of, read_delimited
from melior.data.readers.hub import HUB, is_saved, read_hub, read_saved
from melior.data.readers.json_lines import read_jsonl
from melior.data.readers.json_values import read_json
from melior.data.readers.opening import SUFFIXES, beginning
from melior.data.readers.parquet import read_parquet
from melior.data.readers.pictures import has_pictures, read_pictures
from melior.data.readers.rows import Line, Problem
from melior.errors import DataError

Rows = Iterator[Line | Problem]

DATA = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
KNOWN = "known:"  # data sets that melior knows where to find and how to read


def read_rows(source: str | Path, *, names: Sequence[str] = ()) -> Rows:
    """The rows of a source, read as they are asked for; what cannot be used is told in its place.

    A source is a file (JSONL, a JSON list, CSV, TSV, Parquet, .npz; text may be compressed), a folder of such files or
    of pictures in subfolders, a folder that `datasets` saved, `hub:owner/name`, or `known:name`; folders, archives and
    hub data sets take a config and a split: `hub:owner/name/config@split`, `folder@split`, `pictures.npz@split`. A
    file's suffix says what it is, and where it does not, its content. `names`: of the columns of a CSV file that has no
    header.

    Raises:
        DataError: if the source cannot be read, is empty, or a package for it is missing.
    """
    if str(source).startswith(HUB):
        return read_hub(str(source))
    if str(source).startswith(KNOWN):
        from melior.data.known_sets import known_rows  # it reads by these readers itself

        return known_rows(str(source))
    path, split = Path(source), ""
    if not path.exists() and "@" in path.name:
        name, _, split = path.name.rpartition("@")
        path = path.with_name(name)
    if path.is_dir():
        return read_saved(path, split) if is_saved(path) else _folder(path, split)
    if suffix_of(path) == ".npz":
        return read_arrays(path, split)
    if split and path.exists():
        raise DataError(f"{path} is a file and has no splits; leave @{split} out")
    return _reader(Path(path) if path.exists() else Path(source), names)


def _reader(path: Path, names: Sequence[str] = ()) -> Rows:
    """The rows of a file by its suffix, or by its content where the suffix says nothing."""
    suffix = suffix_of(path)
    if names and suffix not in ("", ".csv", ".tsv", ".txt", ".data"):
        raise DataError(f"{path} names its columns itself; only CSV and TSV may lack a header")
    if suffix == ".parquet":
        return read_parquet(path)
    if suffix in (".csv", ".tsv"):
        return read_delimited(path, "\t" if suffix == ".tsv" else None, names)
    start = beginning(path)
    if start.startswith(b"PAR1"):
        return read_parquet(path)
    first = start.lstrip()
    lines = suffix in (".jsonl", ".ndjson")
    if first.startswith(b"[") or (not lines and first.startswith(b"{") and _spans_lines(first)):
        return read_json(path)
    if suffix in DATA or first.startswith(b"{") or not first:
        return read_jsonl(path)
    if any(start.decode("utf-8", "replace").partition("\n")[0].count(mark) for mark in DELIMITERS):
        return read_delimited(path, delimiter_of(start), names)
    raise DataError(f"{path} is of no known kind; give JSONL, a JSON list, CSV, TSV or Parquet, with its suffix")


def is_part_of(path: Path, source: str | Path) -> bool:
    """Whether writing to a path changes what a source reads: it is the source's file, or stands in its folder."""
    if str(source).startswith((HUB, KNOWN)):
        return False
    origin = Path(source)
    if not origin.exists() and "@" in origin.name[1:]:
        origin = origin.with_name(origin.name.rpartition("@")[0])
    target = path.resolve()
    same = path.exists() and origin.exists() and path.samefile(origin)
    return same or target == origin.resolve() or (origin.is_dir() and origin.resolve() in target.parents)


def _spans_lines(start: bytes) -> bool:
    """Whether the first object goes on behind its first line, as where a program wrote it to be read."""
    line, newline, rest = start.partition(b"\n")
    return bool(newline) and line.strip() in (b"{", b"{}") and not rest.lstrip().startswith(b"{")


def suffix_of(path: Path) -> str:
    """The suffix in small letters, one of compression left away."""
    name = path.name.lower()
    for compression in SUFFIXES:
        name = name.removesuffix(compression)
    return Path(name).suffix


def _folder(folder: Path, split: str) -> Rows:
    """The rows of a folder's data files, file after file in the order of their names."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and suffix_of(file) in DATA]
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    if not files and has_pictures(folder):
        return read_pictures(folder, split)
    if not files:
        raise DataError(f"{folder} holds no data file and no picture; known suffixes are {', '.join(DATA)}")
    parts: dict[str, list[Path]] = {}
    for file in files:
        parts.setdefault(split_of(file.relative_to(folder)), []).append(file)
    return _in_turn(parts[chosen_split(list(parts), split, str(folder))], folder)


def _in_turn(files: list[Path], folder: Path) -> Rows:
    read: Callable[[Path], Rows] = _reader
    for file in files:
        for found in read(file):
            yield replace(found, file=str(file.relative_to(folder)))
