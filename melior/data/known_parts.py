"""where the files of known data sets lie, how they are fetched, and their rows as every place gives them"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from melior.data.readers.arrays import read_arrays
from melior.data.readers.delimited import read_delimited
from melior.data.readers.json_lines import read_jsonl
from melior.data.readers.json_values import read_json
from melior.data.readers.rows import Line, Problem
from melior.durable import durable_folder, verify_folder
from melior.errors import DataError, MeliorError
from melior.outbound import Limits, Outbound
from melior.types import Image

Row = Mapping[str, Any]
Adapt = Callable[[Row], Row | None]
MOST_BYTES = 64 << 20  # of one file: the largest known one has 4 MB
PATIENCE_S = 120.0  # for a file of a few megabytes over a slow line
READ: Mapping[str, Callable[[Path], Iterator[Line | Problem]]] = {".json": read_json, ".jsonl": read_jsonl}
LEVELS = 16  # of a digit's pixels in scikit-learn


@dataclass(frozen=True, kw_only=True)
class Part:
    """One split of a data set: its places, in the order in which they are tried."""

    file: str = ""  # in the folder MELIOR_DATA
    package: str = ""  # that ships it
    inside: str = ""  # the package's folder: its path
    shipped: str = ""  # scikit-learn's name of it, which has no file
    url: str = ""  # its public home
    member: str = ""  # of the archive there
    sha256: str = ""  # of what is there; "" where its publisher gave none, so that only the first fetch is recorded
    split: str = ""  # of the arrays inside
    names: tuple[str, ...] = ()  # of the columns, where the file has no header
    delimiter: str | None = None  # of the file at its public home
    more: tuple[Part, ...] = ()  # files whose rows follow


def rows_of(part: Part, name: str) -> Iterator[Line | Problem]:
    """The rows of a part and of the files behind it, each from the first of its places.

    Raises:
        DataError: if there is none.
    """
    rows = [_rows_of_one(one, place) for one, place in zip((part, *part.more), places_of(part, name), strict=True)]
    return rows[0] if len(rows) == 1 else _numbered(rows)


def places_of(part: Part, name: str) -> list[Path | None]:
    """The files of a part, as `place_of` finds each.

    Raises:
        DataError: if one is nowhere and cannot be fetched.
    """
    names = [name, *(f"{name}-{number}" for number in range(2, len(part.more) + 2))]
    return [place_of(one, called) for one, called in zip((part, *part.more), names, strict=True)]


def _rows_of_one(part: Part, path: Path | None) -> Iterator[Line | Problem]:
    if path is None:
        return SHIPPED[part.shipped]()
    if path.suffix == ".npz":
        return read_arrays(path, part.split)
    suffixes = [suffix for suffix in path.suffixes if suffix in READ]
    if suffixes:
        return READ[suffixes[-1]](path)
    return read_delimited(path, part.delimiter if path.suffix == ".data" else None, part.names)


def _numbered(files: Sequence[Iterator[Line | Problem]]) -> Iterator[Line | Problem]:
    """The rows of several files, counted through."""
    for number, found in enumerate(chain.from_iterable(files), start=1):
        yield replace(found, number=number) if isinstance(found, Line) else replace(found, line=number)


def place_of(part: Part, name: str) -> Path | None:
    """The file of a part, fetched where it is nowhere; None where a package computes it.

    Raises:
        DataError: if it is nowhere and cannot be fetched.
    """
    if part.shipped:
        _sklearn()
        return None
    here = data_folder() / part.file
    if here.is_file():
        return here
    found = importlib.util.find_spec(part.package) if part.package else None
    for folder in found.submodule_search_locations or () if found else ():
        if (Path(folder) / part.inside).is_file():
            return Path(folder) / part.inside
    target = home() / "data" / name
    if not target.is_dir():
        fetch(part, target)
    verify_folder(target)
    return next(file for file in sorted(target.iterdir()) if file.name not in ("manifest.json", "source.json"))


def data_folder() -> Path:
    """The folder of data sets that somebody keeps: MELIOR_DATA, or shared/data beside a checkout."""
    return Path(os.environ.get("MELIOR_DATA") or Path(__file__).parents[3] / "shared" / "data").expanduser()


def home() -> Path:
    """The folder for models, the database, runs and fetched data: MELIOR_HOME, or ~/.melior."""
    return Path(os.environ.get("MELIOR_HOME") or Path.home() / ".melior").expanduser()


def fetch(part: Part, target: Path, most_bytes: int = MOST_BYTES) -> None:
    """Fetches a part from its public home into a folder, with the hash and the time it came.

    Raises:
        DataError: if it cannot be had, is too large, or is not the file that was published.
    """
    kept = f"put the file into {data_folder() / part.file}" if part.file else "install what ships it"
    if not part.url:
        raise DataError(f"{part.file or target.name} is on no public server; {kept}, or take another split")
    try:
        with Outbound(Limits(timeout_s=PATIENCE_S, max_bytes=most_bytes)) as client:
            content = client.get(part.url)
    except MeliorError as error:
        raise DataError(f"{part.url} cannot be fetched ({error}); try again, or {kept}") from error
    digest = sha256(content).hexdigest()
    if part.sha256 and digest != part.sha256:
        raise DataError(
            f"{part.url} has sha256 {digest[:12]}…, expected {part.sha256[:12]}…: it is not the file that was "
            f"published, and nothing was kept; {kept}"
        )
    came = datetime.now(UTC).isoformat(timespec="seconds")
    name = Path(part.member or urlsplit(part.url).path).name
    inner = _member(content, part, most_bytes) if part.member else content
    with durable_folder(target) as draft:
        (draft / name).write_bytes(inner)
        told = {"url": part.url, "sha256": digest, "bytes": len(content), "fetched": came}
        (draft / "source.json").write_text(json.dumps(told, indent=1))


def _member(content: bytes, part: Part, most_bytes: int) -> bytes:
    """One file of an archive; a small archive may unfold to far more than is wanted."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive, archive.open(part.member) as file:
            inner = file.read(most_bytes + 1)
    except (zipfile.BadZipFile, KeyError, OSError, RuntimeError) as error:
        raise DataError(f"{part.url} holds no readable {part.member} ({error}); it may have moved") from error
    if len(inner) > most_bytes:
        raise DataError(f"{part.member} of {part.url} has more than {most_bytes:,} bytes; at most so many are kept")
    return inner


