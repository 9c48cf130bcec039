"""Namespaces: a process with no network, no other processes, and a file system of Python's directories alone."""

from __future__ import annotations

import ctypes
import os

from . import system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
APART = NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET
NOSUID, NODEV, NOEXEC, BIND, REC, PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
PIVOT_ROOT = 41 if system.ARM else 155
MOUNT_SETATTR, RECURSIVE, RDONLY = 442, 0x8000, 1
NOBODY = 65534
SCRATCH = "/tmp"
"""The one place to write, with all else in memory of its own; it vanishes with the process."""
LIMITS = "size=16m,nr_inodes=2000,mode=755"


def enter(directories: Iterable[str]) -> None:
    """Leave the host's namespaces; the next child is process 1 of its own. Raises OSError where that is forbidden.

    Root does it by its own right, before it gives that up; others by a user namespace in which they are themselves.
    """
    if os.geteuid() == 0:
        system.libc("unshare", APART)
    else:
        user, group = os.geteuid(), os.getegid()
        system.libc("unshare", APART | NEWUSER)
        for name, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w", encoding="utf-8") as file:
                file.write(line)
    _new_root(directories)


def drop() -> None:
    """Root becomes nobody, in a user namespace without a single mapped user."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def _new_root(directories: Iterable[str]) -> None:
    mount(None, "/", None, REC | PRIVATE)
    root = SCRATCH
    bound = {path: os.open(path, os.O_PATH) for path in directories if not os.path.islink(path)}
    links = {path: os.readlink(path) for path in directories if os.path.islink(path)}
    mount("none", root, "tmpfs", NOSUID | NODEV, LIMITS)
    for path, opened in bound.items():
        os.makedirs(root + path, exist_ok=True)
        mount(f"/proc/self/fd/{opened}", root + path, None, BIND | REC)
        _read_only(root + path)
        os.close(opened)
    for path, target in links.items():
        os.symlink(target, root + path)
    os.makedirs(root + SCRATCH, exist_ok=True)
    os.chmod(root + SCRATCH, 0o1777)
    os.chdir(root)
    system.syscall("pivot_root", PIVOT_ROOT, b".", b".")
    system.libc("umount2", b".", MNT_DETACH)  # the old root, stacked upon the new one
    os.chdir("/")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Mount as the system call of that name does. Raises OSError."""
    words = [None if word is None else word.encode() for word in (source, target, kind, options)]
    system.libc("mount", *words[:3], flags, words[3])


def _read_only(path: str) -> None:
    attributes = (ctypes.c_uint64 * 4)(RDONLY, 0, 0, 0)
    system.syscall("mount_setattr", MOUNT_SETATTR, -100, path.encode(), RECURSIVE, attributes, 32)
