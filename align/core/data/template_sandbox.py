"""Render chat templates in a separate process, under limits of time and memory.

A template is a program that came with a model. jinja2's sandbox keeps it from the machine, but not from running for
ever or filling the memory: ``{{ 10 ** 10 ** 9 }}`` is one operation in C, which no signal handler and no other
thread can interrupt. The kernel can: the process has a limited address space and a limit of processor time at which
it is ended. So the limits hold for whatever a template does and from whichever thread it is rendered, and a busy
machine does not make a good template fail. This file is also that process's program, so it imports jinja2 alone.

The environment is that of transformers' ``apply_chat_template``. The process starts in a tenth of a second, once for
each process that renders.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from multiprocessing.connection import Connection, Pipe
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.sandbox

MEMORY = 2 << 30
"""Address space of the process in bytes: some forty times the longest text that is accepted."""

WAIT_FACTOR, GRACE_SECONDS = 10.0, 30.0
"""The longest wait for a reply: WAIT_FACTOR seconds for each second of processor time, and GRACE_SECONDS more.

The limit proper is processor time; this only bounds the wait for a process that stands still."""

FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP)
"""Exit statuses of a process that was ended from outside (by a person, a scheduler, the kernel out of memory): the
template is not at fault."""


class RenderJob(NamedTuple):
    """One rendering. marks: texts to write at ``{% generation %}`` and at ``{% endgeneration %}``.

    loop: the number of a loop of the template that is in no other block, counted from 0. turn: the text to write there
    at the start of each iteration and after the last.
    """

    variables: dict[str, Any]
    marks: tuple[str, str] = ("", "")
    loop: int | None = None
    turn: str = ""


class RenderFailure(NamedTuple):
    """The reason why a rendering produced no text. of_all: all jobs of the call failed with the one at fault."""

    why: str
    of_all: bool = False


class _Generation(jinja2.ext.Extension):
    """``{% generation %}``: the assistant's own text."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own declaration)
    marks = ("", "")

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: Callable[[], str]) -> str:
        start, end = type(self).marks
        return f"{start}{caller()}{end}"


def _raise(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=1)
def environment() -> jinja2.Environment:
    """Return the environment of chat templates, which parses and compiles them."""
    extensions = [_Generation, jinja2.ext.loopcontrols]
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


@lru_cache(maxsize=8)
def _compiled(source: str, loop: int | None, turn: str) -> jinja2.Template:
    if loop is None:
        return environment().from_string(source)
    parsed = environment().parse(source)
    marked = list(parsed.find_all(jinja2.nodes.For))[loop]
    write = jinja2.nodes.Output([jinja2.nodes.TemplateData(turn)])
    marked.body.insert(0, write)
    parsed.body.insert(parsed.body.index(marked) + 1, write)
    return environment().from_string(parsed)


def _rendered(source: str, job: RenderJob, characters: int) -> str:
    _Generation.marks = job.marks
    blocks, left = list[str](), characters
    for block in _compiled(source, job.loop, job.turn).generate(job.variables):
        blocks.append(block)
        left -= len(block)
        if left < 0:
            raise ValueError(f"it writes more than {characters:,} characters")
    return "".join(blocks)


def _reply(source: str, jobs: Sequence[tuple[Any, ...]], seconds: float, characters: int) -> bytes:
    """Return the texts as JSON, with ``[why]`` for one that failed. No pickle: what a template makes is not trusted."""
    found: list[str | list[str]] = []
    for job in map(RenderJob._make, jobs):
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            found.append(_rendered(source, job, characters))
        except Exception as error:  # a template is a program: it may raise anything
            found.append([_why(error)])
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    return json.dumps(found).encode()


