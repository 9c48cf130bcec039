"""One process of a group is lost: every other one names it, writes its stacks, and ends. Real processes, no torch.

What is waited for is an event, never a time; the limits are those that a run file can set, made small.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from align.core.util import event_log, signs_of_life
from align.core.util.event_log import read_events
from align.core.util.signs_of_life import read_signs
from align.core.util.stopping import FAILED, LOST
from tests.core.work import environment_here

HOST = socket.gethostname()
MEMBER = """
    import sys, time
    from pathlib import Path
    from align.core.util import liveness
    from align.core.util.liveness import Limits

    place, rank, world, silence, heartbeat = Path(sys.argv[1]), *map(int, sys.argv[2:4]), *map(float, sys.argv[4:6])
    liveness.BEAT, liveness.STARVED, liveness.ALL_SIGNS = 0.2, 0.5, 0.2
    with liveness.watched(place, rank, world, Limits(silence, 60.0, heartbeat)):
        liveness.at_step(7, 9)
        exec(sys.argv[6])
"""
WAITS = "time.sleep(1e6)"


class Group:
    """Processes of one group, which do nothing but give signs of life."""

    started = 0

    def __init__(self, place: Path, *work: str, silence: float = 1000.0, heartbeat: float = 1000.0) -> None:
        self.place = place
        Group.started += 1
        environment = environment_here() | {"MASTER_PORT": str(Group.started), "MASTER_ADDR": "here"}
        self.members = [
            subprocess.Popen(
                [
                    *(sys.executable, "-P", "-c", textwrap.dedent(MEMBER)),
                    *map(str, (place, rank, len(work), silence, heartbeat, each)),
                ],
                env=environment | {"LOCAL_RANK": str(rank)},
                stderr=subprocess.PIPE,
            )
            for rank, each in enumerate(work)
            if each
        ]

    def wait_for_signs(self) -> None:
        self.wait_for(lambda: len([sign for sign in read_signs(self.place).values() if sign.beat > 2]) >= 2)

    def wait_for(self, true: Callable[[], bool]) -> None:
        until = time.monotonic() + 120
        while not true():
            assert time.monotonic() < until, "it never came"
            assert any(member.poll() is None for member in self.members), "all have ended before"
            time.sleep(0.02)

    def ended(self, *ranks: int) -> list[tuple[int, str]]:
        """Exit status and stderr of some members."""
        found = []
        for rank in ranks:
            _, said = self.members[rank].communicate(timeout=120)
            found.append((self.members[rank].returncode, said.decode()))
        return found

    def events(self, rank: int, kind: str) -> list[dict[str, object]]:
        return [e for e in read_events(event_log.place(self.place, rank)) if e["event"] == kind]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Callable[..., Group]]:
    made: list[Group] = []

    def make(*work: str, **limits: float) -> Group:
        made.append(Group(tmp_path, *work, **limits))
        return made[-1]

    yield make
    for member in (member for each in made for member in each.members):
        member.kill()
        member.communicate()


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_lost_rank_is_named_on_every_other_one(group: Callable[..., Group], number: int) -> None:
    """By one of them on stderr, by all of them in their logs; the stacks of those that can write them are there."""
    three = group(WAITS, WAITS, WAITS, heartbeat=1.0)
    three.wait_for_signs()
    os.kill(three.members[1].pid, number)
    (first, said), (second, other) = three.ended(0, 2)
    assert sorted((first, second)) == [FAILED, LOST]
    state = "it is stopped" if number == signal.SIGSTOP else "its process is gone"
    who = f"rank 1 on {HOST} (step 7)\n    has given no sign of life for"
    cause, silent = (said, other) if first == FAILED else (other, said)
    assert who in cause and f"({state})" in cause and "devices.heartbeat is how long to wait" in cause
    assert f"stacks of all ranks: {three.place}/logs/rank-*.stack" in cause
    assert "gives up" not in silent, "one process says it for the machine"
    for rank in (0, 2):
        (alarm,) = three.events(rank, "alarm")
        assert who in str(alarm["what"])
        assert "<string>" in signs_of_life.stacks_of(three.place, rank).read_text()


def test_work_that_hangs_on_one_rank_is_named_on_all(group: Callable[..., Group]) -> None:
    hangs = "with liveness.waiting('reward x', 'set its timeout'): time.sleep(1e6)"
    two = group(hangs, WAITS, silence=2.0)
    (first, said), (second, other) = two.ended(0, 1)
    assert (first, second, other) == (FAILED, LOST, "")
    assert f"rank 0 on {HOST} (step 7)\n    reward x: no end after" in said and "set its timeout" in said
    assert "reward x: no end after" in str(two.events(1, "alarm")[0]["what"])
    assert [event["status"] for rank in (0, 1) for event in two.events(rank, "end")] == [FAILED, LOST]


def test_ranks_that_all_wait_for_each_other_end_by_one_of_them(group: Callable[..., Group]) -> None:
    """As where the link between two machines is cut; not while a single one does something else."""
    waits = "from align.core.util.profile import profiled, profiling\n"
    waits += "with profiling(None, 'cpu', coarse=True), profiled('{}'): time.sleep(1e6)"
    one_works = group(waits.format("waiting"), waits.format("backward"), heartbeat=0.5)
    one_works.wait_for_signs()
    one_works.wait_for(lambda: all(sign.part_seconds > 1.5 for sign in read_signs(one_works.place).values()))
    assert [member.poll() for member in one_works.members] == [None, None]
    for member in one_works.members:
        member.kill()
        member.wait()
    both = group(waits.format("waiting"), waits.format("waiting"), heartbeat=0.5)
    (first, said), (second, other) = both.ended(0, 1)
    assert (first, second, other) == (FAILED, LOST, "")
    assert f"all ranks, on {HOST}\n    wait for each other since" in said and "devices.heartbeat" in said
    assert "wait for each other" in str(both.events(1, "alarm")[-1]["what"])


def test_a_rank_that_never_starts_is_named(group: Callable[..., Group]) -> None:
    alone = group(WAITS, "", silence=1.0, heartbeat=0.5)
    ((status, said),) = alone.ended(0)
    assert status == FAILED and "rank 1\n    has not started for" in said and "devices.timeout" in said


def test_a_call_that_holds_the_gil_leaves_its_stack_and_is_not_taken_for_lost(group: Callable[..., Group]) -> None:
    """Its threads cannot run; a thread of C's writes the stacks, and the kernel says that the process runs."""
    two = group(WAITS, "three = sum(range(10**13))", silence=6.0, heartbeat=1.0)
    (status, said) = two.ended(0)[0]
    assert status == FAILED and "(its process runs: a call in C that holds the GIL)" in said
    assert "devices.timeout" in said, "the short limit is for those that are stopped or gone"
    assert "Timeout (0:00:00.500000)!" in signs_of_life.stacks_of(two.place, 1).read_text()


