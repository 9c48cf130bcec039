"""The state of a run as it is now, from its directory alone: for ``align status``, on any machine that sees it.

A process is known by its signs of life (``align.core.util.signs_of_life``). On the same machine the kernel says whether
it is there; on another one its sign must count up while it is watched, so that no clocks are compared. Why a run ended
is in the logs of its ranks. No torch.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from align.core.report.read import StageFacts, read_run
from align.core.util import atomic_files, event_log
from align.core.util.event_log import read_events
from align.core.util.signs_of_life import BEAT, RANKS, Sign, named, process_state, read_signs
from align.core.util.stragglers import Window, straggler

WATCHED_SECONDS = 4 * BEAT
"""Seconds for which the signs of another machine's processes are watched before they are called silent."""
OLD = 60.0
"""Seconds after which a process of this machine that is there, but gives no new sign, is called silent."""
LAST = 2**17
"""Bytes of each log that are read."""
NO_REASON = "it ended and left no reason, as after SIGKILL"
ALARMS = 5
"""Alarms shown."""

State = Literal["finished", "running", "stalled", "stopped", "failed", "not started"]
RankState = Literal["running", "stopped", "silent", "gone", "failed"]
GOOD: tuple[State, ...] = ("finished", "running")


@dataclass(frozen=True, slots=True)
class RankStatus:
    """One process of a stage. state: ``stopped`` is by SIGSTOP, ``silent`` without a new sign, ``gone`` without end."""

    rank: int
    host: str
    pid: int
    state: RankState
    step: int | None
    doing: str
    window: Window | None


@dataclass(frozen=True, slots=True)
class StageStatus:
    """One stage. step: the one that is being made, or the last that was; checkpoint: the step of the newest one.

    seconds_a_step, seconds_left: by the last steps; None before there are some. why: why it does not run.
    """

    name: str
    state: State
    step: int | None = None
    total: int | None = None
    seconds_a_step: float | None = None
    seconds_left: float | None = None
    checkpoint: int | None = None
    why: str = ""
    alarms: list[str] = field(default_factory=list)
    straggler: str = ""
    ranks: list[RankStatus] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RunStatus:
    """A run. damaged: sentences about files that are not what was written, which are left out."""

    directory: Path
    state: State
    stages: list[StageStatus]
    damaged: list[str]

    @property
    def good(self) -> bool:
        """Return True if the run is finished or runs."""
        return self.state in GOOD


def read_status(directory: Path) -> RunStatus:
    """Return the state of a run. Raises AlignError where ``directory`` is no run's."""
    damaged: list[str] = []

    def note(path: Path, why: str) -> None:
        damaged.append(f"{path}: {why}")

    facts = read_run(directory, curves=False, damaged=note)
    seen = {stage.name: read_signs(stage.directory) for stage in facts.stages}
    alive = _moving({stage.directory: seen[stage.name] for stage in facts.stages})
    stages = []
    for stage in facts.stages:
        ranks = [_rank(rank, sign, stage.directory, alive) for rank, sign in sorted(seen[stage.name].items())]
        stages.append(_stage(stage, seen[stage.name], ranks, note))
    return RunStatus(directory, _whole(directory, stages), stages, damaged)


def _whole(directory: Path, stages: Iterable[StageStatus]) -> State:
    """Return the state of the run: that of its first stage which is not finished."""
    for stage in stages:
        if stage.state == "finished":
            continue
        # Between two stages, and while it reads its data, a run has no signs; but its lock is held.
        waits = stage.state in ("not started", "stopped", "failed")
        return "running" if waits and not stage.ranks and _locked(directory / ".lock") else stage.state
    return "finished"


def _moving(seen: Mapping[Path, Mapping[int, Sign]]) -> set[tuple[Path, int]]:
    """Return the processes of other machines that give a new sign within ``WATCHED_SECONDS``."""
    here = socket.gethostname()
    far = {
        (directory, rank): sign
        for directory, signs in seen.items()
        for rank, sign in signs.items()
        if sign.host != here and not sign.error
    }
    alive = set[tuple[Path, int]]()
    until = time.monotonic() + WATCHED_SECONDS
    while len(alive) < len(far) and time.monotonic() < until:
        time.sleep(BEAT / 4)
        for directory in {directory for directory, _ in far}:
            for rank, sign in read_signs(directory).items():
                before = far.get((directory, rank))
                if before is not None and (sign.pid, sign.beat) != (before.pid, before.beat):
                    alive.add((directory, rank))
    return alive


def _rank(rank: int, sign: Sign, stage: Path, alive: set[tuple[Path, int]]) -> RankStatus:
    state: RankState
    if sign.error:
        state = "failed"
    elif sign.host == socket.gethostname():
        state = _state_here(sign, stage / RANKS / f"{rank}.json")
    else:
        state = "running" if (stage, rank) in alive else "silent"
    doing = sign.doing or sign.part
    return RankStatus(rank, sign.host, sign.pid, state, sign.step, doing, sign.averages())


def _state_here(sign: Sign, file: Path) -> RankState:
    """Return the state of a process of this machine."""
    letter = process_state(sign.pid)
    try:
        written = file.stat().st_mtime
    except OSError:  # it has left meanwhile
        return "gone"
    if not letter or atomic_files.began(sign.pid) > written + 2:  # another process has its number now
        return "gone"
    if letter in "Tt":
        return "stopped"
    return "silent" if time.time() - written > OLD else "running"


