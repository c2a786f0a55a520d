"""Python functions as graders, found by name or by file

Two signatures are known. TRL's, recognised by a parameter `completions`, gets lists of one: `f(prompts, completions,
**columns)` returns a list of one number or None. Any other is called as `grade(sample, item)` and returns a number.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from functools import reduce
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from melior.data.conversations import conversation
from melior.errors import GraderError
from melior.rewards.base import checked, output_messages, sample_of
from melior.types import Record, Score


@dataclass(frozen=True)
class Function:
    """A Python function as a grader; `reference` is empty where no other process could import it."""

    name: str
    reference: str
    _loaded: list[Callable[..., Any]] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def from_reference(cls, reference: str, *, name: str | None = None) -> Function:
        """A grader for `module:function` or `path/to/file.py:function`, not imported yet."""
        where, _, attribute = reference.rpartition(":")
        if not where or not all(part.isidentifier() for part in attribute.split(".")):
            raise GraderError(f"grader {reference!r} must be written module:function or path/to/file.py:function")
        if where.endswith(".py"):
            reference = f"{Path(where).absolute()}:{attribute}"
        return cls(name or attribute, reference)

    @classmethod
    def from_callable(cls, function: Callable[..., Any], *, name: str | None = None) -> Function:
        """A grader for a callable object."""
        named = name or str(getattr(function, "__name__", type(function).__name__))
        return cls(named, reference_of(function) or "", [function])

    @property
    def spec(self) -> Mapping[str, Any] | None:
        """JSON that finds the function again, if it can be found."""
        return {"type": "function", "name": self.name, "function": self.reference} if self.reference else None

    def load(self) -> None:
        """Import the function.

        Raises:
            GraderError: if its module or file has no such callable.
        """
        if not self._loaded:
            self._loaded.append(find_function(self.reference))

    def grade(self, record: Record) -> Score:
        """The number the function returned for this output."""
        self.load()
        function = self._loaded[0]
        parameters = inspect.signature(function).parameters
        if "completions" not in parameters:
            return checked(self.name, _settled(function(sample_of(record), dict(record.item))))
        values = _settled(function(**_trl_arguments(record, parameters)))
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sized):  # lists, arrays, tensors pass
            raise GraderError(f"{self.name} returned {type(values).__name__}; return a list of one number per output")
        if len(values) != 1:
            raise GraderError(f"{self.name} returned {len(values)} values for 1 output; return one per output")
        return checked(self.name, next(iter(cast(Iterable[Any], values))))


def _settled(value: Any) -> Any:
    """What an async function comes to; anything else as it is."""
    return asyncio.run(value) if inspect.iscoroutine(value) else value


def _trl_arguments(record: Record, parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Lists of one, by the names TRL gives them; only those the function takes."""
    chat = record.inputs is not None and not isinstance(record.inputs, str)
    completion = output_messages(record.output) if chat else record.output
    offered: dict[str, Any] = {
        **{column: [value] for column, value in record.item.items()},
        "prompts": [[dict(message) for message in conversation(record.inputs).messages] if chat else record.inputs],
        "completions": [completion],
        "completion_ids": [list(record.decisions or ())],
        "trainer_state": None,
        "log_extra": _ignored,
        "log_metric": _ignored,
    }
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return offered
    return {name: value for name, value in offered.items() if name in parameters}


def _ignored(*args: Any, **kwargs: Any) -> None:
    """Stands for TRL's logging callbacks: there is no trainer in a worker."""


def find_function(reference: str) -> Callable[..., Any]:
    """The callable that `module:function` or `file.py:function` names.

    Raises:
        GraderError: if there is no such callable; errors of the module's own code pass through.
    """
    where, _, attribute = reference.rpartition(":")
    module = load_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    try:
        found = reduce(getattr, attribute.split("."), module)
    except AttributeError:
        raise GraderError(f"{where} has no function {attribute!r}; check the spelling of {reference!r}") from None
    if not callable(found):
        raise GraderError(f"{reference!r} is {type(found).__name__}, not a function")
    return found


def load_file(path: Path) -> ModuleType:
    """The module a file holds, under a name of its own, so that `if __name__ == "__main__"` does not run."""
    if not path.is_file():
        raise GraderError(f"grader file {path} does not exist; check the path")
    name = f"melior_grader_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # its neighbours, as if the file were run
    spec.loader.exec_module(module)
    return module


def reference_of(function: Callable[..., Any]) -> str | None:
    """How a new process would find this function, or None: closures, lambdas and objects cannot be found."""
    module_name, qualname = getattr(function, "__module__", None), getattr(function, "__qualname__", "<none>")
    if not isinstance(module_name, str) or "<" in qualname or module_name not in sys.modules:
        return None
    module = sys.modules[module_name]
    try:
        if reduce(getattr, qualname.split("."), module) is not function:
            return None
    except AttributeError:
        return None
    if module_name != "__main__" and _importable(module_name.partition(".")[0]):
        return f"{module_name}:{qualname}"
    file = getattr(module, "__file__", None)
    usable = isinstance(file, str) and file.endswith(".py") and "." not in module_name and Path(file).is_file()
    return f"{Path(str(file)).absolute()}:{qualname}" if usable else None


def _importable(package: str) -> bool:
    """Whether a new process with the same sys.path would find the package."""
    return package in sys.builtin_module_names or PathFinder.find_spec(package) is not None