def test_a_rank_that_ends_in_good_order_is_no_loss_and_one_with_an_error_tells_it(group: Callable[..., Group]) -> None:
    """The others go on until they see the connection break, which is not part of this."""
    three = group(WAITS, "time.sleep(1)", "time.sleep(1); raise ValueError('too\\x1b[31m bad')", heartbeat=1.0)
    (done, failed) = three.ended(1, 2)
    assert done == (0, "") and failed[0] == 1
    three.wait_for(lambda: set(read_signs(three.place)) == {0, 2})
    assert read_signs(three.place)[2].error == "too bad"
    beat = read_signs(three.place)[0].beat
    three.wait_for(lambda: read_signs(three.place)[0].beat > beat + 10)
    assert three.members[0].poll() is None and not three.events(0, "alarm")
    (error,) = three.events(2, "error")
    assert (error["kind"], error["what"]) == ("ValueError", "too bad")


def test_a_disk_that_does_not_answer_is_named_and_not_waited_for(group: Callable[..., Group]) -> None:
    """Without a word to it. The other process, whose disk answers, loses this one."""
    hangs = "liveness.PATIENCE = 0.5; liveness._watch._hung_report = 0.5\n"
    hangs += "liveness._watch.publish = lambda: time.sleep(1e6)\ntime.sleep(1e6)"
    two = group(hangs, WAITS, silence=4.0)
    (status, said), (other, _) = two.ended(0, 1)
    assert status == FAILED and other == FAILED
    assert f"{two.place}: its disk has not answered for" in said
    assert f"{two.place}\n    its disk has not answered for" in said and "given up" in said


def test_an_alarm_of_an_earlier_start_is_none(group: Callable[..., Group], tmp_path: Path) -> None:
    (tmp_path / signs_of_life.RANKS).mkdir()
    stale = {"rank": 0, "host": "gpu-7", "problem": "old", "group": "earlier"}
    (tmp_path / signs_of_life.RANKS / "alarm.json").write_text(json.dumps(stale))
    (tmp_path / signs_of_life.RANKS / "1.json").write_text(
        json.dumps({"host": HOST, "pid": 2**22 + 1, "step": 3, "beat": 9, "error": "old", "group": "earlier"})
    )
    alone = group(WAITS, "", silence=2.0)
    ((status, said),) = alone.ended(0)
    assert status == FAILED and "rank 1\n    has not started for" in said and "old" not in said


def test_stacks_are_written_when_asked_for(group: Callable[..., Group]) -> None:
    two = group(WAITS, WAITS)
    two.wait_for_signs()
    signs_of_life.request_stacks(two.place)
    files = [signs_of_life.stacks_of(two.place, rank) for rank in (0, 1)]
    two.wait_for(lambda: all(file.exists() and "<string>" in file.read_text() for file in files))
    assert [member.poll() for member in two.members] == [None, None]
