"""one file is read twice, and everything wrong with it is told

The first reading examines each row and keeps about a hundred bytes of it; shingles go to a temporary folder. Then rows
are compared. The second reading looks up what is shown, and writes the cleaned file. Memory does not hold the file.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melior.data.cleaning import relations, tables
from melior.data.cleaning.batches import Batch, batches, examined
from melior.data.cleaning.codes import CODES, code_named
from melior.data.cleaning.collect import Collected
from melior.data.cleaning.columns import ColumnSurvey
from melior.data.cleaning.examine import FACTS, UNUSABLE, Examined, Examiner
from melior.data.cleaning.fix import Plan, files_of, write_fixed
from melior.data.cleaning.label_errors import MOST_ROWS, label_errors
from melior.data.cleaning.languages import SURE, Sample, identified
from melior.data.cleaning.report import CheckReport, Finding, Fixed, Shown, excerpt, worst_first
from melior.data.cleaning.rows import cleaned
from melior.data.cleaning.shingles import Shingler
from melior.data.cleaning.spool import Spool
from melior.data.cleaning.views import strings, view_of
from melior.data.formats import Example, Reading, format_of
from melior.data.formats.reading import with_known
from melior.data.readers import Line, Problem, is_part_of, read_rows
from melior.errors import ConfigError, DataError

NEAR = 0.85  # Jaccard index of shingles: one word changed in twenty, or a few letters
MAJORITY = 0.8  # share of a script or language from which the rest is told; below it the mix is meant
TOLD_EVERY = 10_000  # rows between two reports of progress

Report = Callable[[str, int], None]


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """What a check looks for."""

    near: float = NEAR  # Jaccard index from which two texts are near duplicates
    ignore: frozenset[str] = frozenset()  # codes that are neither told nor fixed
    max_length: int | None = None  # tokens a row may have; needs a way to count them
    group: str = "group"  # the column that names a row's conversation or user
    labels: bool = False  # whether to look for label errors
    languages: bool = True  # whether to look at languages, where py3langid is installed
    workers: int = 1  # processes
    reading: Reading = field(default_factory=Reading)  # which column of a table is decided, and the like

    def __post_init__(self) -> None:
        if not 0.5 <= self.near <= 1:
            raise ConfigError(f"near is a Jaccard index from 0.5 to 1, got {self.near}; 0.85 is usual")
        if self.workers < 1:
            raise ConfigError(f"workers must be at least 1, got {self.workers}")
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError(f"max_length must be at least 1 token, got {self.max_length}")
        object.__setattr__(self, "ignore", frozenset(code_named(name).name for name in self.ignore))


def check_file(
    source: str | Path,
    config: CheckConfig | None = None,
    *,
    heldout: str | Path | None = None,
    fix: str | Path | None = None,
    count_tokens: Callable[[Example], int] | None = None,
    progress: Report | None = None,
) -> CheckReport:
    """Everything wrong with the rows of a source; with `fix`, also the cleaned rows as a JSONL file.

    A source is what `read_rows` reads. Beside the cleaned file OUT.jsonl stand OUT.removed.jsonl and OUT.changed.jsonl
    with every row that was removed or changed, as it was, its line and the reasons. `count_tokens` must be picklable
    where several workers are asked for.

    Raises:
        DataError: if a source cannot be read, or the fix would overwrite it.
        CheckpointError: if the disk refuses the fix; what was there before is still there.
        ConfigError: if a setting makes no sense.
    """
    config = config or CheckConfig()
    if config.max_length is not None and count_tokens is None:
        raise ConfigError("max_length counts tokens, so name the model whose tokens they are")
    if fix is not None:
        _check_target(Path(fix), source, heldout)
    try:
        with tempfile.TemporaryDirectory(prefix="melior-check-") as folder:
            return _Check(str(source), config, heldout, count_tokens, progress or _quiet, Path(folder)).run(fix)
    except OSError as error:
        raise DataError(
            f"the temporary files of a check cannot be written: {error.strerror or error}; "
            "set TMPDIR to a folder with as much space as the file takes"
        ) from error


def _check_target(fix: Path, *sources: str | Path | None) -> None:
    for file in files_of(fix).values():
        if any(source is not None and is_part_of(file, source) for source in sources):
            raise DataError(
                f"{file} is the file being checked, or stands in its folder; write the cleaned rows to another place"
            )
    if fix.suffix != ".jsonl":
        raise DataError(f"{fix} must end in .jsonl: cleaned rows are written as JSON, one a line")


def _quiet(what: str, rows: int) -> None:
    pass


@dataclass
class _Rows:
    """What the first reading keeps of a file."""

    parts: list[NDArray[Any]] = field(default_factory=list)
    formats: list[tuple[str, str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    count: int = 0
    read: list[NDArray[np.uint64]] = field(default_factory=list)

    @property
    def reads(self) -> NDArray[np.uint64]:
        """Rows, and hashes of what is read before their decisions."""
        return np.concatenate([np.zeros((0, 2), np.uint64), *self.read])

    def add(self, found: Examined) -> int:
        """Takes a batch in, its small numbers translated to those of the file; the first row's number."""
        columns: list[tuple[str, list[Any], list[Any]]] = [
            ("format", found.formats, self.formats),
            ("file", found.files, self.files),
            ("script", found.scripts, self.scripts),
        ]
        for name, theirs, ours in columns:
            ours.extend(entry for entry in theirs if entry not in ours)
            places = np.array([ours.index(entry) for entry in theirs] or [0], np.int64)
            column = found.facts[name]
            known = column < len(theirs)
            column[known] = places[column[known]]
        self.parts.append(found.facts)
        if len(self.labels) <= tables.MOST_LABELS:  # beyond, they are no labels
            self.labels.update(found.labels)
        first, self.count = self.count, self.count + len(found.facts)
        self.read.append(np.array(found.reads, np.uint64).reshape(-1, 2) + np.array([first, 0], np.uint64))
        return first

    def facts(self) -> NDArray[Any]:
        """The numbers of every row, in order."""
        whole = np.concatenate(self.parts) if self.parts else np.zeros(0, FACTS)
        self.parts = [whole]
        return whole


