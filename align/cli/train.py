"""``align train``: parse, call, print."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--check", is_flag=True, help="Everything but training: settings, data, template, plan, the first batch.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run; finished stages are skipped either way.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
def train(run: Path, overrides: tuple[str, ...], check: bool, resume: bool, quiet: bool) -> None:
    """Train what RUN describes, stage by stage.

    RUN is a YAML file; KEY=VALUE lays single settings over it: algorithm.beta=0.2 stages.1.train.epochs=3
    """
    from align.core import runfile

    asked = runfile.load(run, list(overrides))
    if check:
        from align.core.train.check import check as check_run
        from align.core.train.check import render

        render(check_run(asked))
        return

    from align.core.train.callbacks import Interrupted
    from align.core.train.launch import train as launch

    try:
        results = launch(asked, resume=resume, progress=not quiet and sys.stderr.isatty())
    except Interrupted as stop:
        click.echo(f"{stop}; go on with: align train {run} {' '.join([*overrides, '--resume'])}", err=True)
        sys.exit(128 + stop.signal_number)
    for result in results:
        metrics = "  ".join(f"{name} {value:.4g}" for name, value in result.metrics.items() if name.endswith("loss"))
        click.echo(f"{result.name}: {result.export}  {metrics}")


@click.command(hidden=True)
@click.argument("directory", type=click.Path(path_type=Path, exists=True))
@click.argument("stage")
@click.option("--progress/--quiet", default=False)
def worker(directory: Path, stage: str, progress: bool) -> None:
    """One process of a stage's group; ``align train`` starts it."""
    from align.core.train.callbacks import Interrupted
    from align.core.train.launch import work
    from align.core.train.spawn import rank
    from align.schemas.errors import AlignError

    try:
        work(directory, stage, progress)
    except Interrupted as stop:
        sys.exit(128 + stop.signal_number)
    except AlignError:
        if rank() == 0:
            raise
        sys.exit(2)
