"""laws of numbers and texts as people see them"""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.reports import text


def test_the_examples_hold() -> None:
    assert doctest.testmod(text).failed == 0


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_every_number_can_be_told_shortly(value: float) -> None:
    assert len(text.short(value)) <= 10 and "-" not in text.short(value).replace("e-", "")


@given(st.floats(min_value=-9e6, max_value=9e6).filter(lambda value: abs(value) >= 1e-3))
def test_a_number_told_is_the_number(value: float) -> None:
    told = float(text.short(value).replace(",", "").replace("−", "-"))
    assert told == pytest.approx(value, rel=6e-4, abs=6e-5)


@given(st.text())
def test_an_escaped_text_holds_no_markup(given_text: str) -> None:
    found = text.escaped(given_text)
    assert not {"<", ">", '"', "'"} & set(found)


@pytest.mark.parametrize(
    ("seconds", "told"), [(2.34, "2.3 s"), (59.6, "1 min 0 s"), (3599.9, "1 h 0 min"), (200, "3 min 20 s")]
)
def test_durations(seconds: float, told: str) -> None:
    assert text.duration(seconds) == told
