"""what the whole database says when it is counted: jobs, gates, scores; each by one query that stays cheap"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, func, select

from melior.store import schema
from melior.store.query import Rows

NEWEST = 10_000  # scores that a mean reward is over: enough for ± .01, and read in milliseconds


class Counts(Rows):
    """Numbers over tables, for whoever watches."""

    def count_jobs(self) -> dict[tuple[str, str], int]:
        """How many jobs there are, by method and status."""
        table = schema.jobs
        return self._counted(
            select(table.c.method, table.c.status, func.count()).group_by(table.c.method, table.c.status)
        )

    def count_gates(self) -> dict[tuple[str], int]:
        """How many gates decided what."""
        table = schema.gates
        return self._counted(select(table.c.verdict, func.count()).group_by(table.c.verdict))

    def mean_rewards(self) -> dict[tuple[str, str], float]:
        """The mean of the newest scores, by the name of the model and of the grader."""
        scores, records, versions = schema.scores, schema.records, schema.versions
        newest = select(func.max(scores.c.sequence)).scalar_subquery() - NEWEST
        return self._counted(
            select(versions.c.name, scores.c.name, func.avg(scores.c.value))
            .join(records, records.c.id == scores.c.decision_id)
            .join(versions, versions.c.id == records.c.policy_version)
            .where(scores.c.sequence > newest, scores.c.value.is_not(None))
            .group_by(versions.c.name, scores.c.name)
        )

    def count_grader_errors(self, after: int) -> tuple[int, dict[tuple[str], int]]:
        """Up to which score was counted, and how many behind `after` are errors, by grader."""
        table = schema.scores
        with self.database.read() as connection:
            last = connection.scalar(select(func.max(table.c.sequence))) or 0
        behind = (table.c.sequence > after) & (table.c.sequence <= last) & (table.c.error != "")
        return last, self._counted(select(table.c.name, func.count()).where(behind).group_by(table.c.name))

    def _counted(self, query: Select[Any]) -> dict[Any, Any]:
        with self.database.read() as connection:
            return {tuple(row[:-1]): row[-1] for row in connection.execute(query)}
