"""The report of runs, and why two runs differ."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from align.core.report.differences import RunDifference, differences
from align.core.report.gate_view import GateView
from align.core.report.page import render, write_report
from align.core.report.read import read_run
from align.core.util.system_errors import explaining
from align.schemas.errors import AlignError

if TYPE_CHECKING:
    from align.core.report.serve import ReportServer

PAGE = "report.html"
"""Name of a run's report in its directory."""
RunPath = str | Path


@explaining()
def report(
    runs: RunPath | Sequence[RunPath],
    path: RunPath | None = None,
    *,
    gate: RunPath | None = None,
    title: str | None = None,
) -> Path:
    """Write the report of one run, or of up to six laid over each other, and return the file's path.

    runs: directories of runs, finished or not. path: the file to write; ``report.html`` in the last run's directory
    unless given. gate: the JSON that ``align gate --json`` wrote, shown first. title: the page's heading, the names of
    the directories unless given. Raises AlignError for a directory that is no run's.
    """
    directories = _directories(runs)
    place = directories[-1] / PAGE if path is None else Path(path)
    shown = None if gate is None else GateView.read(Path(gate))
    write_report(directories, place, title=title, gate=shown)
    return place


@explaining()
def diff(first: RunPath, second: RunPath) -> list[RunDifference]:
    """Return why two runs differ: in settings, data, model and versions, and then in results.

    An empty list: nothing that was recorded differs. Raises AlignError for a directory that is no run's.
    """
    return differences(read_run(Path(first)), read_run(Path(second)))


def report_server(
    runs: RunPath | Sequence[RunPath], *, gate: RunPath | None = None, title: str | None = None, port: int = 0
) -> ReportServer:
    """Return a server of the report, on this machine alone; ``serve_forever`` runs it.

    Arguments as for ``report``. port: 0 takes a free one. Raises AlignError for a directory that is no run's, and for a
    port that is taken.
    """
    from align.core.report.serve import ReportServer

    directories = _directories(runs)
    for directory in directories:
        read_run(directory)
    shown = None if gate is None else GateView.read(Path(gate))
    return ReportServer(directories, lambda version: render(directories, title, gate=shown, live=version), port)


def _directories(runs: RunPath | Sequence[RunPath]) -> list[Path]:
    given = [runs] if isinstance(runs, str | os.PathLike) else list(runs)
    if not given:
        raise AlignError("needs a run", "name a run's directory", where="report")
    return [Path(each) for each in given]
