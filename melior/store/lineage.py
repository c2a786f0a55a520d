"""what came of a row, and what it came from: request → version → feedback → data set → run → evaluation → promotion

    decision ◀─ feedback ◀─ row of a data set ◀─ run ◀─ version ◀─ evaluation ◀─ gate ◀─ promotion
        │                          │              │        │
        └─▶ version that decided   └─▶ file, job ─┘        └─▶ parent version, down to the base model

`trace` follows these arrows both ways, a level at a time: each takes one query for each kind of arrow and one for each
kind of row that it meets, however many rows there are. Of many alike a few are shown, and how many more there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, FromClause, Select, and_, func, select

from melior.errors import NotFound, StoreError
from melior.store import schema
from melior.store.query import TABLES, chunks, fetch, in_force
from melior.store.rows import (
    AliasEvent,
    Dataset,
    Decision,
    Evaluation,
    Feedback,
    File,
    Gate,
    Grade,
    Job,
    Run,
    Version,
)
from melior.store.store import Store

SHOWN = 5  # rows of one arrow from one row
DEEPEST = 40  # levels: some ten turns of the loop
SHORTEST = 6  # characters of an id's beginning by which it is looked for


@dataclass(frozen=True, kw_only=True)
class Step:
    """A row on the way, and where the way goes on from it."""

    relation: str  # to the row before it
    kind: str
    id: str
    facts: Mapping[str, Any]
    steps: tuple[Step, ...] = ()
    told: bool = False  # stands in this trace already, with where it leads
    more: int = 0  # rows like this one that are not shown; of the last one shown


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A row, what it came from, and what came of it."""

    kind: str
    id: str
    facts: Mapping[str, Any]
    came_from: tuple[Step, ...]
    became: tuple[Step, ...]


@dataclass(frozen=True)
class Arrow:
    """From rows of one kind to rows of another: pairs of ids out of a table or a join."""

    relation: str
    of: str
    to: str
    begin: Column[Any]
    end: Column[Any]
    where: tuple[ColumnElement[bool], ...] = ()
    through: FromClause | None = None  # where the columns are of two tables


def trace(store: Store, reference: str, *, shown: int = SHOWN) -> Trace:
    """Where a row of any kind comes from and what came of it, by its id, the beginning of it, or `name@alias`.

    Raises:
        NotFound: if there is none.
        StoreError: if the beginning is that of several.
    """
    with store.database.read() as connection:
        kind, name = _found(connection, reference)
        facts = _facts(connection, {kind: [name]})[kind, name]
        back, ahead = (_walk(connection, kind, name, arrows, shown) for arrows in (BACK, AHEAD))
        return Trace(kind=kind, id=name, facts=facts, came_from=back, became=ahead)


# ---------------------------------------------------------------------- walking


def _walk(connection: Connection, kind: str, name: str, arrows: Sequence[Arrow], shown: int) -> tuple[Step, ...]:
    """The steps from one row along these arrows."""
    met = {(kind, name)}
    ways: dict[tuple[str, str], list[tuple[Arrow, str, int]]] = {}
    facts: dict[tuple[str, str], Mapping[str, Any]] = {}
    level = {(kind, name)}
    for _ in range(DEEPEST):
        here: dict[str, list[str]] = {}
        for each, id in sorted(level):
            here.setdefault(each, []).append(id)
        for arrow in arrows:
            if arrow.of in here:
                for begin, end, more in _ends(connection, arrow, here[arrow.of], shown):
                    ways.setdefault((arrow.of, begin), []).append((arrow, end, more))
        reached = {(arrow.to, end) for place in level for arrow, end, _ in ways.get(place, [])}
        fresh: dict[str, list[str]] = {}
        for each, id in sorted(reached - facts.keys()):
            fresh.setdefault(each, []).append(id)
        facts.update(_facts(connection, fresh))
        level = reached - met
        met |= reached
        if not level:
            break
    return _steps((kind, name), ways, facts, {(kind, name)})


def _steps(
    place: tuple[str, str],
    ways: Mapping[tuple[str, str], list[tuple[Arrow, str, int]]],
    facts: Mapping[tuple[str, str], Mapping[str, Any]],
    told: set[tuple[str, str]],
) -> tuple[Step, ...]:
    """The ways on from a place; each place is told in full where it is first met."""
    steps = []
    for arrow, end, more in ways.get(place, []):
        there = (arrow.to, end)
        if there not in facts:  # gone, or never in this store
            continue
        known = there in told
        told.add(there)
        further = () if known else _steps(there, ways, facts, told)
        row: dict[str, Any] = {"kind": arrow.to, "id": end, "facts": facts[there]}
        steps.append(Step(relation=arrow.relation, steps=further, told=known, more=more, **row))
    return tuple(steps)


