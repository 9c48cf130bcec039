"""Attempts to get out of the code sandbox, each a function body that returns True where it got out.

``attempt(sandbox)`` makes them all against real victims (a world-writable directory, listening sockets, this process)
and returns those that got out.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import textwrap
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from align.core.sandbox import sandbox as sandboxes
from align.core.sandbox.sandbox import RunOutput, Sandbox
from align.core.sandbox.sandbox_runtime import seccomp, system

READS = {
    "passwd": "return open('/etc/passwd').read()",
    "shadow": "return open('/etc/shadow').read()",
    "world-readable file": "return open(FILE).read()",
    "home": "return len(THERE) > 1 and sorted(os.listdir(HOME)) == THERE",
    "directory": "return os.listdir(DIRECTORY)",
    "relative path": "os.chdir(DIRECTORY); return open('file').read()",
    "symlink": "os.symlink(FILE, 'link'); return open('link').read()",
    "hard link": "os.link(FILE, 'link'); return open('link').read()",
    "parent's environment": "return open(f'/proc/{PARENT}/environ').read()",
    "parent's memory": "return open(f'/proc/{PARENT}/mem', 'rb').read(1)",
    "parent's command": "return open(f'/proc/{PARENT}/cmdline').read()",
    "root of process 1": "return os.listdir('/proc/1/root')",
    "own environment": "return 'CANARY' in os.environ",
    "environment by proc": "return 'CANARY' in open('/proc/self/environ').read()",
    "descriptors": "return [f for f in range(3, 1000) if is_open(f)]",
    "device": "return open('/dev/mem', 'rb')",
    "disk": "return [open('/dev/' + d, 'rb') for d in ('vda', 'sda', 'nvme0n1') if os.path.exists('/dev/' + d)]",
    "kernel log": "return open('/dev/kmsg')",
    "sysfs": "return os.listdir('/sys/kernel')",
    "open by handle": "return call('open_by_handle_at', -100, buffer, 0)",
}
WRITES = {
    "new file": "open(DIRECTORY + '/new', 'w').write('x'); return True",
    "append": "open(FILE, 'a').write('x'); return True",
    "truncate": "os.truncate(FILE, 0); return True",
    "remove": "os.remove(FILE); return True",
    "rename": "os.rename(FILE, FILE + '2'); return True",
    "mkdir": "os.mkdir(DIRECTORY + '/made'); return True",
    "chmod": "os.chmod(FILE, 0o600); return True",
    "utime": "os.utime(FILE, (0, 0)); return True",
    "extended attribute": "os.setxattr(FILE, 'user.x', b'x'); return True",
    "chown": "os.chown(FILE, os.getuid(), os.getgid()); return True",
    "fifo": "os.mkfifo(DIRECTORY + '/fifo'); return True",
    "device node": "os.mknod('node', 0o600 | 0o020000, os.makedev(1, 1)); return True",
    "symlink outside": "os.symlink('/', DIRECTORY + '/link'); return True",
    "standard library": "open(os.__file__, 'a').write(''); return True",
    "new root": "open('/new', 'w').write('x'); return os.path.exists(DIRECTORY)",
    "shared memory": "open('/dev/shm/x', 'w').write('x'); return True",
}
NETWORK = {
    "TCP": "return socket.create_connection(('127.0.0.1', PORT), 1)",
    "UDP": "return socket.socket(2, 2).sendto(b'x', ('127.0.0.1', PORT))",
    "listen": "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); return True",
    "abstract unix": "s = socket.socket(1); s.connect('\\0' + ABSTRACT); return True",
    "unix path": "s = socket.socket(1); s.connect(DIRECTORY + '/socket'); return True",
    "datagram pair": "a, b = socket.socketpair(1, 2); return a.sendto(b'x', DIRECTORY + '/socket')",
    "netlink": "return socket.socket(16, 3, 0)",
    "raw": "return socket.socket(2, 3, 1)",
    "packet": "return socket.socket(17, 3)",
    "vsock": "return socket.socket(40, 1)",
}
PROCESSES = {
    "signal 0 to the parent": "os.kill(PARENT, 0); return True",
    "kill the launcher": "os.kill(os.getppid() or PARENT, 9); return True",
    "kill all": "os.kill(-1, 0); return True",
    "kill the group": "os.kill(0, 0); return True",
    "thread's signal": "return call('tkill', PARENT, 0)",
    "queued signal": "return call('rt_sigqueueinfo', PARENT, 0, buffer)",
    "ptrace": "return call('ptrace', 16, PARENT, 0, 0)",
    "read memory": "return call('process_vm_readv', PARENT, buffer, 1, buffer, 1, 0)",
    "pidfd": "return raw(434, PARENT, 0)",
    "priority": "os.setpriority(0, PARENT, 19); return True",
    "affinity": "os.sched_setaffinity(PARENT, {0}); return True",
    "limits of the parent": "resource.prlimit(PARENT, resource.RLIMIT_CORE, (0, 0)); return True",
    "owner of a pipe": "import fcntl; fcntl.fcntl(1, 8, PARENT); return True",
    "fork": "return os.fork() >= 0",
    "vfork": "return os.posix_spawn('/bin/true', ['true'], {})",
    "shell": "return os.system('true') == 0",
    "subprocess": "return subprocess.run([sys.executable, '-c', '']).returncode == 0",
    "exec": "os.execv(sys.executable, ['python', '-c', 'print(\"OUT\")'])",
    "exec from scratch": "open('x', 'w').write('#!/bin/sh\\necho OUT'); os.chmod('x', 0o755); os.execv('x', ['x'])",
    "exec from memory": "f = os.memfd_create('x'); os.execve(f, ['x'], {})",
    "double fork": "os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0); time.sleep(60)",
    "thread": "threading.Thread(target=print).start(); return True",
    "session": "os.setsid(); return True",
    "outlive the parent": "return libc.prctl(1, 0) == 0",
    "clone3": "return raw(435, buffer, 88)",
}
RIGHTS = {
    "setuid": "os.setuid(0); return True",
    "setgroups": "os.setgroups([0]); return True",
    "user namespace": "return call('unshare', 0x10000000)",
    "setns": "return call('setns', 0, 0)",
    "mount": "return call('mount', b'none', b'/tmp', b'tmpfs', 0, 0)",
    "unmount": "return call('umount2', b'/tmp', 2)",
    "new mount interface": "return raw(430, b'tmpfs', 0)",
    "chroot": "os.chroot('.'); return True",
    "pivot_root": "return call('pivot_root', b'.', b'.')",
    "bpf": "return call('bpf', 0, buffer, 48)",
    "io_uring": "return raw(425, 8, buffer)",
    "perf": "return call('perf_event_open', buffer, 0, -1, -1, 0)",
    "userfaultfd": "return call('userfaultfd', 1)",
    "keyring": "return call('keyctl', 0, -3, 1)",
    "add key": "return call('add_key', b'user', b'x', b'x', 1, -3)",
    "memfd": "return os.memfd_create('x')",
    "secret memory": "return raw(447, 0)",
    "System V memory": "return call('shmget', 0, 4096, 0o1600)",
    "message queue": "return call('msgget', 0, 0o1600)",
    "kexec": "return call('kexec_load', 0, 0, 0, 0)",
    "module": "return call('init_module', buffer, 16, b'')",
    "reboot": "return call('reboot', 0, 0, 0, 0)",
    "host name": "return call('sethostname', b'x', 1)",
    "clock": "time.clock_settime(0, 0); return True",
    "personality": "return call('personality', 0x0400000)",
    "filter over filter": "return call('seccomp', 0, 0, 0)",
    "capabilities": "return call('capset', buffer, buffer)",
    "raise a limit": "resource.setrlimit(resource.RLIMIT_AS, (-1, -1)); return True",
    "terminal": "import fcntl; fcntl.ioctl(0, 0x5412, b'x'); return True",
    "x32": "return libc.syscall(0x40000000 | 39) > 0 if X86 else False",
    "i386": "return interrupt() > 0 if X86 else False",
}
BOMBS = {
    "processor": "while True: pass",
    "sleep": "time.sleep(60)",
    "deaf": "[signal.signal(s, signal.SIG_IGN) for s in range(1, 65) if s not in (9, 19, 32, 33)]; time.sleep(60)",
    "silent": "os.close(1); os.close(2); os.close(0); time.sleep(60)",
    "memory": "b = [bytearray(2**24) for _ in range(1000)]; return True",
    "disk": "f = open('big', 'wb'); [f.write(bytes(2**20)) for _ in range(64)]; f.close(); return True",
    "disk in parts": "[open(str(i), 'wb').write(bytes(2**20)) for i in range(64)]; return True",
    "files": "[open(str(i), 'w').close() for i in range(4000)]; return True",
    "descriptors": "f = [os.dup(0) for _ in range(100)]; return True",
    "output": "while True: os.write(1, bytes(2**16))",
    "forks": "while True: os.fork()",
    "threads": "[threading.Thread(target=time.sleep, args=(60,)).start() for _ in range(10000)]; return True",
    "segfault": "ctypes.string_at(0); return True",
    "abort": "os.abort()",
    "stack": "sys.setrecursionlimit(10**9); f = lambda f: f(f); f(f); return True",
}
PROBES = {
    f"{kind.lower()}: {name}": body
    for kind in ("READS", "WRITES", "NETWORK", "PROCESSES", "RIGHTS", "BOMBS")
    for name, body in globals()[kind].items()
}
TIMED_OUT = {f"bombs: {name}" for name in ("processor", "sleep", "deaf", "silent")}
SILENT = {name for name in PROBES if name.startswith("bombs")} | {"rights: x32", "rights: i386"}
"""Those that end by a signal, or may."""
PRELUDE = """
import ctypes, mmap, os, resource, signal, socket, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(256)
def raw(number, *a):
    got = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(x) if isinstance(x, int) else x for x in a])
    if got < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return True
