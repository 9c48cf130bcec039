"""The time that each part of a stage takes, for ``align train --profile``.

The engine names its parts where they begin: ``@profiled("forward")``, or ``with profiled("forward"):``. Without a
profile that costs one comparison. With one, every instant belongs to exactly one part, the innermost, so that the
shares sum to 1; what no part claims is ``other``. Nothing waits for the device: on CUDA an event is recorded at
each boundary, and the time between two events is read once both have passed.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import ContextDecorator, contextmanager
from pathlib import Path
from typing import Any

from align.core.util.atomic_files import write_json

FILE = "profile.json"
"""The file in a stage's directory."""
OTHER = "other"
WHOLE = frozenset({"generation", "reference", "evaluation"})
"""Parts that keep what runs inside them: a reference pass has a forward and a head too, which are its own."""
PENDING = 4096
"""Boundaries on a device after which those that have passed are read, so that a long run does not keep them all."""


class Profile:
    """Exclusive times of the parts of one thread's work, from its making on.

    seconds, cpu_seconds, device_seconds: by part. The second is processor time of all threads; the third is time of
    the device between the part's boundaries, idle or not, and empty without CUDA.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.seconds, self.cpu_seconds, self.device_seconds = (defaultdict[str, float](float) for _ in range(3))
        self.calls = Counter[str]()
        self.steps = 0
        self._thread = threading.get_ident()
        self._stack = [OTHER]
        self._events: deque[tuple[str, Any]] = deque()
        self._last = time.perf_counter(), time.process_time()
        self._mark(OTHER)

    def enter(self, part: str) -> None:
        """Begin a part, within the current one; work in other threads is not seen."""
        if threading.get_ident() != self._thread:
            return
        self._account()
        outer = self._stack[-1]
        self._stack.append(outer if outer in WHOLE else part)
        self.calls[self._stack[-1]] += outer not in WHOLE

    def leave(self) -> None:
        """End the current part."""
        if threading.get_ident() == self._thread:
            self._account()
            self._stack.pop()

    def _account(self) -> None:
        """Add the time since the last boundary to the current part."""
        now, part = (time.perf_counter(), time.process_time()), self._stack[-1]
        self.seconds[part] += now[0] - self._last[0]
        self.cpu_seconds[part] += now[1] - self._last[1]
        self._last = now
        self._mark(part)

    def _mark(self, part: str) -> None:
        """Record a boundary on the device: the end of ``part``'s time."""
        if self.device != "cuda":
            return
        import torch

        if torch.cuda.is_current_stream_capturing():  # a graph would hold the event instead of passing it now
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._events.append((part, event))
        if len(self._events) >= PENDING:
            self._read_events()

    def _read_events(self) -> None:
        """Take in the times between the events that the device has passed."""
        while len(self._events) > 1 and self._events[1][1].query():
            _, start = self._events.popleft()
            part, end = self._events[0]
            self.device_seconds[part] += start.elapsed_time(end) / 1000

    def facts(self) -> dict[str, Any]:
        """Return what ``profile.json`` holds, the largest part first; call it outside of all parts."""
        self._account()
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
            self._read_events()
        measured = self.device_seconds if self.device == "cuda" else self.seconds
        total = sum(measured.values())
        parts = {}
        for part, seconds in sorted(measured.items(), key=lambda entry: -entry[1]):
            parts[part] = {
                "share": seconds / total,
                "seconds": self.seconds[part],
                "cpu_seconds": self.cpu_seconds[part],
                "calls": self.calls[part],
            }
            if self.device == "cuda":
                parts[part]["device_seconds"] = seconds
        return {
            "device": self.device,
            "seconds": sum(self.seconds.values()),
            "steps": self.steps,
            "parts": parts,
        }


_active: Profile | None = None
"""The profile of this process, None outside of ``profiling``."""


class profiled(ContextDecorator):
    """A part of the work, as a context or as a decorator; does nothing unless this process is profiled."""

    def __init__(self, part: str) -> None:
        self.part = part

    def __enter__(self) -> None:
        if _active is not None:
            _active.enter(self.part)

    def __exit__(self, *_: object) -> None:
        if _active is not None:
            _active.leave()


def step_done() -> None:
    """Count an optimizer step."""
    if _active is not None:
        _active.steps += 1


@contextmanager
def profiling(directory: Path | None, device: str) -> Iterator[Profile]:
    """Profile what this thread does inside, and write ``profile.json`` at the end, also after an error.

    directory: the stage's; None writes nothing. device: ``cpu`` or ``cuda``.
    """
    global _active
    before, _active = _active, Profile(device)
    mine = _active
    try:
        yield mine
    finally:
        _active = before
        if directory is not None:
            write_json(directory / FILE, mine.facts())


def table(facts: dict[str, Any]) -> list[str]:
    """Return the lines that show a profile: share and seconds of each part, the largest first."""
    lines = [f"{facts['seconds']:.1f} s, {facts['steps']:,} steps"]
    for part, figures in facts["parts"].items():
        seconds = figures.get("device_seconds", figures["seconds"])
        lines.append(f"    {part:12}{figures['share']:7.1%}{seconds:10.2f} s")
    return lines
