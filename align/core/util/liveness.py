"""Signs of life: no wait without a limit, and a message that says which process waits for what. No torch.

A process that hangs cannot report it, so a thread of its own watches it:

* work that may never return (a reward, a lock) is entered with ``waiting``: reported after a while, given up after
  ``Limits.silence`` seconds;
* every process of a group writes a sign of life each second to ``STAGE/.ranks/RANK.json``, and watches that of the next
  one: a stopped or vanished process cannot report itself, and its peers only see a collective that never ends;
* a signal starts a clock: a process that has not stopped after ``Limits.stop`` seconds ends all the same.

Giving up means ``os._exit``: the main thread may be inside a call that nothing interrupts. Nothing is lost by it:
files are written atomically, the last checkpoint is valid, and every child dies with its parent.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from align.core.util import atomic_files
from align.schemas.errors import Problem
from align.schemas.text import stripped

BEAT = 1.0
"""Seconds between two signs of life."""
PATIENCE = 60.0
"""Seconds of waiting after which it is reported; again whenever the time has doubled."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Signals that ask a run to stop."""
RANKS = ".ranks"
FAILED = 2
"""Exit status of a process that has reported its error."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds to wait. silence: for work, or another process, that may never end; stop: after a signal.

    Without limits (a command that only scores, where Ctrl-C ends it at once) waits are reported.
    """

    silence: float = float("inf")
    stop: float = float("inf")


@dataclass(frozen=True, slots=True)
class Sign:
    """The last report of a process about itself: machine, step (from 1), and what it waits for.

    beat: counts up while it lives. error: why it ended, if it could report that.
    """

    host: str
    pid: int
    step: int | None = None
    doing: str = ""
    beat: int = 0
    error: str = ""


def signs(directory: Path | None) -> dict[int, Sign]:
    """Return the last sign of life of every process of a group, by rank."""
    found: dict[int, Sign] = {}
    for file in sorted((directory / RANKS).glob("*.json")) if directory is not None else ():
        with suppress(OSError, ValueError, TypeError):
            found[int(file.stem)] = Sign(**json.loads(file.read_bytes()))
    return found


def named(rank: int, sign: Sign | None) -> str:
    """Return a process as messages name it: ``rank 1 on gpu-7 (step 12)``."""
    if sign is None:
        return f"rank {rank}"
    at = "before the first step" if not sign.step else f"step {sign.step}"
    return f"rank {rank} on {sign.host} ({at}{', ' + sign.doing if sign.doing else ''})"


@dataclass(eq=False)
class _Wait:
    what: str
    fix: str
    since: float
    reported: float = PATIENCE


