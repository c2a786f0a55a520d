"""training rows out of the log: every row names the decisions and the feedback it was made of

    demonstrations   better outputs that people wrote; with a metric, outputs that were rated highly enough
    preferences      what was chosen over what, and every better output over the one it was written for; with a metric,
                     of outputs of one input the best rated over those that were rated lower
    ratings          outputs with what was said of them under one metric, true as 1 and false as 0
    tasks            inputs with their items, each once
    decisions        what was decided, how probable it was, and what came of it: events, and a metric as the reward

Only feedback in force counts: what was corrected or taken back is in no export that is made later. Rows of one episode
share a group, so that a split never cuts them apart; without an episode, those of one input do. Feedback on a whole
episode is of no one output, and is left out; so is an output that was cut short because its client left, since nobody
decided that it should end there. What a limit of tokens cut short is no demonstration, however well it was rated. Where
what was said of an output is one number, each source has one voice, however often it spoke. Whatever is left out is
counted, and its first is named.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Connection, Select, select

from melior.data.formats import Kind as Holds
from melior.data.formats import canonical
from melior.data.formats.decisions import restored
from melior.data.formats.rows import Example, RowError
from melior.errors import ConfigError
from melior.store import schema
from melior.store.measures import BUILT_IN
from melior.store.query import CHUNK, fetch, find, in_force
from melior.store.rows import Decision, Feedback, MeasureType, Version
from melior.types import Demonstration, Preference, Rated, SlateRequest, Task

Export = Literal["demonstrations", "preferences", "ratings", "tasks", "decisions"]
HOLDS: Mapping[str, Holds] = {  # export → the kind of rows that its file holds
    "demonstrations": "demonstrations",
    "preferences": "preferences",
    "ratings": "rated",
    "tasks": "tasks",
    "decisions": "logged",
}
CUT = "cut short: its client left before it was whole"
LIMITED = "cut short by its limit of tokens"
ORIGIN = ("decision_id", "feedback_id", "feedback_source")  # columns of every row, by which a file tells its origin


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which rows of the log. Times are ISO 8601 (UTC where no zone is named) and of the feedback, or, of tasks and
    decisions, of the decision: from `since` on, before `until`."""

    kind: Export
    metric: str | None = None
    name: str | None = None  # of the policy that decided
    alias: str | None = None  # under which it was asked
    version: str | None = None  # its id, or the beginning of it
    episode: str | None = None
    since: str | None = None
    until: str | None = None
    sources: tuple[str, ...] = ()  # only feedback of these; empty: of all
    without_sources: tuple[str, ...] = ()
    most_per_source: float | None = None  # share of all rows that any one source may have
    at_least: float = 1.0  # mean rating from which an output is worth imitating; true is 1
    events: tuple[str, ...] = ()  # metrics that are events; empty: those known or declared to be
    silent: float | None = None  # reward of decisions of which the metric says nothing; None leaves them out

    def __post_init__(self) -> None:
        if self.kind not in get_args(Export):
            raise ConfigError(f"{self.kind!r} cannot be exported; kinds are {', '.join(get_args(Export))}")
        if self.kind == "ratings" and not self.metric:
            raise ConfigError("ratings are of one metric, such as helpful; name it: metric")
        for name in ("since", "until"):
            object.__setattr__(self, name, _moment(name, getattr(self, name)))
        share = self.most_per_source
        if share is not None and not 0 < share <= 1:
            raise ConfigError(f"most_per_source is a share above 0 and at most 1, got {share}")
        idle = {
            "tasks": ("metric", "sources", "without_sources", "most_per_source", "events", "silent"),
            "decisions": ("most_per_source",),
        }.get(self.kind, ("events", "silent"))
        plain = Wanted.__dataclass_fields__
        for name in idle:
            if getattr(self, name) != plain[name].default:
                raise ConfigError(f"{name} says nothing of {self.kind}; leave it out")
        if self.silent is not None and not self.metric:
            raise ConfigError("silent is the reward where a metric says nothing; name the metric too")

    def to_json(self) -> dict[str, Any]:
        """What was asked for, without what was left open."""
        told = {each.name: getattr(self, each.name) for each in fields(self)}
        asked = {each.name: told[each.name] for each in fields(self) if told[each.name] != each.default}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asked.items()}


