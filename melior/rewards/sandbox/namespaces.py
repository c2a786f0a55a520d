"""a world with nothing in it: no network, no other processes, no files but the ones Python needs"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from melior.rewards.sandbox.linux import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    enter_root,
    mount,
    restrict_mount,
    unshare,
)

PLACES = ("/sys", "/mnt", "/media")  # an existing folder that no program is read from; the new root covers it
INODES = 4096  # files that the working folder can hold
WORK = "/melior-sandbox"  # the only folder of the new root that can be written; no library is read from beneath it


def children_in_new_namespaces() -> None:
    """Put the processes this one will start into a process namespace of their own.

    Without the privilege to do so, this process enters a user namespace first, in which it has it and keeps its ids.

    Raises:
        OSError: if this machine allows neither.
    """
    user, group = os.getuid(), os.getgid()
    try:
        unshare(CLONE_NEWPID)
    except PermissionError:
        unshare(CLONE_NEWUSER | CLONE_NEWPID)
        with suppress(FileNotFoundError):
            Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def enter_empty_world(readable: Iterable[str], folder_bytes: int) -> str:
    """Leave network, files and everything else behind but these paths; returns the folder that can be written.

    Raises:
        OSError: if this machine does not allow it.
    """
    unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)
    root = next((place for place in PLACES if os.path.isdir(place)), None)
    if root is None:
        raise OSError(errno.ENOENT, f"none of {', '.join(PLACES)} exists to build a root on")
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("melior", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=4m")  # folders and links alone
    links, sources = _laid_out(readable)
    for source in sources:
        _show(source, root)
    for link, target in links.items():
        if not os.path.lexists(root + link):
            os.makedirs(os.path.dirname(root + link), exist_ok=True)
            os.symlink(target, root + link)
    os.makedirs(root + WORK, exist_ok=True)
    if not os.path.lexists(f"{root}/tmp"):  # a library may lie there
        os.symlink(WORK, f"{root}/tmp")
    options = f"mode=1777,size={folder_bytes},nr_inodes={INODES}"
    mount("melior", root + WORK, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)
    restrict_mount(root, MOUNT_ATTR_RDONLY, below=False)
    enter_root(root)
    return WORK


def _laid_out(readable: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Symbolic links to make, and paths to show, none of which lies beneath another."""
    paths = [path for path in readable if os.path.exists(path)]
    links = {path: os.path.realpath(path) for path in paths if os.path.islink(path)}
    shown = {path for path in paths if path not in links} | {os.path.realpath(path) for path in paths}
    return links, [path for path in sorted(shown) if not any(str(above) in shown for above in Path(path).parents)]


def _show(source: str, root: str) -> None:
    """The same file or folder under the new root, read-only."""
    target = root + source
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with suppress(FileExistsError):
            os.mknod(target)
    mount(source, target, None, MS_BIND | MS_REC)
    device = source.startswith("/dev/")
    restrict_mount(target, MOUNT_ATTR_NOSUID | (0 if device else MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV))
