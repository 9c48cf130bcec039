"""``align train``: parse, call, print."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from align.cli.command_context import ends_on_signals, loading, quiet, show_progress

if TYPE_CHECKING:
    from align.schemas.run import Run

FIRST_REPORT_SECONDS = 5.0
"""Seconds that a process of torchrun's or Slurm's group leaves the first one of its machine to report the same."""


@click.command()
@click.argument("run", type=click.Path(path_type=Path), help="A run file (docs/runfile.md).")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", help="Single settings laid over the file.")
@click.option("--check", is_flag=True, help="Everything but training: settings, data, template, plan, the first batch.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run; finished stages are skipped either way.")
@click.option("--profile", is_flag=True, help="Measure where the time goes: a table, and STAGE/profile.json.")
@quiet
@click.option("--override", multiple=True, metavar="RULE", help="Launch in spite of this finding of the advice.")
@click.option("--reason", multiple=True, metavar="TEXT", help="Why; one to each --override, kept in the manifest.")
def train(
    run: Path,
    overrides: tuple[str, ...],
    check: bool,
    resume: bool,
    profile: bool,
    quiet: bool,
    override: tuple[str, ...],
    reason: tuple[str, ...],
) -> None:
    """Train what RUN describes, stage by stage.

    A RUN with a `project:` is advised first (`align advise --help`), and does not start against a blocking finding.
    Where stderr is no terminal, progress comes as lines for a log.

    \b
    Example:
      align train run.yaml --check
      align train run.yaml algorithm.beta=0.2 stages.1.train.num_train_epochs=3
      align train run.yaml --resume
      align train run.yaml --profile train.max_steps=20
    """
    from align.core.engine.processes import join_slurm, rank
    from align.schemas.text import shown_argument

    join_slurm()
    again = shlex.join(["align", "train", str(run), *map(shown_argument, overrides), "--resume"])
    ends_on_signals(again if rank() == 0 else "")
    show_progress(not quiet)
    # One block: two would each print their line on a slow machine. The run file comes before the engine's imports:
    # a mistake in it can be reported without them.
    with loading():
        from align.api import training
        from align.core.config import run_file

        checked = run_file.overriding(run_file.load(run, list(overrides)), override, reason)
        from align.core.training import launch  # noqa: F401 (the engine's imports, which take seconds)

        if not check:
            from align.core.training import fit  # noqa: F401 (Lightning's, which only training needs)

    if check:
        from align.cli.train_check import print_checks

        print_checks(training.check(checked, progress=not quiet))
        return

    run_stages(checked, again, resume=resume, quiet=quiet, profile=profile)


def run_stages(run: Run, again: str, *, resume: bool, quiet: bool, profile: bool) -> None:
    """Train every stage and print the summary. again: the command that goes on after a signal."""
    from align.api import training
    from align.core.engine.processes import rank
    from align.core.report.summary import profile_of, summary

    with _first_reports(again):
        results = training.train(run, resume=resume, progress=not quiet, profile=profile)
    if rank() == 0:
        for line in summary(run, results, brief=quiet):
            click.echo(line)
        for line in profile_of(results) if profile else ():
            click.echo(line)


@click.command(hidden=True)
@click.argument("directory", type=click.Path(path_type=Path, exists=True), help="The run's directory.")
@click.argument("stage", help="The stage's name.")
@click.option("--progress/--quiet", default=False, help="Whether progress is shown.")
@click.option("--profile", is_flag=True, help="Measure where the time goes.")
def worker(directory: Path, stage: str, progress: bool, profile: bool) -> None:
    """Run one process of a stage's group; ``align train`` starts it, and reports for it where it is stopped.

    \b
    Example:
      align worker runs/first sft
    """
    ends_on_signals()
    from align.core.engine.processes import rank

    show_progress(progress and rank() == 0)
    with loading():
        from align.core.training import fit  # noqa: F401 (imports Lightning)
        from align.core.training.launch import run_worker

    with _first_reports():
        run_worker(directory, stage, progress, profile)


@contextmanager
def _first_reports(again: str = "") -> Iterator[None]:
    """Let the first process of a group on each machine report what went wrong, and another what is its alone.

    Not of the whole group: a launcher shows each machine's own processes, and the others would end without a word.

    again: the command that goes on after a signal; without it neither signals nor lost processes are reported.
    """
    from align.core.engine.processes import local_rank, rank
    from align.core.util.stopping import LOST, Interrupted, ProcessLost
    from align.schemas.errors import AlignError

    try:
        yield
    except Interrupted as stop:
        if again and rank() == 0:
            click.echo(f"{stop}; go on with: {again}", err=True)
        sys.exit(128 + stop.signal_number)
    except ProcessLost:
        if again and local_rank() == 0:
            raise
        sys.exit(LOST)  # the launcher reports which process was lost
    except AlignError:
        if not again and local_rank() != 0:
            sys.exit(2)  # the supervisor reports it
        if local_rank() != 0:
            # Most mistakes are every process's. torchrun ends the others once one has failed, and the first would be
            # ended before it has said why; so it goes first, and this one reports what is its alone.
            time.sleep(FIRST_REPORT_SECONDS)
        raise
