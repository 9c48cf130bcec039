"""The structured log of a process: complete until a kill, bounded, and checked when it is read back."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from align.core.util import event_log
from align.core.util.event_log import EventLog, read_events
from tests.core.work import environment_here


def numbers(path: Path, last: int | None = None) -> list[int]:
    return [event["n"] for event in read_events(path, lambda file, why: pytest.fail(why), last)]


def test_the_last_line_before_a_kill_is_there(tmp_path: Path) -> None:
    """Also where the kill comes in the middle of the next one: it is left out, and the next start goes on after it."""
    path = tmp_path / "logs" / "rank-0.jsonl"
    program = f"""
        import os, signal
        from pathlib import Path
        from align.core.util.event_log import EventLog
        log = EventLog(Path({str(path)!r}), 0, "here")
        for n in range(100):
            log.write("step", n=n)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-P", "-c", textwrap.dedent(program)], env=environment_here())
    assert done.returncode == -signal.SIGKILL and numbers(path) == list(range(100))
    with open(path, "ab") as file:
        file.write(b'{"time": "2026-11')
    assert numbers(path) == list(range(100))
    EventLog(path, 0, "here").write("step", n=100)
    assert numbers(path) == list(range(101))
    assert {(event["rank"], event["host"]) for event in read_events(path)} == {(0, "here")}


def test_its_size_is_bounded_and_the_newest_events_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "LARGEST", 2000)
    path, log = tmp_path / "rank-0.jsonl", EventLog(tmp_path / "rank-0.jsonl", 0, "here")
    for n in range(200):
        log.write("step", n=n)
    files = list(tmp_path.iterdir())
    assert len(files) == 2 and sum(file.stat().st_size for file in files) < 2 * 2300
    kept = numbers(path)
    assert kept == list(range(kept[0], 200)) and len(kept) > 10
    tail = numbers(path, 500)
    assert tail == list(range(tail[0], 200)) and 0 < len(tail) < len(kept)


@pytest.mark.parametrize("damage", [lambda raw: raw.replace(b'"n": 1', b'"n": 7', 1), lambda raw: raw[20:]])
def test_a_damaged_line_is_named_and_left_out(damage: object, tmp_path: Path) -> None:
    path, log = tmp_path / "rank-0.jsonl", EventLog(tmp_path / "rank-0.jsonl", 0, "here")
    for n in range(1, 4):
        log.write("step", n=n)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    found: list[str] = []
    events = read_events(path, lambda file, why: found.append(f"{file.name} {why}"))
    assert [event["n"] for event in events] == [2, 3]
    assert len(found) == 1 and found[0].startswith("rank-0.jsonl line 1: ")


def test_a_disk_that_refuses_a_line_costs_that_line_only(tmp_path: Path) -> None:
    """The process goes on; a part of a line is taken back, so that the next one is whole."""
    path, log = tmp_path / "rank-0.jsonl", EventLog(tmp_path / "rank-0.jsonl", 0, "here")
    log.write("step", n=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(path) + 20, hard))
        log.write("step", n=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    log.write("step", n=2)
    assert numbers(path) == [0, 2]
    assert read_events(tmp_path / "none.jsonl") == []