def _ends(connection: Connection, arrow: Arrow, begins: Sequence[str], shown: int) -> Iterable[tuple[str, str, int]]:
    """(begin, end, how many more there are behind this one) of the first few ends of each begin."""
    for some in chunks(begins):
        pairs = _pairs(arrow, some).subquery()
        ordered = select(
            pairs.c.begin,
            pairs.c.end,
            func.row_number().over(partition_by=pairs.c.begin, order_by=pairs.c.place).label("number"),
            func.count().over(partition_by=pairs.c.begin).label("total"),
        ).subquery()
        few = select(ordered).where(ordered.c.number <= shown).order_by(ordered.c.begin, ordered.c.number)
        for begin, end, number, total in connection.execute(few):
            yield begin, end, total - number if number == shown else 0


def _pairs(arrow: Arrow, begins: Sequence[str]) -> Select[Any]:
    """Each pair of an arrow once, with a place to order by."""
    place = func.min(_place(arrow)).label("place")
    table = arrow.begin.table if arrow.through is None else arrow.through
    pairs = select(arrow.begin.label("begin"), arrow.end.label("end"), place).select_from(table)
    mine = (arrow.begin.in_(begins), arrow.end.is_not(None), *arrow.where)
    return pairs.where(*mine).group_by(arrow.begin, arrow.end)


def _place(arrow: Arrow) -> ColumnElement[int]:
    table: Any = arrow.end.table
    return table.c.sequence if "sequence" in table.c else table.c.position


def _found(connection: Connection, reference: str) -> tuple[str, str]:
    """The kind and the whole id of what a reference means."""
    name, at, alias = reference.partition("@")
    if at:
        held = schema.aliases
        where = and_(held.c.name == name, held.c.alias == alias)
        version = connection.scalar(select(held.c.version_id).where(where))
        if version is not None:
            return "version", version
    exact = {kind: TABLES[row].c.id for kind, row in KINDS.items()}
    for kind, column in exact.items():
        if connection.scalar(select(column).where(column == reference)) is not None:
            return kind, reference
    if len(reference) >= SHORTEST:
        begun = [
            (kind, found)
            for kind, column in exact.items()
            for found in connection.scalars(
                select(column).where(func.substr(column, 1, len(reference)) == reference).limit(2)
            )
        ]
        if len(begun) == 1:
            return begun[0]
        if begun:
            told = " and ".join(found for _, found in begun[:2])
            raise StoreError(f"{reference!r} begins several ids, {told} among them; write more of it")
    raise NotFound(
        f"nothing here has the id {reference!r}; give that of a decision, feedback, score, data set, file, job, run, "
        "version, evaluation, gate or promotion, or name@alias"
    )


# ---------------------------------------------------------------------- what is told of a row


