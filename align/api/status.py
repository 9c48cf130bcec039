"""The state of a run from another terminal or machine."""

from __future__ import annotations

from pathlib import Path

from align.core.report.status import RunStatus, read_status
from align.core.util import signs_of_life
from align.core.util.system_errors import explaining


@explaining()
def status(run: str | Path) -> RunStatus:
    """Return the state of a run: alive or not, step, time left, last checkpoint, alarms, and each of its processes.

    run: its directory. Imports no torch, and changes nothing. Raises AlignError for a directory that is no run's.
    """
    return read_status(Path(run))


@explaining()
def request_stacks(run: str | Path) -> list[Path]:
    """Ask every process of the stages that run to write its stacks, and return the files; they come within seconds.

    Raises AlignError for a directory that is no run's.
    """
    files = []
    for stage in read_status(Path(run)).stages:
        alive = [rank.rank for rank in stage.ranks if rank.state == "running"]
        if alive:
            place = Path(run) / stage.name
            signs_of_life.request_stacks(place)
            files += [signs_of_life.stacks_of(place, rank) for rank in alive]
    return files