@dataclass(frozen=True)
class Made:
    """A row, and what it was made of."""

    example: Example
    origin: tuple[tuple[str, str | None], ...]  # (decision, feedback), one for each feedback or one without any
    sources: tuple[str, ...] = ()  # who said it

    @property
    def id(self) -> str:
        """Of the first feedback it was made of, or of the decision."""
        return self.origin[0][1] or self.origin[0][0]


@dataclass
class LeftOut:
    """What is not among the rows: how often, for what reason, and the first of it."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, first: str) -> None:
        """One more."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first.setdefault(reason, first)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Reason → its count and its first."""
        return {reason: {"count": count, "first": self.first[reason]} for reason, count in self.counts.items()}


def rows_of(connection: Connection, wanted: Wanted, left: LeftOut) -> Iterator[Made]:
    """The rows, a page of the log at a time; what is left out is counted in `left`.

    Raises:
        StoreError: if the version is unknown.
    """
    yield from {
        "demonstrations": _imitated,
        "preferences": _preferred,
        "ratings": _rated,
        "tasks": _tasks,
        "decisions": _decided,
    }[wanted.kind](connection, wanted, left)


# ---------------------------------------------------------------------- what people said


def _imitated(connection: Connection, wanted: Wanted, left: LeftOut) -> Iterator[Made]:
    if wanted.metric and _type(connection, wanted.metric) != "demonstration":
        for decision, rated in _rated_outputs(connection, wanted, left):
            if _mean(rated) < wanted.at_least:
                left.add(f"rated below {wanted.at_least:g}", rated[0][0].id)
            elif decision.record.finish == "length":
                left.add(LIMITED, rated[0][0].id)
            else:
                yield _made(decision, [one for one, _ in rated], Demonstration, [decision.record.output])
        return
    metrics = [wanted.metric] if wanted.metric else _metrics(connection, "demonstration")
    for said, decision in _said(connection, wanted, metrics, left):
        if said.value is None:
            left.add("no output", said.id)
        else:
            yield _made(decision, [said], Demonstration, [said.value])


def _preferred(connection: Connection, wanted: Wanted, left: LeftOut) -> Iterator[Made]:
    types = {} if not wanted.metric else {wanted.metric: _type(connection, wanted.metric)}
    if wanted.metric and types[wanted.metric] not in ("demonstration", "preference"):
        yield from _contrasted(connection, wanted, left)
        return
    types = types or {name: kind for kind in ("preference", "demonstration") for name in _metrics(connection, kind)}
    for said, decision in _said(connection, wanted, list(types), left):
        if types[said.metric] == "demonstration":
            if said.value is None or said.value == decision.record.output:
                left.add("no other output than the one decided", said.id)
            elif _cut(decision):
                left.add(CUT, said.id)
            else:
                yield _made(decision, [said], Preference, [said.value, decision.record.output])
        elif not isinstance(said.value, Mapping) or not {"chosen", "rejected"} <= said.value.keys():
            left.add("a preference without chosen and rejected", said.id)
        elif said.value.get("skip") or said.value.get("both_bad"):
            left.add("no choice: skipped, or both bad", said.id)
        elif _cut(decision) and _is_side(decision.record.output, said.value):
            left.add(CUT, said.id)
        else:
            chance = 0.5 if said.value.get("tie") else 1.0
            yield _made(decision, [said], Preference, [said.value["chosen"], said.value["rejected"]], chance)


