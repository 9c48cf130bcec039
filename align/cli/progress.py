"""Progress of commands: shown on stderr, unless --quiet is given or the output is for a program."""

from __future__ import annotations

import rich_click as click

from align.core.util.progress import Work, showing, working

quiet = click.option("--quiet", is_flag=True, help="No progress on stderr.")


def show_progress(shown: bool) -> None:
    """Show what takes long, on stderr, until the command ends."""
    context = click.get_current_context()
    assert context is not None  # there is one in every command
    context.with_resource(showing(shown))


def loading(what: str = "PyTorch and transformers") -> Work:
    """Return the work of imports: they take seconds, before a command can show anything of its own."""
    return working(f"loading {what}")
