"""The time that each part of a stage takes: for ``align train --profile``, and always in coarse parts for stragglers.

The engine names its parts where they begin: ``@profiled("forward")``, or ``with profiled("forward"):``. Every instant
belongs to exactly one part, the innermost, so that the shares sum to 1; what no part claims is ``other``. Nothing waits
for the device: on CUDA an event is recorded at each boundary, and the time between two events is read once both have
passed. Outside of ``profiling`` a part costs one comparison.
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
WAITING = "waiting"
"""The part of waiting for the other ranks."""
HOST = frozenset({"data", "reward"})
"""Parts that are work of the host alone."""
PENDING = 4096
"""Boundaries on a device after which those that have passed are read, so that a long run does not keep them all."""


class Profile:
    """Exclusive times of the parts of one thread's work, from its making on.

    seconds, cpu_seconds, device_seconds: by part. The second is processor time of all threads; the third is time of
    the device between the part's boundaries, idle or not, and empty without CUDA. coarse: a part keeps what runs inside
    it, but for waiting, so that a step has about ten boundaries whatever the model: cheap enough for every run.
    """

    def __init__(self, device: str = "cpu", coarse: bool = False) -> None:
        self.device, self.coarse = device, coarse
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
        if threading.get_ident() == self._thread:
            self._enter(part)

    def _enter(self, part: str) -> None:
        outer = self._stack[-1]
        keeps = outer in WHOLE or (self.coarse and outer != OTHER and part != WAITING)
        inner = outer if keeps else part
        if inner != outer or not self.coarse:
            self._account()
        self._stack.append(inner)
        self.calls[inner] += outer not in WHOLE

    def leave(self) -> None:
        """End the current part."""
        if threading.get_ident() != self._thread:
            return
        if not self.coarse or self._stack[-1] != self._stack[-2]:
            self._account()
        self._stack.pop()

    @property
    def current(self) -> tuple[str, float]:
        """The part that is under way, and the seconds since its last boundary; read from any thread."""
        return self._stack[-1], time.perf_counter() - self._last[0]

    def totals(self) -> dict[str, float]:
        """Return the seconds of each part so far; of the device on CUDA, as far as it has passed the boundaries."""
        if self.device != "cuda":
            self._account()
            return dict(self.seconds)
        self._read_events()
        # The device does nothing for these parts: only the host's clock has them.
        return {**self.device_seconds, **{part: self.seconds[part] for part in HOST & self.seconds.keys()}}

    def _account(self) -> None:
        """Add the time since the last boundary to the current part."""
        cpu = 0.0 if self.coarse else time.process_time()
        now, part = (time.perf_counter(), cpu), self._stack[-1]
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


@contextmanager
def waiting_once_computed(loss: Any) -> Iterator[None]:
    """Run a backward pass in the block; what follows its last gradient is waiting: for other ranks' gradients.

    A hook of the loss runs first in its backward pass. The callback that it queues comes before those that strategies
    queue to wait for their reductions (DDP with its first bucket, FSDP2 with its first module).
    """
    if _active is None:
        yield
        return
    import torch

    measured, depth = _active, len(_active._stack)

    def computed() -> None:
        # On CUDA this is a thread of the engine's, with the caller's streams; the caller waits for it meanwhile.
        if len(measured._stack) == depth:
            measured._enter(WAITING)

    engine = torch.autograd.Variable._execution_engine
    hook = loss.register_hook(lambda gradient: engine.queue_callback(computed))
    try:
        yield
    finally:
        hook.remove()
        if len(measured._stack) > depth:
            measured.leave()


def active() -> Profile | None:
    """Return the profile of this process, None outside of ``profiling``."""
    return _active


def step_done() -> None:
    """Count an optimizer step."""
    if _active is not None:
        _active.steps += 1


@contextmanager
def profiling(directory: Path | None, device: str, coarse: bool = False) -> Iterator[Profile]:
    """Profile what this thread does inside, and write ``profile.json`` at the end, also after an error.

    directory: the stage's; None writes nothing. device: ``cpu`` or ``cuda``. coarse: as for ``Profile``; where a
    profile is being taken already, that one goes on, which has all that a coarse one has.
    """
    global _active
    if coarse and _active is not None:
        yield _active
        return
    before, _active = _active, Profile(device, coarse)
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
