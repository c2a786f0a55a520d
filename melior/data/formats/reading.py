"""the examples of a source: all of one format, each with the place it came from"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from melior.data.formats.known import FORMATS, format_named, format_of
from melior.data.formats.rows import KINDS, Example, Format, Kind, Reading, Row, RowError
from melior.data.formats.tables import LABEL, labels_in, surveyed
from melior.data.readers import Line, Problem, read_rows
from melior.data.readers.sources import KNOWN
from melior.errors import ConfigError, DataError

SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class Examples:
    """What a source held: its examples in order, and the rows that could not be used."""

    rows: list[Any]  # of the one type that `kind` names
    kind: Kind
    format: str
    problems: list[Problem]
    reading: Reading = field(default_factory=Reading)  # with what all rows told: read rows to measure on with it too

    def __len__(self) -> int:
        return len(self.rows)


def read_examples(
    source: str | Path,
    kind: Kind | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    *,
    format: str | None = None,
    reading: Reading = Reading(),  # noqa: B008  frozen
) -> Examples:
    """The examples of a file, a folder or a hub data set; see `read_rows` for what a source may be.

    `on_error="skip"` leaves rows out that cannot be used and lists them. `format` names one where the columns do not
    tell it, and `reading` says what they do not.

    Raises:
        DataError: if a row cannot be used and `on_error` is "stop" (the first five reasons, each once with its
            lines, and the total are shown), if no row can be used, or if the source holds another kind than asked for.
    """
    if on_error not in ("stop", "skip"):
        raise ConfigError(f"on_error is 'stop' or 'skip', not {on_error!r}")
    stream = ExampleStream(source, kind, format=format, reading=reading)
    rows: list[Example] = []
    problems: list[Problem] = []
    for found in stream:
        if isinstance(found, Problem):
            problems.append(found)
        else:
            rows.append(found)
    if problems and (on_error == "stop" or not rows):
        raise DataError(_told(stream, problems, len(rows)))
    assert stream.format is not None  # a source without rows and without problems is empty, which readers refuse
    return Examples(rows, stream.format.kind, stream.format.name, problems, stream.completed)


class ExampleStream:
    """The examples and the problems of a source, one at a time; `format` is known once the first was read.

    Where the column to decide is named, the source is read twice: what a column holds is a question to all rows.
    """

    def __init__(
        self,
        source: str | Path,
        kind: Kind | None = None,
        *,
        format: str | None = None,
        reading: Reading = Reading(),  # noqa: B008  frozen
    ) -> None:
        """Raises ConfigError if the kind or the format is unknown."""
        if kind is not None and kind not in KINDS:
            raise ConfigError(f"unknown kind {kind!r}; kinds are {', '.join(KINDS)}")
        self.source = str(source)
        self.name = Path(source).name if not self.source.startswith(("hub:", KNOWN)) else self.source
        self.kind = kind
        self.chosen = format_named(format) if format else None
        self.format: Format | None = None
        self.reading = self.completed = with_known(self.source, reading)

    def __iter__(self) -> Iterator[Example | Problem]:
        self.completed, rare = self._complete()
        for line in self._lines():
            if isinstance(line, Problem):
                yield line
                continue
            try:
                example = self._example(line, self._placed(line))
                self._check_label(example, rare)
                yield example
            except RowError as error:
                yield Problem(line.number, str(error), line.file)

    def _lines(self) -> Iterator[Line | Problem]:
        """The rows under the names a format has."""
        for line in read_rows(self.source, names=self.reading.names):
            if self.reading.rename and isinstance(line, Line):
                try:
                    line = replace(line, row=_renamed(line.row, self.reading.rename))
                except RowError as error:
                    line = Problem(line.number, str(error), line.file)
            yield line

    def _complete(self) -> tuple[Reading, frozenset[str]]:
        """The reading with what all rows tell together, and the labels that have too few of them."""
        table = self.chosen is not None and self.chosen.typed_cells
        if not self.reading.label and not table:
            return self.reading, frozenset()
        reading = self.reading if self.reading.label else replace(self.reading, label=LABEL)
        survey = surveyed(self._lines(), reading, self.source)
        return survey.reading_of_all(self.source), survey.rare

    def _placed(self, line: Line) -> Reading:
        """The reading of a row, which knows the folder of its file."""
        path = Path(self.source)
        folder = (path / line.file).parent if line.file else path.parent
        return replace(self.completed, folder=self.completed.folder or str(folder))

    def _check_label(self, example: Example, rare: frozenset[str]) -> None:
        alone = rare.intersection(labels_in(getattr(example, "output", None))) if rare else None
        if alone:
            raise RowError(
                f"the label {min(alone)!r} has fewer than {self.reading.least_rows} rows, too few to be learnt and "
                "measured; add rows, merge it with another, or read with least_rows=1 what is only measured"
            )

    def _example(self, line: Line, reading: Reading) -> Example:
        found = self.chosen or format_of(line.row, self.kind, reading)
        missing = [column for column in found.columns if column not in line.row]
        if missing and not found.matches(line.row, reading):
            raise RowError(f"has no column {missing[0]}, which {found.name} needs")
        example = found.example(line.row, f"{line.file or self.name}:{line.number}", reading)
        self._agree(found, line)
        self.format = found
        return example

    def _agree(self, found: Format, line: Line) -> None:
        if self.kind is not None and found.kind != self.kind:
            wanted = dict.fromkeys(" + ".join(format.columns) for format in FORMATS if format.kind == self.kind)
            ending = {"tasks": " ending with user", "demonstrations": " ending with assistant"}.get(self.kind, "")
            hint = f" (messages{ending})" if found.columns == ("messages",) and ending else ""
            raise RowError(
                f"is one of {found.kind} ({found.name}), expected {self.kind}: columns {' or '.join(wanted)}{hint}"
            )
        if self.format is not None and found is not self.format:
            lacks = [column for column in self.format.columns if column not in line.row]
            why = f" because it lacks {', '.join(lacks)}" if lacks else ""
            raise RowError(
                f"is in format {found.name}{why}, but the rows before it in {self.format.name}; "
                "correct it, or split the file in two"
            )


def with_known(source: str, reading: Reading) -> Reading:
    """The reading, and for all it leaves open that of the known data set which the source is."""
    if not source.startswith(KNOWN):
        return reading
    from melior.data.known_sets import known_set  # it names readings itself, so it cannot be imported before them

    given = {each.name: getattr(reading, each.name) for each in fields(Reading)}
    plain = Reading()
    told = {name: value for name, value in given.items() if value != getattr(plain, name)}
    return replace(known_set(source).reading, **told)


def _renamed(row: Row, names: Mapping[str, str]) -> Row:
    """The row with other column names.

    Raises:
        RowError: if it lacks a column to rename, or two would share a name.
    """
    lacking = [old for old in names if old not in row]
    if lacking:
        raise RowError(f"has no column {lacking[0]} to rename; it has {', '.join(row)}")
    renamed = {names.get(name, name): value for name, value in row.items()}
    if len(renamed) < len(row):
        raise RowError(f"would have two columns of one name after renaming {', '.join(names)}; rename the other too")
    return renamed


def _told(stream: ExampleStream, problems: Sequence[Problem], good: int) -> str:
    alike: dict[str, list[Problem]] = defaultdict(list)  # a reason is told once, however many rows have it
    for problem in problems:
        alike[problem.reason].append(problem)
    first = list(alike.items())[:SHOWN_PROBLEMS]
    shown = "".join(f"\n  {_places(stream.name, found)}: {reason}" for reason, found in first)
    left = len(problems) - sum(len(found) for _, found in first)
    more = f"\n  and {left} more" if left else ""
    remedy = 'correct them, or leave them out with on_error="skip"' if good else "correct them"
    return f"{stream.source}: {len(problems)} of {len(problems) + good} rows cannot be used; {remedy}:{shown}{more}"


def _places(name: str, problems: Sequence[Problem]) -> str:
    """The first lines of rows with one problem, each file named where it begins, and how many more there are."""
    told, file = "", ""
    for problem in problems[:SHOWN_PROBLEMS]:
        here = problem.file or name
        told += f"{', ' * bool(told)}{problem.line if here == file else f'{here}:{problem.line}'}"
        file = here
    more = len(problems) - SHOWN_PROBLEMS
    return f"{told} and {more} more" if more > 0 else told
