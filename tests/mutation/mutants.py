"""small wrong versions of a module: a sign, a bound, a number, a missing detach, two arguments in each other's place

A test suite that pins what a formula says fails on every one of them. Functions and constants of a module are changed;
annotations, texts and error messages are not.
"""

from __future__ import annotations

import ast
import builtins
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OTHERS = {  # a function or method, and one that is easily taken for it
    "min": "max",
    "max": "min",
    "minimum": "maximum",
    "maximum": "minimum",
    "amin": "amax",
    "amax": "amin",
    "sum": "mean",
    "mean": "sum",
    "all": "any",
    "any": "all",
    "exp": "expm1",
    "expm1": "exp",
    "log": "log1p",
    "log1p": "log",
    "logsigmoid": "sigmoid",
    "zeros_like": "ones_like",
    "ones_like": "zeros_like",
}
STEPS = {"detach", "clamp", "abs", "square", "sqrt", "flip", "cumsum", "exp", "log", "masked_fill"}  # can be left out
WRAPPERS = {"select": 0, "where": 1}  # functions that can be left out, and the argument that then stands alone
SYMMETRIC = {"min", "max", "minimum", "maximum", "logaddexp"}  # the order of arguments says nothing
SAME = {"to", "double", "float"}  # methods that change how a number is kept, not which it is

Place = tuple[tuple[str, int | None], ...]  # fields that lead to a node, with a number where a field is a list


@dataclass(frozen=True)
class Mutant:
    """One change to a module's source."""

    module: str  # dotted
    function: str  # where it is; empty at the top of the module
    change: str  # "before → after", with the number of its like where there are several
    original: ast.Module
    place: Place
    other: ast.AST  # what stands there instead

    @property
    def name(self) -> str:
        """The same whatever else changes in the module."""
        return f"{self.module}.{self.function or '<module>'}: {self.change}"

    def tree(self) -> ast.Module:
        """The whole changed module."""
        mutated = copy.deepcopy(self.original)
        parent = _at(mutated, self.place[:-1])
        name, number = self.place[-1]
        if number is None:
            setattr(parent, name, copy.deepcopy(self.other))
        else:
            getattr(parent, name)[number] = copy.deepcopy(self.other)
        return ast.fix_missing_locations(mutated)


def mutants_of(module: str, path: Path) -> list[Mutant]:
    """Every mutant of a module, in the order of its source."""
    tree = ast.parse(path.read_text())
    found: list[Mutant] = []
    seen: Counter[tuple[str, str]] = Counter()
    for function, place in _places(tree):
        node = _at(tree, place)
        for other in _alternatives(node):
            change = f"{_told(node)} → {_told(other)}"
            seen[function, change] += 1
            number = seen[function, change]
            told = change + (f" #{number}" if number > 1 else "")
            found.append(Mutant(module, function, told, tree, place, other))
    return found


def unchanged(module: str, path: Path) -> Mutant:
    """The module as it is, which every test must take for the original."""
    tree = ast.parse(path.read_text())
    return Mutant(module, "", "nothing", tree, (("body", 0),), tree.body[0])


def _places(tree: ast.Module) -> Iterator[tuple[str, Place]]:
    """Where something may be changed: function and place."""
    for number, statement in enumerate(tree.body):
        start: Place = (("body", number),)
        if isinstance(statement, ast.FunctionDef):
            yield from ((statement.name, place) for place in _within(statement, start))
        elif isinstance(statement, ast.Assign):
            yield from (("", place) for place in _within(statement, start))


def _within(node: ast.AST, place: Place) -> Iterator[Place]:
    yield place
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for number, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST) and not isinstance(child, (ast.JoinedStr, ast.Raise)):
                yield from _within(child, (*place, (name, number)))


def _at(tree: ast.AST, place: Place) -> ast.AST:
    node = tree
    for name, number in place:
        value = getattr(node, name)
        node = value if number is None else value[number]
    return node


def _alternatives(node: ast.AST) -> Iterator[ast.AST]:
    """What might have been written instead."""
    match node:
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            yield _with(node, op=OPERATORS[type(op)]())
        case ast.AugAssign(op=op) if type(op) in OPERATORS:
            yield _with(node, op=OPERATORS[type(op)]())
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.Compare(ops=ops):
            for number, op in enumerate(ops):
                for other in COMPARISONS[type(op)]:
                    yield _with(node, ops=[*ops[:number], other(), *ops[number + 1 :]])
        case ast.BoolOp(op=op):
            yield _with(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(value * 2 if value else 1.0)
        case ast.Constant(value=str(value)) if value in OTHERS:
            yield ast.Constant(OTHERS[value])
        case ast.If(test=test) | ast.IfExp(test=test):
            yield _with(node, test=ast.UnaryOp(ast.Not(), test))
        case ast.Return(value=ast.expr()):
            yield ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.Call():
            yield from _calls(node)


def _calls(node: ast.Call) -> Iterator[ast.AST]:
    """Another function, the value without the method, arguments in each other's place, one argument less."""
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name in SAME:
        return
    if name in OTHERS:
        yield _with(node, func=_renamed(function, OTHERS[name]))
    if name in WRAPPERS:
        yield node.args[WRAPPERS[name]]
    if name in STEPS and isinstance(function, ast.Attribute) and _told(function.value) != "torch":
        yield function.value
    for first in range(len(node.args) - 1 if name not in SYMMETRIC else 0):
        if not any(isinstance(each, ast.Starred) for each in node.args[first : first + 2]):
            swapped = [*node.args[:first], node.args[first + 1], node.args[first], *node.args[first + 2 :]]
            yield _with(node, args=swapped)
    for number in range(len(node.keywords)):
        yield _with(node, keywords=[each for place, each in enumerate(node.keywords) if place != number])


def _renamed(function: ast.expr, name: str) -> ast.AST:
    """Another method, builtin or function of torch."""
    if isinstance(function, ast.Attribute):
        return _with(function, attr=name)
    return ast.Name(name, ast.Load()) if hasattr(builtins, name) else ast.parse(f"torch.{name}", mode="eval").body


def _with(node: ast.AST, **fields: object) -> ast.AST:
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def _told(node: ast.AST) -> str:
    if isinstance(node, ast.If):
        return f"if {ast.unparse(node.test)}"
    return " ".join(ast.unparse(node).split())
