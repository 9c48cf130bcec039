"""Processes that take turns on one core, step by step, so that a ratio is of one state of the machine.

``in_turns`` forks one process for each side, after the parent has imported what they need. Only the process whose turn
it is runs; it passes the turn on after its setup and after each step. ``Meter`` is one side's clock.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from align.core.util.profile import Profile

FORK = multiprocessing.get_context("fork")
PROBE = 1024
"""Side of the square matrices whose product tells what the core does at best at that moment."""


class Turn:
    """The right to run, of several processes. side: the place of this one among them."""

    def __init__(self, sides: int) -> None:
        self._gates = [FORK.Semaphore(0) for _ in range(sides)]
        self._alive = FORK.Array("b", [1] * sides)
        self._holder = FORK.Value("i", 0)
        self._gates[0].release()
        self.side = 0

    def take(self) -> None:
        """Wait until it is this side's turn."""
        self._gates[self.side].acquire()

    def pass_on(self) -> None:
        """Let the next side run, and wait until it is this one's turn again."""
        self._give(self.side)
        self.take()

    def leave(self, side: int) -> None:
        """Take a side that has ended out of the round; the turn goes on if that side had it."""
        self._alive[side] = 0
        if self._holder.value == side:
            self._give(side)

    def _give(self, side: int) -> None:
        after = [(side + n) % len(self._gates) for n in range(1, len(self._gates) + 1)]
        following = next((other for other in after if self._alive[other]), None)
        if following is not None:
            self._holder.value = following
            self._gates[following].release()


@dataclass
class Meter:
    """What one side measures, a step at a time; its lists have one entry for each step.

    cpu, seconds: of the step. parts: processor seconds of each part, exclusive. probes: GFLOP/s of a product of
    matrices right before the step. curve: loss and gradient norm. rows: fingerprints of what was learned from. tokens,
    scored: without padding. setup: processor seconds of each part before the first step.
    """

    turn: Turn
    profile: Profile
    cpu: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)
    setup: dict[str, float] = field(default_factory=dict)
    start_mib: float = 0.0
    peak_mib: float = 0.0

    def ready(self) -> None:
        """Call it before the first step."""
        self.setup = dict(self._parts())
        self.start_mib = memory("VmRSS")
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak so far is the setup's
        self._next()

    def step(self, **curve: float) -> None:
        """Call it after each step. curve: its loss and gradient norm, where they are known by now."""
        self.cpu.append(time.process_time() - self._cpu)
        self.seconds.append(time.perf_counter() - self._seconds)
        now = self._parts()
        self.parts.append({part: now[part] - self._before.get(part, 0.0) for part in now})
        self.peak_mib = memory("VmHWM")
        if curve:
            self.curve.append(curve)
        self._next()

    def _next(self) -> None:
        self.turn.pass_on()
        self.probes.append(probe())
        self._before = dict(self._parts())
        self._cpu, self._seconds = time.process_time(), time.perf_counter()

    def _parts(self) -> Mapping[str, float]:
        return {part: each["cpu_seconds"] for part, each in self.profile.facts()["parts"].items()}

    def facts(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        kept = ("cpu", "seconds", "parts", "curve", "rows", "tokens", "scored", "setup", "start_mib", "peak_mib")
        return {name: getattr(self, name) for name in kept} | {"probes": self.probes[: len(self.cpu)]}


def probe() -> float:
    """Return the GFLOP/s of the best of three products of float32 matrices."""
    square, best = torch.ones(PROBE, PROBE), float("inf")
    for _ in range(3):
        started = time.process_time()
        square @ square
        best = min(best, time.process_time() - started)
    return 2 * PROBE**3 / best / 1e9


def memory(name: str) -> float:
    """Return a figure of this process's memory in MiB: ``VmRSS`` now, ``VmHWM`` at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def in_turns(sides: Mapping[str, Callable[[Turn], dict[str, Any]]], logs: Path) -> dict[str, dict[str, Any]]:
    """Run each side in a process of its own, one at a time, and return what each returned.

    logs: directory of what they print. Raises RuntimeError if one fails, with the end of its log.
    """
    turn = Turn(len(sides))
    running = {}
    for place, (name, side) in enumerate(sides.items()):
        receives, sends = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_run, args=(place, side, turn, sends, logs / f"{name}.log"))
        process.start()
        sends.close()
        running[receives] = (place, name, process)
    found: dict[str, dict[str, Any]] = {}
    failed = []
    while running:
        for receives in wait(list(running)):
            place, name, process = running.pop(receives)
            try:
                found[name] = receives.recv()
            except EOFError:  # ended without a result
                failed.append(f"{name} failed:\n" + "\n".join((logs / f"{name}.log").read_text().splitlines()[-25:]))
            process.join()
            turn.leave(place)
    if failed:
        raise RuntimeError("\n\n".join(failed))
    return {name: found[name] for name in sides}


def _run(place: int, side: Callable[[Turn], dict[str, Any]], turn: Turn, sends: Any, log: Path) -> None:
    turn.side = place
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    turn.take()
    try:
        sends.send(side(turn))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # the parent takes this side out of the round
