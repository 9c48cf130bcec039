"""Training what a run describes, and everything but training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.api.inputs import RunLike, as_run
from align.core.system_errors import explaining
from align.schemas.results import StageResult

if TYPE_CHECKING:
    from align.core.train.check import StageCheck


@explaining()
def train(run: RunLike, *, resume: bool = False, progress: bool = True) -> list[StageResult]:
    """Run every stage that is not finished yet, and return the results of all.

    run: ``align.load(...)``, or the path of a run file. resume: go on with an interrupted run. progress: show it, on
    stderr. A run with a ``project:`` is advised first, and does not start against a blocking finding.

    Imports torch. Raises AlignError for whatever the user can fix, and ``align.core.interrupt.Interrupted`` after a
    signal (Ctrl-C), once the step is saved.
    """
    from align.core.train.launch import train as launch

    return launch(as_run(run), resume=resume, progress=progress)


@explaining()
def check(run: RunLike, *, progress: bool = True) -> list[StageCheck]:
    """Do everything but training: settings, advice, data, template, plan, and the first batch of every stage.

    run: as for ``align.train``. Nothing is written to the run's output; stages that learn from rows which an earlier
    one will make are left out. Imports torch. Raises AlignError as training would.
    """
    from align.core.train.check import check as check_stages

    return check_stages(as_run(run), progress=progress)