def call(name, *a):
    return raw(NUMBERS[name], *a)
def is_open(f):
    try:
        return bool(os.fstat(f))
    except OSError:
        return False
def interrupt():
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(bytes([0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0xc3]))
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
def go():
    {body}
try:
    print("OUT" if go() else "HELD", flush=True)
except BaseException as error:
    print("HELD", type(error).__name__, error, flush=True)
"""


@contextmanager
def victims() -> Iterator[dict[str, Any]]:
    """What there is to be had outside, and how the probes find it."""
    with ExitStack() as stack:
        directory = tempfile.mkdtemp(prefix="align-escapes-")
        stack.callback(shutil.rmtree, directory)
        os.chmod(directory, 0o777)
        file = Path(directory, "file")
        file.write_text("secret")
        file.chmod(0o666)
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(tcp.getsockname())
        abstract = f"align-{uuid.uuid4()}"
        for name in (f"\0{abstract}", f"{directory}/socket"):
            unix = stack.enter_context(socket.socket(socket.AF_UNIX))
            unix.bind(name)
            unix.listen()
        os.chmod(f"{directory}/socket", 0o777)
        leaked = os.open(file, os.O_RDONLY)
        stack.callback(os.close, leaked)
        os.set_inheritable(leaked, True)
        numbers = {name: pair[system.ARM] for name, pair in seccomp.DENIED.items()}
        home = os.path.expanduser("~")
        there = sorted(os.listdir(home)) if os.access(home, os.R_OK) else []
        yield {
            "THERE": there, "FILE": str(file), "DIRECTORY": directory, "HOME": home, "PARENT": os.getpid(),
            "PORT": tcp.getsockname()[1], "ABSTRACT": abstract, "NUMBERS": numbers, "X86": not system.ARM,
        }  # fmt: skip


def script(body: str, found: dict[str, Any]) -> str:
    """A probe as a program."""
    known = "\n".join(f"{name} = {value!r}" for name, value in found.items())
    return known + PRELUDE.replace("{body}", textwrap.indent(body, "    ").strip())


def attempt(sandbox: Sandbox) -> dict[str, str]:
    """What got out, by probe: all of them are made, several at a time."""
    mark = f"align-{uuid.uuid4()}"
    sandboxes.ENVIRONMENT["MARK"] = mark
    os.environ["CANARY"] = "sings"
    try:
        with victims() as found, ThreadPoolExecutor(4) as pool:
            before = _state(found)

            def one(name: str) -> RunOutput:
                seconds = 1.5 if name.startswith("bombs") else 30
                return sandbox.program(script(PROBES[name], found), "", time.monotonic() + seconds)

            ended = dict(zip(PROBES, pool.map(one, PROBES), strict=True))
            out = {name: repr(end) for name, end in ended.items() if b"OUT" in end.output}
            tried = {name for name, end in ended.items() if b"HELD" in end.output}
            out |= {name: f"was not tried: {ended[name]}" for name in PROBES.keys() - tried - SILENT - out.keys()}
            out |= {name: "was not stopped" for name in TIMED_OUT if ended[name].stopped != "time"}
            if ended["bombs: output"].stopped != "output":
                out["bombs: output"] = repr(ended["bombs: output"])
            if _state(found) != before:
                out["state"] = f"{before} became {_state(found)}"
            out |= {f"survivor {pid}": name for pid, name in survivors(mark).items()}
            return out
    finally:
        del sandboxes.ENVIRONMENT["MARK"], os.environ["CANARY"]


def _state(found: dict[str, Any]) -> list[Any]:
    file = Path(found["FILE"])
    facts = file.stat()
    return [sorted(os.listdir(found["DIRECTORY"])), file.read_text(), oct(facts.st_mode), facts.st_mtime, facts.st_uid]


def survivors(mark: str) -> dict[int, str]:
    """Processes that were started with a mark in their environment and still live."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                found[int(entry.name)] = (entry / "comm").read_text().strip()
        except OSError:
            continue
    return found


def works(sandbox: Sandbox) -> bool:
    """Whether these layers are to be had here."""
    try:
        return sandbox.program(sandboxes.TRIAL, "", time.monotonic() + 30).output == b"42\n"
    except sandboxes.SandboxError:
        return False
