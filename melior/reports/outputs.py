"""what the model said over time: the same held-out items side by side, and groups that were learnt from"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from melior.reports.files import Row, RunFiles, number
from melior.reports.text import counted, cut, escaped, short

MOMENTS = 4  # at which one held-out item is shown
ITEMS = 8  # held-out items shown
GROUPS = 6  # of training outputs, over the whole run
MEMBERS = 4  # outputs of a group shown
COMPARED = 300  # words of an output beyond which differences are not marked: longer ones are read, not compared
PROMPT = 600  # characters of a prompt


def heldout_outputs(run: RunFiles) -> str:
    """The same items at several moments of the run, differences to the moment before marked."""
    items = _by_item(run)
    cards = "".join(_item(versions) for versions in list(items.values())[:ITEMS])
    return f'<div class="cards">{cards}</div>' if cards else ""


def training_outputs(run: RunFiles) -> str:
    """Groups of outputs from the beginning to the end of training, with their rewards."""
    by_step: dict[int, list[Row]] = {}
    for row in run.samples:
        if number(row.get("step")) is not None:
            by_step.setdefault(int(row["step"]), []).append(row)
    steps = sorted(by_step)
    chosen = _spread(steps, GROUPS)
    return "".join(_group(step, by_step[step]) for step in chosen)


def _by_item(run: RunFiles) -> dict[str, list[tuple[str, Row]]]:
    """Item → (moment, example), the oldest first; few enough to stand side by side."""
    moments: list[tuple[str, Mapping[str, Row]]] = []
    if run.before:
        moments.append(("before", _examples(run.before.get("examples"))))
    during: dict[int, dict[str, Row]] = {}
    for row in run.heldout:
        if number(row.get("step")) is not None:
            during.setdefault(int(row["step"]), {})[str(row.get("key"))] = row
    moments += [(f"step {step}", during[step]) for step in sorted(during)]
    if run.after:
        moments = [(when, found) for when, found in moments if when != f"step {run.kept}"]
        moments.append(("after", _examples(run.after.get("examples"))))
    chosen = _spread(moments, MOMENTS)
    keys = dict.fromkeys(key for _, found in chosen for key in found)
    return {key: [(when, found[key]) for when, found in chosen if key in found] for key in keys}


def _examples(found: Any) -> dict[str, Row]:
    return {str(row.get("key")): row for row in found or () if isinstance(row, dict)}


def _item(versions: Sequence[tuple[str, Row]]) -> str:
    cells, last = [], None
    for when, row in versions:
        greedy = row.get("greedy") is not None
        text, value = (row["greedy"], row.get("greedy_value")) if greedy else (row.get("output"), row.get("value"))
        cells.append(
            f'<div class="cell"><div class="when">{escaped(when)}{", greedy" if greedy else ""} {_chip(value)}</div>'
            f"{_text(text, last)}</div>"
        )
        last = text
    prompt = _prompt(versions[0][1].get("inputs"))
    return f'<article class="card">{prompt}<div class="row">{"".join(cells)}</div></article>'


def _group(step: int, rows: Sequence[Row]) -> str:
    cells = "".join(
        f'<div class="cell"><div class="when">{_chip(row.get("reward"))}{_facts(row)}</div>{_text(row.get("output"))}'
        f"{_said(row)}</div>"
        for row in rows[:MEMBERS]
    )
    more = (
        f'<p class="note">{len(rows) - MEMBERS} more of this group in samples.jsonl</p>' if len(rows) > MEMBERS else ""
    )
    head = f'<div class="when">step {step + 1}</div>{_prompt(rows[0].get("inputs"))}'
    return f'<article class="card">{head}<div class="row">{cells}</div>{more}</article>'


def _prompt(inputs: Any) -> str:
    """The last thing that was said; what came before can be unfolded."""
    if isinstance(inputs, list) and inputs and all(isinstance(message, dict) for message in inputs):
        *earlier, last = inputs
        head = escaped(cut(last.get("content"), PROMPT)[0])
        told = "".join(
            f"<p><b>{escaped(m.get('role'))}</b> {escaped(cut(m.get('content'), PROMPT)[0])}</p>" for m in earlier
        )
        before = (
            f"<details><summary>{counted(len(earlier), 'message')} before</summary>{told}</details>" if earlier else ""
        )
        return f'<div class="prompt" dir="auto">{head}</div>{before}'
    text, left = cut(inputs, PROMPT)
    return f'<div class="prompt" dir="auto">{escaped(text)}{_left(left)}</div>'


def _text(text: Any, previous: Any = None) -> str:
    shown, left = cut("" if text is None else text)
    if not shown:
        return '<p class="empty">nothing</p>'
    marked = escaped(shown)
    if previous is not None and str(previous) != str(text):
        marked = _marked(cut(previous)[0], shown)
    return f'<pre dir="auto">{marked}{_left(left)}</pre>'


def _marked(before: str, after: str) -> str:
    """The text with the words that are new marked."""
    old, new = _words(before), _words(after)
    if max(len(old), len(new)) > COMPARED:
        return escaped(after)
    told = []
    for kind, _, _, start, end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        part = escaped("".join(new[start:end]))
        told.append(f"<ins>{part}</ins>" if kind in ("insert", "replace") and part.strip() else part)
    return "".join(told)


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|[^\s]+", text)


def _left(count: int) -> str:
    return f'<span class="left"> … {count:,} more characters</span>' if count else ""


def _chip(value: Any) -> str:
    found = number(value)
    if found is None:
        return '<span class="chip none">not graded</span>'
    kind = "good" if found >= 1 else "bad" if found <= 0 else "some"
    return f'<span class="chip {kind}">{short(found)}</span>'


def _facts(row: Row) -> str:
    tokens = row.get("tokens")
    told = [f"{tokens} decisions"] if tokens is not None else []
    told += ["cut at the limit"] if row.get("finish") == "length" else []
    return f' <span class="facts">{escaped(", ".join(told))}</span>' if told else ""


def _said(row: Row) -> str:
    parts = row.get("parts")
    told = [f"{name} {short(number(value))}" for name, value in parts.items()] if isinstance(parts, dict) else []
    told += [str(row[name]) for name in ("reason", "error") if row.get(name)]
    return f'<p class="note">{escaped(cut("; ".join(told), 300)[0])}</p>' if told else ""


def _spread(values: Iterable[Any], most: int) -> list[Any]:
    """At most so many, evenly, the first and the last among them."""
    found = list(values)
    if len(found) <= most:
        return found
    return [found[round(index * (len(found) - 1) / (most - 1))] for index in range(most)]
