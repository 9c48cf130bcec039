"""Progress of long work: a bar on a terminal, a line now and then elsewhere, nothing where it is quiet.

Everything goes to stderr, so that what a command prints can be piped. Work is shown only inside ``showing(True)``,
which the command line and ``align.train`` enter; a library call is silent unless it is asked.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")

PATIENCE = 3.0
"""Seconds of silence off a terminal after which a line says what is being done."""
INTERVAL = 10.0
"""Least seconds between two lines about one piece of work. The interval grows to a twentieth of the time spent."""
LONGEST_INTERVAL = 300.0
"""Seconds beyond which the interval does not grow."""

_shown = False
_display: Progress | None = None
"""The one live display of this process: each piece of work is a line in it, since two displays overwrite each other."""
_lines = 0
"""Pieces of work in the display."""


@contextmanager
def showing(shown: bool) -> Iterator[None]:
    """Show the work inside, or do not."""
    global _shown
    before, _shown = _shown, shown
    try:
        yield
    finally:
        _shown = before


def is_showing() -> bool:
    """Return whether work is shown."""
    return _shown


def on_terminal() -> bool:
    """Return whether stderr is a terminal that can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def say(line: str) -> None:
    """Print a line, above the bars where there are some."""
    if _display is not None:
        _display.console.print(line, markup=False, highlight=False, soft_wrap=True)
    else:
        print(line, file=sys.stderr, flush=True)


class Work:
    """One piece of work under way, of ``total`` parts where that is known.

    shown: None is as ``showing`` sets it. patience: seconds until the first line off a terminal, which a timer prints:
    work that hangs in its first part must not be silent.
    """

    def __init__(
        self,
        what: str,
        total: float | None = None,
        *,
        unit: str = "",
        shown: bool | None = None,
        patience: float | None = None,
    ) -> None:
        self.what, self.total, self.done, self.facts = what, total, 0.0, ""
        self.unit = f" {unit}" if unit else ""
        self.shown = _shown if shown is None else shown
        self._patience = PATIENCE if patience is None else patience
        self._task: Any = None
        self._timer: threading.Timer | None = None
        self._printed = False

    def __enter__(self) -> Work:
        self._since = self._last = time.monotonic()
        if self.shown and on_terminal():
            self._task = _open_line(self.what, self.total)
        elif self.shown and self._patience > 0:
            self._timer = threading.Timer(self._patience, self._print)
            self._timer.daemon = True
            self._timer.start()
        elif self.shown:
            self._print()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            _close_line(self._task)
        elif self._printed and self.total is not None:
            say(f"{self.what}: {self.done:,.0f}{self.unit} done in {_clock(time.monotonic() - self._since)}")

    def advance(self, parts: float = 1.0) -> None:
        """Count more parts as done."""
        self.update(self.done + parts)

    def update(self, done: float, facts: str = "") -> None:
        """Set how many parts are done. facts: what else to show, such as the loss."""
        self.done, self.facts = done, facts
        if self._task is not None and _display is not None:
            _display.update(self._task, completed=done, facts=facts)
        elif self._printed and time.monotonic() - self._last >= interval(time.monotonic() - self._since):
            self._print()

    def line(self) -> str:
        """Return ``tokenising: 12,288 of 40,000 (31 %), 0:00:21 left``; ``loading the model ...`` without a count."""
        if self.total is None and not self.done:
            return f"{self.what} ..."
        parts = [f"{self.done:,.0f}{self.unit}"]
        if self.total:
            percent = 100 * min(1.0, self.done / self.total)  # an estimated total may be passed
            parts = [f"{self.done:,.0f} of {self.total:,.0f}{self.unit} ({percent:.0f} %)"]
            if 0 < self.done < self.total:
                spent = time.monotonic() - self._since
                parts.append(f"{_clock(spent / self.done * (self.total - self.done))} left")
        if self.facts:
            parts.append(self.facts)
        return f"{self.what}: {', '.join(parts)}"

    def _print(self) -> None:
        self._printed, self._last = True, time.monotonic()
        say(self.line())


def interval(spent: float) -> float:
    """Return the seconds between two lines of work that has taken ``spent`` seconds: more of them the longer it runs.

    An ``INTERVAL`` of 0 prints every update.
    """
    return INTERVAL and min(max(INTERVAL, spent / 20), LONGEST_INTERVAL)


def working(what: str, *, shown: bool | None = None, patience: float | None = None) -> Work:
    """Return work that cannot say how far it is, such as loading a model."""
    return Work(what, shown=shown, patience=patience)


def track(items: Iterable[Item], what: str, total: int | None = None, *, shown: bool | None = None) -> Iterator[Item]:
    """Yield the items, and count each as done once the next is asked for."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Work(what, total, shown=shown) as work:
        for item in items:
            yield item
            work.advance()


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _open_line(what: str, total: float | None) -> Any:
    global _display, _lines
    if _display is None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        _display = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}", markup=False),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,  # rich would send it to stderr, and a pipe would get nothing
        )
        _display.start()
    _lines += 1
    return _display.add_task(what, total=total, facts="")


def _close_line(task: Any) -> None:
    global _display, _lines
    if _display is None:
        return
    _display.remove_task(task)
    _lines -= 1
    if _lines == 0:
        _display.stop()
        _display = None
