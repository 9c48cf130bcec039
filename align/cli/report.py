"""``align report`` and ``align diff``: parse, call, print."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import rich_click as click

from align.cli.choices import files
from align.cli.command_context import loading


@click.command()
@click.argument(
    "runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path), help="A run's directory."
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The page; RUN/report.html unless given.")
@click.option("--gate", type=click.Path(path_type=Path), shell_complete=files, help="What `align gate --json` wrote.")
@click.option("--title", help="The page's heading; the directory's name unless given.")
@click.option(
    "--serve", is_flag=True, help="Show it in a browser on this machine, and refresh it while the run goes on."
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of --serve; a free one unless given.")
def report(
    runs: tuple[Path, ...], out: Path | None, gate: Path | None, title: str | None, serve: bool, port: int
) -> None:
    """Show what a run learned: one self-contained page, of several runs with their curves laid over each other.

    \b
    Example:
      align report runs/first
      align report runs/first runs/second --out both.html
      align report runs/first --serve
    """
    if serve and out is not None:
        raise click.UsageError("--serve writes no file: leave out --out.")
    with loading():
        from align.api import reporting

    if not serve:
        click.echo(reporting.report(runs, out, gate=gate, title=title))
        return
    server = reporting.report_server(runs, gate=gate, title=title, port=port)
    click.echo(f"{server.url}  (Ctrl-C ends it)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


@click.command()
@click.argument("first", type=click.Path(path_type=Path), help="A run's directory.")
@click.argument("second", type=click.Path(path_type=Path), help="Another one's.")
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
def diff(first: Path, second: Path, as_json: bool) -> None:
    """Say why two runs differ: settings, data, model, versions, and then their results.

    \b
    Example:
      align diff runs/first runs/second
    """
    from align.api import reporting
    from align.schemas.text import visible

    found = reporting.diff(first, second)
    if as_json:
        values = {"first": str(first), "second": str(second), "differences": [asdict(each) for each in found]}
        click.echo(json.dumps(values, indent=1, ensure_ascii=False))
        return
    if not found:
        click.echo("Nothing that was recorded differs.")
    for (stage, kind), group in groupby(found, lambda each: (each.stage, each.kind)):
        click.echo(f"{visible(stage)}{': ' if stage else ''}{kind}")
        for each in group:
            before, after = ("–" if side is None else visible(side) for side in (each.before, each.after))
            click.echo(f"  {visible(each.name)}: {before} → {after}")
