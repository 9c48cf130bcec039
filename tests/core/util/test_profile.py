"""Exclusive times of a stage's parts, by clocks that a test winds itself."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from align.core.util import profile
from align.core.util.atomic_files import read_json
from align.core.util.profile import Profile, profiled, profiling


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(profile.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(profile.time, "process_time", lambda: self.now / 2)

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def seconds(measured: Profile) -> dict[str, float]:
    return {part: figures["seconds"] for part, figures in measured.facts()["parts"].items()}


def test_a_part_inside_another_takes_its_own_time_from_it(clock: Clock) -> None:
    with profiling(None, "cpu") as measured:
        clock.pass_by(1)
        with profiled("forward"):
            clock.pass_by(2)
            with profiled("head"):
                clock.pass_by(4)
            clock.pass_by(8)
        clock.pass_by(16)
    assert seconds(measured) == {"other": 17, "forward": 10, "head": 4}
    facts = measured.facts()
    assert facts["seconds"] == 31
    assert {part: figures["share"] for part, figures in facts["parts"].items()} == {
        "other": 17 / 31,
        "forward": 10 / 31,
        "head": 4 / 31,
    }
    assert facts["parts"]["head"]["cpu_seconds"] == 2


@pytest.mark.parametrize("whole", sorted(profile.WHOLE))
def test_a_part_that_is_whole_keeps_what_runs_in_it(clock: Clock, whole: str) -> None:
    with profiling(None, "cpu") as measured, profiled(whole):
        clock.pass_by(1)
        with profiled("forward"), profiled("head"):
            clock.pass_by(2)
        clock.pass_by(4)
    assert seconds(measured) == {whole: 7, "other": 0}
    assert measured.facts()["parts"][whole]["calls"] == 1


def test_an_error_ends_the_parts_that_it_leaves(clock: Clock) -> None:
    @profiled("backward")
    def fails() -> None:
        clock.pass_by(1)
        raise ValueError

    with profiling(None, "cpu") as measured:
        with pytest.raises(ValueError), profiled("loss"):
            fails()
        clock.pass_by(2)
    assert seconds(measured) == {"backward": 1, "other": 2, "loss": 0}


def test_another_thread_is_not_seen(clock: Clock) -> None:
    def score() -> None:
        with profiled("reward"):
            clock.pass_by(1)

    with profiling(None, "cpu") as measured, profiled("generation"):
        thread = threading.Thread(target=score)
        thread.start()
        thread.join()
    assert seconds(measured) == {"generation": 1, "other": 0}


def test_nothing_is_measured_without_a_profile(clock: Clock) -> None:
    with profiling(None, "cpu") as measured:
        pass
    with profiled("forward"):
        clock.pass_by(1)
    assert seconds(measured) == {"other": 1}, "the forward belongs to no profile any more"


def test_the_file_is_written_after_an_error_too(clock: Clock, tmp_path: Path) -> None:
    with pytest.raises(ValueError), profiling(tmp_path, "cpu"), profiled("forward"):
        clock.pass_by(3)
        raise ValueError
    facts = read_json(tmp_path / profile.FILE)
    assert facts["parts"]["forward"]["seconds"] == 3
    assert profile.table(facts)[1] == "    forward      100.0%      3.00 s"


def test_time_on_a_device_is_read_from_events_once_they_have_passed(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that is behind: forward's kernels run while the processor has long gone on to the next part."""
    device = {"now": 0.0, "recorded": 0.0}
    waits: list[int] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = device["recorded"]

        def query(self) -> bool:
            return self.at <= device["now"]

        def elapsed_time(self, end: Event) -> float:
            assert self.query() and end.query(), "an event that has not passed has no time"
            return (end.at - self.at) * 1000

    def wait() -> None:
        waits.append(1)
        device["now"] = device["recorded"]

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    monkeypatch.setattr(profile, "PENDING", 4)
    with profiling(None, "cuda") as measured:
        for _ in range(3):
            with profiled("forward"):
                clock.pass_by(0.25)
                device["recorded"] += 2
            with profiled("backward"):
                device["recorded"] += 6
                device["now"] += 1
        assert not waits, "measuring must not wait for the device"
    facts = measured.facts()
    assert waits == [1]
    assert {part: figures["device_seconds"] for part, figures in facts["parts"].items()} == {
        "backward": 18,
        "forward": 6,
        "other": 0,
    }
    assert facts["parts"]["backward"]["share"] == 0.75 and facts["parts"]["forward"]["seconds"] == 0.75
