"""``align estimate``: parse, call, print."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import rich_click as click

from align.cli.command_context import loading, quiet, show_progress


@click.command()
@click.argument("run", type=click.Path(path_type=Path), help="A run file (docs/runfile.md).")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", help="Single settings laid over the file.")
@click.option(
    "--device",
    "--gpu",
    "device",
    help="An accelerator by name (H100, A100-80, RTX 4090); default: what this machine has.",
)
@click.option("--devices", "--gpus", "devices", type=click.IntRange(min=1), help="How many are in each machine.")
@click.option("--nodes", type=click.IntRange(min=1), help="How many machines; else devices.nodes, or 1 with --gpus.")
@click.option("--memory", type=click.FloatRange(min=0, min_open=True), help="Memory of each, in GB (10^9 bytes).")
@click.option("--dry-run", is_flag=True, help="Count the bytes of real steps under tensors without numbers.")
@click.option("--calibrate", is_flag=True, help="Run a few real steps here, and correct the estimate by them.")
@click.option("--prices", type=click.Path(path_type=Path), help="A YAML file with what an hour of each device costs.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
@quiet
def estimate(
    run: Path,
    overrides: tuple[str, ...],
    device: str | None,
    devices: int | None,
    nodes: int | None,
    memory: float | None,
    dry_run: bool,
    calibrate: bool,
    prices: Path | None,
    form: str,
    quiet: bool,
) -> None:
    """Estimate what RUN takes: memory on each device, whether it fits, what would help, and how long.

    Ends with status 1 where it does not fit, or training would refuse it.

    \b
    Example:
      align estimate run.yaml --calibrate
      align estimate run.yaml --gpu H100 --gpus 8 --nodes 4 train.micro_batch_size=1
    """
    show_progress(not quiet and form == "text")
    with loading():
        from align.api.estimating import estimate as work
        from align.core.config import run_file

    checked = run_file.load(run, list(overrides))
    found = work(
        checked,
        device=device,
        devices=devices,
        nodes=nodes,
        memory_gb=memory,
        dry_run=dry_run,
        calibrate=calibrate,
        prices=prices,
    )
    if form == "json":
        click.echo(json.dumps(found.to_json(), indent=1))
    else:
        from rich.console import Console

        from align.advisor.estimate.show_estimate import show, show_problems

        console = Console(highlight=False, soft_wrap=True)
        for stage in found.stages:
            show(stage, console)
        show_problems(found.problems, console)
    sys.exit(0 if found.fits else 1)
