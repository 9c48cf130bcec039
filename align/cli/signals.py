"""Signals to commands that train: they end with the signal's exit status and a message, from their first line on."""

from __future__ import annotations

import click


def ends_on_signals(again: str = "") -> None:
    """Make the running command end on a signal. again: the command that goes on, for the message.

    Called before training begins: importing torch alone takes seconds, in which a signal may come.
    """
    from align.core.util.liveness import ending_on_signals

    click.get_current_context().with_resource(ending_on_signals(again))
