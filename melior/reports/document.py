"""a page written by a script: a title, then sections of paragraphs, tables and pictures

    write_document(
        "runs/credit/report.html",
        "German credit",
        [Part("Result", [paragraph("Mean cost …"), table(head, rows), band_chart(…)]), Part("By sex", […])],
        lead="Ten folds, …", verdict=("promote", "The floor was met: …"),
    )

A block is HTML made by this package: `paragraph`, `plots.table`, `plots.band_chart`, `plots.estimates_chart`,
`matrix.confusion_chart`, `classification.classification_section`, `slates.slates_section`, `learning.learning_section`.
All of them escape what they are given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from melior.durable import write_file
from melior.reports.shell import shell
from melior.reports.text import escaped


@dataclass(frozen=True)
class Part:
    """A section: its title, and its blocks in order. Pictures that follow one another stand side by side."""

    title: str
    blocks: Sequence[str] = field(default_factory=tuple)


def document(
    title: str,
    parts: Sequence[Part],
    *,
    lead: str = "",
    verdict: tuple[str, str] | None = None,  # promote, reject or neither; and a sentence
    tiles: Sequence[tuple[str, str]] = (),  # facts: a name and a value
    foot: str = "",
) -> str:
    """The page, complete and self-contained."""
    told = f'<p class="sub">{escaped(lead)}</p>' if lead else ""
    if verdict is not None:
        told += f'<p class="verdict {escaped(verdict[0])}"><b>{escaped(verdict[0])}</b>{escaped(verdict[1])}</p>'
    if tiles:
        facts = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in tiles)
        told += f'<dl class="tiles">{facts}</dl>'
    head = f'<header><p class="brand">melior <span>report</span></p><h1>{escaped(title)}</h1>{told}</header>'
    names: dict[str, int] = {}
    sections = []
    for part in parts:
        anchor = re.sub(r"[^a-z0-9]+", "-", part.title.lower()).strip("-") or "part"
        names[anchor] = names.get(anchor, 0) + 1
        anchor = anchor if names[anchor] == 1 else f"{anchor}-{names[anchor]}"
        sections.append((f"part-{anchor}", part.title, _side_by_side(part.blocks)))
    return shell(f"{title} · melior", head, sections, escaped(foot) or "Made by melior.")


def write_document(
    path: str | Path,
    title: str,
    parts: Sequence[Part],
    *,
    lead: str = "",
    verdict: tuple[str, str] | None = None,
    tiles: Sequence[tuple[str, str]] = (),
    foot: str = "",
) -> Path:
    """The page in a file.

    Raises:
        CheckpointError: if the disk refuses.
    """
    path = Path(path)
    text = document(title, parts, lead=lead, verdict=verdict, tiles=tiles, foot=foot)
    write_file(path, text.encode("utf-8", "replace"))
    return path


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escaped(text)}</p>"


def listed(sentences: Sequence[str]) -> str:
    """Sentences that should not be missed."""
    told = "".join(f"<li>{escaped(sentence)}</li>" for sentence in sentences)
    return f'<ul class="notes">{told}</ul>' if told else ""


def _side_by_side(blocks: Sequence[str]) -> str:
    """Blocks in order; figures that follow one another share a grid."""
    told, figures = "", ""
    for block in [*blocks, ""]:
        if block.startswith("<figure"):
            figures += block
            continue
        told += (f'<div class="grid even">{figures}</div>' if figures else "") + block
        figures = ""
    return told
