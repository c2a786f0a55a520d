"""objects of the OpenAI dialect: times, lists and pages"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from fastapi import Request

from melior.errors import NotFound
from melior.store.query import Order, Page
from melior.store.schema import clean

T = TypeVar("T")
MOST = 10_000  # objects of a page, as OpenAI has it for files


def seconds(time: str) -> int:
    """A time of the store as Unix seconds."""
    return int(datetime.fromisoformat(time.replace("Z", "+00:00")).timestamp())


def labels_of(request: Request) -> dict[str, str]:
    """The labels that a list is asked for, as clients write them: metadata[key]=value."""
    return {
        name.removeprefix("metadata[").removesuffix("]"): clean(value)
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }


def page(
    rows: Sequence[T],
    tell: Callable[[T], dict[str, Any]],
    *,
    after: str | None = None,
    limit: int = 20,
    order: Order = "desc",
    name: Callable[[T], str] = lambda row: row.id,  # type: ignore[attr-defined]
) -> dict[str, Any]:
    """One page of a short list that is in memory; `page_of` is for what a table holds.

    `rows` come the oldest first; `after` is the id that the page before ended with.

    Raises:
        NotFound: if `after` is in no page.
    """
    ordered = list(rows) if order == "asc" else list(reversed(rows))
    start = 0
    if after is not None:
        places = {name(row): place for place, row in enumerate(ordered)}
        if after not in places:
            raise NotFound(f"there is no {after!r} in this list to go on after")
        start = places[after] + 1
    return page_of(Page(ordered[start : start + limit], len(ordered) > start + limit), tell)


def page_of(found: Page[T], tell: Callable[[T], dict[str, Any]]) -> dict[str, Any]:
    """A page that the store has read (`fetch_page`), as the dialect has it."""
    shown = [tell(row) for row in found.rows]
    return {
        "object": "list",
        "data": shown,
        "has_more": found.more,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
    }
