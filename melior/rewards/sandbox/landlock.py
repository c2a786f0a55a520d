"""which files a process may read and write: Landlock, the kernel's sandbox for programs without privileges

Whatever a ruleset handles and no rule allows is refused. Each version of the interface (ABI) handles more than the
one before; what this kernel cannot handle is left out, and the filter of system calls refuses it where it matters.
Source: kernel documentation, userspace-api/landlock; include/uapi/linux/landlock.h.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable

from melior.rewards.sandbox.linux import syscall

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # on every machine
ASK_VERSION = 1
RULE_PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE, MAKE_CHAR, MAKE_DIR = (1 << bit for bit in range(8))
MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM, REFER, TRUNCATE, IOCTL_DEV = (1 << bit for bit in range(8, 16))
READING = READ_FILE | READ_DIR
WRITING = READING | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM | REFER | TRUNCATE
ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV  # rights that a rule on a single file can give
FILE_RIGHTS_SINCE = {2: REFER, 3: TRUNCATE, 5: IOCTL_DEV}  # ABI → what it added to the thirteen rights of the first
TCP = 0b11  # bind and connect, ABI 4
SCOPES = 0b11  # abstract UNIX sockets and signals, ABI 6


def landlock_abi() -> int:
    """The version of the interface that this kernel has; 0 where it has none."""
    try:
        return syscall("landlock_create_ruleset", CREATE_RULESET, None, 0, ASK_VERSION)
    except OSError:
        return 0


def restrict_files(readable: Iterable[str], writable: Iterable[str]) -> None:
    """Refuse this process all files but those beneath these paths, for good; paths that do not exist are skipped.

    Network and signals to processes outside are refused too where the kernel knows how. Needs no_new_privs.

    Raises:
        OSError: if the kernel has no Landlock.
    """
    abi = landlock_abi()
    files = (1 << 13) - 1
    for since, right in FILE_RIGHTS_SINCE.items():
        files |= right if abi >= since else 0
    known = [files, *([TCP] if abi >= 4 else []), *([SCOPES] if abi >= 6 else [])]
    handled = struct.pack(f"={len(known)}Q", *known)  # struct landlock_ruleset_attr, as long as this kernel knows it
    ruleset = syscall("landlock_create_ruleset", CREATE_RULESET, handled, len(handled), 0)
    try:
        for paths, rights in ((readable, READING), (writable, WRITING)):
            for path in paths:
                _allow(ruleset, path, rights & files)
        syscall("landlock_restrict_self", RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(parent).st_mode):
            rights &= ON_FILES
        rule = struct.pack("=Qi", rights, parent)  # struct landlock_path_beneath_attr, packed
        syscall("landlock_add_rule", ADD_RULE, ruleset, RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(parent)