# ---------------------------------------------------------------------- what scikit-learn ships


def _sklearn() -> Any:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise DataError(
            f"scikit-learn ships this data set and cannot be imported; pip install 'melior[sets]' ({error})"
        ) from error
    return datasets


def _breast_cancer() -> Iterator[Line | Problem]:
    found = _sklearn().load_breast_cancer()
    names = [str(name) for name in found.feature_names]
    for number, (row, label) in enumerate(zip(found.data.tolist(), found.target, strict=True), start=1):
        yield Line(number, {**dict(zip(names, row, strict=True)), "diagnosis": str(found.target_names[label])})


def _digits() -> Iterator[Line | Problem]:
    found = _sklearn().load_digits()
    pixels = (found.images * (255 / LEVELS)).round().astype("uint8")
    for number, (image, label) in enumerate(zip(pixels, found.target.tolist(), strict=True), start=1):
        yield Line(number, {"image": Image(pixels=image.tobytes(), shape=(*image.shape, 1)), "label": str(label)})


SHIPPED: Mapping[str, Callable[[], Iterator[Line | Problem]]] = {"breast_cancer": _breast_cancer, "digits": _digits}


# ---------------------------------------------------------------------- rows as every place gives them


def renamed_in_order(sign: str, names: Sequence[str]) -> Adapt:
    """Columns under the names given, one by one, in rows that have the column `sign`; others are as they were."""

    def adapt(row: Row) -> Row:
        return dict(zip(names, row.values(), strict=True)) if sign in row else row

    return adapt


def with_digits(*columns: str) -> Adapt:
    """TRUE and FALSE of some columns as 1 and 0."""
    digits = {"TRUE": "1", "FALSE": "0"}

    def adapt(row: Row) -> Row:
        return {**row, **{name: digits.get(str(row[name]).upper(), row[name]) for name in columns}}

    return adapt


def without_first_column(row: Row) -> Row:
    """The row without the number that pandas wrote in front of it."""
    return dict(list(row.items())[1:])


def impression(row: Row) -> Row:
    """One impression of one slot of the banner, as a logged slate of one item; the slot is part of its context."""
    context = {name: str(row[name]) for name in row if name.startswith("user_feature_")}
    item = str(row["item_id"])
    clicked = str(row["click"]) == "1"
    return {
        "request": {"context": {**context, "slot": str(row["position"])}},
        "slate": [item],
        "propensities": [float(row["propensity_score"])],
        "events": [{"type": "click", "item": item}] if clicked else [],
        "time": str(row["timestamp"]),
    }


NO_CONTEXT = "The context of this turn was not published."  # six rows of Taskmaster have none
ROLES = {"agent": "assistant", "user": "user", "api": "tool"}  # of Taskmaster


def rated_turn(row: Row) -> Row:
    """One turn of an order-taking agent, what was said before it, and whether people called it good.

    Calls of the shop's interface and its answers are JSON text, the latter by the role "tool". No dialogue id joins
    turns of one dialogue, so turns whose customer opens with the same words belong together.
    """
    before = json.loads(row["context"])
    messages = [{"role": ROLES[turn["role"]], "content": _said(turn)} for turn in before]
    opening = next((turn["text"].strip().lower() for turn in before if turn["role"] == "user"), NO_CONTEXT)
    output = json.loads(row["generation"])
    return {
        "prompt": messages or [{"role": "system", "content": NO_CONTEXT}],
        "completion": _said(output),
        "label": bool(row["reward"]),
        "group": sha256(opening.encode()).hexdigest()[:16],
        "call": "api" in output,
        "conversation": row["conversation_id"],
    }


def answered_pair(row: Row) -> Row | None:
    """A pair of HH-RLHF; None where one of the two answers is empty, so that it cannot be shown or learnt."""
    return None if any(str(row[side]).rstrip().endswith("Assistant:") for side in ("chosen", "rejected")) else row


def _said(turn: Mapping[str, Any]) -> str:
    """The text of a turn; a call or its answer as JSON."""
    told = next(turn[kind] for kind in ("text", "api", "response") if kind in turn)
    return told if isinstance(told, str) else json.dumps(told)
