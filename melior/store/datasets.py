"""exports of the log as files: written, read back as a run will read them, and remembered with their origin

A row that a run could not read would stop it, so no such row is left in a file: what is written is read back, and what
cannot be is left out, counted, and its first named. All passes over the log see the same moment of it.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import shutil
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Connection

from melior.data.formats import FORMATS, Example, ExampleStream, Problem, fingerprint, format_named
from melior.data.readers.sources import suffix_of
from melior.data.writers import WRITERS, Written, write_examples
from melior.durable import durable_file
from melior.errors import ConfigError, DataError
from melior.store.exports import HOLDS, ORIGIN, LeftOut, Made, Wanted, rows_of
from melior.store.rows import Dataset
from melior.store.store import Store

UNUSABLE = "cannot be trained on"
CAPPED = "over the share that one source may have"
UNCERTAIN = "a tie, which the format cannot hold"
OTHERS = "of another kind of policy than the first row"
SPREADSHEETS = (".csv", ".tsv")  # what people open in them
LANGUAGE: Mapping[str, tuple[str, str]] = {  # export → its format for messages, and for plain texts
    "demonstrations": ("messages", "prompt-completion"),
    "preferences": ("prompt-preference", "prompt-preference"),
    "ratings": ("rated", "rated"),
    "tasks": ("messages-task", "prompt"),
    "decisions": ("logged", "logged"),
}
OTHER: Mapping[str, str] = {  # of slates, tables, pictures
    "demonstrations": "decision",
    "preferences": "decision-preference",
    "ratings": "decision-rating",
    "tasks": "decision-task",
    "decisions": "logged",
}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file of rows, and the data set that it is."""

    dataset: Dataset
    path: Path
    format: str
    rows: int
    left_out: Mapping[str, Mapping[str, Any]]  # reason → count and first
    sources: Mapping[str, int]  # who said what rows were made of, and of how many
    lost: Mapping[str, int]  # what the format or the kind of file does not hold, and in how many rows

    def to_json(self) -> dict[str, Any]:
        """All of it, as commands print it."""
        return {
            "id": self.dataset.id,
            "fingerprint": self.dataset.fingerprint,
            "file": str(self.path),
            "format": self.format,
            "rows": self.rows,
            "left_out": dict(self.left_out),
            "sources": dict(self.sources),
            "not_kept": dict(self.lost),
        }


def export(
    store: Store, wanted: Wanted, path: Path, *, format: str | None = None, origin: bool = True, name: str = ""
) -> Exported:
    """The rows as a file, and the data set that a run over this file will name as its own.

    The suffix of `name`, or else of `path`, is the kind of file; CSV and TSV are made safe for spreadsheets. `format`
    is one that melior reads, by default the one that fits the log's policies. `origin=False` leaves the columns out
    that tell what a row was made of and what it belongs to, for programs that refuse them.

    Raises:
        ConfigError: for an unknown format or suffix, or a format for other rows.
        DataError: if no row is left, with what was left out.
        StoreError: if the version is unknown.
    """
    if suffix_of(Path(name or path.name)) not in WRITERS:
        raise ConfigError(f"{name or path.name} ends with none of {', '.join(WRITERS)}, the kinds of files to write")
    if format is not None:
        _check_format(wanted, format)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export.draft-") as folder:
        draft = Path(folder, name or path.name)
        with moment(store) as connection:
            done = _final_pass(connection, wanted, draft, format, origin)
        with durable_file(path) as target, draft.open("rb") as source:
            shutil.copyfileobj(source, target)
    written, left_out, sources = done.written, done.left.to_json(), dict(done.sources)
    dataset = store.add_export(
        done.fingerprint,
        kind=HOLDS[wanted.kind],
        path=path.absolute(),
        rows=written.rows,
        details={"asked": wanted.to_json(), "format": written.format, "left_out": left_out, "sources": sources},
        origin=done.origin(),
    )
    return Exported(
        dataset=dataset,
        path=path,
        format=written.format,
        rows=written.rows,
        left_out=left_out,
        sources=sources,
        lost=dict(written.lost),
    )


def _check_format(wanted: Wanted, format: str) -> None:
    found, kind = format_named(format), HOLDS[wanted.kind]
    if found.kind != kind:
        fitting = ", ".join(each.name for each in FORMATS if each.kind == kind)
        raise ConfigError(f"{found.name} holds {found.kind}; {wanted.kind} can be written as {fitting}")


@contextmanager
def moment(store: Store) -> Iterator[Connection]:
    """A transaction that sees the log as it is now, however much is added meanwhile."""
    with store.database.read() as connection:
        if connection.dialect.name == "postgresql":  # SQLite's transactions are like that by themselves
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield connection


def _final_pass(connection: Connection, wanted: Wanted, draft: Path, format: str | None, origin: bool) -> _Pass:
    """The pass that leaves nothing to be left out. One finds what cannot be used, one what is over a source's share."""
    out: dict[int, tuple[str, str]] = {}
    while True:
        one = _Pass(connection, wanted, draft, format, origin, out)
        one.write()
        more = one.unusable() or one.over()
        if not more:
            return one
        out |= more