def _contrasted(connection: Connection, wanted: Wanted, left: LeftOut) -> Iterator[Made]:
    """Of outputs of one input, the best rated over each that was rated lower."""
    rated = _rated_outputs(connection, wanted, left, order=schema.records.c.input_group)
    for _, group in itertools.groupby(rated, key=lambda pair: pair[0].record.group or pair[0].id):
        outputs = [(decision, said, _mean(said)) for decision, said in group]
        best, praise, most = max(outputs, key=lambda output: output[2])
        for decision, said, mean in outputs:
            better = mean < most and decision.record.output != best.record.output
            if better and decision.record.inputs == best.record.inputs:
                sides = [best.record.output, decision.record.output]
                made = _made(best, [one for one, _ in praise], Preference, sides)
                yield _with_origin(made, [(decision, one) for one, _ in said])
            elif decision.id != best.id or len(outputs) == 1:
                left.add("no other output of its input was rated otherwise", said[0][0].id)


def _rated(connection: Connection, wanted: Wanted, left: LeftOut) -> Iterator[Made]:
    for said, decision in _said(connection, wanted, [str(wanted.metric)], left):
        if _cut(decision):
            left.add(CUT, said.id)
        elif (rating := _number(said, left)) is not None:
            yield _made(decision, [said], Rated, [decision.record.output], rating)


def _rated_outputs(
    connection: Connection, wanted: Wanted, left: LeftOut, *, order: ColumnElement[Any] | None = None
) -> Iterator[tuple[Decision, list[tuple[Feedback, float]]]]:
    """Decisions with all that was said of each under the metric."""
    first = [] if order is None else [order]
    said = _said(connection, wanted, [str(wanted.metric)], left, order=[*first, schema.records.c.sequence])
    for _, group in itertools.groupby(said, key=lambda pair: pair[1].id):
        told = list(group)
        if _cut(told[0][1]):
            left.add(CUT, told[0][0].id)
            continue
        numbers = [(one, number) for one, _ in told if (number := _number(one, left)) is not None]
        if numbers:
            yield told[0][1], numbers


def _said(
    connection: Connection,
    wanted: Wanted,
    metrics: Sequence[str],
    left: LeftOut,
    *,
    order: Sequence[ColumnElement[Any]] = (),
) -> Iterator[tuple[Feedback, Decision]]:
    """Feedback in force under these metrics with the decision each is of, in order of arrival where none is given."""
    table, records = schema.feedback, schema.records
    asked = [*_about(wanted), table.c.metric.in_(metrics), *_between(wanted, table.c.created)]
    of_episodes = select(table.c.id).where(*asked, table.c.decision_id.is_(None), table.c.episode_id.is_not(None))
    if not (wanted.name or wanted.alias or wanted.version):
        here = [table.c.episode_id == wanted.episode] if wanted.episode else []
        for page in _pages(connection, of_episodes.where(*here).order_by(table.c.sequence)):
            for name in page:
                left.add("of a whole episode, not of one output", name)
    joined = select(table.c.id).join(records, records.c.id == table.c.decision_id)
    query = joined.where(*asked, *_by(connection, wanted)).order_by(*order, table.c.sequence)
    for page in _pages(connection, query):
        told = {one.id: one for one in fetch(connection, Feedback, table.c.id.in_(page))}
        ids = {one.decision_id for one in told.values()}
        decisions = {one.id: one for one in fetch(connection, Decision, records.c.id.in_(ids))}
        yield from ((told[name], decisions[str(told[name].decision_id)]) for name in page)


def _cut(decision: Decision) -> bool:
    return decision.record.finish == "cancelled"


def _is_side(output: Any, preference: Mapping[str, Any]) -> bool:
    """Whether a preference has the output on one of its sides, as it was decided or as messages."""
    message = output if isinstance(output, Mapping) else {"role": "assistant", "content": output}
    return any(preference[side] in (output, message, [message]) for side in ("chosen", "rejected"))


def _number(said: Feedback, left: LeftOut) -> float | None:
    """What was said as a number; where it is none, that is counted."""
    if isinstance(said.value, int | float) and math.isfinite(said.value):
        return float(said.value)
    left.add("a value that is no number", said.id)
    return None


