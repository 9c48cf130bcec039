"""``align data``: parse, call, print."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import rich_click as click

from align.cli.choices import files as files_
from align.cli.command_context import quiet, show_progress
from align.cli.data_label import label
from align.cli.data_show import show
from align.schemas.records import Kind

if TYPE_CHECKING:
    from align.core.data.lint.linter import ScanResult


@click.group()
def data() -> None:
    """Look at data as the model will see it, and check it.

    \b
    Example:
      align data check chats.jsonl
      align data show chats.jsonl --model Qwen/Qwen3-0.6B --rows 1
    """


data.add_command(show)
data.add_command(label)


@data.command()
@click.argument(
    "files",
    nargs=-1,
    required=True,
    metavar="FILE...",
    shell_complete=files_,
    help="Data files, directories of them, or hub ids.",
)
@click.option("--format", "format_", default="auto", show_default=True, help="A format by name.")
@click.option(
    "--kind", type=click.Choice(get_args(Kind)), multiple=True, help="What the rows are to teach; repeatable."
)
@click.option("--column", multiple=True, metavar="OURS=THEIRS", help="Read column THEIRS as OURS; repeatable.")
@click.option("--against", multiple=True, metavar="FILE", help="An evaluation whose prompts must not be in the rows.")
@click.option("--model", help="A model directory or hub id: lengths are given in its tokens.")
@click.option("--max-length", type=click.IntRange(min=1), help="--model: tokens from which on rows are too long.")
@click.option("--reward", metavar="NAME", help="Say how this reward is attacked with these rows.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with pictures.")
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "never"]),
    default="error",
    show_default=True,
    help="The least finding to exit with 1 for.",
)
@click.option("--skip", multiple=True, metavar="ID", help="Do not report this finding; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, and no progress.")
@quiet
def check(
    files: tuple[str, ...],
    format_: str,
    kind: tuple[Kind, ...],
    column: tuple[str, ...],
    against: tuple[str, ...],
    model: str | None,
    max_length: int | None,
    reward: str | None,
    html: Path | None,
    fail_on: str,
    skip: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Name every bad row of each FILE, count them by kind, and say what is doubtful about the good ones.

    Exits with 1 where a row is bad, a file cannot be read, or something is found that is as bad as --fail-on.

    \b
    Example:
      align data check train.jsonl --against test.jsonl
      align data check pairs.parquet --kind preference --column chosen=better --html page.html
    """
    from align.api.data_checking import check_data

    show_progress(not (quiet or as_json))
    pairs = [word.partition("=") for word in column]
    if wrong := [word for word, (ours, _, theirs) in zip(column, pairs, strict=True) if not (ours and theirs)]:
        raise click.BadParameter(f"{wrong[0]!r} is not OURS=THEIRS", param_hint="--column")
    if max_length is not None and model is None:
        raise click.BadParameter("is in tokens, so it needs --model", param_hint="--max-length")
    results = check_data(
        files,
        format=format_,
        kinds=kind,
        columns={ours: theirs for ours, _, theirs in pairs},
        against=against,
        model=model,
        max_length=max_length,
        skip=skip,
        report=(lambda found: None) if as_json else _print,
    )
    following = [shlex.join(["align", "reward", "audit", reward, file]) for file in files] if reward else []
    if as_json:
        click.echo(json.dumps([found.to_json() for found in results], indent=1))
    for command in following:
        click.echo(f"next: {command}", err=as_json)
    if html is not None:
        from align.core.report.data_page import write_page

        write_page(html, results)
    if fail_on != "never" and not all(found.passes("error" if fail_on == "error" else "warning") for found in results):
        sys.exit(1)


def _print(found: ScanResult) -> None:
    from align.schemas.text import visible

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
    for unit in ("tokens", "words"):
        if lengths := [one for one in found.lengths if one.unit == unit]:
            click.echo("\n".join(f"  {one}" for one in lengths))
            break
    for one in found.findings:
        click.echo(visible(f"  {one}\n    {one.fix}"))
