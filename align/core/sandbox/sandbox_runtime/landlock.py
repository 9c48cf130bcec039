"""Landlock: what this process may still open, for good (https://docs.kernel.org/userspace-api/landlock.html)."""

from __future__ import annotations

import ctypes
import os

from . import system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION = 1  # asks for the ABI instead of making a ruleset
PATH_BENEATH = 1
READ_FILE, READ_DIR = 1 << 2, 1 << 3
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Number of file rights by ABI: from execute (bit 0) to ioctl on devices (bit 15)."""
SCRATCH = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 12 | 1 << 13 | 1 << 14
"""Write, read, list, remove, make directories, files and symlinks, refer, truncate. No devices, sockets, execution."""
NETWORK = 0b11  # TCP bind and connect, ABI 4
SCOPES = 0b11  # abstract unix sockets and signals, ABI 6


class _Rule(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("directory", ctypes.c_int32))


def abi() -> int:
    """The kernel's version of Landlock; 0 where there is none."""
    try:
        return system.syscall("landlock_create_ruleset", CREATE_RULESET, None, 0, VERSION)
    except OSError:
        return 0


def restrict(readable: Iterable[str], writable: Iterable[str]) -> None:
    """From now on open files only beneath these directories, and connect to and signal nobody outside.

    ``no_new_privs`` must be set. Raises OSError where the kernel refuses, or has no Landlock.
    """
    version = abi()
    # Only rights that are "handled" are restricted, and a kernel refuses those that it does not know.
    handled = (1 << FILE_RIGHTS.get(version, 16)) - 1
    wanted = (handled, NETWORK if version >= 4 else 0, SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = system.syscall("landlock_create_ruleset", CREATE_RULESET, (ctypes.c_uint64 * 3)(*wanted), size, 0)
    allowed = [(path, READ_FILE | READ_DIR) for path in readable] + [(path, SCRATCH) for path in writable]
    for path, rights in allowed:
        directory = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = _Rule(rights & handled, directory)
        system.syscall("landlock_add_rule", ADD_RULE, rules, PATH_BENEATH, ctypes.byref(rule), 0)
        os.close(directory)
    system.syscall("landlock_restrict_self", RESTRICT_SELF, rules, 0)
    os.close(rules)