def _mean(said: Sequence[tuple[Feedback, float]]) -> float:
    """What was said in the mean over sources, of each of which it is the mean of what it said."""
    voices: dict[str, list[float]] = {}
    for one, number in said:
        voices.setdefault(one.source, []).append(number)
    return statistics.fmean(map(statistics.fmean, voices.values()))


# ---------------------------------------------------------------------- what was decided


def _tasks(connection: Connection, wanted: Wanted, left: LeftOut) -> Iterator[Made]:
    seen: set[bytes] = set()
    for page in _served(connection, wanted):
        for decision in page:
            record = decision.record
            mark = hashlib.sha256(canonical([record.inputs, dict(record.item)]).encode()).digest()[:16]
            if mark in seen:
                left.add("the same input and item again", decision.id)
            else:
                seen.add(mark)
                yield _made(decision, [], Task)


def _decided(connection: Connection, wanted: Wanted, left: LeftOut) -> Iterator[Made]:
    events = list(wanted.events) or _metrics(connection, "event")
    metrics = [*events, *([wanted.metric] if wanted.metric else [])]
    table = schema.feedback
    for page in _served(connection, wanted):
        ids = [decision.id for decision in page]
        about = [*_about(wanted), table.c.metric.in_(metrics), table.c.decision_id.in_(ids)]
        said: dict[str | None, list[Feedback]] = {}
        for one in fetch(connection, Feedback, *about):
            said.setdefault(one.decision_id, []).append(one)
        for decision in page:
            if _cut(decision):
                left.add(CUT, decision.id)
                continue
            made = _with_outcome(decision, said.get(decision.id, []), wanted, events, left)
            if made is not None:
                yield made


def _with_outcome(
    decision: Decision, said: Sequence[Feedback], wanted: Wanted, events: Sequence[str], left: LeftOut
) -> Made | None:
    """A decision with what came of it; None where nobody said what it was worth."""
    happened = [_event(one) for one in said if one.metric in events]
    item: dict[str, Any] = {"events": happened} if events and not (wanted.metric and not happened) else {}
    rated = [] if wanted.metric in events else [one for one in said if one.metric == wanted.metric]
    numbers = [(one, number) for one in rated if (number := _number(one, left)) is not None]
    if wanted.metric in events:
        item["reward"] = float(any(one.metric == wanted.metric for one in said))
    elif wanted.metric:
        reward = _mean(numbers) if numbers else wanted.silent
        if reward is None:
            left.add(f"nothing said of it under {wanted.metric}", decision.id)
            return None
        item["reward"] = reward
    record = decision.record
    inputs = _inputs(record.inputs)
    output, group = _output(record.output, inputs), _group(decision)
    example = replace(record, inputs=inputs, output=output, item={**record.item, **item}, group=group)
    return _with_origin(Made(example, ()), [(decision, one) for one in said] or [(decision, None)])


def _event(said: Feedback) -> dict[str, Any]:
    """An event as `rewards.events` reads it."""
    more = said.value if isinstance(said.value, Mapping) else {}
    return {"type": said.metric, "id": said.id, **{name: value for name, value in more.items() if value is not None}}


def _served(connection: Connection, wanted: Wanted) -> Iterator[list[Decision]]:
    """What was decided for somebody, a page at a time: no rollouts of runs, nor outputs of evaluations."""
    table = schema.records
    mine = [table.c.run_id.is_(None), *_by(connection, wanted), *_between(wanted, table.c.created)]
    for page in _pages(connection, select(table.c.id).where(*mine).order_by(table.c.sequence)):
        yield fetch(connection, Decision, table.c.id.in_(page))


# ---------------------------------------------------------------------- rows, and what they are asked by


def _made(decision: Decision, said: Sequence[Feedback], kind: Any, outputs: Sequence[Any] = (), *more: float) -> Made:
    """A row of a kind: its inputs, its outputs, and numbers that follow them."""
    record = decision.record
    inputs = _inputs(record.inputs)
    example = kind(inputs, *(_output(one, inputs) for one in outputs), *more, item=record.item, group=_group(decision))
    return _with_origin(Made(example, ()), [(decision, one) for one in said] or [(decision, None)])


