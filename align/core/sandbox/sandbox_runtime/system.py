"""System calls that Python has no name for, by ctypes. Failures raise OSError with the call's name."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)

ARM = os.uname().machine == "aarch64"
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
CAPSET = 91 if ARM else 126
CAPABILITY_VERSION = 0x20080522
SIGKILL = 9


def syscall(name: str, number: int, *arguments: object) -> int:
    """A system call by its number; integers are passed as long."""
    given = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return checked(name, _libc.syscall(ctypes.c_long(number), *given))


def libc(name: str, *arguments: object) -> int:
    """A function of the C library that returns -1 and sets errno when it fails."""
    given = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    return checked(name, getattr(_libc, name)(*given))


def checked(name: str, returned: int) -> int:
    """Return what a call returned. Raises OSError where that is a failure."""
    if returned < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return returned


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process."""
    libc("prctl", option, value, 0, 0, 0)


def drop_capabilities() -> None:
    """Give up every capability, also those that a new user namespace lends."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    syscall("capset", CAPSET, header, (ctypes.c_uint32 * 6)())
