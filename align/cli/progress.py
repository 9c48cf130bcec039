"""What commands share about progress: shown unless they are told to be quiet or to print for a program."""

from __future__ import annotations

import rich_click as click

from align.core.progress import Work, showing, working

quiet = click.option("--quiet", is_flag=True, help="No progress on stderr.")


def show_progress(shown: bool) -> None:
    """Show what takes long, on stderr, until the command ends."""
    context = click.get_current_context()
    assert context is not None  # there is one in every command
    context.with_resource(showing(shown))


def loading(what: str = "PyTorch and transformers") -> Work:
    """The seconds of imports before anything else can be said."""
    return working(f"loading {what}")
