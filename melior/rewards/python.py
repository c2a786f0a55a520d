"""Python source that somebody else wrote, as a grader

`def grade(sample: dict, item: dict) -> float`, as the OpenAI dialect has it. The source is read here and run nowhere
but in a sandbox, which has no network, one core, 2 GB of memory and two minutes per call.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.abc import ExecutionLoader
from types import ModuleType
from typing import Any

from melior.errors import GraderError
from melior.rewards.base import Grader, checked, sample_of
from melior.rewards.sandbox import Isolation, Level
from melior.types import Record, Score

LONGEST_SOURCE = 256 << 10  # bytes
TIMEOUT_S = 120.0  # per call
ENTRY = "grade"
MODULE = "grader_source"  # what the source is called in tracebacks


@dataclass(frozen=True)
class PythonGrader:
    """What a function `grade(sample, item)` returned, run in a sandbox.

    `grade` starts a process for one call; a `GraderPool` keeps it.
    """

    name: str
    spec: Mapping[str, Any]
    source: str

    @property
    def isolation(self) -> Isolation:
        """Code of others: it needs a sandbox."""
        return Isolation(minimum=Level.L2)

    def inside(self) -> Grader:
        """The grader that runs the source."""
        return Source(self.name, self.source)

    def load(self) -> None:
        """Nothing is run before the first call."""

    def grade(self, record: Record) -> Score:
        """The number that the source gives this output."""
        from melior.rewards.workers import GraderPool

        with GraderPool(self, processes=1, timeout_s=TIMEOUT_S) as pool:
            return pool.grade([record])[0]


def python_grader(spec: Mapping[str, Any], name: str | None) -> PythonGrader:
    """The grader of a setting; its source is parsed, and not run.

    `image_tag` and `pass_threshold` are kept; the sandbox offers the packages of this installation.

    Raises:
        GraderError: if the source is too long, cannot be compiled, or has no function `grade` of two arguments.
    """
    source, named = spec["source"], name or "python"
    if not isinstance(source, str):
        raise GraderError(f"grader python needs its source as a string, got {type(source).__name__}")
    if (size := len(source.encode("utf-8", "surrogatepass"))) > LONGEST_SOURCE:
        raise GraderError(f"the source of grader {named} has {size} bytes; at most {LONGEST_SOURCE} are allowed")
    fault = _fault(source)
    if fault:
        raise GraderError(f"the source of grader {named} {fault}", "python_grader_runtime_error")
    return PythonGrader(named, {**spec, "name": named}, source)


def _fault(source: str) -> str:
    """What is wrong with the source, empty if nothing is."""
    try:
        with warnings.catch_warnings():  # of invalid escapes and the like: not ours to print
            warnings.simplefilter("ignore")
            found = list(_bound(ast.parse(source).body))
    except SyntaxError as error:
        return f"cannot be compiled: {error.msg} (line {error.lineno})"
    except (ValueError, RecursionError, MemoryError) as error:  # NUL or half characters; nested too deeply
        return f"cannot be compiled: {str(error) or 'it is nested too deeply'}"
    if ENTRY not in [name for name, _ in found]:
        return "has no function `grade`; define grade(sample, item)"
    last = [node for name, node in found if name == ENTRY][-1]
    if isinstance(last, ast.FunctionDef | ast.AsyncFunctionDef) and not _takes_two(last.args):
        return f"has a function `grade` that cannot be called with two arguments (line {last.lineno})"
    return ""


def _bound(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """The names that statements of a module bind, those in its branches too."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name, node) for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (
                (part.id, node) for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)
            )
        else:
            for branch in ("body", "orelse", "handlers", "finalbody"):
                for inner in getattr(node, branch, []):
                    yield from _bound(inner.body if isinstance(inner, ast.ExceptHandler) else [inner])


def _takes_two(arguments: ast.arguments) -> bool:
    """Whether a function can be called with two values by position."""
    known = len(arguments.posonlyargs) + len(arguments.args)
    needed = known - len(arguments.defaults)
    unnamed = any(default is None for default in arguments.kw_defaults)
    return needed <= 2 and (known >= 2 or arguments.vararg is not None) and not unnamed


class _Loader(ExecutionLoader):
    """Gives a module its source, and tracebacks their lines."""

    def __init__(self, source: str) -> None:
        self.source = source

    def get_source(self, fullname: str) -> str:
        return self.source

    def get_filename(self, fullname: str) -> str:
        return f"{MODULE}.py"

    def load(self) -> ModuleType:
        spec = importlib.util.spec_from_loader(MODULE, self, is_package=False)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        self.exec_module(module)
        return module


@dataclass(frozen=True)
class Source:
    """The grader inside the sandbox: it runs what it was given. Never load it anywhere else."""

    name: str
    source: str
    _loaded: list[Callable[..., Any]] = field(default_factory=list, repr=False, compare=False)

    spec = None

    def load(self) -> None:
        """Run the source once; what its functions leave in the module stays for the calls of this process.

        Raises:
            GraderError: if it leaves no function `grade`; errors of the source pass through.
        """
        found = getattr(_Loader(self.source).load(), ENTRY, None)
        if not callable(found):
            raise GraderError(f"{self.name} has no function `grade`; define grade(sample, item)")
        self._loaded.append(found)

    def grade(self, record: Record) -> Score:
        """The number the function returned for this output."""
        value = self._loaded[0](sample_of(record), dict(record.item))
        return checked(self.name, asyncio.run(value) if inspect.iscoroutine(value) else value)
