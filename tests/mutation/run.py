"""python tests/mutation/run.py [MODULE …]: how many wrong versions of the mathematics the tests notice

Every mutant of `mutants.py` is put in place of the original, and the tests that call the changed function are run, the
quickest first, until one fails. A mutant that no test notices is a hole in the tests, unless `equivalent.py` says why
it cannot be noticed. Tests are collected once and each mutant lives in a fork, so nothing is imported again. Fails
below 95 %.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import re
import resource
import sys
import time
import types
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol
from equivalent import EQUIVALENT
from hypothesis import Phase, settings
from mutants import Mutant, mutants_of, unchanged

ROOT = Path(__file__).resolve().parent.parent.parent
MODULES = (
    "melior.masking",
    "melior.advantages",
    "melior.losses.likelihood",
    "melior.losses.preference",
    "melior.losses.policy_gradient",
    "melior.losses.divergence",
    "melior.losses.value",
    "melior.losses.reward",
    "melior.losses.distillation",
)
TESTS = ("tests/losses", "tests/test_advantages.py", "tests/test_masking.py")  # its own laws, not what is built on it
LAW = re.compile(r"assert|AssertionError|Failed|[\w.]*GradcheckError")  # how the message of an unmet law begins
FLOOR = 0.95  # share of mutants that must be noticed
# Of one mutant, in seconds of its own: what makes a test run for ever is noticed too.
PATIENCE_S = 1
PATIENCE_TIMES = 10  # and as many times as long as its tests take without it


class Verdict(IntEnum):
    """How a mutant ended: the exit status of its process."""

    SURVIVED = 0
    WRONG = 1  # a law saw it
    BROKEN = 2  # it raised where nothing should be raised, or never ended


@dataclass
class Mutation:
    """A pytest plugin that, instead of running the tests once, runs them on every mutant."""

    mutants: Sequence[Mutant]
    files: Mapping[str, str]  # path → module
    verdicts: dict[str, Verdict] = field(default_factory=dict)  # of each mutant, by name
    failing: str = ""  # a test that fails on the original
    calls: dict[str, list[tuple[float, Any]]] = field(default_factory=dict)  # function → (seconds, test)

    def pytest_collection(self) -> None:
        """Whether an example fails is all that is asked, so none is made smaller."""
        settings.register_profile("mutation", settings.default, phases=[Phase.explicit, Phase.generate])
        settings.load_profile("mutation")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self._measure(session.items)
        gc.freeze()  # a collection in a child would touch, and so copy, all that it shares
        gc.disable()
        started = time.monotonic()
        for path, module in self.files.items():
            if not self.failing and self._tried(unchanged(module, Path(path))) is not Verdict.SURVIVED:
                self.failing = f"some test of {module}, run a second time,"
        for number, mutant in enumerate(self.mutants if not self.failing else (), start=1):
            self.verdicts[mutant.name] = verdict = self._tried(mutant)
            if verdict is Verdict.SURVIVED:
                print(f"\nsurvived  {mutant.name}", flush=True)
            if number % 50 == 0:
                print(f"\n{number} of {len(self.mutants)} in {time.monotonic() - started:.0f} s", flush=True)
        return True

    def _measure(self, items: Sequence[Any]) -> None:
        """Which functions each test calls, and how long it takes."""
        for item, following in zip(items, [*items[1:], None]):
            called: set[str] = set()

            def note(frame: types.FrameType, event: str, argument: Any, called: set[str] = called) -> None:
                if event == "call" and frame.f_code.co_filename in self.files:
                    called.add(f"{self.files[frame.f_code.co_filename]}.{frame.f_code.co_qualname.split('.')[0]}")

            started = time.process_time()
            sys.setprofile(note)
            reports = runtestprotocol(item, nextitem=following, log=False)
            sys.setprofile(None)
            seconds = time.process_time() - started
            if any(report.failed for report in reports):
                self.failing = item.nodeid
                return
            for name in called:
                self.calls.setdefault(name, []).append((seconds, item))

    def _tried(self, mutant: Mutant) -> Verdict:
        tests = self._tests(mutant)
        patience = PATIENCE_S + PATIENCE_TIMES * sum(seconds for seconds, _ in tests)
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_CPU, (int(patience), int(patience) + 1))
            os._exit(_judged(mutant, [item for _, item in tests]))
        status = os.waitpid(child, 0)[1]
        return Verdict(os.WEXITSTATUS(status)) if os.WIFEXITED(status) else Verdict.BROKEN

    def _tests(self, mutant: Mutant) -> list[tuple[float, Any]]:
        """The tests that reach the changed function, or for a constant the module; the quickest first."""
        reached = {
            item.nodeid: (seconds, item)
            for name, found in self.calls.items()
            if name == f"{mutant.module}.{mutant.function}"
            or (not mutant.function and name.rpartition(".")[0] == mutant.module)
            for seconds, item in found
        }
        return sorted(reached.values(), key=lambda each: each[0])


def _judged(mutant: Mutant, tests: Sequence[Any]) -> Verdict:
    """What the tests say of the mutant, in a process of its own."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        _install(mutant)
        for item in tests:
            failed = [report for report in runtestprotocol(item, nextitem=None, log=False) if report.failed]
            if failed:
                return Verdict.WRONG if LAW.match(failed[0].longrepr.reprcrash.message) else Verdict.BROKEN
    except BaseException:
        return Verdict.BROKEN
    return Verdict.SURVIVED


