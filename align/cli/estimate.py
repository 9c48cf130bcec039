"""``align estimate``: parse, call, print."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import rich_click as click

from align.cli.progress import loading, quiet, show_progress


@click.command()
@click.argument("run", type=click.Path(path_type=Path), help="A run file (docs/runfile.md).")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", help="Single settings laid over the file.")
@click.option("--device", help="An accelerator by name (H100, A100-80, RTX 4090); default: what this machine has.")
@click.option("--devices", type=click.IntRange(min=1), help="How many of them share each step.")
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
    memory: float | None,
    dry_run: bool,
    calibrate: bool,
    prices: Path | None,
    form: str,
    quiet: bool,
) -> None:
    """Estimate what RUN takes: memory on each device, whether it fits, what would help, and how long.

    Ends with status 1 where it does not fit.

    \b
    Example:
      align estimate run.yaml --calibrate
      align estimate run.yaml --device H100 --devices 8 train.micro_batch_size=1
    """
    show_progress(not quiet and form == "text")
    with loading():
        from align.advisor.estimate.work import read_prices
        from align.api.estimating import Place, examined
        from align.core import runfile

    asked = runfile.load(run, list(overrides))
    table, currency, _ = (None, "", "") if prices is None else read_prices(prices)
    place = Place(device, devices, None if memory is None else memory * 1e9)
    found = examined(asked, place, dry=dry_run, measure=calibrate, prices=table, currency=currency)
    if form == "json":
        click.echo(json.dumps({"schema": "align.estimate/1", "stages": [each.as_json() for each in found]}, indent=1))
    else:
        from rich.console import Console

        from align.advisor.estimate.show import show

        console = Console(highlight=False, soft_wrap=True)
        for each in found:
            show(each, console)
    sys.exit(0 if all(each.fits for each in found) else 1)
