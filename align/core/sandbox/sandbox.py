"""A sandbox for code that nobody has read: a process without network, files, other processes, rights or much time.

Every run is a fresh interpreter (never a fork of this process) with the standard library and nothing else. Layers, each
of which would do by itself for most attacks:

    namespaces  user, network, process, mount, ipc and host name of its own; the file system holds Python's libraries,
                read-only, and 16 MiB of scratch in memory
    Landlock    read beneath Python's directories, write in the scratch, signal and connect to nobody
    seccomp     no other process or thread, no program, no socket, no shared memory, no change of identity
    limits      memory, processor time, files, wall time; a clean environment; no inherited descriptor
    identity    root becomes nobody

seccomp is needed, and one of the other two: where there are no namespaces there is no scratch either, and where there
is no Landlock there must be namespaces. Which are used is tried out when the sandbox is opened and demanded of every
run; nothing falls back to less. Bugs of the kernel are out of scope, as are channels of timing and of the processor's
caches: where users do not trust each other, put a virtual machine around it.
"""

from __future__ import annotations

import json
import marshal
import os
import secrets
import select
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from align.core.sandbox.sandbox_runtime import entry, landlock, seccomp
from align.schemas.errors import AlignError

if TYPE_CHECKING:
    from align.core.sandbox.sandbox_runtime.harness import Call

OUTPUT = 2**20
"""Bytes of output that are always taken; more where more is expected."""
START = "import sys; sys.path.insert(0, sys.argv[2]); from sandbox_runtime.entry import main; del sys.path[0]; main()"
ENVIRONMENT = {"PYTHONUTF8": "1", "PYTHONHASHSEED": "0"}
"""Sets come in the same order every time, so the same answer gets the same verdict."""
PATIENCE = 5.0
"""Seconds that a killed sandbox may take to be gone."""
TRIAL = "import bisect, collections, heapq, json, random\nprint(6 * 7)"


class SandboxError(Exception):
    """The sandbox could not be set up: nothing has run, and nothing is known of the code."""


@dataclass(frozen=True, slots=True)
class RunOutput:
    """The output of a run, and why it was stopped where it did not end by itself."""

    output: bytes
    stopped: Literal["", "time", "output"] = ""


@dataclass(frozen=True, slots=True)
class CallResults:
    """The results of calls: the tree of ``sandbox_runtime.values`` for each, None where there is none.

    forged: the channel carried what the harness does not write.
    """

    trees: list[Any]
    stopped: Literal["", "time", "output"] = ""
    forged: bool = False


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of isolation in use, in addition to seccomp and limits."""

    namespaces: bool
    landlock: bool


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Runs code. seconds: processor time of a run. memory: MiB of address space. Safe to use from threads."""

    layers: Layers
    seconds: float = 5.0
    memory: int = 512

    @classmethod
    def open(cls, seconds: float = 5.0, memory: int = 512) -> Sandbox:
        """Return the strongest sandbox possible here. Raises AlignError where code cannot be isolated."""
        if not sys.platform.startswith("linux") or not seccomp.supported():
            raise AlignError("model-written code is run on Linux only, on x86_64 or aarch64", "run it there")
        locked = landlock.abi() > 0
        lacking = [] if locked else ["the kernel has no Landlock"]
        for layers in (Layers(True, locked), *([Layers(False, True)] if locked else [])):
            sandbox = cls(layers, seconds, memory)
            try:
                if sandbox.program(TRIAL, "", time.monotonic() + 30).output == b"42\n":
                    return sandbox
                lacking.append(f"{sys.base_prefix} cannot be used by an unprivileged user, or {memory} MiB are too few")
            except SandboxError as error:
                lacking.append(f"{'namespaces' if layers.namespaces else 'Landlock'}: {error}")
        raise AlignError(
            f"model-written code cannot be isolated here: {'; '.join(lacking)}",
            "allow unprivileged user namespaces (sysctl user.max_user_namespaces, "
            "kernel.apparmor_restrict_unprivileged_userns=0; a container: --security-opt seccomp=unconfined) or use a "
            "kernel with Landlock (5.13) and a Python that all users may read; code is never run without isolation",
        )

    def program(self, source: str, stdin: str, until: float, room: int = 0) -> RunOutput:
        """Run a script. until: on ``time.monotonic``. room: bytes of output beyond ``OUTPUT``. Raises SandboxError."""
        return self._run({"source": source, "stdin": stdin.encode("utf-8", "replace"), "calls": None}, until, room)

    def calls(self, source: str, calls: Sequence[Call], until: float, room: int = 0) -> CallResults:
        """Load code and make calls, in order; a process that dies is replaced for the calls that are left."""
        trees: list[Any] = []
        while len(trees) < len(calls):
            nonce = secrets.token_hex(16)
            left = list(calls[len(trees) :])
            ended = self._run({"source": source, "stdin": b"", "calls": left, "nonce": nonce}, until, room)
            lines = frames(ended.output, nonce)
            if lines is None or len(lines) > 1 + len(left):
                return CallResults([None] * len(calls), ended.stopped, forged=True)
            loaded, values = lines[:1], lines[1:]
            trees += values
            if not loaded or loaded[0][0] == "raised" or ended.stopped:
                return CallResults(trees + [None] * (len(calls) - len(trees)), ended.stopped)
            trees += [None] * (len(values) < len(left))  # the call that the process did not survive
        return CallResults(trees)

    def _run(self, job: dict[str, Any], until: float, room: int) -> RunOutput:
        job |= {"namespaces": self.layers.namespaces, "landlock": self.layers.landlock, "directories": directories()}
        job |= {"memory": self.memory * 2**20, "seconds": self.seconds}
        job["source"] = job["source"].encode("utf-8", "replace").decode()
        file = os.memfd_create("job")
        try:
            with open(file, "wb", closefd=False) as whole:
                marshal.dump(job, whole)
            os.lseek(file, 0, os.SEEK_SET)
            process = subprocess.Popen(
                [python(), "-P", "-s", "-S", "-c", START, str(file), str(Path(entry.__file__).parents[1])],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env=ENVIRONMENT, cwd="/", start_new_session=True, pass_fds=(file,),
            )  # fmt: skip
        except OSError as error:
            raise SandboxError(str(error)) from error
        finally:
            os.close(file)
        with process:
            try:
                ended = listen(process, until, OUTPUT + room)
            finally:
                end(process)
            assert process.stderr is not None
            if complaint := process.stderr.read(4096).decode(errors="replace"):
                raise SandboxError(complaint.strip().rpartition("\n")[2])
            return ended