class _Watch:
    """The state and the thread that watch this process; one for all waits, started by the first."""

    def __init__(self) -> None:
        self.limits, self.rank, self.world = Limits(), 0, 1
        self.directory: Path | None = None
        self.step: int | None = None
        self.error = ""
        self.waits: list[_Wait] = []
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._wake = threading.Event()
        self._beat = 0
        self._seen: int | None = None  # the last beat of the next rank, since when, and when to report
        self._since, self._report = 0.0, PATIENCE

    def start(self) -> None:
        """Start the thread, in a forked child too, or have it look at once."""
        if self._thread is None or self._pid != os.getpid():
            self._pid, self._wake = os.getpid(), threading.Event()
            self._thread = threading.Thread(target=self._run, name="align-liveness", daemon=True)
            self._thread.start()
        self._wake.set()

    def _run(self) -> None:
        while True:
            with suppress(OSError):  # a full disk is reported by the code that needs it
                self.publish()
            self._look_at_waits()
            self._look_at_next()
            time.sleep(BEAT / 4)  # a wake-up for every step of a small model would be too much writing
            self._wake.wait(BEAT if self.waits or self.world > 1 else None)
            self._wake.clear()

    def sign(self) -> Sign:
        """Return this process's sign of life."""
        doing = self.waits[-1].what if self.waits else ""
        return Sign(socket.gethostname(), os.getpid(), self.step, doing, self._beat, self.error)

    def publish(self) -> None:
        """Write the sign of life, if there are other processes to read it."""
        if self.directory is None or self.world == 1:
            return
        self._beat += 1
        place = self.directory / RANKS / f"{self.rank}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = atomic_files.partial(place)
        temporary.write_text(json.dumps(asdict(self.sign())), encoding="utf-8")
        temporary.replace(place)

    def _look_at_waits(self) -> None:
        for wait in list(self.waits):
            waited = time.monotonic() - wait.since
            who = named(self.rank, replace(self.sign(), doing=""))
            if waited > self.limits.silence:
                fix = "; ".join([wait.fix, "--resume goes on from the last checkpoint"]).removeprefix("; ")
                self.give_up(Problem(who, f"{wait.what}: no end after {waited:.0f} s; given up", fix))
            if waited > wait.reported:
                wait.reported = 2 * waited
                limit = self.limits.silence
                _say(f"{who}: {wait.what}, {waited:.0f} s so far" + f"; given up after {limit:g} s" * (limit < 1e9))

    def _look_at_next(self) -> None:
        """Watch the next rank. In this ring each process is watched by exactly one other, rank 0 too."""
        if self.world == 1 or self.directory is None:
            return
        other, now = (self.rank + 1) % self.world, time.monotonic()
        sign = signs(self.directory).get(other)
        beat = -1 if sign is None else sign.beat
        if beat != self._seen:
            self._seen, self._since, self._report = beat, now, PATIENCE
            return
        silent, who = now - self._since, named(other, sign)
        what = "has given no sign of life" if sign else "has not started"
        if silent > self.limits.silence:
            self.give_up(
                Problem(
                    who,
                    f"{what} for {silent:.0f} s; rank {self.rank} on {socket.gethostname()} gives up waiting for it",
                    "it was stopped (SIGSTOP), or its machine hangs or is gone; see to that, then use --resume. "
                    "devices.timeout is how long to wait",
                )
            )
        if silent > self._report:
            self._report = 2 * silent
            _say(f"{who}: {what} for {silent:.0f} s; given up after {self.limits.silence:g} s")

    def give_up(self, problem: Problem, status: int = FAILED) -> None:
        """Report why and end this process, even if its main thread hangs."""
        self.error = str(problem)
        with suppress(OSError):
            self.publish()
        _say(str(problem))
        _end(status)


_watch = _Watch()


def _forget_in_child() -> None:
    """Reset a forked child: it is not in the group, and its signals must not enter the pipe shared with its parent."""
    _watch.__init__()  # type: ignore[misc]
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)
    _release_signals()


_forking = threading.local()


def _hold_signals() -> None:
    """Block signals while this thread forks: one that a child gets before it is reset would enter the shared pipe."""
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _release_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


os.register_at_fork(before=_hold_signals, after_in_parent=_release_signals, after_in_child=_forget_in_child)


@contextmanager
def watched(directory: Path | None, rank: int, world: int, limits: Limits) -> Iterator[None]:
    """Watch this process, one of a group of ``world``, until the end of the block; signals have a deadline in it."""
    before = (_watch.directory, _watch.rank, _watch.world, _watch.limits)
    _watch.directory, _watch.rank, _watch.world, _watch.limits = directory, rank, world, limits
    _watch.step, _watch.error, _watch._seen = None, "", None
    _watch.start()
    try:
        with signal_deadline(limits.stop):
            yield
    finally:
        _watch.directory, _watch.rank, _watch.world, _watch.limits = before


@contextmanager
def waiting(what: str, fix: str = "") -> Iterator[None]:
    """Run a block that may never end: it is reported, and after ``Limits.silence`` seconds it ends the process."""
    wait = _Wait(what, fix, time.monotonic())
    _watch.waits.append(wait)
    _watch.start()
    try:
        yield
    finally:
        _watch.waits.remove(wait)


def at_step(step: int) -> None:
    """Note the optimizer step that is being made, for messages."""
    _watch.step = step
    _watch._wake.set()


