"""the harness finds the holes that are there, and no others; every mutant left out exists"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from equivalent import EQUIVALENT
from mutants import mutants_of
from run import MODULES, ROOT

SOURCE = '''
LIMIT = 3


def below(value):
    """Whether it is."""
    return value < LIMIT


def clamped(value, low, high=10):
    return max(low, min(value, high))


def counted_down(number):
    while number > 0:
        number -= 1
    return number


def refused(number):
    if not 0 <= number:
        raise ValueError(f"{number} is below {0 + 0}")
'''
HOLES = """
import pytest
from tiny_source import below, clamped, counted_down, refused


def test_below():
    assert below(2) and not below(5)  # not at the limit


def test_clamped():
    assert clamped(-5, 0) == 0 and clamped(5, 0) == 5  # not above


def test_counted_down():
    assert counted_down(3) == 0


def test_refused():
    refused(0)
    with pytest.raises(ValueError):
        refused(-1)
"""
MENDED = """
def test_at_the_limits():
    assert not below(3) and clamped(12, 0) == 10 and clamped(12, 0, 11) == 11
    refused(0.5)
"""
SURVIVORS = {
    "tiny_source.<module>: 3 → 4",
    "tiny_source.below: value < LIMIT → value <= LIMIT",
    "tiny_source.clamped: 10 → 11",
}


def harness(folder: Path, tests: str) -> tuple[int, str]:
    """Exit status and what was printed."""
    (folder / "tiny_source.py").write_text(SOURCE)
    (folder / "test_tiny_source.py").write_text(tests)
    asked = ["tiny_source", "--root", str(folder), "--tests", "test_tiny_source.py"]
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("run.py")), *asked], capture_output=True, text=True
    )
    return run.returncode, run.stdout + run.stderr


def survivors(printed: str) -> set[str]:
    return {line.removeprefix("survived").strip() for line in printed.splitlines() if line.startswith("survived")}


def test_it_finds_exactly_the_holes(tmp_path: Path) -> None:
    status, printed = harness(tmp_path, HOLES)
    assert survivors(printed) == SURVIVORS, printed
    assert status == 1
    number = len(mutants_of("tiny_source", tmp_path / "tiny_source.py"))
    assert f"{number - len(SURVIVORS)} of {number} mutants noticed" in printed


def test_where_there_is_none_it_is_content_and_where_tests_fail_anyway_it_says_so(tmp_path: Path) -> None:
    status, printed = harness(tmp_path, HOLES + MENDED)
    assert (status, survivors(printed)) == (0, set()), printed
    status, printed = harness(tmp_path, HOLES + "\n\ndef test_wrong():\n    assert below(9)\n")
    assert status == 2 and "test_wrong cannot be run or fails without any mutant" in printed


def test_a_test_that_passes_but_once_proves_nothing(tmp_path: Path) -> None:
    once = "\n\ndef test_once(runs=[]):\n    assert below(1) and not runs\n    runs.append(1)\n"
    status, printed = harness(tmp_path, HOLES + once)
    assert status == 2 and "run a second time" in printed


def test_every_kind_of_mistake_is_made(tmp_path: Path) -> None:
    source = tmp_path / "some.py"
    source.write_text(
        "def f(x: int = 2, *, y=0.5):\n"
        '    """A text 1 < 2."""\n'
        "    check(x)\n"
        "    if 0 <= x < y and flag:\n"
        "        x += 1\n"
        "    return torch.where(x, -x.detach(), max(x, y)).sum(dim=-1)\n"
    )
    found = [mutant.name.removeprefix("some.f: ") for mutant in mutants_of("some", source)]
    assert len(found) == len(set(found))
    where = "torch.where(x, -x.detach(), max(x, y))"
    assert set(found) == {
        "2 → 3",
        "0.5 → 1.0",
        "check(x) → pass",
        "if 0 <= x < y and flag → if not (0 <= x < y and flag)",
        "0 <= x < y and flag → 0 <= x < y or flag",
        "0 <= x < y → 0 < x < y",
        "0 <= x < y → 0 > x < y",
        "0 <= x < y → 0 <= x <= y",
        "0 <= x < y → 0 <= x > y",
        "0 → 1",
        "x += 1 → x -= 1",
        "1 → 2",
        f"return {where}.sum(dim=-1) → return None",
        f"{where}.sum(dim=-1) → {where}.mean(dim=-1)",
        f"{where}.sum(dim=-1) → {where}.sum()",
        f"{where} → -x.detach()",
        f"{where} → torch.where(-x.detach(), x, max(x, y))",
        f"{where} → torch.where(x, max(x, y), -x.detach())",
        "-x.detach() → x.detach()",
        "x.detach() → x",
        "max(x, y) → min(x, y)",
        "-1 → 1",
        "1 → 2 #2",
    }


def test_every_mutant_that_is_left_out_exists_and_has_its_reason() -> None:
    names = {
        mutant.name for module in MODULES for mutant in mutants_of(module, ROOT / f"{module.replace('.', '/')}.py")
    }
    assert set(EQUIVALENT) <= names, sorted(set(EQUIVALENT) - names)
    assert all(len(reason) > 20 for reason in EQUIVALENT.values())