def _facts(connection: Connection, wanted: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """What is told of each row: nothing of folders and files of this machine."""
    told: dict[tuple[str, str], Mapping[str, Any]] = {}
    for kind, ids in wanted.items():
        column = TABLES[KINDS[kind]].c.id
        rows: list[Any] = []
        for some in chunks(ids):
            rows += fetch(connection, KINDS[kind], column.in_(some))
        more = COUNTED[kind](connection, [row.id for row in rows]) if kind in COUNTED else {}
        for row in rows:
            told[kind, row.id] = {**TOLD[kind](row), **more.get(row.id, {}), "created": row.created}
    return told


def _of_decision(row: Decision) -> dict[str, Any]:
    record = row.record
    inputs = record.inputs
    if isinstance(inputs, Mapping) and inputs.keys() == {"image"} and isinstance(inputs["image"], str):
        inputs = {"image": PurePath(inputs["image"]).name}
    about = {"alias": row.alias, "episode_id": row.episode_id, "policy_version": record.policy_version}
    return {"inputs": inputs, "output": record.output, **about}


def _of_feedback(row: Feedback) -> dict[str, Any]:
    return {"metric": row.metric, "value": row.value, "source": row.source, "comment": row.comment}


def _of_dataset(row: Dataset) -> dict[str, Any]:
    details = row.details or {}
    asked = details.get("asked", {})
    told = {"kind": asked.get("kind", row.kind), "rows": row.rows, "fingerprint": row.fingerprint}
    return {**told, "sources": details.get("sources", {})}


def _of_run(row: Run) -> dict[str, Any]:
    return {"method": row.method, "status": row.status, "base_model": row.base_model, "finished": row.finished}


def _of_version(row: Version) -> dict[str, Any]:
    told = {"name": row.name, "method": row.method, "base_model": row.base_model, "deleted": row.deleted}
    return {**told, "reward": row.metrics.get("reward")}


def _of_evaluation(row: Evaluation) -> dict[str, Any]:
    return {"grader": row.grader, "items": len(row.values), "reward": row.summary.get("reward")}


def _of_gate(row: Gate) -> dict[str, Any]:
    told = {"verdict": row.verdict, "candidate": row.candidate_id, "baseline": row.baseline_id}
    return {**told, "sentence": row.details.get("sentence", "")}


def _of_promotion(row: AliasEvent) -> dict[str, Any]:
    told = {"action": row.action, "alias": f"{row.name}@{row.alias}", "version": row.version_id}
    return {**told, "before": row.previous_id, "forced": row.forced, "actor": row.actor, "reason": row.reason}


def _of_job(row: Job) -> dict[str, Any]:
    return {"method": row.method, "status": row.status, "finished": row.finished}


def _of_file(row: File) -> dict[str, Any]:
    return {"filename": row.filename, "purpose": row.purpose, "bytes": row.bytes, "deleted": row.deleted}


def _of_grade(row: Grade) -> dict[str, Any]:
    return {"grader": row.score.name, "value": row.score.value, "reason": row.score.reason, "error": row.score.error}


KINDS: Mapping[str, type] = {
    "decision": Decision,
    "feedback": Feedback,
    "score": Grade,
    "dataset": Dataset,
    "file": File,
    "job": Job,
    "run": Run,
    "version": Version,
    "evaluation": Evaluation,
    "gate": Gate,
    "promotion": AliasEvent,
}
TOLD: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "decision": _of_decision,
    "feedback": _of_feedback,
    "score": _of_grade,
    "dataset": _of_dataset,
    "file": _of_file,
    "job": _of_job,
    "run": _of_run,
    "version": _of_version,
    "evaluation": _of_evaluation,
    "gate": _of_gate,
    "promotion": _of_promotion,
}


