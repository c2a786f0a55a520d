"""what a sandbox must refuse, run inside one to find out whether it does"""

from __future__ import annotations

import json  # noqa: F401  (a module of the standard library must load)
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from typing import Any


def grade(sample: dict[str, Any], item: dict[str, Any]) -> float:
    """1.0 if everything forbidden is refused and everything promised works; raises otherwise."""
    forbidden: dict[str, Callable[[], object]] = {
        "reading /etc/passwd": lambda: open("/etc/passwd").close(),
        "reading the program that started it": lambda: open(item["outside"]).close(),
        "listing /": lambda: os.listdir("/") if item["level"] < 3 else _refused(),
        "writing beside its folder": lambda: open(os.path.join(os.path.dirname(os.getcwd()), "x"), "w").close(),
        "a socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "a process": os.fork,
        "another program": lambda: os.execv(sys.executable, [sys.executable, "-c", ""]),
        "a signal to its parent": lambda: os.kill(item["guardian"], 0),
        "another root": lambda: os.chroot("."),
    }
    allowed = [name for name, attempt in forbidden.items() if _works(attempt)]
    if allowed:
        raise RuntimeError(f"the sandbox allows {', '.join(allowed)}")
    import decimal  # noqa: F401  (so must one that has not been imported yet, with a shared library)

    with tempfile.TemporaryFile() as file:
        file.write(b"x")
    return 1.0


def _refused() -> None:
    raise PermissionError


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True
