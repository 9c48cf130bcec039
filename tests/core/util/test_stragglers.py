"""The slowest rank, by windows that a test makes, and windows by clocks that a test winds."""

from __future__ import annotations

from typing import Any

import pytest

from align.core.util import profile, stragglers
from align.core.util.profile import profiled, profiling
from align.core.util.stragglers import Pace, Window, straggler


def window(data: float, compute: float, wait: float, last: int = 20, steps: int = 10) -> Window:
    return Window(last, steps, {"data": data, "compute": compute, "wait": wait, "other": 0.0}, 100.0)


def test_the_rank_that_waits_least_is_slow_and_its_work_says_why() -> None:
    usual, slow = window(0.1, 1.0, 1.0), window(1.1, 1.0, 0.0)
    found = straggler({0: usual, 1: usual, 2: slow, 3: usual})
    assert found is not None and found.rank == 2
    assert found.why == ("data", pytest.approx(1.0))
    assert (found.own, found.others) == (pytest.approx(2.1), pytest.approx(1.1))
    assert str(found).startswith("is the slowest: 2.10 s a step without waiting, the others 1.10 s; 1.00 s of the diff")


@pytest.mark.parametrize(
    "windows",
    [
        {},
        {0: window(0, 1, 0)},
        {0: window(0.1, 1.0, 0.1), 1: window(0.1, 1.1, 0.0)},  # within what is usual
        {0: window(0.01, 0.01, 5.0), 1: window(0.2, 0.01, 4.8)},  # ten times the others, and little of the step
        {0: window(0, 1, 1, last=20), 1: window(0, 2, 0, last=30)},  # of other steps
    ],
)
def test_none_stands_out(windows: dict[int, Window]) -> None:
    assert straggler(windows) is None


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 50.0
        monkeypatch.setattr(profile.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(stragglers.time, "monotonic", lambda: self.now)


def test_a_window_divides_the_time_of_its_steps_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    def part(name: str, seconds: float) -> None:
        with profiled(name):
            clock.now += seconds

    with profiling(None, "cpu", coarse=True):
        pace = Pace()
        for step in range(1, 9):
            part("data", 1.0)
            with profiled("loss"):
                part("forward", 2.0)  # what runs inside a part is its own, in coarse parts
                part("waiting", 0.25)
            part("backward", 3.0)
            part("checkpoint", 0.5)
            pace.step_done(step, 10 if step > 1 else 10**6)
    assert pace.window is not None
    assert (pace.window.last_step, pace.window.steps) == (6, 5), "the first step is no part of it"
    expected: dict[str, Any] = {"data": 1.0, "compute": 5.0, "sampling": 0.0, "wait": 0.25, "other": 0.5}
    assert dict(pace.window.seconds) == pytest.approx(expected)
    assert pace.window.step == pytest.approx(6.75) and pace.window.own == pytest.approx(6.5)
    assert pace.window.tokens_per_second == pytest.approx(10 / 6.75)
    assert pace.longest == pytest.approx(6.75)
