"""the few calls of Linux that Python's library does not have

Numbers and layouts are the kernel's own: include/uapi/linux/{prctl,capability,mount,sched}.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 4, 24, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
CAPABILITY_VERSION_3 = 0x20080522
LAST_CAPABILITY = 63  # of the two words that a capability set has
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x40000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 0x1, 0x2, 0x4
MNT_DETACH = 2
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_SETATTR = 442  # the same number on both machines, as all calls since Linux 5.1
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


class MountAttributes(ctypes.Structure):
    """struct mount_attr."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


@cache
def libc() -> ctypes.CDLL:
    """The C library this process runs with."""
    return ctypes.CDLL(None, use_errno=True)


def machine() -> str:
    """x86_64 or aarch64, or another name for which there is no sandbox."""
    return {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())


def succeeded(result: int, what: str) -> int:
    """The result of a call that did not fail.

    Raises:
        OSError: with the call's name and the kernel's reason.
    """
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(what: str, number: int, *arguments: int | bytes | None) -> int:
    """A system call by its number; bytes are passed as a pointer to them, integers as 64 bits."""
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    return succeeded(libc().syscall(ctypes.c_long(number), *words), what)


def prctl(what: str, option: int, *arguments: int) -> int:
    """prctl(2) with up to four numbers."""
    words = [ctypes.c_ulong(word) for word in (*arguments, 0, 0, 0, 0)[:4]]
    return succeeded(libc().prctl(ctypes.c_int(option), *words), what)


def unshare(flags: int) -> None:
    """Leave the namespaces of these kinds for new ones."""
    succeeded(libc().unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2)."""
    named = kind.encode() if kind is not None else None
    made = libc().mount(source.encode(), os.fsencode(target), named, ctypes.c_ulong(flags), options.encode())
    succeeded(made, f"mount {target}")


def restrict_mount(target: str, attributes: int, *, below: bool = True) -> None:
    """Add attributes to a mount, and to all mounts below it if asked."""
    change = bytes(MountAttributes(set=attributes))
    flags = AT_RECURSIVE if below else 0
    syscall("mount_setattr", MOUNT_SETATTR, AT_FDCWD, os.fsencode(target), flags, change, len(change))


def enter_root(folder: str) -> None:
    """Make a mounted folder the root, and let go of everything outside it."""
    os.chdir(folder)
    syscall("pivot_root", PIVOT_ROOT[machine()], b".", b".")
    succeeded(libc().umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/")


def drop_capabilities() -> None:
    """Give up every capability for good."""
    for capability in range(LAST_CAPABILITY + 1):
        libc().prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)  # fails without CAP_SETPCAP: nothing to drop
    libc().prctl(PR_CAP_AMBIENT, ctypes.c_ulong(PR_CAP_AMBIENT_CLEAR_ALL), 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, twice 32 bits each
    succeeded(libc().capset(header, nothing), "capset")
