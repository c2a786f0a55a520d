"""Checks that docs/alarms.md tells every alarm as melior/trainers/alarm_table.py has it.

What stands above and below the table is written by hand. Run with --write to put the current table in.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from check_papers import cell, shown

from melior.trainers.alarm_table import ALARMS, Alarm

PAGE = Path(__file__).resolve().parent.parent / "docs" / "alarms.md"
BEGIN, END = "<!-- from the table in code: begin -->", "<!-- from the table in code: end -->"
HELD_OUT = "the reward, and the metric that `heldout` names"


def main() -> int:
    """Exit status 1 and one line per fault."""
    if "--write" in sys.argv:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    found = faults()
    print("\n".join(found) or "alarms: docs/alarms.md tells every alarm as the code has it")
    return 1 if found else 0


def faults() -> list[str]:
    """One line for a page that is out of date, and for each alarm that nobody can look up."""
    text = PAGE.read_text(encoding="utf-8")
    stale = [] if text == page(text) else ["docs/alarms.md: out of date; run python tests/check_alarms.py --write"]
    return stale + [f"alarm {alarm.name}: has no {what}" for alarm in ALARMS for what in lacking(alarm)]


def lacking(alarm: Alarm) -> Iterator[str]:
    """What a person who hears an alarm would miss."""
    for what in ("watches", "told", "remedy", "source"):
        if not getattr(alarm, what).strip():
            yield what


def page(text: str) -> str:
    """The page with the table as it is now."""
    assert text.count(BEGIN) == text.count(END) == 1, f"docs/alarms.md has no place for the table: {BEGIN} … {END}"
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def table() -> str:
    """A row per alarm, and under it what it says when it rings and where its limits come from."""
    lines = [
        "| alarm | what it sees | reads | warns | stops | of |",
        "|---|---|---|---|---|---|",
        *(row(alarm) for alarm in ALARMS),
    ]
    for alarm in ALARMS:
        lines += ["", f"### {alarm.name}", "", f"“{sentence(alarm)}.”", "", f"Limits: {shown(alarm.source)}."]
    return "\n".join(lines)


def row(alarm: Alarm) -> str:
    """An alarm as a row of the table."""
    reads = ", ".join(f"`{cell(name)}`" for name in alarm.reads) or HELD_OUT
    limits = [bound(alarm, limit) for limit in (alarm.warn, alarm.stop)]
    return f"| [{alarm.name}](#{alarm.name}) | {cell(alarm.watches)} | {reads} | {' | '.join(limits)} | {of(alarm)} |"


def bound(alarm: Alarm, limit: float | None) -> str:
    """Where an alarm rings: above or below a limit, so many readings running."""
    if limit is None:
        return "never"
    running = f", {alarm.patience} running" if alarm.patience > 1 else ""
    return f"{'below' if alarm.falling else 'above'} {limit:g}{running}"


def of(alarm: Alarm) -> str:
    """Which runs an alarm says something of."""
    return "texts" if alarm.texts else "runs with one update a step" if alarm.one_update else "all"


def sentence(alarm: Alarm) -> str:
    """What an alarm says at its first limit, with dots where it tells what it measured."""

    def number(found: re.Match[str]) -> str:
        return f"{alarm.warn:{found['how'] or '.4g'}}" if found["name"] == "limit" else "…"

    told = re.sub(r"\{(?P<name>\w+)(?::(?P<how>[^}]*))?\}", number, alarm.told)
    return cell(f"{told}; {alarm.remedy}")


if __name__ == "__main__":
    sys.exit(main())