@dataclass
class _Check:
    source: str
    config: CheckConfig
    heldout: str | Path | None
    count_tokens: Callable[[Example], int] | None
    progress: Report
    folder: Path

    def run(self, fix: str | Path | None) -> CheckReport:
        shingler = Shingler(self.config.near)
        self.found = Collected(self.config.ignore)
        self.not_checked: list[str] = []
        self._survey()
        bodies = Spool(self.folder, "rows", shingler) if self._wants("near-duplicate", "near-contradiction") else None
        wants_leaks = self.heldout is not None and self._wants("leak-near")
        answers = Spool(self.folder, "answers", shingler, banded=False)
        prompts = Spool(self.folder, "prompts", shingler) if wants_leaks else None
        try:
            examiner = Examiner(
                self.config.ignore,
                shingler,
                bodies is not None,
                prompts is not None,
                self.config.group,
                self.count_tokens,
                self.config.max_length,
                self.config.reading,
            )
            self._read(examiner, bodies, answers, prompts)
            self._leaks(examiner, prompts)
            self._compare(bodies, answers)
            self._as_a_whole()
        finally:
            for spool in (bodies, answers, prompts):
                if spool is not None:
                    spool.close()
        self._excerpts()
        fixed = write_fixed(Path(fix), self._plan(), self._place) if fix is not None else None
        return self._report(fixed)

    def _survey(self) -> None:
        """What the columns of a table are, and what they show: a reading of its own."""
        reading = with_known(self.source, replace(self.config.reading, least_rows=1))
        path = Path(self.source)
        folder = reading.folder or str(path if path.is_dir() else path.parent)
        if reading.label:
            survey = ColumnSurvey(reading)
            for line in self._lines(self.source):
                if isinstance(line, Line):
                    survey.add(line.row)
            reading = survey.reading_of_all(self.source)
            for code, detail in survey.findings():
                self.found.file(code, detail, ())
        self.config = replace(self.config, reading=replace(reading, folder=folder))

    def _lines(self, source: str | Path) -> Iterator[Line | Problem]:
        return read_rows(source, names=self.config.reading.names)

    def _wants(self, *codes: str) -> bool:
        return not self.config.ignore.issuperset(codes)

    def _read(self, examiner: Examiner, bodies: Spool | None, answers: Spool, prompts: Spool | None) -> None:
        self.rows = _Rows()
        self.sample = Sample()
        for found in examined(self._batches(self.source, "reading"), examiner, self.config.workers, self.sample):
            first = self.rows.add(found)
            for index, hit in found.hits:
                self.found.hit(first + index, hit)
            for key, index, text in found.texts:
                self.sample.offer(key, first + index, text)
            for spool, entries in ((bodies, found.bodies), (answers, found.answers), (prompts, found.prompts)):
                if spool is not None and entries is not None:
                    spool.add(entries, first)
        self.facts = self.rows.facts()
        usable = self.facts["format"][self.facts["format"] != UNUSABLE]
        counts = Counter({self.rows.formats[place]: int(n) for place, n in enumerate(np.bincount(usable)) if n})
        self.format, self.kind = min(counts, key=lambda entry: (-counts[entry], entry)) if counts else ("none", "none")
        for entry in counts:
            if entry[0] != self.format:
                rows = np.flatnonzero(self.facts["format"] == self.rows.formats.index(entry))
                self.found.rows_with("mixed-formats", rows, f"{entry[0]} among {self.format}")

    def _batches(self, source: str | Path, what: str) -> Iterator[Batch]:
        done = told = 0
        for batch in batches(self._lines(source)):
            yield batch
            done += len(batch)
            if done - told >= TOLD_EVERY:
                told = done
                self.progress(what, done)

    def _leaks(self, examiner: Examiner, prompts: Spool | None) -> None:
        if self.heldout is None:
            return
        theirs = _Rows()
        self.heldout_lines = theirs
        theirs_only = replace(examiner, body=False, ignore=self.config.ignore, count_tokens=None, max_length=None)
        for found in examined(self._batches(self.heldout, "reading held-out"), theirs_only, 1, None):
            first = len(self.facts) + theirs.add(found)
            if prompts is not None and found.prompts is not None:
                prompts.add(found.prompts, first)
        heldout = theirs.facts()
        if not (heldout["format"] != UNUSABLE).any():
            raise DataError(f"{self.heldout} has no row of a known format; check it by itself first")
        alive = self._alive()
        lines = heldout["line"]
        for leak in relations.leaks(alive, heldout, self.rows.reads, theirs.reads):
            self.found.rows_with(leak.code, [leak.row], f"held-out line {lines[leak.other]}")
        if prompts is not None:
            prompts.finish()
            for leak in relations.near_leaks(alive, heldout, prompts):
                self.found.rows_with(leak.code, [leak.row], f"held-out line {lines[leak.other]}, {leak.detail}")

    def _alive(self) -> NDArray[Any]:
        """The facts, with the rows unusable that a fix would take away for an error."""
        alive = self.facts.copy()
        errors = [code.name for code in CODES if code.severity == "error" or code.name == "leak-near"]
        alive["format"][self.found.removed(len(alive), errors)] = UNUSABLE
        return alive

    def _compare(self, bodies: Spool | None, answers: Spool) -> None:
        rows = tables.without_reference(self.facts, self.kind)
        self.found.rows_with("missing-reference", rows)
        alive = self._alive()
        every = [relations.duplicates(alive), relations.contradictions(alive, self.kind)]
        if bodies is not None:
            self.progress("comparing", len(alive))
            bodies.finish()
            answers.finish()
            every.append(relations.near_duplicates(alive, bodies, answers, self.kind))
        for each in every:
            for found in each:
                self.found.relation(found.code, found.row, found.other, found.detail)

    def _as_a_whole(self) -> None:
        facts, found = self.facts, self.found
        found.rows_with("truncated-answer", tables.unended(facts), "ends in a letter, the others with a sign")
        found.rows_with("length-outlier", tables.long_rows(facts))
        found.file("length-bias", tables.length_bias(facts), ())
        usable = int((facts["format"] != UNUSABLE).sum())
        labels = self.rows.labels
        self.classes = tables.classes_of(labels, usable, self.kind)
        found.file("few-prompts", tables.few_prompts(facts, self.classes), ())
        self.renamed: dict[str, str] = {}
        if self.classes:
            self._labels(labels)
        else:
            found.rows.pop("near-contradiction", None)
        if self.config.labels:
            self._label_errors()
        self._languages()

    def _labels(self, labels: Counter[str]) -> None:
        facts, found = self.facts, self.found
        changed = tables.variants(labels) if "label-variants" not in self.config.ignore else {}
        self.renamed = changed
        for name, other in changed.items():
            found.rows_with("label-variants", tables.rows_labelled(facts, [name]), f"{name!r}, elsewhere {other!r}")
        merged = Counter[str]()
        for name, count in labels.items():
            merged[changed.get(name, name)] += count
        for name, other in tables.misspelt(merged).items():
            found.rows_with("label-spelling", tables.rows_labelled(facts, [name]), f"{name!r} is nearly {other!r}")
        if self.kind != "rated":
            rare = [name for name, count in merged.items() if count < tables.RARE]
            for name in rare:
                found.rows_with("rare-label", tables.rows_labelled(facts, [name]), f"{name!r} has {merged[name]}")
        found.file("label-imbalance", tables.imbalance(merged), ())

    def _label_errors(self) -> None:
        if not self.classes:
            self.not_checked.append("label errors: the rows have no short answer from a small set of labels")
            return
        alive = self._alive()
        if len(alive) > MOST_ROWS:
            self.not_checked.append(f"label errors of all but {MOST_ROWS} rows, drawn by their content")
        for row, given, likely, share in label_errors(self._views(), alive):
            self.found.rows_with("label-error", [row], f"{given!r} is probably {likely!r} ({share:.0%})")

    def _languages(self) -> None:
        facts = self.facts
        usable = facts["format"] != UNUSABLE
        scripts = np.bincount(facts["script"][usable], minlength=len(self.rows.scripts))
        self.scripts = {name: int(n) for name, n in zip(self.rows.scripts, scripts) if n}
        self.spoken: Counter[str] = Counter()
        main = max(self.scripts, key=lambda name: self.scripts[name]) if self.scripts else ""
        if main and self.scripts[main] >= MAJORITY * usable.sum():
            for name in self.scripts:
                rows = np.flatnonzero(usable & (facts["script"] == self.rows.scripts.index(name)))
                if name != main:
                    self.found.rows_with("other-language", rows, f"{name.lower()} script")
        if not self.config.languages or not self._wants("other-language"):
            return
        self.progress("languages", self.sample.offered)
        told = identified(self.sample)
        if told is None:
            self.not_checked.append("languages: pip install 'melior[check]'")
            return
        if self.sample.offered > self.sample.size:
            self.not_checked.append(f"languages of all but {self.sample.size} rows, drawn by their content")
        self.spoken.update(language for _, language, _ in told)
        ((main, most),) = self.spoken.most_common(1) or [("", 0)]
        for row, language, sure in told if most >= MAJORITY * len(told) else ():
            if language != main and sure >= SURE:
                self.found.rows_with("other-language", [row], language)

    def _views(self) -> Iterator[tuple[int, Any]]:
        """Number and view of every usable row, in a reading of its own."""
        for number, line in enumerate(self._lines(self.source)):
            if isinstance(line, Line) and self.facts["format"][number] != UNUSABLE:
                reading = self.config.reading
                row, _ = cleaned(line.row, self.config.ignore, reading)
                format = format_of(row, None, reading)
                yield number, view_of(format.example(row, "", reading), format.kind)

    def _excerpts(self) -> None:
        """Fills in what the examples of comparisons look like."""
        wanted: dict[int, list[str]] = {}
        for code, examples in self.found.examples.items():
            for row, (_, text) in examples.items():
                if not text:
                    wanted.setdefault(row, []).append(code)
        if not wanted:
            return
        last = max(wanted)
        for number, line in enumerate(self._lines(self.source)):
            if number in wanted and isinstance(line, Line):
                for code in wanted[number]:
                    detail, _ = self.found.examples[code][number]
                    self.found.examples[code][number] = (detail, excerpt(_shown(line.row), at_end=True))
            if number >= last:
                break

    def _place(self, row: int) -> int | str:
        """Where a row stands: its line, and its file where there are several."""
        line = int(self.facts["line"][row])
        name = self.rows.files[self.facts["file"][row]]
        return f"{name}:{line}" if name else line

    def _plan(self) -> Plan:
        reason = np.zeros(len(self.facts), np.uint8)
        for place, code in enumerate(CODES, start=1):
            rows = np.frombuffer(self.found.rows[code.name], np.int64) if code.name in self.found.rows else ()
            if code.action == "remove" and len(rows):
                reason[rows] = np.where(reason[rows] == 0, place, reason[rows])
        repaired = {
            code.name: np.unique(np.frombuffer(self.found.rows[code.name], np.int64))
            for code in CODES
            if code.action == "repair" and code.name in self.found.rows
        }
        return Plan(
            self.source, self.config.reading, self.config.ignore, reason, repaired, self.renamed, self.found.others
        )

    def _report(self, fixed: Fixed | None) -> CheckReport:
        names = {*self.found.whole, *(code for code, rows in self.found.rows.items() if len(rows))}
        findings = sorted(map(self._finding, names), key=worst_first)
        usable = int((self.facts["format"] != UNUSABLE).sum())
        classes = {"classes": dict(self.rows.labels.most_common())} if self.classes else {}
        chosen = self.facts["prompt"][self.facts["prompt"] != 0]
        shown = {
            "formats": self._formats(),
            "lengths": tables.lengths(self.facts, self.count_tokens is not None),
            "distinct prompts": len(np.unique(chosen)),
            "scripts": self.scripts,
            "languages": dict(self.spoken.most_common()),
            **classes,
        }
        heldout = str(self.heldout) if self.heldout is not None else None
        return CheckReport(
            self.source, len(self.facts), usable, self.format, findings, shown, self.not_checked, heldout, fixed
        )

    def _formats(self) -> dict[str, int]:
        counts = np.bincount(self.facts["format"][self.facts["format"] != UNUSABLE], minlength=len(self.rows.formats))
        return {name: int(count) for (name, _), count in zip(self.rows.formats, counts) if count}

    def _finding(self, code: str) -> Finding:
        found = self.found
        rows = np.unique(np.frombuffer(found.rows[code], np.int64)) if found.rows.get(code) else np.zeros(0, np.int64)
        lines: Sequence[int | str] = self.facts["line"][rows].tolist()
        if self.rows.files != [""]:
            lines = [self._place(int(row)) for row in rows]
        shown = []
        for row, (detail, text) in sorted(found.examples[code].items()):
            other = found.others.get(code, {}).get(row)
            like = f"like line {self._place(other)}" if other is not None else ""
            shown.append(Shown(self._place(row), ", ".join(filter(None, [like, detail])), text))
        details = dict(found.details[code].most_common()) if code not in found.others else {}
        return Finding(code, lines, shown, details, found.whole.get(code, ""))


def _shown(row: Any) -> str:
    """The texts of a row on one line."""
    return " │ ".join(" ".join(text.split()) for text in strings(row))