def _group(decision: Decision) -> str:
    """What a split must keep together."""
    return decision.episode_id or decision.record.group or decision.id


def _with_origin(made: Made, origin: Iterable[tuple[Decision, Feedback | None]]) -> Made:
    """The row, also made of these; its item says so."""
    links = [(decision.id, None if said is None else said.id) for decision, said in origin]
    every = (*made.origin, *links)
    sources = tuple(dict.fromkeys([*made.sources, *(said.source for _, said in origin if said is not None)]))
    decided, told = (list(dict.fromkeys(filter(None, names))) for names in zip(*every, strict=True))
    columns = dict(zip(ORIGIN, (" ".join(decided), " ".join(told), ", ".join(sources)), strict=True))
    item = {**made.example.item, **{name: value for name, value in columns.items() if value}}
    return Made(replace(made.example, item=item), every, sources)


def _inputs(logged: Any) -> Any:
    try:
        return restored(logged)
    except RowError:
        return logged  # no format will take it, and then it is told


def _output(logged: Any, inputs: Any) -> Any:
    """An output as its policy has it: several labels are a tuple, which JSON has not."""
    labels = isinstance(logged, list) and logged and all(isinstance(label, str) for label in logged)
    return tuple(logged) if labels and not isinstance(inputs, SlateRequest) else logged


def _pages(connection: Connection, query: Select[tuple[str]]) -> Iterator[list[str]]:
    """The ids of a query in pages; neither we nor the driver hold more than one."""
    for page in connection.scalars(query, execution_options={"yield_per": CHUNK}).partitions():
        yield [str(name) for name in page]


def _about(wanted: Wanted) -> list[ColumnElement[bool]]:
    """What feedback must be."""
    source = schema.feedback.c.source
    where = [in_force()]
    if wanted.sources:
        where.append(source.in_(wanted.sources))
    if wanted.without_sources:
        where.append(source.not_in(wanted.without_sources))
    return where


def _by(connection: Connection, wanted: Wanted) -> list[ColumnElement[bool]]:
    """What decisions must be."""
    table = schema.records
    where: list[ColumnElement[bool]] = []
    if wanted.version:
        where.append(table.c.policy_version == find(connection, Version, wanted.version).id)
    if wanted.name:
        named = select(schema.versions.c.id).where(schema.versions.c.name == wanted.name)
        where.append(table.c.policy_version.in_(named))
    if wanted.alias:
        where.append(table.c.alias == wanted.alias)
    if wanted.episode:
        where.append(table.c.episode_id == wanted.episode)
    return where


def _between(wanted: Wanted, created: ColumnElement[str]) -> list[ColumnElement[bool]]:
    where = [] if wanted.since is None else [created >= wanted.since]
    return where if wanted.until is None else [*where, created < wanted.until]


def _metrics(connection: Connection, kind: MeasureType) -> list[str]:
    """The metrics known or declared to be of a type."""
    table = schema.measures
    told = connection.execute(select(table.c.name, table.c.type).order_by(table.c.sequence))
    declared: dict[str, str] = {name: kind for name, kind in told}
    return [name for name, found in {**BUILT_IN, **declared}.items() if found == kind]


def _type(connection: Connection, metric: str) -> str | None:
    """What a metric measures, as far as that is known."""
    table = schema.measures
    newest = select(table.c.type).where(table.c.name == metric).order_by(table.c.sequence.desc()).limit(1)
    return connection.scalar(newest) or BUILT_IN.get(metric)


def _moment(name: str, value: str | None) -> str | None:
    """A time as the store writes it."""
    if value is None:
        return None
    try:
        then = datetime.fromisoformat(value)
        then = (then if then.tzinfo else then.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        like = "2026-11-21 or 2026-11-21T09:30"
        raise ConfigError(f"{name} is an ISO 8601 time such as {like}, got {value!r}") from error
    return then.isoformat(timespec="microseconds").replace("+00:00", "Z")
