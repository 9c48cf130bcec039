"""Signs of life, as files of a run's directory: which process is there, at which step, and the alarm. No torch.

``align.core.util.liveness`` writes and judges them in each process; ``align status`` and the messages of a failed stage
read them. A sign is small, and written whole: a reader never waits, and never sees half of one.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from align.core.util import atomic_files, event_log
from align.core.util.stragglers import Window

BEAT = 1.0
"""Seconds between two signs of life."""
STARTED_BY = (
    *("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
    *("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID"),
)
"""Environment variables that are the same in all processes of a start, and together differ from those of another."""
RANKS = ".ranks"
"""The folder of the signs in a stage's directory."""


@dataclass(frozen=True, slots=True)
class Sign:
    """The last report of a process about itself: machine, step (from 1), and what it waits for.

    total: steps of the stage. part, part_seconds: the part of a step that it is in (``align.core.util.profile``), and
    for how long. steady: steps are being taken, so that the next sign comes within seconds. beat: counts up while it
    lives. error: why it ended, if it could report that. window: its averages over the last steps, as
    ``stragglers.Window`` has them. group: the start that it belongs to (``group``).
    """

    host: str
    pid: int
    step: int | None = None
    doing: str = ""
    beat: int = 0
    error: str = ""
    total: int | None = None
    part: str = ""
    part_seconds: float = 0.0
    steady: bool = False
    window: Mapping[str, Any] | None = None
    group: str = ""

    def averages(self) -> Window | None:
        """Return ``window``, or None where there is none, or one of another version."""
        with suppress(TypeError):
            return None if self.window is None else Window(**self.window)
        return None


def group() -> str:
    """Return what tells the processes started together from those of an earlier or later start; "" for one process."""
    values = [os.environ.get(name, "") for name in STARTED_BY]
    if "MASTER_PORT" not in os.environ:
        return ""
    return hashlib.sha256("\0".join(values).encode()).hexdigest()[:16]


def read_signs(directory: Path | None, of: str | None = None) -> dict[int, Sign]:
    """Return the last sign of life of every process, by rank. of: only those of this ``group``."""
    found: dict[int, Sign] = {}
    for file in sorted((directory / RANKS).glob("*.json")) if directory is not None else ():
        if file.stem.isdecimal():
            sign = read_sign(file)
            if sign is not None and of in (None, sign.group):
                found[int(file.stem)] = sign
    return found


def read_sign(file: Path) -> Sign | None:
    """Return a sign of life, or None where there is none that can be read."""
    with suppress(OSError, ValueError, TypeError):
        return Sign(**json.loads(file.read_bytes()))
    return None


def stacks_of(stage: Path, rank: int) -> Path:
    """Return the file to which a process writes the stacks of its threads."""
    return stage / event_log.LOGS / f"rank-{rank}.stack"


def named(rank: int, sign: Sign | None) -> str:
    """Return a process as messages name it: ``rank 1 on gpu-7 (step 12)``."""
    if sign is None:
        return f"rank {rank}"
    at = "before the first step" if not sign.step else f"step {sign.step}"
    return f"rank {rank} on {sign.host} ({at}{', ' + sign.doing if sign.doing else ''})"


def process_state(pid: int) -> str:
    """Return the state of a process of this machine as a letter: ``R``, ``S``, ``D``, ``T`` (stopped); "" if gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    state = stat.rpartition(")")[2].split()[0]
    return "" if state in "ZX" else state


@dataclass(frozen=True, slots=True)
class Alarm:
    """Why a group ends. rank: of the process that raised it; group: as of ``Sign``."""

    rank: int
    host: str
    problem: str
    group: str


def read_alarm(place: Path) -> Alarm | None:
    """Return the alarm in a directory of signs, or None where there is none that can be read."""
    with suppress(OSError, ValueError, TypeError):
        return Alarm(**json.loads((place / "alarm.json").read_bytes()))
    return None


def raise_alarm(place: Path, alarm: Alarm) -> Alarm:
    """Write the alarm of a group, unless it has one; return the one that it has."""
    temporary = atomic_files.partial(place / "alarm.json")
    temporary.write_text(json.dumps(asdict(alarm)), encoding="utf-8")
    try:
        for _ in range(2):
            try:
                os.link(temporary, place / "alarm.json")  # unlike a rename it fails where there is one
                return alarm
            except FileExistsError:
                before = read_alarm(place)
                if before is not None and before.group == alarm.group:
                    return before
                (place / "alarm.json").unlink(missing_ok=True)  # of an earlier start
        return alarm
    finally:
        temporary.unlink(missing_ok=True)


def request_stacks(stage: Path) -> None:
    """Ask every process of a stage to write its stacks; they look each second."""
    (stage / RANKS / "stacks").write_text(f"{time.time()}\n", encoding="utf-8")
