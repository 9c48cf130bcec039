"""Resources that a command holds until it ends: progress on stderr, and an exit with a message on a signal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import rich_click as click

from align.cli import importing
from align.core.util.progress import showing, working

quiet = click.option("--quiet", is_flag=True, help="No progress on stderr.")


def show_progress(shown: bool) -> None:
    """Show what takes long, on stderr, until the command ends."""
    _context().with_resource(showing(shown))


def ends_on_signals(again: str = "") -> None:
    """Make the running command end on a signal. again: the command that goes on, for the message.

    Called before training begins: importing torch alone takes seconds, in which a signal may come.
    """
    # Here: commands that do not train need no handlers.
    from align.core.util import liveness, stopping

    _context().with_resource(stopping.ending_on_signals(again, liveness.note))


def _context() -> click.Context:
    context = click.get_current_context()
    assert context is not None  # there is one in every command
    return context


@contextmanager
def loading(what: str = "PyTorch and transformers") -> Iterator[None]:
    """Show the work of imports: they take seconds, before a command can show anything of its own."""
    with importing(), working(f"loading {what}"):
        yield
