"""what docs/alarms.md says of alarms"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import check_alarms
import pytest

from melior.trainers.alarm_table import ALARMS, Alarm


def test_the_page_tells_every_alarm_as_it_is() -> None:
    assert check_alarms.faults() == []


def changed(monkeypatch: pytest.MonkeyPatch, change: Callable[[Alarm], Alarm]) -> list[str]:
    monkeypatch.setattr(check_alarms, "ALARMS", [change(ALARMS[0]), *ALARMS[1:]])
    return check_alarms.faults()


@pytest.mark.parametrize("field", ["told", "remedy", "source", "watches"])
def test_an_alarm_that_leaves_something_unsaid_is_a_fault(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    found = changed(monkeypatch, lambda alarm: replace(alarm, **{field: " "}))
    assert f"alarm {ALARMS[0].name}: has no {field}" in found


def test_a_changed_limit_makes_the_page_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "alarms.md"
    page.write_text(check_alarms.PAGE.read_text())
    monkeypatch.setattr(check_alarms, "PAGE", page)
    found = changed(monkeypatch, lambda alarm: replace(alarm, stop=0.0123))
    assert found == ["docs/alarms.md: out of date; run python tests/check_alarms.py --write"]
    page.write_text(check_alarms.page(page.read_text()))
    assert check_alarms.faults() == [] and "below 0.0123" in page.read_text()


def test_what_is_said_beside_the_table_stays() -> None:
    text = f"above\n{check_alarms.BEGIN}\nold\n{check_alarms.END}\nbelow\n"
    made = check_alarms.page(text)
    assert made.startswith("above\n") and made.endswith("\nbelow\n") and "\nold\n" not in made
