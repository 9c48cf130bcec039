"""One command on several hosts at once, over ssh: output by host, the first failure named, all ended together.

On each host ``align.core.launching.agent`` runs the command and takes orders over ssh's stdin. Every wait has a
limit: a host that does not answer, a command that does not end after a signal, an ssh that does not end after its
command. ``localhost`` is this machine, without ssh. No torch.
"""

from __future__ import annotations

import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import IO

from align.core.launching.agent import READY
from align.core.util import child_processes
from align.core.util.stopping import Interrupted, passing_on
from align.schemas.errors import AlignError, Problem
from align.schemas.text import stripped

LOCAL = "localhost"
CONNECT_SECONDS = 60
"""Seconds for a host to answer, the start of Python there included."""
ALIVE_SECONDS = 15
"""Seconds between two questions of ssh whether the host is still there; it gives up after four without an answer."""
KILL_SECONDS = 10
"""Seconds that ssh may take to end after its command has been killed."""
SSH_LOST = 255
"""Exit status of ssh for a failure of its own; the agent passes on those of programs and signals, below it."""
SSH = (
    "ssh",
    "-T",
    "-oBatchMode=yes",  # a question for a password would wait for ever
    "-oConnectTimeout=15",
    f"-oServerAliveInterval={ALIVE_SECONDS}",
    "-oServerAliveCountMax=4",
)


@dataclass(frozen=True, slots=True)
class Order:
    """The command that every host runs.

    python: interpreter on the hosts, which has align. stop_seconds: from a signal to the end of the command. numbered:
    True gives each host its number, as RANK.
    """

    argv: Sequence[str]
    directory: str
    environment: Mapping[str, str]
    stop_seconds: float
    python: str
    numbered: bool = False

    def on(self, number: int) -> Order:
        """Return the order for one host."""
        return replace(self, environment={**self.environment, "RANK": str(number)}) if self.numbered else self


@dataclass(frozen=True, slots=True)
class HostFailed:
    """The host whose command failed first. status: as a shell gives it; None where the host never answered.

    alone: True where there is no other.
    """

    host: str
    status: int | None
    last_lines: str
    alone: bool = False


class _Host:
    """One host's ssh (or agent), and the threads that read it."""

    def __init__(self, host: str, label: str, order: Order, ended: queue.Queue[_Host]) -> None:
        self.host, self.label, self.order = host, label, order
        self.ready = threading.Event()
        self.tail: list[str] = []
        here = host == LOCAL
        # A host that is alone and here keeps the terminal: through a pipe its progress bar would become lines.
        pipe = subprocess.PIPE if label or not here else None
        agent = child_processes.command("-m", "align.core.launching.agent", *["quiet"] * (pipe is None))
        self.process = subprocess.Popen(
            agent if here else remote(host, order.python),
            env=child_processes.environment() if here else None,
            stdin=subprocess.PIPE,
            stdout=pipe,
            stderr=pipe,
            process_group=0,  # a terminal's Ctrl-C is passed on as an order; ssh must live to carry it
        )
        self.started = time.monotonic()
        if pipe is None:
            self.ready.set()
        self.send(json.dumps({name: _plain(getattr(order, name)) for name in _ORDER}))
        self._readers = [
            threading.Thread(target=self._read, args=(stream, out), daemon=True)
            for stream, out in ((self.process.stdout, sys.stdout), (self.process.stderr, sys.stderr))
            if stream is not None
        ]
        for reader in self._readers:
            reader.start()
        threading.Thread(target=self._wait, args=(ended,), daemon=True).start()

    def send(self, line: str) -> None:
        """Send the agent a line: the order, or the name of a signal."""
        assert self.process.stdin is not None
        with suppress(OSError):  # it is gone: `ended` reports that
            os.write(self.process.stdin.fileno(), line.encode() + b"\n")  # a signal's handler comes here, too

    def _read(self, stream: IO[bytes], out: IO[str]) -> None:
        for raw in stream:
            line = raw.decode(errors="replace").rstrip("\r\n")
            if out is sys.stdout and line == READY and not self.ready.is_set():
                self.ready.set()
                continue
            if out is sys.stderr and line:
                self.tail = [*self.tail, stripped(line)][-5:]
            with suppress(OSError, ValueError):
                print(f"{self.label}{stripped(line)}", file=out, flush=True)

    def _wait(self, ended: queue.Queue[_Host]) -> None:
        self.process.wait()
        for reader in self._readers:
            reader.join(1.0)
        ended.put(self)


