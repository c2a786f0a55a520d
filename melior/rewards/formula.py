"""the formula language of multi graders: parsed, never evaluated as Python

formula  = product (("+" | "-") product)*
product  = signed (("*" | "/") signed)*
signed   = ("+" | "-") signed | power
power    = atom ("^" signed)?                      right to left: 2 ^ 3 ^ 2 is 2 ^ 9, -2 ^ 2 is -4
atom     = number | name | function "(" formula ("," formula)* ")" | "(" formula ")"
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from melior.errors import GraderError
from melior.rewards.base import nearest

LONGEST = 4000  # characters; a formula over ten graders has a hundred
DEEPEST = 100  # parentheses and signs inside one another

PARSE, VARIABLE = "formula_parse_error", "invalid_variable_error"
ANY = 1_000  # arguments of min and max

FUNCTIONS: Mapping[str, tuple[Callable[..., float], int, int]] = {  # function, fewest and most arguments
    "min": (min, 1, ANY),
    "max": (max, 1, ANY),
    "abs": (abs, 1, 1),
    "floor": (math.floor, 1, 1),
    "ceil": (math.ceil, 1, 1),
    "exp": (math.exp, 1, 1),
    "sqrt": (math.sqrt, 1, 1),
    "log": (math.log, 1, 1),
}

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d]\w*)|(?P<sign>\*\*|[-+*/^(),]))"
)

Values = Mapping[str, float]
Term = Callable[[Values], float]
Operation = Callable[[float, float], float]


@dataclass(frozen=True)
class Formula:
    """A formula that was parsed; call it with the value of every name."""

    text: str
    names: frozenset[str]
    _term: Term = field(repr=False, compare=False)

    def __call__(self, values: Values) -> float:
        """What the formula comes to.

        Raises:
            GraderError: if it is not a finite real number, as after a division by zero.
        """
        try:
            result = float(self._term(values))
        except ZeroDivisionError:
            raise GraderError(f"formula {self.text!r} divides by zero at {_told(values)}") from None
        except OverflowError:
            raise GraderError(f"formula {self.text!r} is too large to compute at {_told(values)}") from None
        except (ValueError, TypeError):  # sqrt(-1), log(0), and powers that are complex
            raise GraderError(f"formula {self.text!r} has no real value at {_told(values)}") from None
        if not math.isfinite(result):
            raise GraderError(f"formula {self.text!r} is not finite at {_told(values)}")
        return result


def parse_formula(text: str, names: frozenset[str]) -> Formula:
    """The formula a text spells, over the given names.

    Raises:
        GraderError: of kind formula_parse_error, with the character where reading stopped; of kind
            invalid_variable_error for a name that is none of those given, with the nearest.
    """
    if not isinstance(text, str) or not text.strip():
        raise GraderError(f"calculate_output is a formula such as '0.5 * a + 0.5 * b', got {text!r}", PARSE)
    if len(text) > LONGEST:
        raise GraderError(f"calculate_output has {len(text)} characters, more than the {LONGEST} allowed", PARSE)
    parser = _Parser(text, names)
    term = parser.whole()
    return Formula(text, frozenset(parser.used), term)


def _told(values: Values) -> str:
    return ", ".join(f"{name} = {value:g}" for name, value in values.items()) or "any values"


class _Parser:
    """Reads one formula from left to right."""

    def __init__(self, text: str, names: frozenset[str]) -> None:
        self.text, self.names = text, names
        self.used: set[str] = set()
        self.depth = 0
        self.tokens = self._tokens()
        self.at = 0

    def _tokens(self) -> list[tuple[str, str, int]]:
        """Kind, text and position of every token, and an end."""
        found, place = [], 0
        text = self.text.rstrip()
        while place < len(text):
            token = _TOKEN.match(text, place)
            if token is None:
                start = place + len(text[place:]) - len(text[place:].lstrip())
                raise self._error(f"has {text[start]!r}, which means nothing in a formula,", start)
            kind = str(token.lastgroup)
            found.append((kind, token[kind], token.start(kind)))
            place = token.end()
        return [*found, ("end", "", len(text))]

    def _error(self, told: str, place: int) -> GraderError:
        return GraderError(
            f"formula {self.text!r} {told} at character {place + 1}; write e.g. 0.5 * a + 0.5 * b", PARSE
        )

    def _unexpected(self) -> GraderError:
        kind, text, place = self.tokens[self.at]
        return self._error("ends too early" if kind == "end" else f"cannot have {text!r}", place)

    def _take(self, *signs: str) -> str | None:
        """The next token if it is one of these signs."""
        kind, text, place = self.tokens[self.at]
        if kind == "sign" and text == "**":
            raise self._error("has '**' (a power is written ^)", place)
        if kind != "sign" or text not in signs:
            return None
        self.at += 1
        return text

    def whole(self) -> Term:
        """The formula from end to end."""
        term = self.sum()
        if self.tokens[self.at][0] != "end":
            raise self._unexpected()
        return term

    def sum(self) -> Term:
        """Products added and subtracted, from left to right."""
        return self._chain(self.product, {"+": lambda a, b: a + b, "-": lambda a, b: a - b})

    def product(self) -> Term:
        """Powers multiplied and divided, from left to right."""
        return self._chain(self.signed, {"*": lambda a, b: a * b, "/": lambda a, b: a / b})

    def _chain(self, part: Callable[[], Term], signs: Mapping[str, Operation]) -> Term:
        first = part()
        rest: list[tuple[Operation, Term]] = []
        while sign := self._take(*signs):
            rest.append((signs[sign], part()))
        return _folded(first, rest) if rest else first

    def signed(self) -> Term:
        """A power with any number of signs before it."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise self._error(f"is nested more than {DEEPEST} deep", self.tokens[self.at][2])
        sign = self._take("-", "+")
        term = self.power() if sign is None else self.signed()
        self.depth -= 1
        return _negative(term) if sign == "-" else term

    def power(self) -> Term:
        """An atom, perhaps raised to a power."""
        term = self.atom()
        return _both(_power, term, self.signed()) if self._take("^") else term

    def atom(self) -> Term:
        """A number, a name, a call or parentheses."""
        if self._take("("):
            term = self.sum()
            if not self._take(")"):
                raise self._unexpected()
            return term
        kind, text, _ = self.tokens[self.at]
        if kind not in ("number", "name"):
            raise self._unexpected()
        self.at += 1
        if kind == "number":
            number = float(text)
            return lambda values: number
        return self.call(text) if self._take("(") else self.name(text)

    def name(self, text: str) -> Term:
        """The score of a grader."""
        if text not in self.names:
            known = ", ".join(sorted(self.names))
            raise GraderError(
                f"formula {self.text!r} names {text!r}, which is no grader{nearest(text, self.names)}; "
                f"the graders are {known}",
                VARIABLE,
            )
        self.used.add(text)
        return lambda values: values[text]

    def call(self, text: str) -> Term:
        """A function of what stands in the parentheses that were just opened."""
        place = self.tokens[self.at - 2][2]
        if text not in FUNCTIONS:
            near = nearest(text, FUNCTIONS)
            raise self._error(f"calls {text!r}, which is none of {', '.join(FUNCTIONS)}{near}", place)
        function, fewest, most = FUNCTIONS[text]
        arguments = [self.sum()]
        while self._take(","):
            arguments.append(self.sum())
        if not self._take(")"):
            raise self._unexpected()
        if not fewest <= len(arguments) <= most:
            raise self._error(f"gives {len(arguments)} arguments to {text}, which takes {most}", place)
        return lambda values: float(function(*(argument(values) for argument in arguments)))


def _folded(first: Term, rest: Sequence[tuple[Operation, Term]]) -> Term:
    """One loop however long the sum is: a call inside a call for each sign would exhaust Python's stack."""

    def term(values: Values) -> float:
        total = first(values)
        for operate, operand in rest:
            total = operate(total, operand(values))
        return total

    return term


def _both(operate: Operation, left: Term, right: Term) -> Term:
    return lambda values: operate(left(values), right(values))


def _negative(term: Term) -> Term:
    return lambda values: -term(values)


def _power(base: float, exponent: float) -> float:
    """As in mathematics, of real numbers.

    Raises:
        ValueError: if the result is complex, of which `abs` would make a number again.
    """
    result: Any = base**exponent
    if isinstance(result, complex):
        raise ValueError
    return float(result)
