"""every planted fault is found where it was planted, clean rows stay quiet, and a fixed file has no errors left"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plants import PLANTS, planted
from real_rows import Rows, write

from melior.data.cleaning import CheckConfig, CheckReport, check_file

COUNT = 700
QUIET = CheckConfig(languages=False)
# The share of clean rows that may be told, by code: what these real files really hold, looked at by hand.
RATES: dict[str, dict[str, float]] = {
    "gsm8k": {},
    "banking77": {"near-duplicate": 0.02, "near-contradiction": 0.005, "rare-label": 0.02},
    "taskmaster": {"duplicate": 0.15, "near-duplicate": 0.2, "contradiction": 0.005, "assistant-first": 1.0},
    "preferences": {
        "empty-answer": 0.005,
        "truncated-answer": 0.03,
        "template-tokens": 0.75,  # conversations written as one text, as these pairs are kept upstream
        "personal-data": 0.02,
        "answer-in-prompt": 0.01,
        "html-tags": 0.005,
        "several-answers": 0.01,
    },
}


@pytest.fixture(scope="module")
def clean(real_rows: Callable[[str, int], Rows], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """`clean(name)`: the rows of a real set, and the report on them."""
    known: dict[str, tuple[Rows, CheckReport]] = {}

    def of(name: str) -> tuple[Rows, CheckReport]:
        if name not in known:
            rows = real_rows(name, COUNT)
            path = write(tmp_path_factory.mktemp(name) / "clean.jsonl", rows)
            known[name] = rows, check_file(path, QUIET)
        return known[name]

    return of


@pytest.fixture(scope="module")
def corrupted(clean: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """`corrupted(name)`: file, expected lines by code, and the report on real rows with every fault planted."""
    known: dict[str, Any] = {}

    def of(name: str) -> tuple[Path, dict[str, set[int]], CheckReport]:
        if name not in known:
            rows, report = clean(name)
            faulty = {
                line
                for finding in report.findings
                if finding.code not in ("assistant-first", "template-tokens")
                for line in finding.lines
            }
            plants = PLANTS[name]
            fit = [place for place in range(3, COUNT) if place + 1 not in faulty and len(_text(rows[place])) > 60]
            content, expected = planted(rows, plants, fit[:: max(1, len(fit) // len(plants))][: len(plants)])
            path = write(tmp_path_factory.mktemp(name) / "rows.jsonl", content)
            config = CheckConfig(languages=name == "gsm8k")
            known[name] = path, expected, check_file(path, config)
        return known[name]

    return of


def _text(row: dict[str, Any]) -> str:
    return str(row.get("text") or row["prompt"])


CASES = [(name, code) for name, plants in PLANTS.items() for code in dict.fromkeys(plant.code for plant in plants)]


def test_enough_kinds_are_planted() -> None:
    assert len({code for _, code in CASES}) >= 30
    assert all(len({plant.code for plant in plants}) >= 20 for plants in PLANTS.values())


@pytest.mark.parametrize(("name", "code"), CASES)
def test_every_planted_row_is_found_with_its_code(name: str, code: str, corrupted: Callable[[str], Any]) -> None:
    _, expected, report = corrupted(name)
    finding = report.finding(code)
    assert finding is not None, [found.code for found in report.findings]
    assert expected[code] <= set(finding.lines)


@pytest.mark.parametrize("name", PLANTS)
def test_nothing_else_is_told_than_was_planted_or_was_there_before(
    name: str, clean: Callable[[str], Any], corrupted: Callable[[str], Any]
) -> None:
    _, before = clean(name)
    _, expected, report = corrupted(name)
    planted_lines = set().union(*expected.values())
    for finding in report.findings:
        known = before.finding(finding.code)
        surprising = set(finding.lines) - planted_lines - set(known.lines if known else ())
        assert len(surprising) <= 2, (finding.code, [shown for shown in finding.examples if shown.line in surprising])


@pytest.mark.parametrize("name", PLANTS)
def test_a_clean_file_stays_within_its_rates(name: str, clean: Callable[[str], Any]) -> None:
    rows, report = clean(name)
    shares = {finding.code: finding.count / len(rows) for finding in report.findings}
    over = {code: share for code, share in shares.items() if share > RATES[name].get(code, 0.0)}
    assert not over