_ORDER = ("argv", "directory", "environment", "stop_seconds")


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else value


def remote(host: str, python: str) -> list[str]:
    """Return the ssh command that starts the agent on a host."""
    path = child_processes.environment().get("PYTHONPATH")
    modules = [f"PYTHONPATH={path}"] if path else []
    agent = shlex.join(["env", *modules, python, "-P", "-m", "align.core.launching.agent"])
    return [*SSH, host, agent]


def run_on_hosts(hosts: Sequence[str], order: Order) -> HostFailed | None:
    """Run the order on all hosts at once; return the first failure, None where all succeeded.

    When one fails, the others are sent SIGTERM, and killed ``stop_seconds`` later. SIGTERM, SIGINT and SIGUSR1 to this
    process are passed on to all hosts; once they have ended, ``Interrupted`` is raised.
    Raises AlignError, before anything is started, for a name that is empty, has a space, or begins with ``-``.
    """
    for host in hosts:
        if host.startswith("-") or host.split() != [host]:
            raise AlignError(f"{host!r} is no host", "write names as ssh takes them", where="--hosts")
    ended: queue.Queue[_Host] = queue.Queue()
    running: list[_Host] = []
    failed: HostFailed | None = None
    labels = _labels(hosts)

    def send(number: int) -> None:
        for host in running:
            host.send(signal.Signals(number).name)

    with passing_on(send) as received:
        for number, host in enumerate(hosts):
            running.append(_Host(host, next(labels), order.on(number), ended))
            for early in received:  # it came before this host was started
                running[-1].send(signal.Signals(early).name)
        left = list(running)
        deadline = float("inf")
        while left:
            found = None
            with suppress(queue.Empty):
                found = ended.get(timeout=0.2)
            if found is not None:
                left.remove(found)
                status = found.process.returncode
                if status and failed is None:
                    failed = HostFailed(found.host, _status(found, status), "\n".join(found.tail), len(hosts) == 1)
                    for other in left:
                        other.send("SIGTERM")
                    deadline = min(deadline, time.monotonic() + order.stop_seconds)
            now = time.monotonic()
            if received:
                deadline = min(deadline, min(received.values()) + order.stop_seconds)
            for unfinished in left:
                if not unfinished.ready.is_set() and now - unfinished.started > CONNECT_SECONDS:
                    unfinished.process.kill()
            if now > deadline:
                for unfinished in left:
                    unfinished.send("SIGKILL")
            if now > deadline + KILL_SECONDS:
                for unfinished in left:
                    unfinished.process.kill()
    if received:
        raise Interrupted(min(received, key=received.__getitem__))
    return failed


def _status(host: _Host, status: int) -> int | None:
    """Return a shell's status of the host's command; None where the agent never started."""
    if not host.ready.is_set():
        return None
    return status if status > 0 else 128 - status


def _labels(hosts: Sequence[str]) -> Iterator[str]:
    """Yield what each host's lines begin with: nothing for one host, else its name, numbered where it comes twice."""
    for number, host in enumerate(hosts):
        name = host if hosts.count(host) == 1 else f"{host}#{number}"
        yield f"[{name}] " if len(hosts) > 1 else ""


def failure(failed: HostFailed, directory: str) -> AlignError:
    """Return the error that names the host which failed first."""
    if failed.status is None:
        what = "did not answer, or align is not installed there"
        fix = f"try: {shlex.join([*SSH[:3], failed.host, 'true'])}; --python names an interpreter that has align"
    elif failed.status == 127:
        what, fix = "has no such program or directory", f"{directory} must be there under the same path"
    elif failed.status == SSH_LOST:
        what, fix = "lost its connection to this machine", "see that it is up; its processes end by themselves"
    elif 128 < failed.status < 128 + signal.NSIG:
        what, fix = f"was ended by {signal.Signals(failed.status - 128).name}", ""
    elif failed.alone:
        what, fix = f"ended with status {failed.status}, for the reason above", ""
    else:
        what, fix = f"failed first, with status {failed.status}; the others were ended", ""
    problems = [Problem(failed.host, what, fix)]
    if failed.last_lines:
        problems.append(Problem("its last lines", failed.last_lines.replace("\n", "\n    ")))
    return AlignError("", problems=problems)
