"""The end of a process: by a signal that asks it to stop, or by giving up. No torch: works while that is imported.

Inside the training loop a signal only raises a flag and the step is finished (``StopFlag``), by a deadline
(``signal_deadline``). Everywhere else (imports, reading data, loading a model, an evaluation before the first step,
``best_of_n``, the export) the process ends at once. An exception would not do: half an import cannot be undone, and
code that guards a plugin's import would take it for the plugin's failure. Nothing is lost, as files are whole or absent
and every child dies with its parent.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from align.schemas.errors import AlignError
from align.schemas.text import stripped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Signals that ask a run to stop."""
FAILED = 2
"""Exit status of a process that has reported its error."""
LOST = 3
"""Exit status of a process that ends because of another one, which is the cause."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h

Note = Callable[..., object]
"""Writes an event with its fields to the log of this process: ``align.core.util.liveness.note``."""


class ProcessLost(AlignError):
    """Raised for a collective that broke because another process is gone or silent: that process is the cause."""


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
def ending_on_signals(again: str, note: Note) -> Iterator[None]:
    """End the process on SIGTERM, SIGINT or SIGUSR1 while the block runs; its exit status is 128 plus the number.

    again: the command that continues the run, for the message; "" prints none, as for one process of several. note:
    records the end.
    """

    def stop(number: int, frame: object) -> None:
        message = f"{Interrupted(number)}; go on with: {again}" if again else ""
        note("end", status=128 + number)
        give_up(message, 128 + number)

    with _handling_signals(stop):
        yield


@contextmanager
def passing_on(send: Callable[[int], object]) -> Iterator[Mapping[int, float]]:
    """Call ``send`` with the number of each SIGTERM, SIGINT and SIGUSR1 that comes while the block runs.

    Yields a mapping that gets the time, by the monotonic clock, at which each of them first came.
    """
    received: dict[int, float] = {}

    def pass_on(number: int, frame: object) -> None:
        received.setdefault(number, time.monotonic())
        send(number)

    with _handling_signals(pass_on):
        yield received


@contextmanager
def _handling_signals(handle: Callable[[int, Any], object]) -> Iterator[None]:
    """Handle ``SIGNALS`` while the block runs. Only the main thread may; in any other nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def signal_deadline(seconds: float, note: Note, late: Callable[[int, float], NoReturn]) -> Iterator[None]:
    """End the process ``seconds`` after a SIGTERM, SIGINT or SIGUSR1 that Python handles, if it is still there then.

    The signal comes through a pipe that C writes to at once; a handler in Python runs only when the main thread
    returns from the C call that it is in. note: records it. late: called with its number and ``seconds``, ends the
    process.
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
                        note("signal", signal=signal.Signals(received).name)
            elif time.monotonic() >= deadline and not over.is_set():
                late(number, seconds)

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


def give_up(message: str, status: int) -> NoReturn:
    """Print a message and end this process, even if its main thread hangs."""
    if message:
        say(message)
    end(status)


def say(message: str) -> None:
    """Print past Python's buffers and locks, which the main thread may hold."""
    with suppress(OSError):
        os.write(2, (stripped(message) + "\n").encode(errors="replace"))


def end(status: int) -> NoReturn:
    """End this process at once, whatever its threads do."""
    if sys.stdout is not None and os.isatty(1):
        with suppress(OSError):
            os.write(1, b"\x1b[?25h")  # a progress bar hides the cursor
    os._exit(status)


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends; for a child, before its program."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def adopt_orphans() -> None:
    """Have the kernel make this process the parent of descendants whose own parent ends, so that it can end them."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
