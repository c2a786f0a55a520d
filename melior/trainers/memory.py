"""how much memory a process holds, has held, and could still have"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STATUS, MEMINFO = Path("/proc/self/status"), Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def held() -> int:
    """Bytes of the accelerator where there is one, else of main memory, that this process holds now."""
    if torch.cuda.is_available():
        return int(torch.cuda.memory_reserved())
    return _kib(STATUS, "VmRSS") or _peak_rss()


def peak() -> int:
    """The most bytes this process ever held; on an accelerator since `forget_peak`."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    return _kib(STATUS, "VmHWM") or _peak_rss()


def forget_peak() -> bool:
    """Lets `peak` count from now; False where the system does not offer it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: resets the high water mark
    except OSError:
        return False
    return True


def available() -> int | None:
    """Bytes that could still be taken without swapping, within a container's limit; None where nobody can say."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    free = _kib(MEMINFO, "MemAvailable")
    limit = _contained()
    known = [amount for amount in (free, limit) if amount is not None]
    if known:
        return min(known)
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def saved_for_backward(forward: Callable[[], Any], *, but: set[int]) -> int:
    """Bytes that autograd keeps for the backward pass of what `forward` computes, each storage once.

    `but` holds addresses of storages that are there anyway: the parameters.
    """
    sizes: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in but:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = forward()  # alive until counted, or storages would be freed and their addresses used again
    del kept
    return sum(sizes.values())


def in_bytes(amount: float) -> str:
    """A number of bytes as people say it: `1.3 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit in ("B", "kB") else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _kib(file: Path, name: str) -> int | None:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _contained() -> int | None:
    """What a container's limit leaves, files read and not used since being free; None where there is none."""
    try:
        limit, current = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        kept = [line.split() for line in (CGROUP / "memory.stat").read_text().splitlines()]
    except OSError:
        return None
    cached = sum(int(amount) for name, amount in kept if name == "inactive_file")
    return None if limit == "max" else max(0, int(limit) - int(current) + cached)


def _peak_rss() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # macOS counts bytes, Linux kibibytes
