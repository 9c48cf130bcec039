"""Training what a run describes, and everything but training."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from align.core.config import run_file
from align.core.util.system_errors import explaining
from align.schemas.errors import AlignError, Problem
from align.schemas.results import StageResult
from align.schemas.run import Run

if TYPE_CHECKING:
    from align.core.training.check import StageCheck
    from align.core.training.failures import OutOfMemory

RunLike: TypeAlias = Run | str | Path
"""A run (``align.load``), or the path of a run file."""


@explaining()
def train(
    run: RunLike,
    *,
    resume: bool = False,
    overrides: Mapping[str, str] | None = None,
    progress: bool = True,
    profile: bool = False,
) -> list[StageResult]:
    """Run every stage that is not finished yet, write the run's ``report.html``, and return the results of all.

    run: ``align.load(...)``, or the path of a run file. resume: continue an interrupted run. progress: show it, on
    stderr. profile: measure where the time goes, and write ``profile.json`` into each stage's directory.
    A run with a ``project:`` is advised first, and does not start against a blocking finding, unless ``overrides``
    gives the reason: ``{"R-CPT-3": "a test of the pipeline"}``, kept in the run's manifest.

    Imports torch. Raises AlignError for whatever the user can fix, and ``align.Interrupted`` after a
    signal (Ctrl-C), once the step is saved.
    """
    from align.core.engine.processes import join_slurm, rank
    from align.core.training.failures import OutOfMemory
    from align.core.training.launch import train as launch

    join_slurm()
    checked = with_overrides(as_run(run), overrides)
    try:
        results = launch(checked, resume=resume, progress=progress, profile=profile)
    except OutOfMemory as error:
        raise _with_remedies(checked, error) from error
    if rank() == 0:
        _write_report(Path(checked.output))
    return results


def _with_remedies(run: Run, error: OutOfMemory) -> AlignError:
    """Return the error of a stage that ran out of memory, with the settings by which it would fit."""
    from align.api.estimating import what_to_turn_down

    remedies: list[Problem] = []
    with suppress(Exception):  # what cannot be estimated must not hide why the run ended
        remedies = what_to_turn_down(run, error.stage)
    return AlignError.gather([*error.problems, *remedies])


def _write_report(directory: Path) -> None:
    """Write the run's page. The models are there by now, so that whatever fails here is only a warning."""
    from align.api.reporting import report

    try:
        report(directory)
    except Exception as error:
        print(
            Problem(str(directory), f"the report was not written: {error}", "`align report` tries again"),
            file=sys.stderr,
        )


@explaining()
def check(run: RunLike, *, overrides: Mapping[str, str] | None = None, progress: bool = True) -> list[StageCheck]:
    """Do everything but training: settings, advice, data, template, plan, and the first batch of every stage.

    run, overrides: as for ``align.train``. Nothing is written to the run's output. Stages that learn from rows which
    an earlier one will make are left out. Imports torch. Raises AlignError as training would.
    """
    from align.core.training.check import check as check_stages

    return check_stages(with_overrides(as_run(run), overrides), progress=progress)


def as_run(run: RunLike) -> Run:
    """Return a run as it is, or read its file. Raises AlignError as ``align.load`` does."""
    return run_file.load(run) if isinstance(run, str | Path) else run


def with_overrides(run: Run, overrides: Mapping[str, str] | None) -> Run:
    """Return a run that starts in spite of findings of its advice. overrides: finding -> reason."""
    if not overrides:
        return run
    return run_file.overriding(run, list(overrides), list(overrides.values()))
