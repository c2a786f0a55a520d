"""what commands print: tables and JSON on stdout, one sentence on stderr when something is wrong"""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
import traceback
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import typer

from melior.errors import MeliorError
from melior.jobs.trainer import DATABASE

P = ParamSpec("P")
R = TypeVar("R")

HIDDEN = "\N{REPLACEMENT CHARACTER}"
INTERRUPTED = 130  # what a shell expects of a program that Ctrl-C ended
JSON = typer.Option(False, "--json", help="Print JSON.")
STORE = typer.Option(
    None, "--store", envvar=DATABASE, help="The registry's database: a file or a URL. Default: the one in MELIOR_HOME."
)


class Errors:
    """Whether errors show their traceback; `main` sets it from --debug."""

    debug = False


def told(command: Callable[P, R]) -> Callable[P, R]:
    """The command with its errors in one sentence: exit status 1, and 130 after Ctrl-C."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except typer.Exit:
            raise
        except KeyboardInterrupt as stop:
            warn(f"melior: {stop if str(stop) else 'stopped'}; the same command goes on from where it stopped")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # `melior … | head`
            sys.stdout = None  # nothing is left to flush into
            raise typer.Exit(1) from None
        except Exception as error:
            if Errors.debug:
                traceback.print_exc()
            elif isinstance(error, MeliorError):
                warn(f"melior: {shown(str(error))}")  # which may quote a file's own words
            else:
                first = (str(error).strip().splitlines() or ["no message"])[0]
                warn(f"melior: {type(error).__name__}: {first} (this is a bug, or the machine; --debug shows where)")
            raise typer.Exit(1) from None

    return run


def warn(line: str) -> None:
    """One line on stderr."""
    print(line, file=sys.stderr, flush=True)


def say(line: str = "") -> None:
    """One line on stdout."""
    print(line, flush=True)


def say_json(value: Any) -> None:
    """A value as JSON on stdout; dataclasses as objects, what is not finite as null."""
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False), flush=True)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return None
    return value


def say_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows in aligned columns, numbers to the right; plain text, so that it can be piped."""
    cells_of = [["" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max([len(name), *(len(row[i]) for row in cells_of)]) for i, name in enumerate(columns)]
    right = [bool(cells_of) and all(_numeric(row[i]) for row in cells_of) for i in range(len(columns))]
    for row in [list(columns), ["─" * width for width in widths], *cells_of]:
        cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        say("  ".join(cells).rstrip())


def _numeric(cell: str) -> bool:
    return not cell or cell.lstrip("+-−").replace(",", "").replace(".", "", 1).isdigit()


def interval(fields: Mapping[str, Any] | None, *, sign: bool = False) -> str:
    """An estimate and its interval: `0.412 [0.350, 0.474]`."""
    if fields is None or fields.get("estimate") is None:
        return "—"
    low, high = (("−∞", "∞")[i] if v is None else f"{v:.3f}" for i, v in enumerate((fields["low"], fields["high"])))
    return f"{fields['estimate']:{'+' if sign else ''}.3f} [{low}, {high}]"


def shown(text: str) -> str:
    """A model's text without the control characters that would steer a terminal."""
    return "".join(HIDDEN if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)


def first_line(text: Any, width: int = 60) -> str:
    """A text on one line, cut to a width."""
    line = shown(" ".join(str(text).split()))
    return line if len(line) <= width else line[: width - 1] + "…"


def last_part(text: Any, width: int = 60) -> str:
    """A text on one line, its beginning cut off: questions often differ at their end."""
    line = shown(" ".join(str(text).split()))
    return line if len(line) <= width else "…" + line[1 - width :]


def program() -> str:
    """How to call melior again from here: by name where the shell finds it, else by the path it was called with."""
    return "melior" if shutil.which("melior") else os.path.relpath(sys.argv[0])
