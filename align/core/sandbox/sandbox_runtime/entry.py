"""The process that runs model-written code: it isolates itself, layer by layer, and then runs the code.

The trainer starts it as ``python -P -s -S -c 'from sandbox_runtime.entry import main; main()' JOB``, JOB a file
descriptor.

Two processes. The launcher leaves the host's namespaces and root's identity, forks, and waits for its child or for the
end of its standard input, upon which it kills the child: so nothing outlives the parent or its patience. The child
gives up everything else, then runs the code. It cannot fork, so there is nobody else to reap.
"""

from __future__ import annotations

import marshal
import os
import resource
import select
import sys

from . import harness, landlock, namespaces, seccomp, system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

FILES, FILE_SIZE = 32, 16 * 2**20


def main() -> None:
    """Read the job, isolate, run."""
    system.prctl(system.PR_SET_PDEATHSIG, system.SIGKILL)
    with open(int(sys.argv[1]), "rb") as file:
        job = marshal.load(file)
    null, stdin = os.open(os.devnull, os.O_RDWR), os.memfd_create("stdin")
    with open(stdin, "wb", closefd=False) as file:
        file.write(job["stdin"])
    os.lseek(stdin, 0, os.SEEK_SET)
    try:
        root = os.geteuid() == 0
        if job["namespaces"]:
            namespaces.enter(job["directories"])
        if root:
            namespaces.drop()
            system.prctl(system.PR_SET_PDEATHSIG, system.SIGKILL)  # a change of identity clears it
        child = os.fork()
    except OSError as error:
        give_up(error)
    if not child:
        inside(job, null, stdin)
        return
    os.close(1)
    alive, ended = 0, os.pidfd_open(child)
    poll = select.poll()
    for descriptor in (alive, ended):
        poll.register(descriptor, select.POLLIN)
    while ended not in (ready := dict(poll.poll())):
        if alive in ready:
            os.kill(child, system.SIGKILL)
            poll.unregister(alive)
    os.waitpid(child, 0)
    os._exit(0)


def inside(job: dict[str, Any], null: int, stdin: int) -> None:
    """Give up everything, then run the code."""
    try:
        system.prctl(system.PR_SET_PDEATHSIG, system.SIGKILL)
        os.chdir(namespaces.SCRATCH if job["namespaces"] else "/")
        os.dup2(stdin, 0)
        channel = os.dup(1)
        keep(0, 1, 2, null, channel)
        limit(job)
        system.prctl(system.PR_SET_NO_NEW_PRIVS, 1)
        if job["landlock"]:
            landlock.restrict(job["directories"], [namespaces.SCRATCH] if job["namespaces"] else [])
        system.drop_capabilities()
        seccomp.install()
    except (OSError, ValueError) as error:
        give_up(error)
    os.dup2(null, 2)  # what comes on it is taken for the sandbox's own errors, so the model's code must not reach it
    sys.argv = [""]
    if job["calls"] is None:
        keep(0, 1, 2)
        harness.program(job["source"])
    else:
        os.dup2(null, 1)
        keep(0, 1, 2, channel)
        harness.calls(job["source"], job["calls"], job["nonce"], channel)
        os._exit(0)


def keep(*wanted: int) -> None:
    """Close all other file descriptors."""
    low = 0
    for descriptor in [*sorted(wanted), 2**20]:
        if low < descriptor:  # an empty range would close all
            os.closerange(low, descriptor)
        low = descriptor + 1


def limit(job: dict[str, Any]) -> None:
    """Limit memory, processor time and files; allow no core dumps and no further processes."""
    for what, most in (
        (resource.RLIMIT_AS, job["memory"]),
        (resource.RLIMIT_CPU, int(job["seconds"]) + 2),
        (resource.RLIMIT_FSIZE, FILE_SIZE),
        (resource.RLIMIT_NOFILE, FILES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def give_up(error: Exception) -> NoReturn:
    """Write to standard error what is lacking; no code has run, and nothing else ever writes there."""
    os.write(2, str(error).encode())
    os._exit(1)
