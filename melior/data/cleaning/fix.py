"""the cleaned file, and beside it every row that was removed or changed, as it was"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from melior.data.cleaning.codes import BY_NAME, CODES
from melior.data.cleaning.report import Fixed
from melior.data.cleaning.rows import cleaned
from melior.data.cleaning.views import mapped
from melior.data.formats import Reading, typed
from melior.data.readers import Line, Problem, read_rows
from melior.durable import durable_file

Place = Callable[[int], int | str]


@dataclass(frozen=True)
class Plan:
    """What is to be done with each row of a source."""

    source: str
    reading: Reading
    ignore: frozenset[str]
    reason: NDArray[np.uint8]  # [rows] 0, or the place in CODES, counted from 1, of the finding that removes a row
    repaired: Mapping[str, NDArray[np.int64]]  # rows by the finding that changes them
    renamed: Mapping[str, str]  # labels
    others: Mapping[str, Mapping[int, int]]  # by code: a row and the one it is like


def write_fixed(path: Path, plan: Plan, place: Place) -> Fixed:
    """Writes the cleaned rows to `path`, and removed and changed rows beside it; files are replaced whole.

    Raises:
        CheckpointError: if the disk refuses.
    """
    files = files_of(path)
    with ExitStack() as stack:
        opened = {name: stack.enter_context(durable_file(file)) for name, file in files.items()}
        kept, removed, changed = _written(opened, plan, place)
    return Fixed(kept, removed, changed, {name: str(file) for name, file in files.items()})


def files_of(path: Path) -> dict[str, Path]:
    """The files that a fix writes."""
    return {
        "cleaned": path,
        "removed": path.with_suffix(".removed.jsonl"),
        "changed": path.with_suffix(".changed.jsonl"),
    }


def _written(files: Mapping[str, IO[bytes]], plan: Plan, place: Place) -> tuple[int, Any, Any]:
    removed: dict[str, list[int | str]] = defaultdict(list)
    changed: dict[str, list[int | str]] = defaultdict(list)
    reasons: dict[int, list[str]] = defaultdict(list)
    for code, rows in plan.repaired.items():
        for row in rows.tolist():
            reasons[row].append(code)
    kept = 0
    for number, line in enumerate(read_rows(plan.source, names=plan.reading.names)):
        reason = int(plan.reason[number])
        if reason or isinstance(line, Problem):  # what cannot be read cannot be kept, told or not
            because = CODES[reason - 1] if reason else BY_NAME["invalid-row"]
            removed[because.name].append(place(number))
            _put(files["removed"], _told_removed(number, line, because.name, because.why, plan, place))
            continue
        row = typed(line.row, plan.reading)
        if number in reasons:
            row = _changed(row, reasons[number], plan)
            for name in reasons[number]:
                changed[name].append(place(number))
            _put(files["changed"], {"line": place(number), "codes": reasons[number], "before": line.row, "after": row})
        _put(files["cleaned"], row)
        kept += 1
    return kept, dict(removed), dict(changed)


def _told_removed(number: int, line: Line | Problem, code: str, why: str, plan: Plan, place: Place) -> dict[str, Any]:
    told: dict[str, Any] = {"line": place(number), "code": code, "reason": why}
    if number in plan.others.get(code, {}):
        told["like_line"] = place(plan.others[code][number])
    return {**told, "reason": line.reason} if isinstance(line, Problem) else {**told, "row": line.row}


def _changed(row: Mapping[str, Any], codes: list[str], plan: Plan) -> Mapping[str, Any]:
    row, _ = cleaned(row, plan.ignore, plan.reading)
    if "label-variants" in codes:
        row = mapped(row, lambda text: plan.renamed.get(text.strip(), text))
    return row


def _put(file: IO[bytes], value: Any) -> None:
    file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
