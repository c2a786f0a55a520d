"""metrics that teams declare: what their feedback may be, from then on

A declaration never makes what was said before wrong: one that would is refused.
"""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from melior.errors import DataError
from melior.store import schema
from melior.store.measures import check_declaration, check_value
from melior.store.query import CHUNK, Rows, add_row, fetch, in_force, new_id, now, one_of
from melior.store.rows import Measure, MeasureType


class Declared(Rows):
    """Metrics that were declared. The newest declaration of a name is in force; the older ones stay in the log."""

    def declare_measure(
        self,
        name: str,
        type: MeasureType,
        *,
        low: float | None = None,
        high: float | None = None,
        description: str = "",
    ) -> Measure:
        """The metric as it is in force now. Declared again as it is, nothing changes.

        Raises:
            ConfigError: if the name is built in, or the range is none.
            DataError: if a value that is in force under this name would be none of it.
        """
        one_of(MeasureType, type)
        check_declaration(name, type, low, high)
        row = Measure(
            id=new_id("mea"),
            name=name,
            type=type,
            low=None if low is None else float(low),
            high=None if high is None else float(high),
            description=schema.clean(description),
            created=now(),
        )
        with self.database.read() as connection:  # nobody who writes waits for most of it
            known = measures_of(connection, {name}).get(name)
            seen = 0 if known is not None and _same(known, row) else _check_kept(connection, row)
        with self.database.write() as connection:
            known = measures_of(connection, {name}).get(name)
            if known is not None and _same(known, row):
                return known
            _check_kept(connection, row, seen)
            return add_row(connection, row)

    def measures(self) -> list[Measure]:
        """What was declared and is in force, by name."""
        with self.database.read() as connection:
            return sorted(measures_of(connection).values(), key=lambda measure: measure.name)


def measures_of(connection: Connection, names: set[str] | None = None) -> dict[str, Measure]:
    """The declarations in force, by name; of some names, or of all."""
    table = schema.measures
    newest = select(func.max(table.c.sequence)).group_by(table.c.name)
    if names is not None:
        newest = newest.where(table.c.name.in_(names))
    return {row.name: row for row in fetch(connection, Measure, table.c.sequence.in_(newest))}


def _same(known: Measure, row: Measure) -> bool:
    told = ("type", "low", "high", "description")
    return all(getattr(known, name) == getattr(row, name) for name in told)


def _check_kept(connection: Connection, measure: Measure, seen: int = 0) -> int:
    """How far the log was seen, where all in force under the name behind `seen` is one of what it is to measure.

    What was checked once can only fall out of force, so it need not be seen again.
    """
    table = schema.feedback
    there = select(table.c.sequence, table.c.id, table.c.value).where(
        table.c.metric == measure.name, table.c.sequence > seen, in_force()
    )
    odd, first = 0, ""
    for place, id, value in connection.execute(
        there.order_by(table.c.sequence), execution_options={"yield_per": CHUNK}
    ):
        seen = place
        try:
            check_value(measure.name, value, measure)
        except DataError as error:
            odd, first = odd + 1, first or f"{id} ({error})"
    if odd:
        raise DataError(
            f"{odd} values kept as {measure.name} would be none of it, the first is {first}; correct them, or declare "
            "another name"
        )
    return seen
