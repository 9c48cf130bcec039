"""Seccomp: the system calls that are left to this process (https://docs.kernel.org/userspace-api/seccomp_filter.html).

A list of what is denied, since interpreters and C libraries differ in what they need; but everything younger than
Linux 5.1 is denied unless named, and so is every other architecture's door (i386, x32).
"""

from __future__ import annotations

import ctypes
import os
import sys

from . import system

DENIED: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None), "vfork": (58, None), "clone": (56, 220), "execve": (59, 221), "execveat": (322, 281),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "tkill": (200, 130), "prctl": (157, 167),
    "seccomp": (317, 277), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142),
    "sethostname": (170, 161), "setdomainname": (171, 162), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "acct": (163, 89),
    "quotactl": (179, 60), "nfsservctl": (180, 42), "syslog": (103, 116), "vhangup": (153, 58), "settimeofday":
    (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171), "iopl": (172,
    None), "ioperm": (173, None), "modify_ldt": (154, None), "uselib": (134, None), "ustat": (136, None), "sysfs":
    (139, None), "_sysctl": (156, None), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323,
    282), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "lookup_dcookie": (212, 18),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "socket": (41, 198), "socketpair": (53, 199),
    "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242),
    "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269), "recvmsg": (47, 212), "recvmmsg": (299, 243),
    "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143), "setresuid": (117,
    147), "setresgid": (119, 149), "setgroups": (116, 159), "setfsuid": (122, 151), "setfsgid": (123, 152),
    "capset": (126, 91), "setsid": (112, 157), "setpgid": (109, 154), "setpriority": (141, 140), "ioprio_set": (251,
    30), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "migrate_pages": (256, 238), "move_pages": (279, 239), "mbind": (237, 235),
    "set_mempolicy": (238, 237), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92,
    None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235,
    None), "utimensat": (280, 88), "futimesat": (261, None), "truncate": (76, 45), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "mknod": (133, None), "mknodat": (259, 33), "memfd_create": (319, 279), "shmget":
    (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "shmdt": (67, 197), "semget": (64, 190), "semop": (65, 193),
    "semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188),
    "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181), "inotify_init": (253, None),
    "inotify_init1": (294, 26), "fanotify_init": (300, 262), "fanotify_mark": (301, 263), "io_setup": (206, 0),
    "io_submit": (209, 2), "vmsplice": (278, 75), "personality": (135, 92),
}  # fmt: skip
"""By name: the number on x86_64 and on aarch64, None where there is none. They fail with EPERM: no other process, no
other program, no sockets, no shared memory, no change of identity, of files' attributes (Landlock does not watch
those) or of anything of the system's."""
ONLY: tuple[tuple[str, tuple[int, int], int, int | None], ...] = (
    ("kill", (62, 129), 0, None),
    ("tgkill", (234, 131), 0, None),
    ("prlimit64", (302, 261), 0, 0),
)
"""Allowed where an argument has one value (None: this process's own id)."""
NEVER = (("fcntl", (72, 25), 1, (8, 15)),)
"""Denied where an argument has one of some values: F_SETOWN and F_SETOWN_EX make the kernel signal others."""
YOUNG, YOUNG_ALLOWED = 424, (436, 439, 441, 449)
"""From this number on, which all architectures share: only close_range, faccessat2, epoll_pwait2, futex_waitv."""

LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32 = 0x40000000
MODE_FILTER, PR_SET_SECCOMP = 2, 22

Instruction = tuple[int, int, int, int]
"""Code, instructions to skip where true, where false, operand."""


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def supported() -> bool:
    """Return whether the numbers above are this machine's: a 64-bit little-endian x86_64 or aarch64."""
    return os.uname().machine in ARCHITECTURES and sys.maxsize > 2**32 and sys.byteorder == "little"


def program(machine: str, me: int) -> list[Instruction]:
    """The filter for one architecture and process id."""
    column = list(ARCHITECTURES).index(machine)
    # The architecture first: the same number is another call under i386, which a 64-bit process may use too.
    code: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, ARCHITECTURES[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
    ]
    if machine == "x86_64":  # x32 shares the architecture's mark and has numbers of its own
        code += [(AT_LEAST, 0, 1, X32), (RETURN, 0, 0, KILL)]
    for number in YOUNG_ALLOWED:
        code += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    # ENOSYS, not EPERM: C libraries then fall back to older calls (clone3 to clone), which the list below denies.
    code += [(AT_LEAST, 0, 1, YOUNG), (RETURN, 0, 0, ENOSYS)]
    for numbers in DENIED.values():
        if (number_here := numbers[column]) is not None:
            code += [(EQUAL, 0, 1, number_here), (RETURN, 0, 0, EPERM)]
    for _, pair, argument, value in ONLY:
        code += _argument(pair[column], argument, (me if value is None else value,), ALLOW, EPERM)
    for _, pair, argument, values in NEVER:
        code += _argument(pair[column], argument, values, EPERM, ALLOW)
    return [*code, (RETURN, 0, 0, ALLOW)]


def _argument(number: int, argument: int, values: tuple[int, ...], found: int, otherwise: int) -> list[Instruction]:
    tests: list[Instruction] = [(LOAD, 0, 0, ARGUMENTS + 8 * argument)]
    for value in values:
        tests += [(EQUAL, 0, 1, value), (RETURN, 0, 0, found)]
    tests += [(RETURN, 0, 0, otherwise)]
    return [(EQUAL, 0, len(tests), number), *tests]


def install() -> None:
    """Filter this process's system calls from now on. ``no_new_privs`` must be set. Raises OSError."""
    code = program(os.uname().machine, os.getpid())
    instructions = (_Instruction * len(code))(*(_Instruction(*each) for each in code))
    filled = _Program(len(code), ctypes.cast(instructions, ctypes.POINTER(_Instruction)))
    system.libc("prctl", PR_SET_SECCOMP, MODE_FILTER, ctypes.byref(filled), 0, 0)