def _why(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"it takes more than {MEMORY >> 30} GiB of memory"
    return f"{type(error).__name__}: {error}"[:200]


def _serve(connection: Connection) -> None:
    """Render until the other end is closed, which also happens when that process is killed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group, but meant for the parent
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends this process, in the middle of whatever it does
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    with suppress(ValueError, OSError):  # a system without such limits
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sources: dict[int, str] = {}
    with suppress(EOFError, OSError):
        while True:
            request = connection.recv_bytes()
            try:
                number, source, *rest = pickle.loads(request)
                if source is not None:
                    sources[number] = source
                reply = _reply(sources[number], *rest)
            except Exception as error:  # such as no memory for the request or for the reply
                reply = json.dumps(_why(error)).encode()
            connection.send_bytes(reply)


class _Process:
    """The renderer of this process, started when it is first needed and again after it was ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._sources: dict[str, int] = {}
        """Templates that were sent to the process, with their numbers: each is sent once."""

    def render(
        self, source: str, jobs: Sequence[RenderJob], seconds: float, characters: int
    ) -> list[str | RenderFailure]:
        """Do what the function ``render`` does.

        Raises TimeoutError where a job exceeds its limit, OSError where no process can be started or two are
        killed.
        """
        with self._lock:
            found = self._render_once(source, jobs, seconds, characters)
            if found is None:  # once more in a new process: a busy machine is no reason to refuse a good row
                found = self._render_once(source, jobs, seconds, characters)
        if found is None:
            raise OSError(errno.ECHILD, "it was killed twice")
        return found

    def _render_once(
        self, source: str, jobs: Sequence[RenderJob], seconds: float, characters: int
    ) -> list[str | RenderFailure] | None:
        """Render the jobs in one attempt; return None if the process was ended from outside."""
        plain = [tuple(job) for job in jobs]  # the process does not import this module
        connection = self._open()
        number = self._sources.get(source)
        try:
            template = (len(self._sources), source) if number is None else (number, None)
            connection.send_bytes(pickle.dumps((*template, plain, seconds, characters)))
            self._sources[source] = template[0]
            if not connection.poll(WAIT_FACTOR * seconds * len(jobs) + GRACE_SECONDS):
                raise TimeoutError
            found = json.loads(connection.recv_bytes())
        except (EOFError, ConnectionError, TimeoutError) as error:
            status = self._end()
            if isinstance(error, TimeoutError) or status == -signal.SIGPROF:
                raise TimeoutError(f"took longer than {seconds:g} s") from None
            if status in FROM_OUTSIDE:
                return None
            name = signal.Signals(-status).name if status < 0 else f"status {status}"
            return [RenderFailure(f"the process that renders it ended with {name}", of_all=True)] * len(jobs)
        except BaseException:  # Ctrl-C between request and reply: else the next request would read this reply
            self._end()
            raise
        if isinstance(found, str):
            return [RenderFailure(found, of_all=True)] * len(jobs)
        return [one if isinstance(one, str) else RenderFailure(one[0]) for one in found]

    def _open(self) -> Connection:
        if self._connection is None or self._owner != os.getpid():  # a forked child must not share its parent's
            ours, theirs = Pipe()
            command = [sys.executable, "-P", __file__, str(theirs.fileno())]
            try:
                self._child = subprocess.Popen(
                    command,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            finally:
                theirs.close()
            self._connection, self._owner, self._sources = ours, os.getpid(), {}
        return self._connection

    def _end(self) -> int:
        """Close the connection, end the process and return its status."""
        child, connection = self._child, self._connection
        self._child = self._connection = None
        assert child is not None
        assert connection is not None
        connection.close()
        try:
            return child.wait(1)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()

    def close(self) -> None:
        """End the process, if it is this one's."""
        if self._connection is not None and self._owner == os.getpid():
            self._end()


_process = _Process()
atexit.register(_process.close)


def render(source: str, jobs: Sequence[RenderJob], seconds: float, characters: int) -> list[str | RenderFailure]:
    """Return the text of each job under the template ``source``, or why there is none.

    seconds: limit of processor time for each job. characters: longest text. Raises TimeoutError for a job over its
    limit, and OSError where no process can be started or it is killed twice.
    """
    return _process.render(source, jobs, seconds, characters)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
