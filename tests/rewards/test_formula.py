"""formulas mean what arithmetic means, and anything else is refused with its place"""

from __future__ import annotations

import ast
import math
import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.errors import GraderError
from melior.rewards.formula import DEEPEST, FUNCTIONS, LONGEST, parse_formula

NAMES = frozenset({"a", "b", "quality_2", "min"})
VALUES = {"a": 0.5, "b": 3.0, "quality_2": -2.0, "min": 7.0}


def compute(text: str, **values: float) -> float:
    return parse_formula(text, NAMES)({**VALUES, **values})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", 0.5),
        ("0.5 * a + 0.5 * b", 1.75),
        ("(a + b) / 2", 1.75),
        ("b - a - 1", 1.5),
        ("12 / b / 2", 2.0),
        ("2 ^ 3 ^ 2", 512.0),
        ("-2 ^ 2", -4.0),
        ("(-2) ^ 2", 4.0),
        ("2 ^ -1", 0.5),
        ("2 * -b", -6.0),
        ("--b + +b", 6.0),
        (".5 + 1. + 1e1 + 1.5E-1", 11.65),
        ("min(a, b, quality_2)", -2.0),
        ("max(a, b)", 3.0),
        ("min + 1", 8.0),
        ("abs(quality_2)", 2.0),
        ("floor(2.7) + ceil(2.1)", 5.0),
        ("exp(log(b))", 3.0),
        ("sqrt(4)", 2.0),
        ("max(0, 1 - abs(a - 0.5)) * b", 3.0),
        ("a>b", None),
    ],
)
def test_formulas_mean_what_arithmetic_means(text: str, value: float | None) -> None:
    if value is None:
        with pytest.raises(GraderError):
            parse_formula(text, NAMES)
    else:
        assert compute(text) == pytest.approx(value, rel=1e-12)


OPERATORS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def reference(node: Any) -> Any:
    """The value of a syntax tree of Python, whose precedences are those of mathematics."""
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](reference(node.left), reference(node.right))
    if isinstance(node, ast.UnaryOp):
        return -reference(node.operand)
    return VALUES[node.id] if isinstance(node, ast.Name) else float(node.value)


leaves = st.one_of(st.sampled_from(["a", "b", "quality_2"]), st.integers(0, 9).map(str), st.just("0.25"))
formulas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/^"), inner).map(" ".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"-{text}"),
    ),
    max_leaves=12,
)


@given(formulas)
def test_any_formula_agrees_with_pythons_own_reading(text: str) -> None:
    try:
        expected = reference(ast.parse(text.replace("^", "**"), mode="eval").body)
        real = not isinstance(expected, complex) and math.isfinite(expected)
    except (ZeroDivisionError, OverflowError):
        real = False
    if real:
        assert compute(text) == pytest.approx(expected, rel=1e-9, abs=1e-300)
    else:
        with pytest.raises(GraderError):
            compute(text)


@given(st.text(alphabet="ab()+-*/^,.0123 minqlog_\n\t'\"[]{}é\\", max_size=40))
def test_any_text_is_computed_or_refused(text: str) -> None:
    try:
        assert math.isfinite(compute(text))
    except GraderError as error:
        assert error.kind in ("formula_parse_error", "invalid_variable_error", "other_error")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "such as"),
        ("   ", "such as"),
        ("a +", "ends too early at character 4"),
        ("(a", "ends too early"),
        ("a)", r"cannot have '\)' at character 2"),
        ("a b", "cannot have 'b' at character 3"),
        ("a ** b", r"a power is written \^"),
        ("2 a", "cannot have 'a' at character 3"),
        ("a % b", "'%', which means nothing"),
        ("a; b", "';'"),
        ("__import__('os')", "calls '__import__'|means nothing"),
        ("sum(a, b)", "calls 'sum', which is none of"),
        ("sqr(a)", "did you mean 'sqrt'"),
        ("abs(a, b)", "gives 2 arguments to abs, which takes 1 at character 1"),
        ("min()", r"cannot have '\)'"),
        ("a.real", "cannot have '.'|'.', which means nothing"),
        ("(" * (DEEPEST + 1) + "a" + ")" * (DEEPEST + 1), "nested more than"),
        ("-" * 5000 + "a", f"more than the {LONGEST}"),
        ("-" * 1000 + "a", "nested more than"),
    ],
)
def test_what_is_no_formula_is_refused_with_its_place(text: str, reason: str) -> None:
    with pytest.raises(GraderError, match=reason) as caught:
        parse_formula(text, NAMES)
    assert caught.value.kind == "formula_parse_error"


def test_unknown_names_are_told_apart_from_bad_formulas() -> None:
    with pytest.raises(GraderError, match="names 'quality', which is no grader, did you mean 'quality_2'") as caught:
        parse_formula("a + quality", NAMES)
    assert caught.value.kind == "invalid_variable_error"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a / (b - 3)", "divides by zero at a = 0.5, b = 3"),
        ("0 ^ -1", "divides by zero"),
        ("sqrt(quality_2)", "no real value"),
        ("log(0)", "no real value"),
        ("quality_2 ^ 0.5", "no real value"),
        ("abs(quality_2 ^ 0.5)", "no real value"),
        ("exp(1000)", "too large"),
        ("9 ^ 9 ^ 9", "too large"),
        ("1e308 * 10", "not finite"),
    ],
)
def test_what_has_no_finite_real_value_fails(text: str, reason: str) -> None:
    with pytest.raises(GraderError, match=reason):
        compute(text)


@pytest.mark.parametrize("sign", ["+", "*"])
def test_a_formula_may_be_as_long_as_is_allowed(sign: str) -> None:
    text = sign.join("1" * (LONGEST // 2))
    assert len(text) == LONGEST - 1
    assert compute(text) == (LONGEST // 2 if sign == "+" else 1)


def test_a_formula_knows_the_names_it_uses() -> None:
    assert parse_formula("max(a, 1) + a", NAMES).names == {"a"}
    assert set(FUNCTIONS) == {"min", "max", "abs", "floor", "ceil", "exp", "sqrt", "log"}
