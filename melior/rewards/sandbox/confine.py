"""a process gives up, step by step, what user code must not have

    guardian: Sandbox() ── fork ──▶ child: enter() ──▶ user code
                            └─────▶ guardian: overfull(), remove()

The order of the steps matters: each needs what a later one takes away.
"""

from __future__ import annotations

import os
import re
import resource
import secrets
import signal
import site
import stat
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from melior.rewards.sandbox.landlock import restrict_files
from melior.rewards.sandbox.levels import Confinement, Level
from melior.rewards.sandbox.linux import (
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    drop_capabilities,
    prctl,
)
from melior.rewards.sandbox.namespaces import children_in_new_namespaces, enter_empty_world
from melior.rewards.sandbox.seccomp import install_filter

FOLDER = "melior-sandbox-"  # and the process id of the guardian, which removes it
LOOK_EVERY_MS = 200  # how often the guardian looks at a folder on disk; nobody writes 1 GB in that time
BLOCK = 4096  # bytes a file takes at least
DEEPEST = 64  # folders inside one another; looking at them recurses
FIRST_USER = 2_000_000_000  # plus a process id: user ids up to 2,004,194,304, which no system hands out
LIBRARIES = (  # what a program needs to load shared libraries, tell the time and draw random numbers
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/nix/store",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/dev/urandom",
    "/dev/random",
    "/dev/zero",
)
WRITABLE_DEVICES = ("/dev/null",)


class Sandbox:
    """One process's confinement: made by its parent before the fork, entered by the process, removed by the parent.

    Raises:
        OSError: if this machine does not allow the level.
    """

    def __init__(self, confinement: Confinement) -> None:
        self.confinement = confinement
        self.user = FIRST_USER + os.getpid() if confinement.own_user else None
        self.folder: str | None = None  # on disk; at level 3 the process gets one in memory, which ends with it
        self.look_every_ms: int | None = None
        if confinement.level >= Level.L3:
            children_in_new_namespaces()
            return
        _remove_abandoned()
        self.folder = tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-")
        self.look_every_ms = LOOK_EVERY_MS
        try:
            if self.user is not None:
                os.chown(self.folder, self.user, self.user)
        except OSError:  # in a container that has no such user
            self.remove()
            raise

    def enter(self, kept: Iterable[int]) -> None:
        """Give up everything that the level takes away; of the open files only `kept` and 0, 1, 2 stay open.

        Raises:
            OSError: if this machine does not allow the level.
        """
        os.setsid()
        _close_others({0, 1, 2, *kept})
        readable = readable_paths()
        folder = self.folder or enter_empty_world([*readable, *WRITABLE_DEVICES], self.confinement.folder_bytes)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment(folder))
        tempfile.tempdir = folder
        _limit(self.confinement)
        if self.user is not None:
            os.setgroups([])
            os.setresgid(self.user, self.user, self.user)
            os.setresuid(self.user, self.user, self.user)
        drop_capabilities()
        prctl("PR_SET_PDEATHSIG", PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user has cleared it
        prctl("PR_SET_DUMPABLE", PR_SET_DUMPABLE, 0)
        prctl("PR_SET_NO_NEW_PRIVS", PR_SET_NO_NEW_PRIVS, 1)
        restrict_files(readable, [folder, *WRITABLE_DEVICES])
        sys.path[:] = [path for path in sys.path if any(Path(path).is_relative_to(above) for above in readable)]
        sys.path_importer_cache.clear()
        install_filter(os.getpid())

    def overfull(self) -> str:
        """What to say of a folder that holds more than it may, or hides what it holds; empty if it does neither."""
        if self.folder is None:
            return ""
        held, most, refused = 0, self.confinement.folder_bytes, list[OSError]()
        above = self.folder.count(os.sep)
        for place, folders, files, descriptor in os.fwalk(self.folder, onerror=refused.append):
            if place.count(os.sep) - above > DEEPEST:
                return f"its working folder held more than {DEEPEST} folders inside one another"
            held += BLOCK * len(folders) + sum(_size(name, descriptor) for name in files)
        if any(isinstance(error, PermissionError) for error in refused):
            return "its working folder held a folder that cannot be looked into"
        return f"its working folder held {held >> 20} MB, it may hold {most >> 20} MB" if held > most else ""

    def remove(self) -> None:
        """Remove the folder; symbolic links in it are not followed."""
        if self.folder is not None:
            _remove(self.folder)


def _size(name: str, folder: int) -> int:
    """Bytes that a file takes, a block at least; symbolic links are not followed."""
    try:
        return max(os.stat(name, dir_fd=folder, follow_symlinks=False).st_blocks * 512, BLOCK)
    except OSError:  # it is gone
        return 0


def _remove(folder: str) -> None:
    """Remove a folder that nobody writes into any more; where something cannot be removed, the rest stays.

    Folders move up until none is inside another: a recursion would end where user code has dug deep enough.
    """
    with suppress(OSError):
        while True:
            found = list(os.scandir(folder))
            for entry in found:
                _unpack(entry.path, folder) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
            if not found:
                break
        os.rmdir(folder)


def _unpack(path: str, top: str) -> None:
    """Remove a folder, its files with it; the folders in it move to the top."""
    os.chmod(path, 0o700)
    for entry in list(os.scandir(path)):
        if entry.is_dir(follow_symlinks=False):
            os.chmod(entry.path, 0o700)  # moving a folder writes into it
            os.rename(entry.path, os.path.join(top, secrets.token_hex(16)))
        else:
            os.unlink(entry.path)
    os.rmdir(path)


def _remove_abandoned() -> None:
    """Remove the folders of guardians that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        found = re.fullmatch(rf"{FOLDER}(\d+)-\w+", path.name)
        with suppress(OSError):
            status = path.lstat()
            ours = found and stat.S_ISDIR(status.st_mode) and status.st_uid in _ours(int(found[1]))
            if found and ours and not os.path.exists(f"/proc/{found[1]}"):
                _remove(str(path))


def _ours(guardian: int) -> tuple[int, int]:
    return os.getuid(), FIRST_USER + guardian


def environment(folder: str) -> dict[str, str]:
    """All environment variables of a sandbox: one thread, no bytecode files, and the same order of sets every time."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ARROW_IO_THREADS"), "1")
    fixed = {"PATH": "", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}
    return {**one_thread, **fixed, "HOME": folder, "TMPDIR": folder}


def readable_paths() -> list[str]:
    """Python's own library, its installed packages and the shared libraries."""
    installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    users = [path for path in [site.getusersitepackages()] if path in sys.path]
    shared = [os.path.join(prefix, "lib") for prefix in (sys.base_prefix, sys.base_exec_prefix)]
    found = [*installed, *site.getsitepackages(), *users, *shared, *LIBRARIES]
    return [path for path in dict.fromkeys(found) if os.path.exists(path)]


def _close_others(kept: set[int]) -> None:
    """Close every descriptor but these."""
    edges = sorted(kept)
    for below, above in zip(edges, [*edges[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(below + 1, above)


def _limit(confinement: Confinement) -> None:
    """Limits that no process can raise again without a capability."""
    limits = {
        resource.RLIMIT_AS: confinement.memory_bytes,
        resource.RLIMIT_FSIZE: confinement.file_bytes,
        resource.RLIMIT_NOFILE: confinement.open_files,
        resource.RLIMIT_CPU: confinement.cpu_s,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_NPROC: 1,
    }
    for kind, limit in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (value, value))
