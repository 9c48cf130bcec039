"""The output of ``align train --check``."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from align.core.data.preview import format_example, legend
from align.core.training.check import StageCheck
from align.schemas.text import stripped


def print_checks(checks: Sequence[StageCheck]) -> None:
    """Print what each stage would do, and its first example as the tokens that it learns from."""
    console = Console()
    colour = console.color_system is not None  # without colours what is learned stands in brackets
    for found in checks:
        table = Table(title=f"{found.name} ({found.algorithm})", show_header=False, title_justify="left")
        bad = ", ".join(f"{count} {kind}" for kind, count in found.bad_rows.items()) or "none"
        for name, value in (
            ("rows", f"{found.rows:,} to train on, {found.held_out_rows:,} held out, bad: {bad}"),
            ("tokens", f"{found.tokens:,}, the longest example {found.longest:,}"),
            ("parameters", f"{found.trained_parameters:,} trained of {found.parameters:,}"),
            ("steps", f"{found.steps:,}"),
            ("strategy", found.strategy),
            ("first step", found.first_step),
        ):
            table.add_row(name, value)
        console.print(table, *(Text(stripped(finding), style="yellow") for finding in found.findings))
        console.print(legend(colour), soft_wrap=True)
        console.print(format_example(found.first, found.encoder, colour), soft_wrap=True)
    console.print("[green]ready to train[/green]")
