"""Tables of plain text on standard output."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

from align.schemas.text import stripped


def print_columns(rows: Iterable[Sequence[Any]], cut: bool = False) -> None:
    """Print rows of equal length as columns as wide as their longest cell; the first row is the heading.

    cut: end lines at the terminal's width. In a pipe, for grep, they always stay whole.
    """
    cells = [list(map(_one_line, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    most = shutil.get_terminal_size().columns if cut and sys.stdout.isatty() else sys.maxsize
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        click.echo(line if len(line) <= most else f"{line[: most - 1]}…")


def _one_line(cell: Any) -> str:
    return stripped(" ".join(str(cell).split()))
