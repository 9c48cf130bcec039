"""The slowest rank, and why: each rank's seconds a step by kind of work, over windows of steps. No torch.

In synchronous training every rank takes as long as the slowest; only what they do until they wait for each other
differs. So ranks are compared by the time of a step without waiting. Nothing is exchanged for it: each rank publishes
its last window with its signs of life (``align.core.util.signs_of_life``).

Under fsdp ranks wait for each other at every layer, inside the forward and backward passes. There a slow device shows
as compute on all ranks alike, and only data and sampling tell one rank from the others.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from align.core.util import profile

KINDS: Mapping[str, frozenset[str]] = {
    "data": frozenset({"data"}),
    "compute": frozenset({"loss", "forward", "head", "backward", "optimizer", "reference"}),
    "sampling": frozenset({"generation", "reward", "weight sync"}),
    "wait": frozenset({profile.WAITING}),
}
"""Kinds of work and the parts of the profile that belong to them; every other part is ``other``."""
STEPS, SECONDS = 5, 10.0
"""Fewest steps, and seconds, of a window."""
FACTOR = 1.3
"""A rank is a straggler if its step takes so many times the median of the others."""
NOTABLE = 0.1
"""... and if it makes every step longer by this share."""


@dataclass(frozen=True, slots=True)
class Window:
    """The averages of one rank over its last window of steps. seconds: of a step, by kind of work.

    tokens_per_second: the tokens that this rank alone has learned from, over the window's time.
    """

    last_step: int
    steps: int
    seconds: Mapping[str, float]
    tokens_per_second: float

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return sum(self.seconds.values())

    @property
    def own(self) -> float:
        """Seconds of a step without waiting for others."""
        return self.step - self.seconds.get("wait", 0.0)


class Pace:
    """Makes windows out of the profile of this process, at step boundaries."""

    def __init__(self) -> None:
        self.window: Window | None = None
        self.longest = 0.0
        """Seconds of the longest step so far, after the first, with all that came between it and the one before."""
        self.last = time.monotonic()
        """When the last step ended."""
        self._start: tuple[int, float, dict[str, float]] | None = None
        self._tokens = 0

    def step_done(self, step: int, tokens: int) -> None:
        """Count a step. step: the number of steps done. tokens: those of it that this rank has learned from."""
        now, measured = time.monotonic(), profile.active()
        if measured is None:
            return
        if self._start is None:  # the first step allocates and compiles
            self._start, self._tokens = (step, now, measured.totals()), 0
        else:
            self.longest = max(self.longest, now - self.last)
            self._tokens += tokens
            first, began, before = self._start
            if step - first >= STEPS and now - began >= SECONDS:
                self._close(first, step, now - began, before, measured.totals())
                self._start, self._tokens = (step, now, measured.totals()), 0
        self.last = now

    def _close(
        self, first: int, step: int, seconds: float, before: Mapping[str, float], after: Mapping[str, float]
    ) -> None:
        steps = step - first
        by_kind = dict.fromkeys((*KINDS, "other"), 0.0)
        for part, total in after.items():
            kind = next((kind for kind, parts in KINDS.items() if part in parts), "other")
            by_kind[kind] += (total - before.get(part, 0.0)) / steps
        # On CUDA the times are the device's, which has not passed the last boundaries yet.
        by_kind["other"] = max(0.0, by_kind["other"] + seconds / steps - sum(by_kind.values()))
        self.window = Window(step, steps, by_kind, self._tokens / seconds)


@dataclass(frozen=True, slots=True)
class Straggler:
    """The rank that the others wait for. own, others: seconds of a step without waiting, of it and their median.

    why: the kind of work that makes most of the difference, and the seconds of it.
    """

    rank: int
    own: float
    others: float
    why: tuple[str, float]

    def __str__(self) -> str:
        kind, seconds = self.why
        return (
            f"is the slowest: {self.own:.2f} s a step without waiting, the others {self.others:.2f} s; "
            f"{seconds:.2f} s of the difference is {kind}"
        )


def straggler(windows: Mapping[int, Window]) -> Straggler | None:
    """Return the rank that makes the others wait, by the last window of each; None if none stands out.

    Windows are compared only where most of their steps are the same: the machine may have been slower a minute ago.
    """
    if len(windows) < 2:
        return None
    begin = max(window.last_step - window.steps for window in windows.values())
    end = min(window.last_step for window in windows.values())
    if 2 * (end - begin) < max(window.steps for window in windows.values()):
        return None
    rank, slow = max(windows.items(), key=lambda each: each[1].own)
    others = [window for other, window in windows.items() if other != rank]
    usual = median(window.own for window in others)
    if slow.own < FACTOR * usual or slow.own - usual < NOTABLE * slow.step:
        return None
    excess = {
        kind: seconds - median(window.seconds.get(kind, 0.0) for window in others)
        for kind, seconds in slow.seconds.items()
        if kind != "wait"
    }
    why = max(excess.items(), key=lambda each: each[1])
    return Straggler(rank, slow.own, usual, why)