def failed(error: str) -> None:
    """Publish why this process ends: its peers only see a closed connection."""
    _watch.error = error
    with suppress(OSError):
        _watch.publish()


@contextmanager
def signal_deadline(seconds: float) -> Iterator[None]:
    """End the process ``seconds`` after a SIGTERM, SIGINT or SIGUSR1 that Python handles, if it is still there then.

    The signal comes through a pipe that C writes to at once; a handler in Python runs only when the main thread
    returns from the C call that it is in.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    over = threading.Event()

    def watch() -> None:
        poll = select.poll()
        poll.register(reading, select.POLLIN)
        deadline, number = float("inf"), 0
        while not over.is_set():
            left = max(0.0, min(deadline - time.monotonic(), 3600.0))
            if poll.poll(1000 * left):
                for received in os.read(reading, 64):
                    if received in SIGNALS and not number:
                        number, deadline = received, time.monotonic() + seconds
            elif time.monotonic() >= deadline and not over.is_set():
                _late(number, seconds)

    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(target=watch, name="align-signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        over.set()
        os.write(writing, b"\0")
        thread.join(5)
        os.close(reading)
        os.close(writing)


def _late(number: int, seconds: float) -> None:
    if _watch.rank == 0 or _watch.waits:  # the other ranks only wait for these
        who, name = named(_watch.rank, _watch.sign()), signal.Signals(number).name
        _say(
            f"{who}: {name} came {seconds:g} s ago and the step has not ended; ending now. "
            "--resume goes on from the last checkpoint (devices.stop_timeout is how long to wait)"
        )
    _end(128 + number)


def give_up(message: str, status: int) -> None:
    """Print a message and end this process, even if its main thread hangs."""
    if message:
        _say(message)
    _end(status)


def _say(message: str) -> None:
    """Print past Python's buffers and locks, which the main thread may hold."""
    with suppress(OSError):
        os.write(2, (stripped(message) + "\n").encode(errors="replace"))


def _end(status: int) -> None:
    if sys.stdout is not None and os.isatty(1):
        with suppress(OSError):
            os.write(1, b"\x1b[?25h")  # a progress bar hides the cursor
    os._exit(status)


# Signals that ask a run to stop, outside of its steps too. Imports no torch: works while torch is still imported.
#
# Inside the training loop a signal only raises a flag and the step is finished (``StopFlag``). Everywhere
# else (imports, reading data, loading a model, an evaluation before the first step, ``best_of_n``, the export) the
# process ends at once. An exception would not do: half an import cannot be undone, and code that guards a plugin's
# import would take it for the plugin's failure. Nothing is lost, as files are whole or absent and every child dies
# with its parent.


class Interrupted(BaseException):
    """A stop by a signal, after saving. Not an Exception: no ``except Exception`` may take it for a failure.

    step: the last one that is saved, 0 before the first; None where that is not known.
    """

    def __init__(self, signal_number: int, step: int | None = None) -> None:
        self.signal_number, self.step = signal_number, step
        message = f"stopped by {signal.Signals(signal_number).name}"
        if step is not None:
            message += f" after step {step}, which is saved" if step else " before the first step"
        super().__init__(message)


class StopFlag:
    """A flag that SIGTERM, SIGINT and SIGUSR1 raise while it listens; a second SIGINT interrupts at once.

    received: the number of the last signal, 0 as long as none came.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Take over the signals, which only a main thread may; in any other nothing changes."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._raise) for number in SIGNALS}

    def restore(self) -> None:
        """Give the signals back to those who handled them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def requested(self) -> bool:
        """Return True once a signal asked this process to stop."""
        return self.received != 0

    def _raise(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


@contextmanager
def ending_on_signals(again: str = "") -> Iterator[None]:
    """End the process on SIGTERM, SIGINT or SIGUSR1 while the block runs; its exit status is 128 plus the number.

    again: the command that continues the run, for the message; "" prints none, as for one process of several. Python
    lets only the main thread handle signals; in any other nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        message = f"{Interrupted(number)}; go on with: {again}" if again else ""
        give_up(message, 128 + number)

    before = {number: signal.signal(number, end) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
