"""what a check found: findings with their lines, tables, and what a fix did"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from melior.data.cleaning.codes import BY_NAME, SEVERITIES, Action, Severity
from melior.data.cleaning.privacy import masked
from melior.durable import write_file

WIDTH = 90  # characters of an excerpt
VERSION = 1  # of the report's JSON


@dataclass(frozen=True)
class Shown:
    """One row of a finding, to look at."""

    line: int | str
    detail: str
    excerpt: str  # personal data and secrets masked


@dataclass(frozen=True)
class Finding:
    """One kind of fault, and every row that has it."""

    code: str
    lines: Sequence[int | str]  # of text files the line on which the row begins; "file:line" in folders
    examples: Sequence[Shown]
    details: Mapping[str, int] = field(default_factory=dict)  # rows by detail, the commonest first
    detail: str = ""  # of findings about the file as a whole

    @property
    def count(self) -> int:
        """Rows that have the fault."""
        return len(self.lines)

    @property
    def severity(self) -> Severity:
        """Whether it stops training, costs quality, or is worth knowing."""
        return BY_NAME[self.code].severity

    @property
    def action(self) -> Action:
        """What a fix does with the rows."""
        return BY_NAME[self.code].action

    def to_json(self) -> dict[str, Any]:
        """The finding as plain values."""
        code = BY_NAME[self.code]
        return {
            "code": self.code,
            "severity": self.severity,
            "count": self.count,
            "why": code.why,
            "remedy": code.remedy,
            "fix": code.action,
            "detail": self.detail,
            "details": dict(self.details),
            "examples": [vars(shown) for shown in self.examples],
            "lines": list(self.lines),
        }


@dataclass(frozen=True)
class Fixed:
    """What a fix wrote. Every row of the source is in `kept`, or its line is in `removed` with the reason's code."""

    kept: int
    removed: Mapping[str, Sequence[int | str]]
    changed: Mapping[str, Sequence[int | str]]  # a row may have been changed for several reasons
    files: Mapping[str, str]  # cleaned, removed, changed: where each was written

    @property
    def removed_count(self) -> int:
        """Rows left out; each has one reason."""
        return sum(map(len, self.removed.values()))

    @property
    def changed_count(self) -> int:
        """Rows whose text was changed."""
        return len({line for lines in self.changed.values() for line in lines})

    def to_json(self) -> dict[str, Any]:
        """The fix as plain values."""
        removed = {code: list(lines) for code, lines in self.removed.items()}
        changed = {code: list(lines) for code, lines in self.changed.items()}
        return {"kept": self.kept, "removed": removed, "changed": changed, "files": dict(self.files)}


@dataclass(frozen=True)
class CheckReport:
    """Everything a check found in one file; findings worst first."""

    source: str
    rows: int
    usable: int  # rows that are an example of some format
    format: str
    findings: Sequence[Finding]
    tables: Mapping[str, Any]
    not_checked: Sequence[str]  # what was not looked at, and what would make it so
    heldout: str | None = None
    fixed: Fixed | None = None

    def of(self, severity: Severity) -> list[Finding]:
        """The findings of one severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    def finding(self, code: str) -> Finding | None:
        """The finding of a code, if there is one."""
        return next((finding for finding in self.findings if finding.code == code), None)

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "version": VERSION,
            "source": self.source,
            "heldout": self.heldout,
            "rows": self.rows,
            "usable": self.usable,
            "format": self.format,
            "counts": {severity: sum(f.count for f in self.of(severity)) for severity in SEVERITIES},
            "findings": [finding.to_json() for finding in self.findings],
            "tables": dict(self.tables),
            "not_checked": list(self.not_checked),
            "fixed": self.fixed.to_json() if self.fixed else None,
        }

    def write(self, path: str | Path) -> None:
        """Writes the report as JSON.

        Raises:
            CheckpointError: if the disk refuses.
        """
        write_file(Path(path), json.dumps(self.to_json(), ensure_ascii=False) + "\n")


def worst_first(finding: Finding) -> tuple[int, int, str]:
    """The place of a finding in a report."""
    return SEVERITIES.index(finding.severity), -finding.count, finding.code


def excerpt(text: str, piece: str = "", *, at_end: bool = False) -> str:
    """What stands around a piece of a text or at its end, on one line: personal data masked, unseen characters told."""
    shown = masked(text)
    at = shown.find(piece) if piece else 0
    if at < 0:  # the piece was masked
        at = max(0, shown.find("["))
    start = max(0, min(at - WIDTH // 3, len(shown) - WIDTH))
    start = max(0, len(shown) - WIDTH) if at_end else start
    cut = shown[start : start + WIDTH]
    line = "".join(c if c.isprintable() else " " if c.isspace() else f"\\u{ord(c):04x}" for c in cut)
    return f"{'…' * (start > 0)}{line}{'…' * (start + WIDTH < len(shown))}"
