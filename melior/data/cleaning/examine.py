"""one batch of rows becomes findings and a few numbers per row: all that later comparisons need

A batch is examined on its own, so batches can be examined in several processes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melior.data.cleaning.languages import letters_of, script_of
from melior.data.cleaning.rows import Hit, cleaned, ending, faults, picture_fault, refusal
from melior.data.cleaning.shingles import Entries, Shingler
from melior.data.cleaning.views import View, exact_parts, key_of, normalised, view_of
from melior.data.formats import Example, Reading, RowError, format_of
from melior.data.readers import Line, Problem
from melior.errors import DataError

UNUSABLE = 255  # in the column of formats
# 90 bytes a row; 0 is "none" in every column of keys.
FACTS = np.dtype(
    [
        ("line", "u4"),
        ("file", "u2"),
        ("format", "u1"),
        ("ending", "u1"),
        ("script", "u1"),
        ("longer", "i1"),  # of a preference: 1 where the chosen side is longer, -1 where the rejected one is
        ("reference", "u1"),  # of a task: 1 where it has one
        ("id", "u8"),
        ("group", "u8"),
        ("content", "u8"),
        ("question", "u8"),
        ("verdict", "u8"),
        ("label", "u8"),
        ("prompt", "u8"),  # or the whole text where there is none: what must not be held out as well
        ("parts", "u8"),
        ("prompt_parts", "u8"),
        ("prompt_size", "u4"),
        ("answer_size", "u4"),
        ("tokens", "u4"),
    ]
)


@dataclass(frozen=True)
class Examiner:
    """How rows are examined."""

    ignore: frozenset[str]
    shingler: Shingler
    body: bool = True  # whether rows are compared with one another
    prompts: bool = False  # whether prompts are compared with those of another file
    group: str = "group"  # the column that names a row's conversation or user
    count_tokens: Callable[[Example], int] | None = None
    max_length: int | None = None
    reading: Reading = field(default_factory=Reading)

    def __call__(self, lines: Sequence[Line | Problem], below: int = 1 << 64) -> Examined:
        """What a batch shows; texts are kept, to tell their language, where their hash is less than `below`."""
        facts = np.zeros(len(lines), FACTS)
        out = Examined(facts)
        bodies, answers, prompts = [], [], []
        for index, line in enumerate(lines):
            view, hits = self._row(line, facts[index], out)
            out.hits.extend((index, hit) for hit in hits if hit.code not in self.ignore)
            exact = view is not None and view.exact  # then nothing is like it but itself
            prompt = normalised(view.prompt) if view and not exact else ""
            answer = " ".join(map(normalised, view.long_answers)) if view and not exact else ""
            bodies.append(f"{prompt} {answer}".strip())
            answers.append(answer)
            read = prompt or (normalised("\n".join(sorted(view.answers))) if view else "")
            read = "" if exact else read
            prompts.append(read)
            if view is not None:
                before = [told for told in map(view.told, view.reads) if told] or [
                    read
                ]  # a text without prompt is read
                out.reads.extend((index, key_of(each)) for each in before if each)
                self._facts(view, prompt, answer, read, facts[index], out)
                said = "" if exact else "\n".join([view.spoken, *view.answers])
                start = letters_of(view.spoken) or letters_of(said)
                if start and (key := int(facts[index]["content"])) < below:
                    out.texts.append((key, index, start))
        if self.body:
            out.bodies, out.answers = self.shingler.entries(bodies), self.shingler.entries(answers, banded=False)
        out.prompts = self.shingler.entries(prompts) if self.prompts else None
        return out

    def _row(self, line: Line | Problem, facts: Any, out: Examined) -> tuple[View | None, list[Hit]]:
        facts["file"] = _number(out.files, line.file)
        facts["format"] = UNUSABLE
        if isinstance(line, Problem):
            facts["line"] = line.line
            return None, [Hit("invalid-row", line.reason, "")]
        facts["line"] = line.number
        row, hits = cleaned(line.row, self.ignore, self.reading)
        if "id" in row:
            facts["id"] = key_of(str(row["id"]))
        try:
            format = format_of(row, None, self.reading)
        except RowError as error:
            return None, [*hits, Hit("unknown-format", str(error).partition(", expected")[0], _json(row))]
        try:
            example = format.example(row, "", self.reading)
        except RowError as error:
            return None, [*hits, refusal(row, str(error))]
        if told := picture_fault(example):
            return None, [*hits, Hit("unreadable-image", told, _json(row))]
        facts["format"] = _number(out.formats, (format.name, format.kind))
        view = view_of(example, format.kind)
        hits.extend(faults(view))
        named = line.row.get(self.group, view.group)  # not as masked: then all e-mail addresses would be one user
        facts["group"] = key_of(str(named)) if named not in (None, "") else 0
        hits.extend(self._tokens(example, view, facts))
        return view, hits

    def _question(self, view: View, prompt: str, facts: Any) -> int:
        if view.exact:
            return key_of(view.question) if view.question else 0
        if view.question != view.prompt:
            return key_of(normalised(view.question))
        return int(facts["prompt"]) if prompt else 0

    def _tokens(self, example: Example, view: View, facts: Any) -> list[Hit]:
        """What the tokens of a row show, where there is a way to count them."""
        if self.count_tokens is None:
            return []
        try:
            facts["tokens"] = self.count_tokens(example)
        except DataError as error:
            return [Hit("template-refuses", str(error), view.prompt)]
        if self.max_length is not None and facts["tokens"] > self.max_length:
            return [Hit("too-long", f"{facts['tokens']} of {self.max_length} tokens", view.prompt)]
        return []

    def _facts(self, view: View, prompt: str, answer: str, read: str, facts: Any, out: Examined) -> None:
        label = view.label
        facts["content"] = key_of(view.content) if view.content else 0
        facts["prompt"] = key_of(read) if read else key_of(view.prompt) if view.exact and view.question else 0
        facts["question"] = self._question(view, prompt, facts)
        facts["verdict"] = key_of(normalised(view.verdict))
        facts["label"] = key_of(label) if label else 0
        exact = [exact_parts(f"{prompt} {answer}"), *map(normalised, view.short_answers), view.tools]
        facts["parts"] = key_of("\0".join(exact))
        facts["prompt_parts"] = key_of(exact_parts(read)) if self.prompts else 0
        if not view.exact:
            facts["prompt_size"], facts["answer_size"] = len(view.prompt), sum(map(len, view.answers))
        facts["reference"] = view.reference is not None
        facts["ending"] = (
            ending(view.answers[-1]) if view.answers and view.kind == "demonstrations" and not view.exact else 0
        )
        facts["script"] = _number(out.scripts, script_of("\n".join([view.spoken, *view.answers])))
        if view.kind == "preferences":
            facts["longer"] = np.sign(len(view.answers[0]) - len(view.answers[1]))
        if label:
            out.labels[label] += 1


@dataclass
class Examined:
    """What a batch showed. Numbers of formats, files and scripts are places in the batch's own lists."""

    facts: NDArray[Any]  # [rows] of FACTS
    hits: list[tuple[int, Hit]] = field(default_factory=list)
    formats: list[tuple[str, str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    texts: list[tuple[int, int, str]] = field(default_factory=list)  # hash, index, beginning
    reads: list[tuple[int, int]] = field(default_factory=list)  # index, hash of what is read before a decision
    bodies: Entries | None = None
    answers: Entries | None = None
    prompts: Entries | None = None


def _number(names: list[Any], name: Any) -> int:
    """The place of a name in a list, to which it is added when new."""
    if name not in names:
        names.append(name)
    return names.index(name)


def _json(row: Any) -> str:
    return json.dumps(row, ensure_ascii=False, default=str)