def _locked(lock: Path) -> bool:
    """Return True if a process of this machine holds the run's lock. Only looks: to take it would disturb a start."""
    try:
        inode = os.stat(lock).st_ino
        held = Path("/proc/locks").read_text(encoding="utf-8")
    except OSError:
        return False
    return any(f":{inode} " in line for line in held.splitlines())


def _stage(facts: StageFacts, signs: Mapping[int, Sign], ranks: list[RankStatus], damaged: Any) -> StageStatus:
    logs = sorted((facts.directory / event_log.LOGS).glob("rank-*.jsonl"))
    events = {path.stem: _since_start(read_events(path, damaged, LAST)) for path in logs if "." not in path.stem}
    leader = events.get("rank-0", [])
    steps = [event for event in leader if event["event"] == "step"]
    first = signs.get(min(signs)) if signs else None
    step = first.step if first is not None and first.step else None
    if step is None:
        step = max((event["step"] for event in leader if "step" in event), default=None)
    total = (first.total if first is not None else None) or facts.noted.get("steps")
    if facts.finished:
        step = total
    windows = {rank.rank: rank.window for rank in ranks if rank.window is not None}
    seconds = _seconds_a_step(windows, steps)
    state, why = _state(facts, ranks, events, signs)
    left = None
    if state == "running" and seconds is not None and step is not None and total is not None:
        left = seconds * (total - step + 1)
    slow = straggler(windows) if len(windows) > 1 else None
    alarms: list[str] = [str(alarm) for alarm in facts.noted.get("alarms", [])]
    shown = ("stall", "straggler", "wait")
    alarms += [event["what"] for event in leader if event["event"] in shown and "what" in event]
    return StageStatus(
        name=facts.name,
        state=state,
        step=step,
        total=total,
        seconds_a_step=seconds,
        seconds_left=left,
        checkpoint=_newest(facts.directory / "checkpoints", damaged),
        why=why,
        alarms=alarms[-ALARMS:],
        straggler="" if slow is None else f"rank {slow.rank} on {signs[slow.rank].host} {slow}",
        ranks=ranks,
    )


def _since_start(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the events of the last start."""
    starts = [number for number, event in enumerate(events) if event["event"] == "start"]
    return events[starts[-1] :] if starts else events


def _seconds_a_step(windows: Mapping[int, Window], steps: list[dict[str, Any]]) -> float | None:
    if windows:
        return windows[min(windows)].step
    if steps and steps[-1].get("seconds"):
        return float(steps[-1]["seconds"])
    return None


def _state(
    facts: StageFacts,
    ranks: list[RankStatus],
    events: Mapping[str, list[dict[str, Any]]],
    signs: Mapping[int, Sign],
) -> tuple[State, str]:
    """Return the state of a stage and, where it does not run, why."""
    if facts.finished:
        return "finished", ""
    wrong = [rank for rank in ranks if rank.state != "running"]
    if ranks and not wrong:
        last = [event for event in events.get("rank-0", []) if event["event"] in ("step", "stall")]
        if last and last[-1]["event"] == "stall":
            return "stalled", str(last[-1].get("what", ""))
        return "running", ""
    of_all = [event for known in events.values() for event in known]
    causes = [event for event in of_all if event["event"] == "alarm"]
    causes += [event for event in of_all if event["event"] == "error" and event.get("kind") != "ProcessLost"]
    if wrong and len(wrong) < len(ranks):
        return "stalled", f"{named(wrong[0].rank, signs[wrong[0].rank])} is {wrong[0].state}"
    if causes:
        return "failed", str(causes[0].get("what", ""))
    if wrong:
        return "failed", f"{named(wrong[0].rank, signs[wrong[0].rank])} is {wrong[0].state}: {NO_REASON}"
    if not events:
        begun = _newest(facts.directory / "checkpoints", _nowhere) is not None
        return ("stopped" if begun else "not started"), ""
    return _ended(events)


def _ended(events: Mapping[str, list[dict[str, Any]]]) -> tuple[State, str]:
    """Return the state of a stage that has no process and no error, by the last events of its ranks."""
    last = {name.replace("-", " "): known[-1] for name, known in events.items() if known}
    for name, event in sorted(last.items()):
        if event["event"] != "end":
            return "failed", f"{name}: {NO_REASON}"
    status = last[min(last)].get("status")
    if isinstance(status, int):
        return ("stopped" if status > 128 else "failed"), f"it ended with status {status}"
    if status == "failed":
        return "failed", ""
    return "stopped", "" if status == "done" else str(status)


def _nowhere(path: Path, why: str) -> None:
    """Ignore a damaged file that is reported elsewhere."""


def _newest(checkpoints: Path, damaged: Any) -> int | None:
    """Return the step of the newest checkpoint whose manifest is whole; its weights are not read."""
    found = [path for path in checkpoints.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    for path in sorted(found, key=lambda each: int(each.name.removeprefix("step-")), reverse=True):
        try:
            atomic_files.read_json(path / "MANIFEST.json")
        except FileNotFoundError:
            damaged(path, "it has no MANIFEST.json")
        except atomic_files.Damaged as error:
            damaged(path / "MANIFEST.json", error.why)
        else:
            return int(path.name.removeprefix("step-"))
    return None