@dataclass
class _Pass:
    """One pass over the log into a draft. It holds a few bytes of each row, and a page of the log."""

    connection: Connection
    wanted: Wanted
    draft: Path
    format: str | None
    with_origin: bool
    out: Mapping[int, tuple[str, str]]  # the number of a row in the log → why it is left out, and what was wrong
    left: LeftOut = field(default_factory=LeftOut)
    sources: Counter[str] = field(default_factory=Counter)
    numbers: array[int] = field(default_factory=lambda: array("Q"))  # of the rows that were written, in order
    shared: dict[int, tuple[str, tuple[str, ...]]] = field(default_factory=dict)  # number → id, sources; for the cap
    spool: IO[str] = field(default_factory=lambda: tempfile.TemporaryFile("w+"))  # noqa: SIM115  what rows are made of
    language: bool | None = None  # whether the first row is a language policy's
    written: Written = field(init=False)
    fingerprint: str = ""

    def write(self) -> None:
        """Writes the draft.

        Raises:
            DataError: if there is nothing to write.
        """
        sheet = any(suffix.lower() in SPREADSHEETS for suffix in self.draft.suffixes)
        examples = self._examples()
        first = next(examples, None)
        if first is None:
            raise DataError(f"the log has no {self.wanted.kind} such as these{_reasons(self.left)}")
        try:
            self.written = write_examples(self.draft, _behind(first, examples), self.format, spreadsheet=sheet)
        except DataError as error:  # not one can be written
            raise DataError(f"{error}{_reasons(self.left)}") from error

    def unusable(self) -> dict[int, tuple[str, str]]:
        """Rows that could not be written or not be read back."""
        found = {self.numbers[each.line - 1]: (UNUSABLE, each.reason) for each in self.written.problems}

        def readable() -> Iterator[Example]:
            for place, example in enumerate(ExampleStream(self.draft, HOLDS[self.wanted.kind])):
                if isinstance(example, Problem):
                    found[self.numbers[place]] = (UNUSABLE, example.reason)
                else:
                    yield example

        self.fingerprint = "" if found else fingerprint(readable())
        return found

    def over(self) -> dict[int, tuple[str, str]]:
        """Rows by which a source has more than its share."""
        share = self.wanted.most_per_source
        return {} if share is None else dict.fromkeys(beyond_share(self.shared, share), (CAPPED, ""))

    def origin(self) -> Iterator[tuple[int, str, str | None]]:
        """What each row was made of: its position, a decision, and the feedback on it."""
        self.spool.seek(0)
        for position, line in enumerate(self.spool):
            for decision, said in json.loads(line):
                yield position, decision, said

    def _examples(self) -> Iterator[Example]:
        for number, made in enumerate(rows_of(self.connection, self.wanted, self.left)):
            reason, wrong = self.out.get(number) or self._misfit(made)
            if reason:
                self.left.add(reason, f"{made.id}: {wrong}" if wrong else made.id)
                continue
            self.spool.write(json.dumps(made.origin) + "\n")
            self.sources.update(made.sources)
            self.numbers.append(number)
            if self.wanted.most_per_source is not None:
                self.shared[number] = made.id, made.sources
            yield made.example if self.with_origin else _bare(made.example)

    def _misfit(self, made: Made) -> tuple[str, str]:
        """Why a row cannot stand among the others, if so; the first says what the format is, where nobody did."""
        language, messages = _reads(made.example)
        kind = self.wanted.kind
        if self.language is None:
            self.language = language
            self.format = self.format or (LANGUAGE[kind][0 if messages else 1] if language else OTHER[kind])
        certain = getattr(made.example, "probability", 1.0) == 1.0
        if language != self.language:
            return OTHERS, ""
        return ("", "") if certain or "probability" in format_named(str(self.format)).optional else (UNCERTAIN, "")


def beyond_share(rows: Mapping[int, tuple[str, tuple[str, ...]]], share: float) -> set[int]:
    """The rows to leave out so that no source has more than its share of those that stay.

    `rows` holds the id and the sources of each. As few go as must; which of a source's rows is decided by the hash of
    their ids, so that the same ones stay when more are added.

    Raises:
        DataError: if there are too few sources for such a share.
    """
    queues: dict[str, list[tuple[bytes, int]]] = {}
    for number, (name, sources) in rows.items():
        for source in sources:
            queues.setdefault(source, []).append((hashlib.sha256(name.encode()).digest(), number))
    counts = {source: len(queue) for source, queue in queues.items()}
    largest = [(-count, source) for source, count in counts.items()]
    heapq.heapify(largest)
    for queue in queues.values():
        queue.sort()
    gone: set[int] = set()
    while largest:
        count, source = largest[0]
        if -count != counts[source]:  # a row of it went as one of another source
            heapq.heapreplace(largest, (-counts[source], source))
        elif -count <= share * (len(rows) - len(gone)) + 1e-9:
            break
        else:
            _, number = queues[source].pop()
            if number not in gone:
                gone.add(number)
                counts.update({other: counts[other] - 1 for other in rows[number][1]})
    if rows and len(gone) == len(rows):
        raise DataError(
            f"{len(counts)} sources cannot each stay at or under {share:.0%} of the rows; allow {1 / len(counts):.0%} "
            "or more, or gather feedback of others"
        )
    return gone


def _reads(example: Example) -> tuple[bool, bool]:
    """Whether a language policy's example, and whether it reads messages."""
    inputs = example.inputs
    messages = isinstance(inputs, list) or (isinstance(inputs, Mapping) and "messages" in inputs)
    labels = isinstance(getattr(example, "output", None), tuple)
    return not labels and (messages or isinstance(inputs, str)), messages


def _bare(example: Example) -> Example:
    """The example without what it was made of and belongs to."""
    return replace(example, group="", item={name: value for name, value in example.item.items() if name not in ORIGIN})


def _behind(first: Example, others: Iterator[Example]) -> Iterator[Example]:
    yield first
    yield from others


def _reasons(left: LeftOut) -> str:
    """What was left out, as the end of a sentence."""
    told = [f"{count:,} {reason} (first: {left.first[reason]})" for reason, count in left.counts.items()]
    return f"; left out: {'; '.join(told)}" if told else ""
