"""Commands that train end by a signal with its status and a sentence, from their first line on."""

from __future__ import annotations

import click


def ends_on_signals(again: str = "") -> None:
    """Have the command that is running end on a signal; ``again`` is how to go on, as the message says it.

    Not only while it trains: importing torch alone takes seconds.
    """
    from align.core.interrupt import ending_on_signals

    click.get_current_context().with_resource(ending_on_signals(again))
