"""``align data``: parse, call, print."""

from __future__ import annotations

import json
import sys
from typing import get_args

import rich_click as click

from align.cli.data_label import label
from align.cli.data_show import show
from align.core.data.survey import Survey, survey
from align.schemas.records import Kind
from align.schemas.run import Source


@click.group()
def data() -> None:
    """Look at data as the model will see it, and check it."""


data.add_command(show)
data.add_command(label)


@data.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--format", "format_", default="auto", show_default=True, help="A format by name.")
@click.option(
    "--kind", type=click.Choice(get_args(Kind)), multiple=True, help="What the rows are to teach; repeatable."
)
@click.option("--column", multiple=True, metavar="OURS=THEIRS", help="Read column THEIRS as OURS; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def check(
    files: tuple[str, ...],
    format_: str,
    kind: tuple[Kind, ...],
    column: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Name every bad row of each FILE, and count them by kind.

    FILE is a data file, a directory of them or a hub id. Exits with 1 where a row is bad or a file cannot be read.
    """
    pairs = [word.partition("=") for word in column]
    if wrong := [word for word, (ours, _, theirs) in zip(column, pairs, strict=True) if not (ours and theirs)]:
        raise click.BadParameter(f"{wrong[0]!r} is not OURS=THEIRS", param_hint="--column")
    columns = {ours: theirs for ours, _, theirs in pairs}
    progress = not quiet and sys.stderr.isatty()
    surveys = []
    for file in files:
        source = Source(path=file, format=format_, columns=columns)
        surveys.append(survey(source, kind or get_args(Kind), progress=progress))
        if not as_json:
            _print(surveys[-1])
    if as_json:
        click.echo(json.dumps([found.to_json() for found in surveys], indent=1))
    if not all(found.clean for found in surveys):
        sys.exit(1)


def _print(found: Survey) -> None:
    if found.error:
        click.echo(found.error)
        return
    click.echo(f"{found.path}: {found.form}: {found.rows} good, {found.bad.summary}")
    if found.left_out:
        click.echo(f"  not read: {', '.join(found.left_out)}")
    for row in found.bad.rows:
        click.echo(f"  {row}")
    if len(found.bad) > len(found.bad.rows):
        click.echo(f"  ... the first {len(found.bad.rows)} are listed")
