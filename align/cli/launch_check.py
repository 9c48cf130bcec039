"""``align launch --check``: this host's part in comparing the hosts of a run, and the table of the result."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from align.core.launching.placement import Checked


def check_hosts(
    run: Path,
    overrides: Sequence[str],
    gpus: int | None,
    hosts: Sequence[str],
    port: int,
    python: str | None,
    environment: Mapping[str, str],
) -> int:
    """Compare hosts and print the result on the first one; return the exit status.

    With ``hosts`` over ssh from here; under torchrun, srun or a PyTorchJob as one of them; else this machine alone.
    """
    if hosts and "RANK" not in os.environ:
        from align.api.launching import check_on_hosts

        return check_on_hosts(run, overrides, gpus, hosts, port, python or sys.executable, environment)
    from align.api.placement import check_placement
    from align.core.config import run_file
    from align.core.engine.processes import join_slurm

    join_slurm()
    checked = check_placement(run_file.load(run, list(overrides)), gpus=gpus)
    if checked is None:
        return 0
    show(checked)
    return 0 if checked.ready else 1


def show(checked: Checked) -> None:
    """Print a table of the hosts, then what is wrong."""
    from rich.console import Console
    from rich.table import Table

    from align.schemas.text import format_bytes

    console = Console(highlight=False, soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("host", "GPUs", "memory free", "/dev/shm", "python", "torch", "align"):
        table.add_column(name)
    for _, report in sorted(checked.reports.items()):
        kinds = sorted({gpu.name for gpu in report.gpus})
        table.add_row(
            report.host,
            f"{len(report.gpus)} x {', '.join(kinds)}" if kinds else "none",
            format_bytes(report.memory_free),
            format_bytes(report.shm),
            *(report.versions.get(name, "") for name in ("python", "torch", "align")),
        )
    console.print(table)
    for problem in checked.problems:
        stops = problem.level == "error"
        console.print(f"{'' if stops else 'warning: '}{problem}", style="red" if stops else "yellow", markup=False)
    count = len(checked.reports)
    hosts = "1 host" if count == 1 else f"{count} hosts"
    errors = sum(problem.level == "error" for problem in checked.problems)
    verdict = f"{hosts} reported; ready to launch" if checked.ready else f"{hosts} reported; {errors} to fix first"
    console.print(verdict, style="green" if checked.ready else "red")
