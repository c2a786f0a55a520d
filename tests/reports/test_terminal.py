"""laws of curves in a terminal: they fit, they show where a value lies, and every terminal can print them"""

from __future__ import annotations

import re

import pytest

from melior.reports.curves import Curve
from melior.reports.terminal import plot

RISING = Curve("reward", "reward", [(float(step), step / 9) for step in range(1, 10)])
FALLING = Curve("loss", "loss", [(float(step), 1 - step / 9) for step in range(1, 10)])


def bare(lines: list[str]) -> list[str]:
    return [re.sub(r"\x1b\[\d+m", "", line) for line in lines]


@pytest.mark.parametrize("width", [30, 47, 80, 200])
@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_lines_fit_the_terminal(width: int, colour: bool, ascii_only: bool) -> None:
    lines = plot([RISING, FALLING], width=width, colour=colour, ascii_only=ascii_only)
    assert max(map(len, bare(lines)[:-2])) <= width
    if ascii_only:
        "\n".join(lines).encode("ascii")


def test_what_rises_rises() -> None:
    rows = [line.partition("|")[2] for line in plot([RISING], width=60, ascii_only=True) if "|" in line]
    heights = [next(row for row, line in enumerate(rows) if line[column : column + 1] == "*") for column in (0, 20, 40)]
    assert heights == sorted(heights, reverse=True) and len(set(heights)) == 3


def test_curves_are_told_apart_without_colour() -> None:
    text = "\n".join(plot([RISING, FALLING], width=60))
    assert "* reward" in text and "o loss" in text and "\x1b" not in text
    assert "\x1b[36m" in "\n".join(plot([RISING, FALLING], width=60, colour=True))


@pytest.mark.parametrize("points", [[(1.0, 0.5)], [(1.0, 0.5), (2.0, 0.5)], [(5.0, -1e12), (6.0, 1e12)], [(1.0, 0.0)]])
def test_one_point_and_a_flat_line_are_drawn(points: list[tuple[float, float]]) -> None:
    text = "\n".join(plot([Curve("x", "x", points)], width=40))
    assert re.search("[\u2801-\u28ff]", text)


def test_a_label_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in "\n".join(plot([Curve("x", "\x1b[2Jx", [(1.0, 1.0)])], width=40))