def _said_in_force(connection: Connection, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Whether each feedback counts still."""
    table = schema.feedback
    query = [select(table.c.id).where(table.c.id.in_(some), in_force()) for some in chunks(ids)]
    counting = {name for each in query for name in connection.scalars(each)}
    return {name: {"in_force": name in counting} for name in ids}


def _decided_by(connection: Connection, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How much each version decided, and how much was said of that."""
    records, said = schema.records, schema.feedback
    decided = select(records.c.policy_version, func.count()).group_by(records.c.policy_version)
    about = select(records.c.policy_version, func.count()).join(said, said.c.decision_id == records.c.id)
    told: dict[str, dict[str, Any]] = {name: {"decisions": 0, "feedback": 0} for name in ids}
    for some in chunks(ids):
        mine = records.c.policy_version.in_(some)
        for name, count in connection.execute(decided.where(mine)):
            told[name]["decisions"] = count
        for name, count in connection.execute(about.where(mine).group_by(records.c.policy_version)):
            told[name]["feedback"] = count
    return told


COUNTED: Mapping[str, Callable[[Connection, Sequence[str]], dict[str, dict[str, Any]]]] = {
    "feedback": _said_in_force,
    "version": _decided_by,
}

# ---------------------------------------------------------------------- the arrows

_records, _said, _scores, _rows = schema.records.c, schema.feedback.c, schema.scores.c, schema.dataset_rows.c
_datasets, _files, _jobs, _runs, _versions = (
    table.c for table in (schema.datasets, schema.files, schema.jobs, schema.runs, schema.versions)
)
_evaluations, _gates, _links, _moves = (
    table.c for table in (schema.evaluations, schema.gates, schema.gate_evaluations, schema.alias_events)
)
_row_decisions = schema.dataset_rows.join(schema.records, _records.id == _rows.decision_id)
_file_jobs = schema.files.join(schema.jobs, _files.id == _jobs.training_file)
_checked_jobs = schema.files.join(schema.jobs, _files.id == _jobs.validation_file)

BACK: tuple[Arrow, ...] = (
    Arrow("decided by", "decision", "version", _records.id, _records.policy_version),
    Arrow("sampled by", "decision", "run", _records.id, _records.run_id),
    Arrow("of", "score", "decision", _scores.id, _scores.decision_id),
    Arrow("of", "feedback", "decision", _said.id, _said.decision_id),
    Arrow("replaces", "feedback", "feedback", _said.id, _said.replaces_id),
    Arrow("made from", "feedback", "feedback", _said.id, _said.made_from_id),
    Arrow("in an episode with", "feedback", "decision", _said.id, _records.id, (_said.decision_id.is_(None),),
          schema.feedback.join(schema.records, _records.episode_id == _said.episode_id)),
    Arrow("made of", "dataset", "feedback", _rows.dataset_id, _rows.feedback_id),
    Arrow("made of", "dataset", "decision", _rows.dataset_id, _rows.decision_id, (_rows.feedback_id.is_(None),)),
    Arrow("decided by", "dataset", "version", _rows.dataset_id, _records.policy_version, (), _row_decisions),
    Arrow("holds", "file", "dataset", _files.id, _files.dataset_id),
    Arrow("learns from", "job", "file", _jobs.id, _jobs.training_file),
    Arrow("measured on", "job", "file", _jobs.id, _jobs.validation_file),
    Arrow("asked for by", "run", "job", _jobs.run_id, _jobs.id),
    Arrow("learnt from", "run", "dataset", _runs.id, _runs.dataset_id),
    Arrow("began with", "run", "version", _runs.id, _runs.base_version),
    Arrow("made by", "version", "run", _versions.id, _versions.run_id),
    Arrow("trained from", "version", "version", _versions.id, _versions.parent_id),
    Arrow("learnt from", "version", "dataset", _versions.id, _versions.dataset_id, (_versions.run_id.is_(None),)),
    Arrow("of", "evaluation", "version", _evaluations.id, _evaluations.version_id),
    Arrow("on", "evaluation", "dataset", _evaluations.id, _evaluations.dataset_id),
    Arrow("candidate", "gate", "version", _gates.id, _gates.candidate_id),
    Arrow("baseline", "gate", "version", _gates.id, _gates.baseline_id),
    Arrow("judged by", "gate", "evaluation", _links.gate_id, _links.evaluation_id),
    Arrow("of", "promotion", "version", _moves.id, _moves.version_id),
    Arrow("instead of", "promotion", "version", _moves.id, _moves.previous_id),
    Arrow("passed", "promotion", "gate", _moves.id, _moves.gate_id),
)  # fmt: skip
AHEAD: tuple[Arrow, ...] = (
    Arrow("scored", "decision", "score", _scores.decision_id, _scores.id),
    Arrow("heard", "decision", "feedback", _said.decision_id, _said.id),
    Arrow("row of", "decision", "dataset", _rows.decision_id, _rows.dataset_id, (_rows.feedback_id.is_(None),)),
    Arrow("replaced by", "feedback", "feedback", _said.replaces_id, _said.id),
    Arrow("turned into", "feedback", "feedback", _said.made_from_id, _said.id),
    Arrow("row of", "feedback", "dataset", _rows.feedback_id, _rows.dataset_id),
    Arrow("learnt by", "dataset", "run", _runs.dataset_id, _runs.id),
    Arrow("given to", "dataset", "job", _files.dataset_id, _jobs.id, (_jobs.run_id.is_(None),), _file_jobs),
    Arrow("measures", "dataset", "job", _files.dataset_id, _jobs.id, (), _checked_jobs),
    Arrow("given to", "file", "job", _jobs.training_file, _jobs.id),
    Arrow("measures", "file", "job", _jobs.validation_file, _jobs.id),
    Arrow("done as", "job", "run", _jobs.id, _jobs.run_id),
    Arrow("made", "run", "version", _versions.run_id, _versions.id),
    Arrow("judged", "version", "gate", _gates.candidate_id, _gates.id),
    Arrow("evaluated", "version", "evaluation", _evaluations.version_id, _evaluations.id),
    Arrow("put in force or back", "version", "promotion", _moves.version_id, _moves.id),
    Arrow("taken out of force", "version", "promotion", _moves.previous_id, _moves.id),
    Arrow("decided rows of", "version", "dataset", _records.policy_version, _rows.dataset_id, (), _row_decisions),
    Arrow("trained on to", "version", "version", _versions.parent_id, _versions.id),
    Arrow("weighed by", "evaluation", "gate", _links.evaluation_id, _links.gate_id),
    Arrow("let through", "gate", "promotion", _moves.gate_id, _moves.id),
)  # fmt: skip