def _install(mutant: Mutant) -> None:
    """Puts the mutant's code into the functions there are, wherever they were imported to."""
    module = importlib.import_module(mutant.module)
    names = dict(vars(module))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(mutant.tree(), str(module.__file__), "exec"), names)
    for name, new in names.items():
        old = vars(module).get(name)
        if not isinstance(new, types.FunctionType):
            setattr(module, name, new)
        elif isinstance(old, types.FunctionType) and new.__module__ == mutant.module:
            old.__code__, old.__defaults__, old.__kwdefaults__ = new.__code__, new.__defaults__, new.__kwdefaults__


def report(mutation: Mutation, found: Sequence[Mutant], modules: Sequence[str]) -> int:
    """Prints the score; exit status 1 if it is too low or a reason in `equivalent.py` has lost its mutant."""
    verdicts = mutation.verdicts
    survived = sum(verdict is Verdict.SURVIVED for verdict in verdicts.values())
    wrong = sum(verdict is Verdict.WRONG for verdict in verdicts.values())
    share = 1 - survived / max(1, len(verdicts))
    print(f"\n{len(verdicts) - survived} of {len(verdicts)} mutants noticed, {share:.1%}; {wrong} by a law, the others")
    print(f"because they raised or never ended; {len(found) - len(verdicts)} left out")
    for module in modules:
        own = [verdicts[mutant.name] for mutant in mutation.mutants if mutant.module == module]
        print(f"  {module:32} {len(own) - own.count(Verdict.SURVIVED):4} of {len(own)}")
    for name, verdict in verdicts.items():
        if verdict is Verdict.SURVIVED:
            print(f"survived  {name}")
    names = {mutant.name for mutant in found}
    lost = [name for name in EQUIVALENT if name not in names and name.startswith(tuple(f"{each}." for each in modules))]
    for name in lost:
        print(f"no such mutant any more: {name}")
    return int(share < FLOOR or bool(lost))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("modules", nargs="*", default=MODULES, help="dotted names; all of the mathematics")
    parser.add_argument("--only", default="", help="only mutants whose name holds this text")
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder that holds the modules and the tests")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="files or folders in it")
    asked = parser.parse_args()
    os.chdir(asked.root)
    sys.path.insert(0, str(asked.root))
    files = {str(importlib.import_module(module).__file__): module for module in asked.modules}
    found = [mutant for path, module in files.items() for mutant in mutants_of(module, Path(path))]
    mutants = [mutant for mutant in found if mutant.name not in EQUIVALENT and asked.only in mutant.name]
    mutation = Mutation(mutants, files)
    options = ["-q", "--tb=native", "-p", "no:cacheprovider", "-p", "no:timeout", "-W", "ignore"]
    pytest.main([*options, *asked.tests], plugins=[mutation])
    if mutation.failing or len(mutation.verdicts) < len(mutants):
        print(f"{mutation.failing or 'the tests'} cannot be run or fails without any mutant; mend that first")
        return 2
    return report(mutation, found, asked.modules)


if __name__ == "__main__":
    sys.exit(main())