def listen(process: subprocess.Popen[bytes], until: float, most: int) -> RunOutput:
    """Read what a process writes until it has ended, the time is up or it has written too much."""
    assert process.stdout is not None
    source, size = process.stdout.fileno(), 0
    chunks: list[bytes] = []
    poll = select.poll()
    poll.register(source, select.POLLIN)
    while (left := until - time.monotonic()) > 0:
        if not poll.poll(left * 1000):
            continue
        chunk = os.read(source, 2**16)
        size += len(chunk)
        if size > most:
            return RunOutput(b"".join(chunks), "output")
        chunks.append(chunk)
        if not chunk:
            try:
                process.wait(left)
            except subprocess.TimeoutExpired:
                break
            return RunOutput(b"".join(chunks))
    return RunOutput(b"".join(chunks), "time")


def end(process: subprocess.Popen[bytes]) -> None:
    """End the process and its child: the launcher kills its child when its standard input closes."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()


def frames(output: bytes, nonce: str) -> list[Any] | None:
    """The trees of a channel's lines; None where one is not the harness's. A last line without its end is left out."""
    trees: list[Any] = []
    for line in output.split(b"\n")[:-1]:
        mark, _, content = line.partition(b" ")
        try:
            tree = json.loads(content) if mark == nonce.encode() else None
        except (ValueError, RecursionError):
            return None
        if not (isinstance(tree, list) and tree and isinstance(tree[0], str)):
            return None
        trees.append(tree)
    return trees


def python() -> str:
    """The interpreter itself, not a virtual environment's."""
    return str(getattr(sys, "_base_executable", None) or sys.executable)


def directories() -> list[str]:
    """Return the directories of Python's own libraries and of those of the system that they load."""
    bases = {Path(sys.base_prefix), Path(sys.base_exec_prefix)}
    own = [base / name for base in bases for name in ("lib", "lib64")]
    wanted = [Path(sysconfig.get_path("stdlib")), *own, *map(Path, ("/lib", "/lib64", "/usr/lib", "/usr/lib64"))]
    found: list[str] = []
    for path in sorted(set(wanted)):
        if path.is_dir() and not any(path.is_relative_to(outer) for outer in found):
            found.append(str(path))
    return found
