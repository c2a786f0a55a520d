"""the items a slate can show, read from a file: one row per item

id,price,brand                       a CSV file: "id" or "item_id", every other column is a feature
{"id": "p1", "features": {…}}        a JSONL file, or {"id": "p1", "price": 9.5, "brand": "acme"}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from melior.data.formats.decisions import item_of
from melior.data.formats.rows import ColumnKind, Reading, RowError
from melior.data.formats.tables import Survey, cell
from melior.data.readers import Line, read_rows
from melior.errors import DataError
from melior.types import Item

IDS = ("id", "item_id")
SHOWN_PROBLEMS = 5


def read_catalogue(source: str | Path, columns: Mapping[str, ColumnKind] | None = None) -> tuple[Item, ...]:
    """The items of a source, in order; what is missing is None. `columns` says number or text where all rows do not.

    Raises:
        DataError: if a row cannot be used, has no id, or two items share one.
    """
    survey = Survey(Reading())
    rows: list[tuple[int, Mapping[str, Any]]] = []
    problems: list[str] = []
    for line in read_rows(source):
        if isinstance(line, Line):
            flat = _flat(line.row)
            survey.add(flat)
            rows.append((line.number, flat))
        else:
            problems.append(str(line))
    kinds: dict[str, ColumnKind] = {**survey.kinds, **(columns or {})}
    items: dict[str, Item] = {}
    for number, row in rows:
        try:
            item = _item(row, kinds)
        except RowError as error:
            problems.append(f"line {number}: {error}")
            continue
        if item.id in items:
            problems.append(f"line {number}: the item {item.id!r} is there already; ids are unique")
        items[item.id] = item
    if problems:
        shown = "".join(f"\n  {problem}" for problem in problems[:SHOWN_PROBLEMS])
        raise DataError(f"{source}: {len(problems)} rows are no items of a catalogue; correct them:{shown}")
    return tuple(items.values())


def _flat(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The id and the features beside one another."""
    features = row.get("features")
    return (
        {**{name: value for name, value in row.items() if name != "features"}, **features}
        if isinstance(features, Mapping)
        else row
    )


def _item(row: Mapping[str, Any], kinds: Mapping[str, ColumnKind]) -> Item:
    name = next((name for name in IDS if name in row), None)
    if name is None:
        raise RowError(f"has no column {' or '.join(IDS)}")
    missing = Reading().missing
    id = cell(row[name], name, "text", missing)
    if id is None:
        raise RowError(f"its {name} is empty")
    features = {key: cell(row.get(key), key, kind, missing) for key, kind in kinds.items() if key != name}
    return item_of({"id": id, "features": features})
