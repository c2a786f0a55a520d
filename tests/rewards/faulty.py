"""graders that misbehave, each in its own way; `item["fault"]` picks one"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def length(sample: dict[str, Any], item: dict[str, Any]) -> float:
    return float(len(sample["output_text"]))


def reads(sample: dict[str, Any], item: dict[str, Any]) -> float:
    return float(len(Path(item["path"]).read_text()[:1]))


def trl_length(prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float | None]:
    return [float(len(completion)) for completion in completions]


def returns(sample: dict[str, Any], item: dict[str, Any]) -> Any:
    values = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf"), "huge": 10**400, "none": None}
    values |= {"string": "1.0", "list": [1.0], "complex": 1j, "true": True, "int": 3}
    return values[item["value"]]


def trl_returns(prompts: list[str], completions: list[str], value: list[Any], **columns: Any) -> Any:
    values: dict[str, Any] = {"two": [1.0, 2.0], "empty": [], "number": 1.0, "string": "1", "none": None}
    values |= {"[none]": [None], "[nan]": [float("nan")], "dict": {0: 1.0}}
    return values[value[0]]


def misbehave(sample: dict[str, Any], item: dict[str, Any]) -> float:
    fault = item.get("fault", "")
    if fault:
        FAULTS[fault](item)
    return float(len(sample["output_text"]))


def _hang(item: dict[str, Any]) -> None:
    time.sleep(60)


def _hang_in_c(item: dict[str, Any]) -> None:
    ctypes.PyDLL(None).sleep(60)  # holds the GIL


def _raise(item: dict[str, Any]) -> None:
    raise ValueError("bad luck\nsecond line")


def _exit(item: dict[str, Any]) -> None:
    sys.exit(3)


def _os_exit(item: dict[str, Any]) -> None:
    os._exit(0)


def _segfault(item: dict[str, Any]) -> None:
    print("last words")
    ctypes.string_at(0)


def _kill_itself(item: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_guardian(item: dict[str, Any]) -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


def _flood(item: dict[str, Any]) -> None:
    for _ in range(2000):
        sys.stdout.write("x" * 1000 + "\n")
        sys.stderr.write('{"id": "0", "score": {"value": 1}}\n')


def _flood_descriptor(item: dict[str, Any]) -> None:
    os.write(1, b"y" * 1_000_000)


def _eat_memory(item: dict[str, Any]) -> None:
    bytearray(8 << 30)


def _fork_and_return(item: dict[str, Any]) -> None:
    os.fork()


def _leave_child(item: dict[str, Any]) -> None:
    """A sleeping child in the same session, and one in its own, whose ids are left in a file."""
    ids = [os.getpid(), os.getppid()]
    for new_session in (False, True):
        ids.append(subprocess.Popen(["sleep", "120"], start_new_session=new_session).pid)
    if os.fork() == 0:
        if os.fork() == 0:  # a daemon: its parent is gone
            os.setsid()
            with Path(item["pids"]).open("a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(120)
        os._exit(0)
    os.wait()
    time.sleep(0.1)
    with Path(item["pids"]).open("a") as file:
        file.writelines(f"{pid}\n" for pid in ids)


def _leave_child_and_hang(item: dict[str, Any]) -> None:
    _leave_child(item)
    time.sleep(60)


def _leave_child_and_crash(item: dict[str, Any]) -> None:
    _leave_child(item)
    os._exit(1)


def _leave_child_and_raise(item: dict[str, Any]) -> None:
    _leave_child(item)
    raise ValueError


NUMBERS = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf"), "none": None, "string": "1", "many": [1, 2]}


def grade(sample: dict[str, Any], item: dict[str, Any]) -> Any:
    """Every fault: what is no number, and what misbehaves; otherwise outputs of one length differ in reward."""
    fault = item.get("fault", "")
    return NUMBERS[fault] if fault in NUMBERS else misbehave(sample, item) + sum(sample["output_text"].encode()) / 1e3


FAULTS = {
    name.removeprefix("_"): function
    for name, function in list(globals().items())
    if callable(function) and name.startswith("_") and not name.startswith("__")
}
